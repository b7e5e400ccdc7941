"""`sam3label export`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sam3label.export.dataset import Summary
    from sam3label.run.reader import Run


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `sam3label run`.")],
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            "-f",
            help="coco, coco-zero, coco-roboflow, yolo, yolo-detect, yolo-obb, voc, cvat, labelstudio, masks; "
            "of tracked videos ytvis, mot, mots; repeatable.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Dataset folder; with several formats, OUT/FORMAT. [RUN/exports/FORMAT]"),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option("--concepts", "-c", help="Other thresholds and classes over the same phrases. [the run's own]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --concepts: override, e.g. concepts.helmet.conf=0.7. Repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="For example train=0.8,val=0.1,test=0.1. [everything in train]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    group: Annotated[str | None, typer.Option(help="folder: photos of one folder stay in one split.")] = None,
    group_regex: Annotated[
        str | None,
        typer.Option(help="Photos in whose path this finds the same text (its first group) stay in one split."),
    ] = None,
    images: Annotated[str, typer.Option(help="hardlink (copies where it cannot), copy, symlink, none.")] = "hardlink",
    classes: Annotated[str | None, typer.Option(help="Only these classes, with commas between. [all]")] = None,
    min_score: Annotated[float, typer.Option(help="Leave out labels with a lower score.")] = 0.0,
    empty: Annotated[
        bool, typer.Option("--empty/--no-empty", help="Keep photos without labels, as background.")
    ] = True,
    segmentation: Annotated[
        str | None, typer.Option(help="COCO formats: rle (exact) or polygon (RT-DETR return_masks needs it). [rle]")
    ] = None,
    simplify: Annotated[
        float,
        typer.Option(metavar="PX", help="Polygons may leave the mask's border by this much; prints what it costs."),
    ] = 0.0,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the dataset in OUT, keeping its class ids (coco and yolo formats).")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write a run's labels as training sets. Each folder appears whole, or not at all."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.export.dataset import Options
    from sam3label.export.registry import refuse_unknown_formats
    from sam3label.export.splits import parse_splits
    from sam3label.export.write import export as write
    from sam3label.run.reader import open_run

    refuse_unknown_formats(formats)
    if settings and concepts is None:
        raise typer.BadParameter("changes a concept list: give that with --concepts", param_hint="--set")
    _one_of("--images", images, ("hardlink", "copy", "symlink", "none"))
    _one_of("--segmentation", segmentation, (None, "rle", "polygon"))
    options = Options(
        splits=parse_splits(split, seed, group, group_regex),
        images=images,  # type: ignore[arg-type]  # checked above, as is segmentation
        classes=tuple(name.strip() for name in classes.split(",")) if classes else (),
        min_score=min_score,
        keep_empty=empty,
        segmentation=segmentation,  # type: ignore[arg-type]
        simplify_px=simplify,
        append=append,
    )
    with open_run(run, load_concepts(concepts, settings or []) if concepts else None) as labelled:
        for name in dict.fromkeys(formats):
            target = _target(run, out, name, several=len(set(formats)) > 1)
            with _progress(labelled, name, quiet) as step:
                summary = write(labelled, name, target, options, step)
            if not quiet:
                print_export(summary)


def _target(run: Path, out: Path | None, name: str, *, several: bool) -> Path:
    if out is None:
        return run / "exports" / name
    return out / name if several else out


def _one_of(option: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        known = ", ".join(a for a in allowed if a)
        raise typer.BadParameter(f"{value!r} is not one of {known}", param_hint=option)


@contextmanager
def _progress(labelled: Run, name: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"Exporting {name}", total=len(labelled))
        yield lambda done: bar.update(task, completed=done)


def print_export(summary: Summary) -> None:
    """What each split holds, by class; what was left out; where it is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"{summary.format}: {summary.images} images, {summary.instances} instances", markup=False)
    table = Table()
    table.add_column("class")
    for name in summary.splits:
        table.add_column(name, justify="right")
    total = max(summary.images, 1)
    for row, cells in {
        "images": [f"{s.images} ({s.images / total:.0%})" for s in summary.splits.values()],
        "of these empty": [str(s.empty) for s in summary.splits.values()],
        "instances": [str(s.instances.total()) for s in summary.splits.values()],
    }.items():
        table.add_row(row, *cells, style="dim")
    table.add_section()
    for class_id, name in _most_first(summary):
        table.add_row(escape(name), *(str(s.instances[class_id]) for s in summary.splits.values()))
    console.print(table)
    for line in _remarks(summary):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Dataset: {summary.folder}", markup=False, soft_wrap=True)


def _most_first(summary: Summary) -> list[tuple[int, str]]:
    """Up to 40 classes; with more, the most frequent ones."""
    counts = {i: sum(s.instances[i] for s in summary.splits.values()) for i in summary.classes}
    shown = list(summary.classes.items())
    return shown if len(shown) <= 40 else sorted(shown, key=lambda c: -counts[c[0]])[:40]


def _remarks(summary: Summary) -> Iterator[str]:
    if summary.simplify_iou:
        mean, lowest = summary.simplify_iou
        yield f"Simplified polygons against their masks: IoU {mean:.4f} on average, {lowest:.4f} at worst."
    for split in summary.splits:
        if missing := _missing(summary, split):
            yield f"{split} has no {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}."
    yield from summary.notes
    if summary.failed:
        yield f"Not in the dataset: {len(summary.failed)} files that could not be labelled."
        yield from (f"  {item_id}: {reason}" for item_id, reason in summary.failed[:20])
        if len(summary.failed) > 20:
            yield "  ... all of them: sam3label status RUN"


def _missing(summary: Summary, split: str) -> list[str]:
    """Classes that the dataset has, and this split has not."""
    present = {i for s in summary.splits.values() for i, n in s.instances.items() if n}
    return [summary.classes[i] for i in sorted(present) if not summary.splits[split].instances[i]]

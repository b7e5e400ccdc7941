"""`sam3label export`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import PhotosNow
from sam3label.core.text import one_line
from sam3label.export.options import Placement, Segmentation

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
    photos: PhotosNow = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a rule of the concept list, e.g. concepts.helmet.conf=0.7. Repeatable."),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="Only these classes of the run, with commas between; repeatable. [all]")
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Call a class something else; several may become one. Repeatable."),
    ] = None,
    min_score: Annotated[float, typer.Option(help="Leave out labels with a lower score.")] = 0.0,
    empty: Annotated[
        bool, typer.Option("--empty/--no-empty", help="Keep photos without labels, as background.")
    ] = True,
    every: Annotated[int, typer.Option(metavar="N", help="Of videos, export every N-th frame of the film.")] = 1,
    fps: Annotated[float | None, typer.Option(help="Of videos, export this many frames a second.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train=0.8,val=0.1,test=0.1, or 0.8,0.1,0.1 in that order. [everything in train]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another number splits otherwise.")] = 0,
    group: Annotated[str | None, typer.Option(help="folder: photos of one folder stay in one split.")] = None,
    group_regex: Annotated[
        str | None,
        typer.Option(help="Photos in whose path this finds the same text (its first group) stay in one split."),
    ] = None,
    images: Annotated[
        Placement | None,
        typer.Option(
            help="How photos get there: hard links (copies where they cannot be), which with upright are turned "
            "copies of photos that EXIF turns. [upright where a format's readers ignore EXIF, else hardlink]"
        ),
    ] = None,
    flat: Annotated[
        bool,
        typer.Option("--flat", help="No subfolders: a/1.jpg becomes a__1.jpg. Some readers see one folder."),
    ] = False,
    segmentation: Annotated[
        Segmentation | None,
        typer.Option(
            help="How masks are held: rle or polygon (coco formats, cvat), uncompressed or rle (ytvis). "
            "[rle; polygon in coco-zero, uncompressed in ytvis]"
        ),
    ] = None,
    simplify: Annotated[
        float, typer.Option(metavar="PX", help="Polygons may leave the mask's border by this many pixels.")
    ] = 0.0,
    append: Annotated[
        bool,
        typer.Option("--append", help="Add to the dataset in OUT and keep its class ids (coco, yolo, cvat)."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset in OUT with what people added or changed in it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Write a run's labels as training sets. Each folder appears whole, or not at all."""
    from sam3label.export.options import Options, parse_classes, parse_map
    from sam3label.export.splits import parse_splits
    from sam3label.export.write import export as write
    from sam3label.export.write import refuse_senseless

    with _opened(run, concepts, settings or [], photos) as labelled:
        names = labelled.concepts.names
        options = Options(
            splits=parse_splits(split, seed, group, group_regex),
            images=images,
            classes=parse_classes(classes or [], names),
            map=parse_map(map or [], names),
            min_score=min_score,
            keep_empty=empty,
            every=every,
            fps=fps,
            flat=flat,
            segmentation=segmentation,
            simplify_px=simplify,
            append=append,
            overwrite=overwrite,
        )
        wanted = list(dict.fromkeys(formats))
        refuse_senseless(wanted, options)
        for name in wanted:
            target = _target(run, out, name, several=len(wanted) > 1)
            with _progress(labelled, name, quiet) as step:
                summary = write(labelled, name, target, options, step)
            if not quiet:
                print_export(summary)


def _opened(run: Path, concepts: Path | None, settings: list[str], photos: Path | None) -> Run:
    """The run with its own concept list, or with that of a file, and the settings over it."""
    from sam3label.concepts.concept_list import dump_concepts, load_concepts, parse_concepts
    from sam3label.run.reader import open_run

    if concepts is not None:
        return open_run(run, load_concepts(concepts, settings), photos)
    if not settings:
        return open_run(run, photos=photos)
    with open_run(run) as labelled:
        own, names = dump_concepts(labelled.concepts), labelled.concepts.names
    for_each = [s for text in settings for s in _spelled_out(text, names)]
    return open_run(run, parse_concepts(own, f"{run} (the run's own concept list)", for_each), photos)


def _spelled_out(setting: str, names: Sequence[str]) -> list[str]:
    """A default as the rule of every class: in a run's own list each class has all of its rules."""
    key = setting.removeprefix("defaults.")
    return [setting] if key == setting else [f"concepts.{name}.{key}" for name in names]


def _target(run: Path, out: Path | None, name: str, *, several: bool) -> Path:
    if out is None:
        return run / "exports" / name
    return out / name if several else out


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
    if summary.polygon_iou:
        mean, lowest = summary.polygon_iou
        yield f"Polygons against their masks: IoU {mean:.4f} on average, {lowest:.4f} at worst."
    for split in summary.splits:
        if missing := _missing(summary, split):
            yield f"{split} has no {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}."
    yield from summary.notes
    if summary.failed:
        yield f"Not in the dataset: {len(summary.failed)} files that could not be labelled."
        yield from (f"  {one_line(item_id)}: {reason}" for item_id, reason in summary.failed[:20])
        if len(summary.failed) > 20:
            yield "  ... all of them: sam3label status RUN"


def _missing(summary: Summary, split: str) -> list[str]:
    """Classes that the dataset has, and this split has not."""
    present = {i for s in summary.splits.values() for i, n in s.instances.items() if n}
    return [summary.classes[i] for i in sorted(present) if not summary.splits[split].instances[i]]

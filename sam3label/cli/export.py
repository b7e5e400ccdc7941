"""`sam3label export`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam3label.cli.options import (
    INPUT,
    OUTPUT,
    VIDEO,
    OtherConcepts,
    PhotosNow,
    Quiet,
    RunFolders,
    Settings,
    Split,
    format_names,
)
from sam3label.cli.progress import Display, progress_display
from sam3label.cli.tables import console, program
from sam3label.core.text import count, one_line, verb
from sam3label.errors import ConfigError
from sam3label.export.options import Placement, Segmentation

if TYPE_CHECKING:
    from sam3label.export.dataset import Summary
    from sam3label.labelled_run import LabeledRun


def export(
    run: RunFolders,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            autocompletion=format_names,
            help="Write this format: coco, coco-zero, coco-roboflow, yolo, yolo-detect, yolo-obb, voc, cvat, "
            "labelstudio, masks; of tracked videos ytvis, mot, mots. May be repeated.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Make this dataset folder, or OUT/FORMAT of several formats, instead of RUN/exports/FORMAT.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
    settings: Settings = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            help="Take only these classes of the run, with commas between. May be repeated.", rich_help_panel=INPUT
        ),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Call a class something else; several may become one. May be repeated.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    min_score: Annotated[float, typer.Option(help="Leave out labels with a lower score.", rich_help_panel=INPUT)] = 0.0,
    empty: Annotated[
        bool,
        typer.Option("--empty/--no-empty", help="Keep photos without labels, as background.", rich_help_panel=INPUT),
    ] = True,
    every: Annotated[
        int, typer.Option(metavar="N", help="Take every N-th frame of a video.", rich_help_panel=VIDEO)
    ] = 1,
    fps: Annotated[
        float | None,
        typer.Option(help="Take so many frames a second of a video instead of --every.", rich_help_panel=VIDEO),
    ] = None,
    split: Split = None,
    seed: Annotated[
        int, typer.Option(help="Split by this number: another one splits otherwise.", rich_help_panel=OUTPUT)
    ] = 0,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="folder", help="With folder, keep photos of one folder in one split.", rich_help_panel=OUTPUT
        ),
    ] = None,
    group_regex: Annotated[
        str | None,
        typer.Option(
            help="Keep photos in one split in whose path this finds the same text (its first group).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    images: Annotated[
        Placement | None,
        typer.Option(
            help="Place photos as hard links (copies where they cannot be); with upright, as turned copies of photos "
            "that EXIF turns. By default it is upright where a format's readers ignore EXIF, else hardlink.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    flat: Annotated[
        bool,
        typer.Option(
            "--flat",
            help="Make no subfolders: a/1.jpg becomes a__1.jpg. Some readers see one folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    segmentation: Annotated[
        Segmentation | None,
        typer.Option(
            help="Hold masks as rle or polygon (coco formats, cvat), uncompressed or rle (ytvis). By default it is "
            "rle, in coco-zero polygon, and in ytvis uncompressed.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    simplify: Annotated[
        float,
        typer.Option(
            metavar="PX", help="Let polygons leave the mask's border by this many pixels.", rich_help_panel=OUTPUT
        ),
    ] = 0.0,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add to the dataset in OUT and keep its class ids (coco, yolo, cvat).",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the dataset in OUT with what people added or changed in it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's labels as training sets. Each folder appears whole, or not at all."""
    from sam3label.export.registry import FORMATS
    from sam3label.face import open_run

    if not formats:
        raise ConfigError(f"Say what to write with --format, such as --format yolo. Known: {', '.join(FORMATS)}.")
    options: dict[str, Any] = {
        "split": split, "seed": seed, "group": group, "group_regex": group_regex, "images": images,
        "classes": classes or (), "map": map or (), "min_score": min_score, "empty": empty, "every": every, "fps": fps,
        "flat": flat, "segmentation": segmentation, "simplify": simplify, "append": append, "overwrite": overwrite,
    }  # fmt: skip
    with open_run(run, concepts, photos=photos, settings=settings or ()) as opened:
        made = export_shown(opened, formats, out, quiet=quiet, **options)
    if any(summary.failed for summary in made):
        raise typer.Exit(3)


def export_shown(
    opened: LabeledRun, formats: Sequence[str], out: Path | None = None, *, quiet: bool, **options: Any
) -> list[Summary]:
    """Export in one format after the other, show how far each is, print what it came to and what comes next.

    One format goes into OUT, several into OUT/FORMAT; without OUT, all into RUN/exports/FORMAT.
    """
    wanted, total = list(dict.fromkeys(formats)), len(opened)
    displays: list[Display] = []

    def tell(name: str, done: int) -> None:
        displays[-1].step(f"exporting {name}", done, total, "images")

    made: list[Summary] = []
    summaries: Iterator[Summary]
    if out is not None and len(wanted) == 1:
        summaries = (opened.export(name, out, on_progress=partial(tell, name), **options) for name in wanted)
    else:
        summaries = opened.export_each(wanted, out, on_progress=tell, **options)
    for name in wanted:
        with progress_display(quiet, f"exporting {name} ...") as display:
            displays.append(display)
            made.append(next(summaries))
        if not quiet:
            print_export(made[-1])
    if made and not quiet:
        for line in _next_steps(made):
            console().print(line, soft_wrap=True)
    return made


def _next_steps(made: Sequence[Summary]) -> Iterator[str]:
    """Say what to type next: read each dataset back, and train on it where one command does."""
    from sam3label.export.registry import FORMATS

    yield "Next, read back as a trainer does, then train (other trainers: docs/howto/formats.md):"
    for summary in made:
        folder = str(summary.folder)
        yield f"  {program()} validate {shlex.quote(folder)}"
        if train := FORMATS[summary.format].train:
            yield f"  {shlex.join(word.format(folder) for word in train)}"


def print_export(summary: Summary) -> None:
    """Print what each split holds, by class, what was left out, and where the dataset is."""
    from rich.table import Table

    screen = console()
    screen.print(f"{summary.format}: {count(summary.images, 'image')}, {count(summary.instances, 'instance')}")
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
        table.add_row(name, *(str(s.instances[class_id]) for s in summary.splits.values()))
    screen.print(table)
    for line in _remarks(summary):
        screen.print(line, soft_wrap=True)
    screen.print(f"Dataset: {summary.folder}", soft_wrap=True)


def _most_first(summary: Summary) -> list[tuple[int, str]]:
    """Return the classes, or where there are more than 40 the most frequent ones."""
    counts = {i: sum(s.instances[i] for s in summary.splits.values()) for i in summary.classes}
    shown = list(summary.classes.items())
    return shown if len(shown) <= 40 else sorted(shown, key=lambda c: -counts[c[0]])[:40]


def _remarks(summary: Summary) -> Iterator[str]:
    if summary.polygon_iou:
        mean, lowest = summary.polygon_iou
        yield f"Polygons against their masks: IoU {mean:.4f} on average, {lowest:.4f} at worst."
    for split in summary.splits:
        if missing := _missing(summary, split):
            named = f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
            them = verb(len(missing), "it", "them")
            yield f"{split} has no {named}: another --seed splits otherwise, or label more photos with {them}."
    yield from summary.notes
    if summary.failed:
        yield f"Not in the dataset, because they could not be labelled: {count(len(summary.failed), 'file')}."
        yield from (f"  {one_line(item_id)}: {reason}" for item_id, reason in summary.failed[:20])
        if len(summary.failed) > 20:
            yield "  ... all of them: sam3label status RUN"


def _missing(summary: Summary, split: str) -> list[str]:
    """Return the classes that the dataset has and this split has not."""
    if not summary.splits[split].images:
        return []  # an empty one is named as such
    present = {i for s in summary.splits.values() for i, n in s.instances.items() if n}
    return [summary.classes[i] for i in sorted(present) if not summary.splits[split].instances[i]]

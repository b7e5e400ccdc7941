"""`sam3label calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, GtSplit, RunFolder, file_names
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import console

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.quality.calibrate import Calibration, ClassResult


def calibrate(
    run: RunFolder,
    gt: Annotated[
        Path,
        typer.Option(
            "--gt",
            help="Take the truth of some of the run's images from here: COCO JSON, a YOLO data.yaml or its folder.",
            rich_help_panel=INPUT,
        ),
    ],
    gt_split: GtSplit = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write this concept list instead of RUN/concepts.calibrated.yaml.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            "--concepts",
            "-c",
            metavar="PATH",
            autocompletion=file_names,
            help="Start from this concept list instead of the run's own.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    beta: Annotated[
        float,
        typer.Option(min=0.1, max=10, help="Weigh recall so many times as much as precision.", rich_help_panel=OUTPUT),
    ] = 1.0,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Seek the most recall at this precision or better instead.", rich_help_panel=OUTPUT
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            max=50,
            help="Validate over so many parts of the images, each judged by the others.",
            rich_help_panel=OUTPUT,
        ),
    ] = 5,
) -> None:
    """Choose each class's score, presence and NMS thresholds from a few labelled images. No GPU."""
    from sam3label.face import open_run

    target = out or run / "concepts.calibrated.yaml"
    with progress_display(False, "trying thresholds ..."), open_run(run, concepts) as opened:
        calibration = opened.calibrate(gt, target, gt_split=gt_split, beta=beta, precision=precision, folds=folds)
    _print_calibration(console(), calibration, run, target)


def _print_calibration(console: Console, calibration: Calibration, run_folder: Path, target: Path) -> None:
    from rich.table import Table

    console.print(f"Thresholds for {calibration.sought}; F is cross-validated over images.")
    fields = [
        name
        for name in ("conf", "presence", "iou", "reject_below")
        if any(getattr(result.old, name) is not None for result in calibration.classes)
    ]
    table = Table("class", "objects", *fields, "F before", "F after", "gain [95 %]", "note")
    for result in calibration.classes:
        table.add_row(*_calibration_row(result, fields))
    console.print(table)
    _print_phrases(console, calibration)
    for note in calibration.notes:
        console.print(f"Note: {note}")
    console.print(f"Written: {target}\nUse it: sam3label export {run_folder} -c {target} ...")


def _calibration_row(result: ClassResult, fields: Sequence[str]) -> list[str]:
    if result.before is None or result.after is None:
        return [result.name, str(result.objects), *("" for _ in range(len(fields) + 3)), result.note]
    low, high = result.gain_interval
    pairs = [(getattr(result.old, name), getattr(result.new, name)) for name in fields]
    values = ("" if old is None else f"{new:g}" if new == old else f"{old:g} -> {new:g}" for old, new in pairs)
    gain = f"{result.gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [
        result.name, str(result.objects), *values,
        f"{result.before.f:.3f}", f"{result.after.f:.3f}", gain, result.note,
    ]  # fmt: skip


def _print_phrases(console: Console, calibration: Calibration) -> None:
    from rich.table import Table

    table = Table("class", "phrase", "alone: precision", "recall", "only it finds", "only its false alarms", "verdict")
    for result in calibration.classes:
        for effect in result.phrases:
            alone = (f"{effect.alone.precision:.3f}", f"{effect.alone.recall:.3f}")
            brings = (str(effect.hits), str(effect.false_alarms))
            table.add_row(result.name, effect.phrase, *alone, *brings, effect.verdict)
    if table.row_count:
        console.print(table)

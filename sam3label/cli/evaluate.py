"""`sam3label evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, GtSplit, file_names, run_folders
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import console, figure
from sam3label.core.text import count

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.quality.evaluate import Evaluation, Figures
    from sam3label.quality.mistakes import Confusion, Mistakes


TruthFiles = Annotated[
    list[Path],
    typer.Option(
        "--gt",
        help="Judge by this truth: COCO, LVIS, SA-Co or YouTube-VIS JSON, a YOLO data.yaml or its folder. Several are "
        "several annotators.",
        rich_help_panel=INPUT,
    ),
]


MAX_ROWS = 30
MAX_CLASSES = 12  # a larger confusion matrix is no table any more: the JSON has it
MAX_PAIRS = 10
_MANY = "images or videos"


def evaluate(
    gt: TruthFiles,
    run: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run folder, or several that are read as one; or leave it out and give --pred.",
            autocompletion=run_folders,
        ),
    ] = None,
    pred: Annotated[
        Path | None,
        typer.Option(
            "--pred",
            help="Judge results: COCO JSON, or a folder of YOLO label files with scores.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            "--concepts",
            "-c",
            metavar="PATH",
            autocompletion=file_names,
            help="Judge the run by another concept list (thresholds).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            help="Break the figures down by the attributes in this CSV, whose first column has file names.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    gt_split: GtSplit = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write every figure to this file.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Judge labels against truth: SA-Co figures (cgF1, IL_MCC, ...) and COCO AP, by class, size, score, attribute."""
    from sam3label import face

    if bool(run) == (pred is not None):
        raise typer.BadParameter("give either a run folder or --pred results.json", param_hint="RUN / --pred")
    with progress_display(False, "reading the truth ...") as display:

        def tell(done: int, total: int) -> None:
            display.step("comparing", done, total, "pairs of image and class")

        if not run:
            assert pred is not None
            evaluation = face.evaluate(gt, pred, attributes=attributes, gt_split=gt_split)
        else:
            with face.open_run(run, concepts) as opened:
                evaluation = opened.evaluate(gt, attributes=attributes, gt_split=gt_split, on_progress=tell)
    if json_out is not None:
        evaluation.write_json(json_out)
    _print_evaluation(console(), evaluation)


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    from rich.table import Table

    pairs = count(evaluation.pairs, "pair")
    console.print(f"{pairs} of an image or video and a concept, {count(evaluation.images, 'image or video', _MANY)}")
    table = Table("", *(name for name, figures in evaluation.figures.items() if figures))
    rows = ("cgF1", "cgF1@0.5", "positive_micro_F1", "positive_macro_F1", "precision", "recall", "F1", "IL_MCC")
    tracking = ("HOTA", "DetA", "AssA", "LocA")
    for name in (*rows, *tracking, "AP", "AP50", "AP75", "APs", "APm", "APl"):
        if not all(name in figures for figures in evaluation.figures.values() if figures):
            continue
        table.add_row(name, *(figure(figures[name]) for figures in evaluation.figures.values() if figures))
    console.print(table)
    figures = evaluation.figures["segm"] or evaluation.figures["bbox"]
    assert figures is not None  # boxes are always judged
    console.print("Image level: " + ", ".join(f"{n} {figures[f'IL_{n}']}" for n in ("TP", "FP", "TN", "FN")))
    for group in (name for name in figures if name.startswith("by_")):
        _print_groups(console, group.removeprefix("by_"), figures[group])
    _print_mistakes(console, evaluation.mistakes)
    for note in evaluation.notes:
        console.print(f"Note: {note}")


def _print_mistakes(console: Console, mistakes: Mistakes) -> None:
    kind = "mask" if mistakes.compared == "segm" else "box"
    numbers = count(len(mistakes.missed), "miss", "misses"), count(len(mistakes.false_alarms), "false alarm")
    line = f"Mistakes at {kind} IoU 0.5: {numbers[0]}, {numbers[1]}, {len(mistakes.confused)} under another class"
    console.print(f"{line} (--json OUT names each with its image)")
    if mistakes.confusion is None:
        return
    if len(mistakes.confusion.classes) <= MAX_CLASSES:
        _print_confusion(console, mistakes.confusion)
    for truth, answer, times in mistakes.confusion.between()[:MAX_PAIRS]:
        console.print(f"  {truth} taken for {answer}: {times}")


def _print_confusion(console: Console, confusion: Confusion) -> None:
    """Print the confusion matrix: rows are what is there, columns what was answered; misses are last in a row."""
    from rich.table import Table

    table = Table("there / answered", *confusion.classes, "(missed)")
    for name, row in zip((*confusion.classes, "(false alarm)"), confusion.counts.tolist(), strict=True):
        table.add_row(name, *(str(number) if number else "." for number in row))
    console.print(table)


def _print_groups(console: Console, title: str, groups: Figures) -> None:
    """Print a breakdown as a table. Groups of pairs show SA-Co figures at IoU 0.5, groups of objects what they have."""
    from rich.table import Table

    first: Figures = next(iter(groups.values()), {})
    wanted = ("pairs", "precision@0.5", "recall@0.5", "F1@0.5", "cgF1", "HOTA", "AP", "truth", "answers")
    columns = [name for name in wanted if name in first]
    table = Table(f"by {title}", *columns)
    for name, figures in list(groups.items())[:MAX_ROWS]:
        table.add_row(name, *(figure(figures[column]) for column in columns))
    console.print(table)
    if len(groups) > MAX_ROWS:
        console.print(f"... and {len(groups) - MAX_ROWS} more: --json OUT writes them all")

"""`sam3label evaluate`, `calibrate`, `preview` and `report`: know how good the labels are."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.quality.calibrate import Calibration, ClassResult
    from sam3label.quality.evaluate import Evaluation, Figures
    from sam3label.show.preview import Preview

TruthFiles = Annotated[
    list[Path],
    typer.Option("--gt", help="COCO, LVIS, SA-Co or YouTube-VIS JSON. Several files are several annotators."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `sam3label run`.")]
MAX_ROWS = 30


def evaluate(
    gt: TruthFiles,
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder, or leave it out and give --pred.")
    ] = None,
    pred: Annotated[Path | None, typer.Option("--pred", help="COCO results JSON instead of a run.")] = None,
    concepts: Annotated[
        Path | None, typer.Option("--concepts", "-c", help="Judge the run by another concept list (thresholds).")
    ] = None,
    attributes: Annotated[
        Path | None, typer.Option(help="CSV: file name first, then any attributes to break the figures down by.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Judge labels against truth: SA-Co figures (cgF1, IL_MCC, ...) and COCO AP, by class, size, score, attribute."""
    from sam3label.annotations.youtube_vis import is_video_truth
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.quality.evaluate import evaluate_results, evaluate_run, write_json
    from sam3label.quality.evaluate_tracks import evaluate_track_results, evaluate_tracked_run

    if (run_folder is None) == (pred is None):
        raise typer.BadParameter("give either a run folder or --pred results.json", param_hint="RUN / --pred")
    other = load_concepts(concepts) if concepts else None
    videos = is_video_truth(gt[0])
    if videos and (attributes or len(gt) > 1):
        raise typer.BadParameter("a video truth is judged alone: one --gt, no --attributes", param_hint="--gt")
    if run_folder is not None:
        evaluation = (
            evaluate_tracked_run(run_folder, gt[0], other)
            if videos
            else evaluate_run(run_folder, gt, other, attributes)
        )
    else:
        assert pred is not None
        evaluation = evaluate_track_results(gt[0], pred) if videos else evaluate_results(gt, pred, attributes)
    if json_out is not None:
        write_json(evaluation.to_json(), json_out)
    _print_evaluation(_console(), evaluation)


def calibrate(
    run_folder: RunFolder,
    gt: Annotated[Path, typer.Option("--gt", help="COCO truth of some of the run's images.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Concept list to write. [RUN/concepts.calibrated.yaml]")
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option("--concepts", "-c", help="Start from this concept list. [the run's own]")
    ] = None,
    beta: Annotated[float, typer.Option(min=0.1, max=10, help="Weight of recall against precision.")] = 1.0,
    precision: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Instead: the most recall at this precision or better.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=50, help="Parts for cross-validation over images.")] = 5,
) -> None:
    """Choose each class's score, presence and NMS thresholds from a few labelled images. No GPU."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.quality.calibrate import Goal, calibrate_run, write_concepts

    target = out or run_folder / "concepts.calibrated.yaml"
    goal = Goal(beta, precision)
    calibration = calibrate_run(run_folder, gt, load_concepts(concepts) if concepts else None, goal, folds)
    write_concepts(calibration, target)
    _print_calibration(_console(), calibration, run_folder, target)


def preview(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders, globs in quotes.")],
    concepts: Annotated[Path | None, typer.Option("--concepts", "-c", help="Concept list (YAML).")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images to label, spread over all.")] = 16,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the sheet and the page.")] = Path("preview"),
    ontology: Annotated[str | None, typer.Option(help='Instead of -c: \'{"hard hat": "helmet"}\'.')] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. concepts.helmet.conf=0.7. Repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Hub id, local folder in hub layout, or 'demo'.")] = "facebook/sam3",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    video: Annotated[
        str, typer.Option(help="As of `run`: track and frames take folders of numbered frames as videos.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch. Default: from free memory.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes.")] = None,
) -> None:
    """Label a spread sample: a contact sheet, a page, and what the whole folder would take."""
    from sam3label.cli.run import read_concepts
    from sam3label.labelling.job import RunOptions
    from sam3label.show.preview import preview as make_preview

    if video not in ("auto", "track", "frames", "off"):
        raise typer.BadParameter(f"{video!r} is not one of auto, track, frames, off", param_hint="--video")
    options = RunOptions(
        model=model, revision=revision, device=device, batch_size=batch_size, workers=workers,
        video=video,  # type: ignore[arg-type]
    )  # fmt: skip
    made = make_preview(photos, read_concepts(concepts, ontology, settings or []), out, n, options)
    _print_preview(_console(), made)


def report(
    run_folder: RunFolder,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write. [RUN/report.html]")] = None,
    concepts: Annotated[
        Path | None, typer.Option("--concepts", "-c", help="Other thresholds. [the run's own list]")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run: counts, sliders, suspicious cases, a gallery, failures."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.show.report import write_report

    target = out or run_folder / "report.html"
    write_report(run_folder, target, load_concepts(concepts) if concepts else None)
    typer.echo(f"Report: {target}")


def _console() -> Console:
    """Tables are as wide as the terminal; a file or a pipe gets them whole."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    from rich.table import Table

    console.print(f"{evaluation.pairs} pairs of an image or video and a concept, {evaluation.images} images or videos")
    table = Table("", *(name for name, figures in evaluation.figures.items() if figures))
    rows = ("cgF1", "cgF1@0.5", "positive_micro_F1", "positive_macro_F1", "precision", "recall", "F1", "IL_MCC")
    tracking = ("HOTA", "DetA", "AssA", "LocA")
    for name in (*rows, *tracking, "AP", "AP50", "AP75", "APs", "APm", "APl"):
        if not all(name in figures for figures in evaluation.figures.values() if figures):
            continue
        table.add_row(name, *(_figure(figures[name]) for figures in evaluation.figures.values() if figures))
    console.print(table)
    figures = evaluation.figures["segm"] or evaluation.figures["bbox"]
    assert figures is not None  # boxes are always judged
    console.print("Image level: " + ", ".join(f"{n} {figures[f'IL_{n}']}" for n in ("TP", "FP", "TN", "FN")))
    for group in (name for name in figures if name.startswith("by_")):
        _print_groups(console, group.removeprefix("by_"), figures[group])
    for note in evaluation.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)


def _print_calibration(console: Console, calibration: Calibration, run_folder: Path, target: Path) -> None:
    from rich.table import Table

    from sam3label.quality.calibrate import describe_goal

    console.print(f"Thresholds for {describe_goal(calibration.goal)}; F is cross-validated over images.")
    table = Table("class", "objects", "conf", "presence", "iou", "F before", "F after", "gain [95 %]", "")
    for result in calibration.classes:
        table.add_row(*_calibration_row(result))
    console.print(table)
    _print_phrases(console, calibration)
    for note in calibration.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    console.print(f"Written: {target}\nUse it: sam3label export {run_folder} -c {target} ...", markup=False)


def _calibration_row(result: ClassResult) -> list[str]:
    if result.before is None or result.after is None:
        return [result.name, str(result.objects), *("" for _ in range(6)), result.note]
    low, high = result.gain_interval
    values = (
        f"{new:g}" if new == old else f"{old:g} -> {new:g}"
        for old, new in zip(dataclasses.astuple(result.old), dataclasses.astuple(result.new), strict=True)
    )
    gain = f"{result.gain:+.3f} [{low:+.3f}, {high:+.3f}]".replace("[", r"\[")
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


def _print_preview(console: Console, made: Preview) -> None:
    from rich.table import Table

    table = Table("class", "objects")
    for name, count in made.objects.items():
        table.add_row(name, str(count))
    console.print(table)
    share = made.empty / made.labelled if made.labelled else 0.0
    whole = datetime.timedelta(seconds=round(made.seconds))
    for line in (
        f"{made.labelled} of {made.total} images labelled, {made.empty} without a label ({share:.0%})",
        *(f"failed  {item_id}: {reason}" for item_id, reason in made.failures),
        f"{made.images_per_s:.2f} images/s; all {made.total} images: about {whole} (h:mm:ss), "
        f"{made.memory / 2**30:.1f} GB of {made.memory_kind}, {_size(made.disk)} on disk",
        *([f"{made.videos} videos are not part of this preview."] if made.videos else []),
        *made.messages,
        *([f"Exemplars as they are used: {made.exemplars}"] if made.exemplars else []),
        f"Sheet: {made.sheet or 'none, no image could be labelled'}",
        f"Page:  {made.page}",
    ):
        console.print(line, markup=False, highlight=False)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{max(n_bytes, 1) / 2**20:.1f} MB"


def _print_groups(console: Console, title: str, groups: Figures) -> None:
    """One table per breakdown. Groups of pairs show the SA-Co figures at IoU 0.5, groups of objects what they have."""
    from rich.table import Table

    first: Figures = next(iter(groups.values()), {})
    wanted = ("pairs", "precision@0.5", "recall@0.5", "F1@0.5", "cgF1", "HOTA", "AP", "truth", "answers")
    columns = [name for name in wanted if name in first]
    table = Table(f"by {title}", *columns)
    for name, figures in list(groups.items())[:MAX_ROWS]:
        table.add_row(name, *(_figure(figures[column]) for column in columns))
    console.print(table)
    if len(groups) > MAX_ROWS:
        console.print(f"... and {len(groups) - MAX_ROWS} more: --json OUT writes them all")


def _figure(value: float | int) -> str:
    """Three digits; a dash where the figure is undefined."""
    if isinstance(value, int):
        return str(value)
    return "-" if value <= -1 else f"{value:.3f}"

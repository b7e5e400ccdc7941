"""`sam3label report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, GtSplit, OtherConcepts, PhotosNow, RunFolder
from sam3label.cli.progress import progress_display

if TYPE_CHECKING:
    from sam3label.core.records import ConceptList
    from sam3label.quality.mistakes import Mistakes


def report(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write this HTML file instead of RUN/report.html.", rich_help_panel=OUTPUT),
    ] = None,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
    gt: Annotated[
        list[Path] | None,
        typer.Option(
            "--gt",
            help="Show also where the run and this truth disagree (as for `evaluate`): a confusion matrix, "
            "pictures of misses and false alarms.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    gt_split: GtSplit = None,
) -> None:
    """Write one self-contained HTML page about a run: counts, sliders, suspicious cases, a gallery, failures."""
    from sam3label.concepts.concept_list import load_concepts

    target, other = out or run_folder / "report.html", load_concepts(concepts) if concepts else None
    with progress_display(False, "writing the report ...") as display:
        from sam3label.show.report import write_report

        def tell(done: int, total: int) -> None:
            display.step("writing the report", done, total, "steps")

        mistakes = _mistakes(run_folder, gt, other, gt_split) if gt else None
        write_report(run_folder, target, other, tell, photos, mistakes)
    typer.echo(f"Report: {target}")


def _mistakes(run_folder: Path, gt: list[Path], concepts: ConceptList | None, gt_split: str | None) -> Mistakes:
    from sam3label.annotations.youtube_vis import is_video_truth
    from sam3label.quality.evaluate import evaluate_run
    from sam3label.quality.evaluate_tracks import evaluate_tracked_run

    if not is_video_truth(gt[0]):
        return evaluate_run(run_folder, gt, concepts, split=gt_split).mistakes
    if gt_split or len(gt) > 1:
        raise typer.BadParameter("a video truth is judged alone: one --gt, no --gt-split", param_hint="--gt")
    return evaluate_tracked_run(run_folder, gt[0], concepts).mistakes

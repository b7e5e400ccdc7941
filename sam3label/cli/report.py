"""`sam3label report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, GtSplit, OtherConcepts, PhotosNow, RunFolders
from sam3label.cli.progress import progress_display


def report(
    run: RunFolders,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write this HTML file instead of RUN/report.html.",
            rich_help_panel=OUTPUT,
        ),
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
    with progress_display(False, "writing the report ...") as display:
        from sam3label.face import open_run

        def tell(done: int, total: int) -> None:
            display.step("writing the report", done, total, "steps")

        with open_run(run, concepts, photos=photos) as opened:
            page = opened.report(out, gt=gt or (), gt_split=gt_split, on_progress=tell)
    typer.echo(f"Report: {page}")

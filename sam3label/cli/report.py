"""`sam3label report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import OUTPUT, OtherConcepts, PhotosNow, RunFolder
from sam3label.cli.progress import progress_display


def report(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write this HTML file instead of RUN/report.html.", rich_help_panel=OUTPUT),
    ] = None,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
) -> None:
    """Write one self-contained HTML page about a run: counts, sliders, suspicious cases, a gallery, failures."""
    from sam3label.concepts.concept_list import load_concepts

    target = out or run_folder / "report.html"
    with progress_display(False, "writing the report ...") as display:
        from sam3label.show.report import write_report

        def tell(done: int, total: int) -> None:
            display.step("writing the report", done, total, "steps")

        write_report(run_folder, target, load_concepts(concepts) if concepts else None, tell, photos)
    typer.echo(f"Report: {target}")

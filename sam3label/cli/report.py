"""`sam3label report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import RunFolder


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

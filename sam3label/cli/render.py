"""`sam3label render`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def render(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `sam3label run`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="OUT.mp4 for one video; else a folder, which gets ID.mp4 of each.")
    ],
    video: Annotated[str | None, typer.Option(help="Only the video with this id (its path in the run).")] = None,
    concepts: Annotated[
        Path | None,
        typer.Option("--concepts", "-c", help="Other thresholds and classes over the same phrases. [the run's own]"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Draw the tracks of a run's videos, to look at."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.run.reader import open_run
    from sam3label.show.render import render as draw

    with open_run(run, load_concepts(concepts) if concepts else None) as labelled:
        count = draw(labelled, out, video, _counter(quiet))
    if not quiet:
        typer.echo(f"{count} video{'s' if count != 1 else ''}: {out}")


def _counter(quiet: bool) -> Callable[[int], None]:
    """Says every hundred frames how far it is, on a terminal."""

    def show(frames: int) -> None:
        if not quiet and sys.stderr.isatty() and frames % 100 == 0:
            typer.echo(f"\r{frames} frames ", nl=False, err=True)

    return show

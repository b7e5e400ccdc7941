"""`sam3label render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, OtherConcepts, PhotosNow, Quiet, RunFolder
from sam3label.cli.progress import progress_display
from sam3label.core.text import count


def render(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Write this .mp4 file for one video, else this folder, which gets NAME.mp4 of each.",
            rich_help_panel=OUTPUT,
        ),
    ],
    item: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Draw only the video with this id, its path in the run.", rich_help_panel=INPUT
        ),
    ] = None,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
    quiet: Quiet = False,
) -> None:
    """Draw the tracks of a run's videos, to look at."""
    with progress_display(quiet, "reading the run ...") as display:
        from sam3label.face import open_run

        def tell(done: int, total: int) -> None:
            display.step("drawing", done, total, "frames")

        with open_run(run, concepts, photos=photos) as opened:
            drawn = opened.render(out, item, on_progress=tell, on_message=display.say)
    if not quiet:
        typer.echo(f"{count(drawn, 'video')}: {out}")

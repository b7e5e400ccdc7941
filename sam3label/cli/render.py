"""`sam3label render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, OtherConcepts, PhotosNow, Quiet, RunFolder
from sam3label.cli.progress import progress_display, stepper
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
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.run.reader import open_run

    with (
        progress_display(quiet, "reading the run ...") as display,
        open_run(run, load_concepts(concepts) if concepts else None, photos) as labelled,
    ):
        from sam3label.show.lettering import notice
        from sam3label.show.render import render as draw

        units = [unit for unit in labelled.done_units() if unit.item.kind == "video" and item in (None, unit.item.id)]
        frames = sum(unit.frame_stop - unit.frame_start for unit in units)
        if said := notice(labelled.concepts.names):
            display.say(said)
        drawn = draw(labelled, out, item, stepper(display, "drawing", frames, "frames"))
    if not quiet:
        typer.echo(f"{count(drawn, 'video')}: {out}")

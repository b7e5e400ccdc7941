"""`sam3label check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import OUTPUT, PhotosNow, RunFolder
from sam3label.cli.progress import progress_display
from sam3label.core.text import count

if TYPE_CHECKING:
    from sam3label.run.repair import StoreFindings

SHOWN = 20


def check(
    run: RunFolder,
    photos: PhotosNow = None,
    repair: Annotated[
        Path | None,
        typer.Option("--repair", metavar="NEWRUN", help="Write what is whole into a new run.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Go through all of a run: the database, every mask and correction, and whether the photos are still the same."""
    from sam3label import face

    with progress_display(False, "going through the run ..."):
        found = face.check(run, photos=photos, repair=repair)
    _show(found)
    if repair is not None:
        typer.echo(
            f"Saved into {repair}: {count(found.corrections, 'correction')}, {count(found.units, 'unit')} (photos, "
            "clips of videos). "
            f"What is missing is labelled again by: sam3label run PHOTOS -c LIST -o {repair}"
        )
        return
    if not found.is_sound:
        typer.echo(
            f"{count(found.units, 'unit')} and {count(found.corrections, 'correction')} can be saved: "
            f"sam3label check {run} --repair NEWRUN"
        )
    elif not found.changed:
        typer.echo(
            f"Sound: {count(found.units, 'unit')}, {count(found.corrections, 'correction')}, "
            "all photos as they were labelled."
        )
    if not found.is_sound or found.changed:
        raise typer.Exit(3)


def _show(found: StoreFindings) -> None:
    from sam3label.core.text import count, one_line

    for problem in found.problems[:SHOWN]:
        typer.echo(str(problem))
    if found.lost:
        more = " ..." if len(found.lost) > SHOWN else ""
        typer.echo(f"cannot be read or is wrong: {', '.join(map(one_line, found.lost[:SHOWN]))}{more}")
    for item_id, what in found.changed[:SHOWN]:
        typer.echo(f"{one_line(item_id)}: {what}")
    if len(found.changed) > SHOWN:
        typer.echo(f"... and {count(len(found.changed) - SHOWN, 'more photo')}")

"""`sam3label init`: a concept list to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT
from sam3label.cli.tables import SPLIT, program
from sam3label.core.text import count


def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")] = Path("concepts.yaml"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Take the class names and ids of this data.yaml or concept list.", rich_help_panel=INPUT
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file if it is there.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a commented concept list to start from."""
    from sam3label import face

    names = face.init(out, source=source, force=force)
    classes = count(len(names), "class", "classes")
    listed = f"PHOTOS -c {shlex.quote(str(out))}"
    typer.echo(f"Wrote {out}: {classes}. Edit it, then look at a sample, and label:")
    typer.echo(f"  {program()} preview {listed}")
    typer.echo(f"  {program()} run {listed} -o runs/first --export yolo --split {SPLIT}")

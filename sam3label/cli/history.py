"""`sam3label history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.tables import console


def history(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="A folder with runs and checkpoints in it.")],
) -> None:
    """Show a project's runs, what people corrected in them, and its checkpoints with cgF1 by turn."""
    from rich.table import Table

    from sam3label import face

    turns = face.history(project)
    shown = Table("when", "what", "name", "model", "photos", "reviewed", "corrections", "cgF1")
    for turn in turns:
        shown.add_row(*turn.row())
    console().print(shown)

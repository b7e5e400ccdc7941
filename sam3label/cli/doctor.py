"""`sam3label doctor`."""

from __future__ import annotations

import typer

from sam3label.cli.options import Model
from sam3label.cli.tables import console


def doctor(model: Model = "facebook/sam3") -> None:
    """Check this machine: Python, torch, device and memory, access to the checkpoint, optional extras."""
    from rich.table import Table

    from sam3label import face

    table = Table("what", "found", "advice")
    checks = face.doctor(model)
    for check in checks:
        table.add_row(check.what, check.found, check.advice)
    console().print(table)
    if any(check.advice and check.needed for check in checks):
        raise typer.Exit(1)

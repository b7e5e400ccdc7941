"""`sam3label doctor`."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    model: Annotated[str, typer.Option(help="The checkpoint whose access is checked.")] = "facebook/sam3",
) -> None:
    """Check this machine: Python, torch, device and memory, access to the checkpoint, optional extras."""
    from rich.console import Console
    from rich.table import Table

    from sam3label.model.doctor import examine

    table = Table("what", "found", "advice")
    checks = examine(model)
    for check in checks:
        table.add_row(check.what, check.found, check.advice)
    Console().print(table)
    if any(check.advice and check.needed for check in checks):
        raise typer.Exit(1)

"""`sam3label weights` and `weights convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.core.text import one_line

app = typer.Typer(
    help="Show which weights are on this machine and what they can do, or convert them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def weights(context: typer.Context) -> None:
    """Show which weights are on this machine, where they came from, and what they can do."""
    if context.invoked_subcommand is not None:
        return
    from sam3label import face

    for held in face.weights():
        if held.problem:
            typer.echo(f"{one_line(held.model)}\n  cannot be used: {one_line(held.problem)}")
            continue
        typer.echo(f"{held.model}\n  {held.abilities}; {held.size / 1e6:,.0f} MB")
        typer.echo(f"  from {held.came_from}\n  {held.identity}\n  licence: {held.licence}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A .pt or .safetensors file, folder, hub id or demo.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .pt file for the official code, else a new folder.")],
) -> None:
    """Write weights under the official code's names, or in the layout of facebook/sam3."""
    from sam3label import face

    typer.echo(f"Written: {face.convert_weights(source, out)}")

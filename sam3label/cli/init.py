"""`sam3label init`: a concept list to start from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def init(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")] = Path("concepts.yaml"),
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the class names and ids of this data.yaml or concept list.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented concept list to start from."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.concepts.starter import starter
    from sam3label.core.files import write_whole
    from sam3label.errors import OutputError

    names: Sequence[str] = ("person", "helmet") if source is None else load_concepts(source).names
    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file, such as {out / 'concepts.yaml'}")
    if source is not None and out.exists() and out.samefile(source):
        raise OutputError(f"{out} is the file the names come from: write to another one")
    if out.exists() and not force:
        raise OutputError(f"{out} is already there: write to another file, or overwrite it with --force")
    write_whole(out, starter(names))
    count = f"{len(names)} {'class' if len(names) == 1 else 'classes'}"
    typer.echo(f"Wrote {out}: {count}. Edit it, then: sam3label run PHOTOS -c {shlex.quote(str(out))}")

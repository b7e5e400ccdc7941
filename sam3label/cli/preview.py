"""`sam3label preview`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import read_concepts
from sam3label.cli.tables import console

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.show.preview import Preview


def preview(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="Files, folders, globs in quotes.")],
    concepts: Annotated[Path | None, typer.Option("--concepts", "-c", help="Concept list (YAML).")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images to label, spread over all.")] = 16,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the sheet and the page.")] = Path("preview"),
    ontology: Annotated[str | None, typer.Option(help='Instead of -c: \'{"hard hat": "helmet"}\'.')] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. concepts.helmet.conf=0.7. Repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Hub id, local folder in hub layout, or 'demo'.")] = "facebook/sam3",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    video: Annotated[
        str, typer.Option(help="As of `run`: track and frames take folders of numbered frames as videos.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch. Default: from free memory.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes.")] = None,
) -> None:
    """Label a spread sample: a contact sheet, a page, and what the whole folder would take."""
    from sam3label.labelling.options import LabelOptions
    from sam3label.show.preview import preview as make_preview

    if video not in ("auto", "track", "frames", "off"):
        raise typer.BadParameter(f"{video!r} is not one of auto, track, frames, off", param_hint="--video")
    options = LabelOptions(
        model=model, revision=revision, device=device, batch_size=batch_size, workers=workers,
        video=video,  # type: ignore[arg-type]
    )  # fmt: skip
    made = make_preview(photos, read_concepts(concepts, ontology, settings or []), out, n, options)
    _print_preview(console(), made)


def _print_preview(console: Console, made: Preview) -> None:
    from rich.table import Table

    table = Table("class", "objects")
    for name, count in made.objects.items():
        table.add_row(name, str(count))
    console.print(table)
    share = made.empty / made.labelled if made.labelled else 0.0
    whole = datetime.timedelta(seconds=round(made.seconds))
    for line in (
        f"{made.labelled} of {made.total} images labelled, {made.empty} without a label ({share:.0%})",
        *(f"failed  {item_id}: {reason}" for item_id, reason in made.failures),
        f"{made.images_per_s:.2f} images/s; all {made.total} images: about {whole} (h:mm:ss), "
        f"{made.memory / 2**30:.1f} GB of {made.memory_kind}, {_size(made.disk)} on disk",
        *([f"{made.videos} videos are not part of this preview."] if made.videos else []),
        *made.messages,
        *([f"Exemplars as they are used: {made.exemplars}"] if made.exemplars else []),
        f"Sheet: {made.sheet or 'none, no image could be labelled'}",
        f"Page:  {made.page}",
    ):
        console.print(line, markup=False, highlight=False)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{max(n_bytes, 1) / 2**20:.1f} MB"

"""`sam3label preview`."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import (
    INPUT,
    OUTPUT,
    BatchSize,
    ConceptFile,
    Device,
    ImageSize,
    MaxMegapixels,
    Model,
    Ontology,
    Photos,
    Phrases,
    Revision,
    Settings,
    VideoChoice,
    Workers,
    WrongConf,
    images_together,
    read_concepts,
)
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import SPLIT, console, full_answers, program
from sam3label.core.text import count, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.show.preview import Preview, WithTiles


def preview(
    photos: Photos,
    concepts: ConceptFile = None,
    phrases: Phrases = None,
    ontology: Ontology = None,
    settings: Settings = None,
    conf: WrongConf = None,
    n: Annotated[
        int, typer.Option("-n", min=1, help="Label so many images, spread over all.", rich_help_panel=INPUT)
    ] = 16,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Write the sheet and the page into this folder.", rich_help_panel=OUTPUT)
    ] = Path("preview"),
    model: Model = "facebook/sam3",
    revision: Revision = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = None,
    max_megapixels: MaxMegapixels = None,
    video: VideoChoice = "auto",
) -> None:
    """Label a spread sample: a contact sheet, a page, and what the whole folder would take."""
    concept_list = read_concepts(concepts, ontology, settings or [], phrases or [])
    with progress_display(False, "reading the photos ...") as display:
        from sam3label import face

        made = face.preview(
            photos, concept_list, out, n, model=model, revision=revision, image_size=image_size, device=device,
            workers=workers, video=video, batch_size=images_together(batch_size), max_megapixels=max_megapixels,
            on_progress=display.job, on_message=display.say,
        )  # fmt: skip
    _print_preview(console(), made)
    if made.labelled:
        with face.open_run(out / "run") as labelled:
            for line in full_answers(labelled):
                console().print(line, soft_wrap=True)
        given = [*photos, *(["-c", str(concepts)] if concepts else []), *(f"-p={phrase}" for phrase in phrases or [])]
        given += ["--ontology", str(ontology)] if ontology else []
        given += [word for setting in settings or [] for word in ("--set", setting)]
        given += [] if model == "facebook/sam3" else ["--model", model]
        for option, value in (
            ("--revision", revision),
            ("--image-size", image_size),
            ("--max-megapixels", max_megapixels),
            ("--video", None if video == "auto" else video),
        ):
            given += [] if value is None else [option, str(value)]
        command = shlex.join([*given, "-o", str(out / "run"), "--export", "yolo", "--split", SPLIT])
        typer.echo(f"Next, going on from these labels: {program()} run {command}")
    if made.failures:
        raise typer.Exit(3)


def _print_preview(console: Console, made: Preview) -> None:
    from rich.table import Table

    if not made.labelled:
        for item_id, reason in made.failures:
            console.print(f"failed  {one_line(item_id)}: {reason}", soft_wrap=True)
        console.print("Not one file could be read, so nothing was asked. Look at the reasons above.", soft_wrap=True)
        return
    table = Table("class", "objects")
    for name, objects in made.objects.items():
        table.add_row(name, str(objects))
    console.print(table)
    share = made.empty / made.labelled
    whole = datetime.timedelta(seconds=round(made.seconds))
    for line in (
        f"{count(made.labelled, 'image')} labelled, a sample of {made.total:,}; "
        f"{made.empty} of them without a label ({share:.0%})",
        *(f"failed  {one_line(item_id)}: {reason}" for item_id, reason in made.failures),
        f"{made.images_per_s:.2f} images/s; all {count(made.total, 'image')}: about {whole} (h:mm:ss), "
        f"{made.memory / 2**30:.1f} GB of {made.memory_kind}, {_size(made.disk)} on disk",
        *([_on_all(made)] if made.gpus > 1 else []),
        *([f"Not part of this preview: {count(made.videos, 'video')}."] if made.videos else []),
        *([_tiles_line(made.tiles)] if made.tiles else []),
        *made.messages,
        *([f"Exemplars as they are used: {made.exemplars}"] if made.exemplars else []),
        f"Sheet: {made.sheet}",
        f"Page:  {made.page}",
    ):
        console.print(line, soft_wrap=True)


def _on_all(made: Preview) -> str:
    whole = datetime.timedelta(seconds=round(made.seconds / made.gpus))
    return f"This was one of {made.gpus} GPUs: with sam3label run --gpus all about {whole}, if decoding keeps up."


def _tiles_line(tiles: WithTiles) -> str:
    (plain, tiled), (before, after) = tiles.objects, tiles.seconds
    return (
        f"With tiles {count(tiled, 'object')} instead of {plain}, in {after:.2g} s an image instead of {before:.2g} s "
        f"({after / max(before, 1e-9):.1f} times). Side by side: {tiles.sheet}"
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{max(n_bytes, 1) / 2**20:.1f} MB"

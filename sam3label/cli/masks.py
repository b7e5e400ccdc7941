"""`sam3label masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    BatchSize,
    Device,
    ExportFormats,
    Fresh,
    ImageSize,
    Limit,
    Model,
    Precision,
    Quiet,
    Revision,
    RunOut,
    Split,
    Workers,
    file_names,
    images_together,
)
from sam3label.cli.progress import progress_display
from sam3label.cli.run import finish, stop_on_interrupt


def masks(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="Boxes and points: COCO or Label Studio JSON, a YOLO data.yaml, VOC or CVAT XML, CSV, or its folder.",
        ),
    ],
    photos: Annotated[
        str | None,
        typer.Option(
            "--photos",
            metavar="FOLDER",
            autocompletion=file_names,
            help="Look for the photos here. By default they are where their dataset usually has them.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    out: RunOut = Path("runs/masks"),
    snap: Annotated[
        bool,
        typer.Option("--snap", help="Set boxes to their masks. By default they stay as drawn.", rich_help_panel=OUTPUT),
    ] = False,
    iou: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Believe a mask if the model expects at least this IoU of it. Else the box is kept, and marked.",
            rich_help_panel=MODEL,
        ),
    ] = 0.5,
    export: ExportFormats = None,
    split: Split = None,
    model: Model = "facebook/sam3",
    revision: Revision = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    image_size: ImageSize = None,
    batch_size: BatchSize = "auto",
    workers: Workers = None,
    limit: Limit = None,
    fresh: Fresh = False,
    quiet: Quiet = False,
) -> None:
    """Give the boxes and points of a dataset masks. The same command again continues where it stopped."""
    from sam3label.export.registry import refuse_unknown_formats
    from sam3label.export.splits import parse_splits

    refuse_unknown_formats(export or [])
    parse_splits(split)
    with progress_display(quiet, "reading the dataset ...") as display, stop_on_interrupt(display) as stop:
        from sam3label import face

        masked = face.mask_boxes(
            dataset, out, photos=photos, snap=snap, iou=iou, on_progress=display.job, on_message=display.say, stop=stop,
            model=model, revision=revision, device=device, dtype=dtype, batch_size=images_together(batch_size),
            image_size=image_size, workers=workers, limit=limit, fresh=fresh,
        )  # fmt: skip
    with masked:
        finish(masked, stopped=stop.is_set(), formats=export or [], split=split, quiet=quiet)

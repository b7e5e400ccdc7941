"""`sam3label finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SPEED,
    Device,
    GtSplit,
    ImageSize,
    OtherConcepts,
    PhotosNow,
    Quiet,
    Revision,
    RunFolders,
)
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import console, program
from sam3label.core.text import count
from sam3label.flywheel.options import FinetuneOptions, Method
from sam3label.labelling.options import DType

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.cli.progress import Display
    from sam3label.flywheel.job import Finetuned
    from sam3label.labelling.progress import Progress
    from sam3label.train.loop import Course


def finetune(
    run: RunFolders,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Write the checkpoint into this new folder.", rich_help_panel=OUTPUT),
    ],
    gt: Annotated[
        Path | None,
        typer.Option(
            "--gt",
            help="Learn from this truth of the runs' photos (COCO JSON, a YOLO data.yaml or its folder) instead of "
            "from what was reviewed.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    gt_split: GtSplit = None,
    concepts: OtherConcepts = None,
    photos: PhotosNow = None,
    model: Annotated[
        str | None,
        typer.Option(help="Train this checkpoint: by default the last run's.", rich_help_panel=MODEL),
    ] = None,
    revision: Revision = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Train adapters and the small heads (lora), these heads alone, or everything but the text encoder "
            "(full).",
            rich_help_panel=MODEL,
        ),
    ] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Give the adapters this rank.", rich_help_panel=MODEL)] = 16,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train so many steps. By default it is 200 views of each photo, 300 to 2000 steps.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Learn at this rate at most. By default it is 0.002 with lora, 0.0005 with heads, 0.001 with full.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    photos_a_step: Annotated[
        int, typer.Option(min=1, help="Learn from so many photos at each step.", rich_help_panel=MODEL)
    ] = 4,
    questions: Annotated[
        int, typer.Option(min=1, help="Ask so many phrases of each of them.", rich_help_panel=MODEL)
    ] = 8,
    seed: Annotated[
        int, typer.Option(help="Draw the order of photos and the views of them by this number.", rich_help_panel=MODEL)
    ] = 0,
    image_size: ImageSize = None,
    held_out: Annotated[
        float,
        typer.Option(
            help="Hold out this share of the reviewed photos, and at least 8, to judge by.", rich_help_panel=INPUT
        ),
    ] = 0.25,
    group: Annotated[
        str | None,
        typer.Option(help="Keep photos of one folder on one side: folder.", rich_help_panel=INPUT),
    ] = None,
    group_regex: Annotated[
        str | None,
        typer.Option(help="Keep photos on one side of which this finds the same in the path.", rich_help_panel=INPUT),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE",
            help="Refuse a checkpoint that answers this phrase otherwise than its base, too. May be repeated.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    keep_anyway: Annotated[
        bool,
        typer.Option("--keep-anyway", help="Write the checkpoint even if it is not better.", rich_help_panel=OUTPUT),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it takes, and train nothing.", rich_help_panel=OUTPUT),
    ] = False,
    dtype: Annotated[
        DType,
        typer.Option(help="Compute in this precision. With auto it is bf16 where it is fast.", rich_help_panel=SPEED),
    ] = "auto",
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--no-recompute",
            help="Compute inner values again on the way back instead of keeping them. By default on a GPU.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a checkpoint on what people reviewed, and keep it if photos it never saw say that it is better."""
    from sam3label import face

    options = FinetuneOptions(
        model=model, revision=revision, method=method, rank=rank, steps=steps, rate=rate, photos_a_step=photos_a_step,
        questions=questions, image_size=image_size, device=device, dtype=dtype, recompute=recompute, seed=seed,
        held_out=held_out, group=group, group_regex=group_regex, guard=tuple(guard or ()), keep_anyway=keep_anyway,
        dry_run=dry_run,
    )  # fmt: skip
    with progress_display(quiet, "loading ...") as display:
        made = face.finetune(
            list(run), out, options, gt=gt, gt_split=gt_split, concepts=concepts, photos=photos,
            on_course=lambda course: _show(display, course),
            on_labelled=lambda name, progress: _show_labelled(display, name, progress),
            on_message=display.say,
        )  # fmt: skip
    if made.verdict is not None:
        _print(console(), made, out, quiet)
    if not dry_run and made.checkpoint is None:
        raise typer.Exit(1)


def _show(display: Display, course: Course) -> None:
    held = f", held out {course.held_out['total']:.2f}, presence {course.held_out['presence']:.0%}" if (
        course.held_out) else ""  # fmt: skip
    display.step(f"training (loss {course.loss:.2f}{held})", course.step, course.steps, "steps")


def _show_labelled(display: Display, name: str, progress: Progress) -> None:
    display.step(f"labelling, {name} training", progress.finished, progress.total, "photos")


def _print(screen: Console, made: Finetuned, out: Path, quiet: bool) -> None:
    from rich.table import Table

    assert made.verdict is not None
    if not quiet:
        shown = Table("figure", "before", "after", "gain [95 %]", "calibrated")
        for row in made.verdict.rows():
            shown.add_row(*row)
        screen.print(f"On {count(made.held_out, 'photo')} held out:")
        screen.print(shown)
        if (guard := made.verdict.guard) is not None:
            screen.print(
                f"Untouched classes: {count(guard.answers, 'label')} in {count(guard.images, 'photo')}, "
                f"which agree by F1 {guard.f1:.3f}"
            )
        if made.verdict.hardly_judged:
            screen.print(made.verdict.hardly_judged, soft_wrap=True)
    for reason in made.verdict.against:
        screen.print(f"Against it: {reason}", soft_wrap=True)
    if made.checkpoint is None:
        screen.print(
            f"Refused: nothing was written to {out}. Look at what it does wrong: {program()} report {made.work}/after. "
            "The same command with --keep-anyway writes it.",
            soft_wrap=True,
        )
    elif not quiet:
        screen.print(f"Written: {out}\nUse it: {program()} run PHOTOS -c LIST --model {out}", soft_wrap=True)

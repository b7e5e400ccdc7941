"""`sam3label review push | open | pull | summary | next | write`: labels go to FiftyOne, corrections come back."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import MODEL, OUTPUT, Device, PhotosNow, RunFolders
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import program
from sam3label.core.text import count, one_line
from sam3label.export.options import Placement

if TYPE_CHECKING:
    from sam3label.labelled_run import LabeledRun
    from sam3label.review.fiftyone.pull import DrawnBox

app = typer.Typer(no_args_is_help=True, help="Correct labels in FiftyOne and bring the corrections back.")

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Use the FiftyOne dataset of this name. By default it is the run folder's.",
        rich_help_panel=OUTPUT,
    ),
]


def _named(run: list[Path]) -> str:
    return " ".join(map(str, run))


@app.command("push")
def push(
    run: RunFolders,
    dataset: Dataset = None,
    photos: PhotosNow = None,
    audit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw so many images as a random audit sample: 50 by default.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Bring a run into FiftyOne. Again: adds what is new and leaves people's work alone."""
    with progress_display(False, "starting FiftyOne ...") as display:
        from sam3label.face import open_run

        def tell(done: int, total: int) -> None:
            display.step("pushing", done, total, "photos and videos")

        with open_run(run, photos=photos) as opened:
            wait = opened.coverage().wait
            done = opened.review_push(dataset, audit=audit, on_progress=tell)
    for pushed in done:
        typer.echo(f"{pushed.dataset}: {pushed.added} added, {pushed.kept} already there")
    if wait:
        typer.echo(f"Not in it: {wait}.")
    typer.echo(f"Next: {program()} review open {_named(run)}")


@app.command("open")
def open_app(
    run: RunFolders,
    dataset: Dataset = None,
    remote: Annotated[
        bool,
        typer.Option(
            "--remote", help="Serve without opening a browser, for a machine reached over ssh.", rich_help_panel=OUTPUT
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Serve the App on this port.", rich_help_panel=OUTPUT)
    ] = 5151,
) -> None:
    """Start the FiftyOne App on the review queue, reachable from this machine only. Ctrl-C ends it."""
    from sam3label.face import open_run

    with open_run(run) as opened:
        shown = opened.review_open(dataset, remote=remote, port=port)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start deaf to it
    whole = f"'{shown.dataset}', no queue left,"
    what = f"'{shown.view}' of '{shown.dataset}' ({shown.samples} left)" if shown.view else whole
    typer.echo(f"FiftyOne shows {what} at {shown.url}")
    if remote:
        typer.echo(f"From your own machine: ssh -N -L {port}:127.0.0.1:{port} THIS_MACHINE, then open that address.")
    typer.echo(f"When you are done here: Ctrl-C, then sam3label review pull {_named(run)}")
    shown.wait()


@app.command("pull")
def pull(
    run: RunFolders,
    dataset: Dataset = None,
    who: Annotated[
        str | None,
        typer.Option(help="Record corrections as of this person: your login name by default.", rich_help_panel=OUTPUT),
    ] = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks",
            help="Make masks of boxes that were drawn without one, or moved, and show them first.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Record these masks without asking.", rich_help_panel=OUTPUT)
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Make masks with this checkpoint. By default it is the one that the run was made with.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Device = "auto",
    photos: PhotosNow = None,
) -> None:
    """Record what people changed in FiftyOne. The model's labels are kept beside it; pulling twice changes nothing."""
    from sam3label.face import open_run

    with open_run(run, photos=photos) as opened:
        chosen = {"model": model} if model else {}
        accept = partial(_accepted, opened, yes=yes)
        for pulled in opened.review_pull(dataset, who=who, masks=masks, accept=accept, device=device, **chosen):
            counts = ", ".join(f"{number} {action}" for action, number in sorted(pulled.actions.items()))
            typer.echo(f"{pulled.dataset}: {counts or 'nothing new'}")
            for note in pulled.notes:
                typer.echo(f"  note: {one_line(note)}")
            for conflict in pulled.conflicts:
                typer.echo(f"  conflict: {one_line(conflict)}")
    typer.echo(f"Next: {program()} export {_named(run)} --format coco -o DATASET")


def _accepted(run: LabeledRun, drawn: Sequence[DrawnBox], *, yes: bool) -> bool:
    """Show what became of boxes, and ask whether it is to be recorded."""
    sheet, shown = run.draw_boxes(drawn)
    believed = sum(one.believed for one in drawn)
    boxes = count(len(drawn), "box", "boxes")
    typer.echo(f"{believed} of {boxes} got a mask to be believed; {count(shown, 'image')} of them: {sheet}")
    return yes or typer.confirm("Record them?")


@app.command("summary")
def summary(run: RunFolders) -> None:
    """Say how good the model was, by the reviewed images: the audit sample gives the unbiased figure."""
    from sam3label.face import open_run

    with open_run(run) as opened:
        typer.echo(opened.review_summary().to_text())


@app.command("next")
def next_photos(
    run: RunFolders,
    number: Annotated[int, typer.Option("-n", min=1, help="Propose so many photos.", rich_help_panel=OUTPUT)] = 20,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write their paths into this file, one a line.", rich_help_panel=OUTPUT),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Compare photos by this checkpoint. By default it is the one the run was made with.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: Device = "auto",
    photos: PhotosNow = None,
) -> None:
    """Propose photos to review for a training: much to correct, and unlike each other and what was reviewed."""
    from sam3label.face import open_run

    with progress_display(False, "loading ...") as display, open_run(run, photos=photos) as opened:

        def tell(done: int, total: int) -> None:
            display.step("comparing", done, total, "photos")

        chosen = {"model": model} if model else {}
        proposed = opened.review_next(number, out=out, on_progress=tell, device=device, **chosen)
    for one in proposed:
        why = one_line(one.why)
        typer.echo(f"{one_line(one.item.id)}: gain {one.gain:.2f}, {one.distance:.2f} from what is known; {why}")


@app.command("write")
def write(
    run: RunFolders,
    out: Annotated[Path, typer.Option("--out", "-o", help="Make this folder.", rich_help_panel=OUTPUT)],
    photos: PhotosNow = None,
    images: Annotated[
        Placement,
        typer.Option(
            help="Place photos by hardlink (copies where it cannot), copy, symlink, or none.", rich_help_panel=OUTPUT
        ),
    ] = "hardlink",
    audit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw so many images as a random audit sample: 50 by default.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Write the run as a FiftyOneDataset folder, which FiftyOne loads without this package. Needs no database."""
    from sam3label.face import open_run

    with open_run(run, photos=photos) as opened:
        for path in opened.review_write(out, images=images, audit=audit):
            typer.echo(
                f"{path}: load it with fiftyone.Dataset.from_dir({str(path)!r}, "
                "dataset_type=fiftyone.types.FiftyOneDataset)"
            )
        if wait := opened.coverage().wait:
            typer.echo(f"Not in it: {wait}.")

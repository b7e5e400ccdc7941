"""`sam3label run`."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.export import export_shown
from sam3label.cli.job_file import concepts_of, photos_or_job
from sam3label.cli.options import (
    INPUT,
    MODEL,
    SPEED,
    VIDEO,
    BatchSize,
    ConceptFile,
    Device,
    ExportFormats,
    Fresh,
    ImageSize,
    Limit,
    MaxMegapixels,
    Model,
    Ontology,
    Phrases,
    Precision,
    Quiet,
    Revision,
    RunOut,
    Settings,
    Split,
    VideoChoice,
    Workers,
    WrongConf,
    images_together,
    workers_asked,
)
from sam3label.cli.progress import Display, done_line, progress_display
from sam3label.cli.tables import SPLIT, console, full_answers, kept_as_boxes, near_copies, program
from sam3label.core.text import count, one_line, verb
from sam3label.labelling.options import SHORTEST_CLIP, PromptStyle
from sam3label.model.track_rules import EXTRAS, TrackerForm

if TYPE_CHECKING:
    from sam3label.labelled_run import LabeledRun
    from sam3label.labelling.progress import RunSummary

SHOWN_FAILURES = 50


def run(
    context: typer.Context,
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTOS",
            is_eager=True,  # a job file's options count from then on
            callback=photos_or_job,
            help="Files, folders, globs in quotes, or @list.txt with a path a line. Or one file with all options: "
            "job.yaml.",
        ),
    ],
    concepts: ConceptFile = None,
    phrases: Phrases = None,
    ontology: Ontology = None,
    settings: Settings = None,
    conf: WrongConf = None,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links/--no-follow-links",
            help="Follow links that lead out of the folders.",
            rich_help_panel=INPUT,
        ),
    ] = True,
    out: RunOut = Path("runs/run"),
    export: ExportFormats = None,
    split: Split = None,
    model: Model = "facebook/sam3",
    revision: Revision = None,
    prompt_style: Annotated[
        PromptStyle,
        typer.Option(
            help="Ask as the official code does, or as transformers does, without the geometry CLS token.",
            rich_help_panel=MODEL,
        ),
    ] = "official",
    image_size: ImageSize = None,
    floor: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Keep candidates with at least this score. No class may have a lower conf.",
            rich_help_panel=MODEL,
        ),
    ] = 0.1,
    accept_exemplars: Annotated[
        bool,
        typer.Option(
            "--accept-exemplars",
            help="Label by reference images whatever the figures say of them.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    device: Device = "auto",
    dtype: Precision = "auto",
    batch_size: BatchSize = "auto",
    vram: Annotated[
        float | None,
        typer.Option(min=0.0, help="Use at most this many GB of GPU memory.", rich_help_panel=SPEED),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model with torch, which takes minutes to start and then is faster.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|N",
            help="Label on so many GPUs of this machine: short for --ray local --replicas N.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|HOST:PORT",
            help="Label by Ray: on this machine alone, on the cluster it is part of, or on the one at this address.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With Ray, load so many copies of the model. By default it is one a GPU.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    workers: Workers = None,
    max_megapixels: MaxMegapixels = None,
    skip_similar: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="DISTANCE",
            help="Leave out photos and sampled frames whose features are nearer than this to those of one labelled "
            "shortly before. 0 is the same picture; 0.02 leaves out frames that hardly differ.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="N/M",
            help="Label a part of what was found, such as 3/64: the third of 64, by a hash of the ids.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    limit: Limit = None,
    video: VideoChoice = "auto",
    tracker: Annotated[
        TrackerForm,
        typer.Option(
            help="Track objects by SAM 3's own rules, or by those of transformers' loop.", rich_help_panel=VIDEO
        ),
    ] = "official",
    tracking_extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            autocompletion=lambda: list(EXTRAS),
            help=f"Add a rule of SAM 3.1's tracker: {', '.join(EXTRAS)}. May be repeated.",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    both_ways: Annotated[
        bool,
        typer.Option(
            "--both-ways",
            help="Follow objects to the frames before their first sure one too. Takes twice the time.",
            rich_help_panel=VIDEO,
        ),
    ] = False,
    clip_frames: Annotated[
        int,
        typer.Option(
            min=SHORTEST_CLIP, help="Track, and commit, so many frames of a video as one.", rich_help_panel=VIDEO
        ),
    ] = 600,
    every: Annotated[
        int, typer.Option(min=1, help="Take every so many frames, with --video frames.", rich_help_panel=VIDEO)
    ] = 30,
    fps: Annotated[
        float | None,
        typer.Option(min=0.001, help="Take so many frames a second instead of --every.", rich_help_panel=VIDEO),
    ] = None,
    fresh: Fresh = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try broken files again, though they have not changed since they failed.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Label folders of images and videos. The same command again continues where it stopped."""
    from sam3label.export.splits import parse_splits

    parse_splits(split)
    if export:
        from sam3label.export.registry import refuse_unknown_formats

        refuse_unknown_formats(export)
    concept_list = concepts_of(context, concepts, ontology, phrases or (), settings or ())
    ray, replicas, device = workers_asked(gpus, ray, replicas, device)
    with progress_display(quiet, "reading the photos ...") as display, stop_on_interrupt(display) as stop:
        from sam3label import face

        labelled = face.label(
            photos, concept_list, out, on_progress=display.job, on_message=display.say, stop=stop,
            model=model, revision=revision, device=device, ray=ray, replicas=replicas, dtype=dtype,
            prompt_style=prompt_style, image_size=image_size, skip_similar=skip_similar, floor=floor,
            batch_size=images_together(batch_size), vram=vram, compile=compile, workers=workers, limit=limit,
            shard=shard, max_megapixels=max_megapixels, fresh=fresh, retry_failed=retry_failed,
            follow_links=follow_links,
            accept_exemplars=accept_exemplars, video=video, clip_frames=clip_frames, every=every, fps=fps,
            tracker=tracker, tracking_extra=tuple(tracking_extra or ()), both_ways=both_ways,
        )  # fmt: skip
    with labelled:
        finish(labelled, stopped=stop.is_set(), formats=export or [], split=split, quiet=quiet)


def finish(labelled: LabeledRun, *, stopped: bool, formats: list[str], split: str | None, quiet: bool) -> None:
    """Say what the session came to and export, or leave with 130 where it was stopped; with 3 after failures."""
    summary = labelled.summary
    assert summary is not None  # of the session that just ended
    stopped = stopped and summary.interrupted
    if not quiet:
        print_summary(labelled, summary, next_step=not stopped and not formats)
    if stopped:
        typer.echo(
            f"Stopped. Everything labelled so far is in {labelled.folder}: the same command continues.", err=True
        )
        raise typer.Exit(130)
    if summary.progress.done + summary.already_done:
        export_shown(labelled, formats, quiet=quiet, split=split)
    if summary.failures:
        raise typer.Exit(3)


@contextmanager
def stop_on_interrupt(display: Display) -> Iterator[threading.Event]:
    """Let the first Ctrl-C (or a polite kill) end the run after the batch in flight, and the second one at once."""
    stop = threading.Event()

    def ask(signum: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        display.say("Stopping after the batch in flight (again: at once) ...")

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def print_summary(labelled: LabeledRun, summary: RunSummary, *, next_step: bool = True) -> None:
    """Print the table at the end of a run, with everything a user must know before training on the labels.

    Every class is in it: one of which nothing was found may have a phrase that the model does not know.
    """
    from rich.table import Table

    screen = console()
    progress = summary.progress
    out = labelled.folder
    counts = {name: objects for name, (objects, _) in labelled.count_objects().items()}
    all_of_it = "everything that can be read" if summary.failures else "everything"
    idle = f"{all_of_it} was labelled before" if summary.found else "no image or video is in this shard"
    worked = progress.finished or summary.interrupted
    screen.print(done_line(progress) if worked else f"Nothing to do: {idle}.")
    table = Table("class")
    table.add_column("objects", justify="right")
    table.add_column("this time", justify="right")
    for name, objects in counts.items():
        table.add_row(name, str(objects), str(progress.objects.get(name, 0)))
    table.add_row("all", str(sum(counts.values())), str(sum(progress.objects.values())), style="bold")
    screen.print(table)
    found = full_answers(labelled), kept_as_boxes(labelled), near_copies(labelled)
    for line in chain(_remarks(summary, out, sum(counts.values())), *found):
        screen.print(line, soft_wrap=True)
    screen.print(f"Run: {out}", soft_wrap=True)
    if next_step and progress.done + summary.already_done:
        command = f"{program()} export {shlex.quote(str(out))} --format yolo -o DATASET --split {SPLIT}"
        screen.print(f"Next: {command}", soft_wrap=True)


def _remarks(summary: RunSummary, out: Path, objects: int) -> Iterator[str]:
    if summary.already_done:
        were = verb(summary.already_done, "was", "were")
        yield f"{count(summary.already_done, 'image')} {were} labelled before and left alone."
    if summary.missing:
        are = verb(len(summary.missing), "is", "are")
        yield (
            f"{count(len(summary.missing), 'image')} of this run {are} no longer in the sources (the labels stay): "
            f"{_some(summary.missing)}"
        )
    if summary.skipped_videos:
        yield f"Left out, by --video off: {count(summary.skipped_videos, 'video')}."
    if summary.failures:
        known = summary.not_tried
        which = "" if known == len(summary.failures) else f"{known:,} of them "
        tried = verb(known, "it was", "they were")
        again = f" ({which}unchanged since {tried} tried, and left alone: --retry-failed tries again)"
        yield f"{count(len(summary.failures), 'file')} could not be labelled{again if known else ''}:"
        yield from (
            f"  {one_line(item_id)}: {one_line(reason)}" for item_id, reason in summary.failures[:SHOWN_FAILURES]
        )
        if len(summary.failures) > SHOWN_FAILURES:
            yield f"  ... and {len(summary.failures) - SHOWN_FAILURES} more: sam3label status {out}"
    labelled = summary.progress.done + summary.already_done
    if summary.failures and not labelled:
        yield "Not one file could be read, so nothing was asked. Look at the reasons above."
    elif labelled and not objects:
        yield "Not one object was found. Try other phrases or a lower conf: sam3label preview shows a sample."


def _some(names: tuple[str, ...], n: int = 5) -> str:
    return ", ".join(map(one_line, names[:n])) + (", ..." if len(names) > n else "")

"""`sam3label run`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import ConceptFile, Photos, read_concepts
from sam3label.cli.progress import duration, progress_display, rate

if TYPE_CHECKING:
    from sam3label.labelling.progress import RunSummary


SHOWN_FAILURES = 50


def run(
    photos: Photos,
    concepts: ConceptFile = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder: made, or continued.")] = Path("runs/run"),
    ontology: Annotated[
        str | None, typer.Option(help="""Instead of -c: '{"hard hat": "helmet"}', phrase to class, or a JSON file.""")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. concepts.helmet.conf=0.7. Repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Hub id, local folder in hub layout, or 'demo'.")] = "facebook/sam3",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    export: Annotated[
        list[str] | None, typer.Option(help="Export when done, into RUN/exports/FORMAT. Repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bf16 on CUDA, else fp32), fp32, bf16.")] = "auto",
    prompt_style: Annotated[
        str, typer.Option(help="official, or transformers (without the geometry CLS token).")
    ] = "official",
    floor: Annotated[float, typer.Option(min=0.0, max=1.0, help="Keep candidates with at least this score.")] = 0.1,
    batch_size: Annotated[str, typer.Option(help="Images per batch, or auto: as many as free memory holds.")] = "auto",
    vram: Annotated[float | None, typer.Option(min=0.0, help="Use at most this many GB of GPU memory.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model with torch: minutes to start, then faster.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes.")] = None,
    accept_exemplars: Annotated[
        bool, typer.Option("--accept-exemplars", help="Label by reference images whatever the figures say of them.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Label at most this many images and videos now.")] = None,
    video: Annotated[
        str,
        typer.Option(
            help="auto: track objects through video files; track: through folders of numbered frames too; "
            "frames: label samples as photos; off."
        ),
    ] = "auto",
    clip_frames: Annotated[int, typer.Option(min=16, help="Frames of a video tracked, and committed, as one.")] = 600,
    every: Annotated[int, typer.Option(min=1, help="With --video frames: label every N-th frame,")] = 30,
    fps: Annotated[float | None, typer.Option(min=0.001, help="or this many frames a second.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what the run folder holds and start over.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Label a folder of images. The same command again continues where it stopped."""
    from sam3label.export.registry import refuse_unknown_formats
    from sam3label.labelling.job import label
    from sam3label.labelling.options import LabelOptions

    refuse_unknown_formats(export or [])
    _one_of("--dtype", dtype, ("auto", "fp32", "bf16"))
    _one_of("--prompt-style", prompt_style, ("official", "transformers"))
    _one_of("--video", video, ("auto", "track", "frames", "off"))
    concept_list = read_concepts(concepts, ontology, settings or [])
    options = LabelOptions(
        model=model, revision=revision, device=device, dtype=dtype, prompt_style=prompt_style, floor=floor,  # type: ignore[arg-type]
        batch_size=_images_together(batch_size), vram_gb=vram, compiled=compiled, workers=workers, limit=limit,
        fresh=fresh, accept_exemplars=accept_exemplars,
        video=video, clip_frames=clip_frames, every=every, fps=fps,  # type: ignore[arg-type]
    )  # fmt: skip
    with _stop_on_interrupt() as stop, progress_display(quiet) as show:
        summary = label(photos, concept_list, out, options, on_progress=show, on_message=_say(quiet), stop=stop)
    if not quiet:
        print_summary(summary, concept_list.names, out)
    if summary.interrupted and stop.is_set():
        typer.echo(f"Stopped. Everything labelled so far is in {out}: the same command continues.", err=True)
        raise typer.Exit(130)
    export_all(out, export or [], quiet)
    if summary.failures:
        raise typer.Exit(3)


def _say(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else typer.echo(text, err=True)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=option)


def _images_together(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on", param_hint="--batch-size")
    return int(text)


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C (or a polite kill) ends the run after the batch in flight; the second one at once."""
    stop = threading.Event()

    def ask(signum: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        typer.echo("\nStopping after the batch in flight (again: at once) ...", err=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def print_summary(summary: RunSummary, names: Sequence[str], out: Path) -> None:
    """The table at the end of a run, with everything a user must know before training on the labels.

    Every class is in it: one of which nothing was found may have a phrase that the model does not know.
    """
    from rich.console import Console
    from rich.table import Table

    console, progress = Console(), summary.progress
    finished = progress.done + progress.failed
    console.print(f"{progress.done} images labelled in {duration(progress.seconds)} ({rate(progress)})")
    table = Table("class")
    table.add_column("objects", justify="right")
    for name in names:
        table.add_row(name, str(progress.objects.get(name, 0)))
    table.add_row("all", str(sum(progress.objects.values())), style="bold")
    console.print(table)
    if summary.already_done:
        console.print(f"{summary.already_done} images were labelled before and were left alone.")
    if summary.missing:
        console.print(
            f"{len(summary.missing)} images of this run are no longer in the sources (their labels stay): "
            f"{_some(summary.missing)}"
        )
    if summary.skipped_videos:
        console.print(f"{summary.skipped_videos} videos were left out (--video off).")
    if summary.failures:
        console.print(f"[bold]{len(summary.failures)} files could not be labelled:[/bold]")
        for item_id, reason in summary.failures[:SHOWN_FAILURES]:
            console.print(f"  {item_id}: {reason}", markup=False, highlight=False)
        if len(summary.failures) > SHOWN_FAILURES:
            console.print(
                f"  ... and {len(summary.failures) - SHOWN_FAILURES} more: sam3label status {out}", markup=False
            )
    if finished and not sum(progress.objects.values()):
        console.print(
            "Not one object was found. Try other phrases or a lower conf: sam3label preview shows a sample.",
            markup=False,
        )
    console.print(f"Run: {out}\nNext: sam3label export {out} --format yolo -o DATASET", markup=False, highlight=False)


def _some(names: tuple[str, ...], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def export_all(run_folder: Path, formats: list[str], quiet: bool) -> None:
    """Export a run into RUN/exports/FORMAT, one after the other."""
    from sam3label.export.write import export
    from sam3label.run.reader import open_run

    for name in formats:
        target = run_folder / "exports" / name
        with open_run(run_folder) as labelled:
            export(labelled, name, target)
        if not quiet:
            typer.echo(f"{name}: {target}")

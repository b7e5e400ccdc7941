"""`sam3label run`, `status` and `doctor`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from sam3label.core.records import ConceptList
    from sam3label.labelling.job import Progress, RunSummary

SHOWN_FAILURES = 50

Photos = Annotated[
    list[str],
    typer.Argument(metavar="PHOTOS...", help="Files, folders, globs in quotes, or @list.txt (a path a line)."),
]
ConceptFile = Annotated[
    Path | None,
    typer.Option("--concepts", "-c", help="Concept list (YAML; a YOLO data.yaml is one). Make one: sam3label init"),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `sam3label run`.")]


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
    from sam3label.labelling.job import RunOptions
    from sam3label.labelling.job import run as label

    refuse_unknown_formats(export or [])
    _one_of("--dtype", dtype, ("auto", "fp32", "bf16"))
    _one_of("--prompt-style", prompt_style, ("official", "transformers"))
    _one_of("--video", video, ("auto", "track", "frames", "off"))
    concept_list = read_concepts(concepts, ontology, settings or [])
    options = RunOptions(
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


def read_concepts(path: Path | None, ontology: str | None, settings: list[str]) -> ConceptList:
    """The concept list of the command line: a file, or an ontology. Raises `ConfigError`."""
    from sam3label.concepts import concept_list as concept_lists
    from sam3label.errors import ConfigError

    if (path is None) == (ontology is None):
        raise ConfigError(
            "say what to look for: -c concepts.yaml (make one with: sam3label init), or --ontology '{...}'"
        )
    if path is not None:
        return concept_lists.load_concepts(path, settings)
    assert ontology is not None
    return concept_lists.parse_ontology(ontology, settings)


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


@contextmanager
def progress_display(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Where the run stands: a live display on a terminal, a plain line every few seconds elsewhere, or nothing."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=4) as live:
            yield lambda progress: live.update(_panel(progress))
    else:
        yield _plain_lines(every_seconds=5.0)


def _plain_lines(every_seconds: float) -> Callable[[Progress], None]:
    due = 0.0

    def show(progress: Progress) -> None:
        nonlocal due
        last = progress.done + progress.failed == progress.total
        if progress.seconds >= due or last:
            due = progress.seconds + every_seconds
            typer.echo(_line(progress), err=True)

    return show


def _line(progress: Progress) -> str:
    finished = progress.done + progress.failed
    failed = f", {progress.failed} failed" if progress.failed else ""
    frames = f", {progress.frames} frames of videos" if progress.frames else ""
    return (
        f"{finished}/{progress.total} images{failed}{frames}, {sum(progress.objects.values())} objects, "
        f"{_rate(progress)}, {_left(progress)}"
    )


def _rate(progress: Progress) -> str:
    finished = progress.done + progress.failed
    return f"{finished / progress.seconds:.1f} images/s" if finished and progress.seconds else "starting"


def _left(progress: Progress) -> str:
    finished = progress.done + progress.failed
    if not finished:
        return "time left unknown"
    return f"{_duration((progress.total - finished) * progress.seconds / finished)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _panel(progress: Progress) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    finished = progress.done + progress.failed
    classes = sorted(progress.objects.items(), key=lambda entry: -entry[1])
    counts = "  ".join(f"{name} {n}" for name, n in classes[:8]) + ("  ..." if len(classes) > 8 else "")
    busy = sum(progress.stages.values()) or 1.0
    shares = "  ".join(f"{stage} {seconds / busy:.0%}" for stage, seconds in progress.stages.items())
    return Group(
        ProgressBar(total=max(progress.total, 1), completed=finished, width=60),
        Text(_line(progress)),
        Text(f"objects: {counts or 'none yet'}"),
        Text(f"time:    {shares or 'starting'}{_advice(progress)}"),
    )


_ADVICE = {
    "decode": "decoding is the bottleneck: try more --workers",
    "post": "reading off masks is the bottleneck: a higher --floor keeps fewer",
    "write": "writing is the bottleneck: try -o on a faster disk",
}


def _advice(progress: Progress) -> str:
    """What to change when a stage other than the model takes most of the time."""
    slowest = max(progress.stages, key=lambda stage: progress.stages[stage], default="")
    most = progress.stages.get(slowest, 0.0) > 0.5 * sum(progress.stages.values())
    return f"  ({_ADVICE[slowest]})" if progress.done > 50 and most and slowest in _ADVICE else ""


def print_summary(summary: RunSummary, names: Sequence[str], out: Path) -> None:
    """The table at the end of a run, with everything a user must know before training on the labels.

    Every class is in it: one of which nothing was found may have a phrase that the model does not know.
    """
    from rich.console import Console
    from rich.table import Table

    console, progress = Console(), summary.progress
    finished = progress.done + progress.failed
    console.print(f"{progress.done} images labelled in {_duration(progress.seconds)} ({_rate(progress)})")
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


def status(run_folder: RunFolder) -> None:
    """What a run holds: progress, objects per class, failures. Safe while the run is going on."""
    from rich.console import Console
    from rich.table import Table

    from sam3label.labelling.reference_check import Trust
    from sam3label.run.reader import count_objects, open_run

    console = Console()
    with open_run(run_folder) as labelled:
        totals, info = labelled.totals(), labelled.info
        console.print(
            f"{run_folder}: {totals.done} images labelled, {totals.failed} failed, {totals.candidates} candidates"
        )
        console.print(
            f"model {info.get('model')} ({info.get('checkpoint')}), started {info.get('created')}", markup=False
        )
        table = Table("class", "objects", "images")
        for name, (objects, images) in count_objects(labelled).items():
            table.add_row(name, str(objects), str(images))
        console.print(table)
        for figures in (labelled.note("trust") or {}).values():
            console.print(Trust.from_json(figures).sentence(), markup=False, highlight=False)
        for item_id, reason in labelled.failures():
            console.print(f"failed  {item_id}: {reason}", markup=False, highlight=False)


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

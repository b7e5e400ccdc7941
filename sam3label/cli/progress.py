"""How far a job is, for people to see: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from sam3label.labelling.progress import Progress


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
            typer.echo(line(progress), err=True)

    return show


def line(progress: Progress) -> str:
    finished = progress.done + progress.failed
    failed = f", {progress.failed} failed" if progress.failed else ""
    frames = f", {progress.frames} frames of videos" if progress.frames else ""
    return (
        f"{finished}/{progress.total} images{failed}{frames}, {sum(progress.objects.values())} objects, "
        f"{rate(progress)}, {left(progress)}"
    )


def rate(progress: Progress) -> str:
    finished = progress.done + progress.failed
    return f"{finished / progress.seconds:.1f} images/s" if finished and progress.seconds else "starting"


def left(progress: Progress) -> str:
    finished = progress.done + progress.failed
    if not finished:
        return "time left unknown"
    return f"{duration((progress.total - finished) * progress.seconds / finished)} left"


def duration(seconds: float) -> str:
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
        Text(line(progress)),
        Text(f"objects: {counts or 'none yet'}"),
        Text(f"time:    {shares or 'starting'}{advice(progress)}"),
    )


_ADVICE = {
    "decode": "decoding is the bottleneck: try more --workers",
    "post": "reading off masks is the bottleneck: a higher --floor keeps fewer",
    "write": "writing is the bottleneck: try -o on a faster disk",
}


def advice(progress: Progress) -> str:
    """What to change when a stage other than the model takes most of the time."""
    slowest = max(progress.stages, key=lambda stage: progress.stages[stage], default="")
    most = progress.stages.get(slowest, 0.0) > 0.5 * sum(progress.stages.values())
    return f"  ({_ADVICE[slowest]})" if progress.done > 50 and most and slowest in _ADVICE else ""

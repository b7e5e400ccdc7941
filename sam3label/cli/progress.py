"""Shows people how far work is: one live display on a terminal, plain lines elsewhere, nothing with --quiet.

16 of 55 images, 3 failed, 76 objects                      text on a line of its own
━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━ 4.3 images/s, 2m 10s left   as wide as the terminal, figures always whole
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import typer

from sam3label.core.text import count, visible

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

    from sam3label.labelling.progress import Progress

EVERY_SECONDS = 5.0  # a plain line
AGAIN_SECONDS = 0.1  # the bar


class Display(Protocol):
    """Takes what a verb tells while it works."""

    def say(self, text: str) -> None:
        """Print a sentence that stays."""

    def job(self, progress: Progress) -> None:
        """Show where a labelling job stands."""

    def step(self, what: str, done: int, total: int, unit: str) -> None:
        """Show where other work stands, such as an export."""


class _Silent:
    def say(self, text: str) -> None: ...

    def job(self, progress: Progress) -> None: ...

    def step(self, what: str, done: int, total: int, unit: str) -> None: ...


class _Plain:
    """Prints a line at once and every few seconds; of a labelling job a last one too."""

    def __init__(self, first: str) -> None:
        self.due = 0.0
        self.begun: dict[str, float] = {}
        if first:
            self.say(first)

    def say(self, text: str) -> None:
        typer.echo(visible(text), err=True)

    def job(self, progress: Progress) -> None:
        if progress.total and (progress.seconds >= self.due or progress.finished == progress.total):
            self.due = progress.seconds + EVERY_SECONDS
            self.say(f"{job_line(progress)}, {pace_line(progress)}")
            for line in workers_lines(progress):
                self.say(line)

    def step(self, what: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        seconds = now - self.begun.setdefault(what, now)
        if now >= self.due and done < total:  # the result itself says that it is over
            self.due = now + EVERY_SECONDS
            self.say(f"{what}: {done:,} of {total:,} {unit}, {_pace(done, total, seconds, unit)}")


class LiveDisplay:
    def __init__(self, live: Live) -> None:
        self.live = live
        self.due = 0.0
        self.begun: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.live.console.print(text)

    def job(self, progress: Progress) -> None:
        self.live.update(panel(progress))

    def step(self, what: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        seconds = now - self.begun.setdefault(what, now)
        if now < self.due and done < total:  # a line costs more than many a step
            return
        self.due = now + AGAIN_SECONDS
        self.live.update(_bar(f"{what}: {done:,} of {total:,} {unit}", done, total, _pace(done, total, seconds, unit)))


@contextmanager
def progress_display(quiet: bool, first: str = "") -> Iterator[Display]:
    """Open a display for a verb, which shows `first` at once, before there is anything to count."""
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        from rich.live import Live
        from rich.text import Text

        from sam3label.cli.tables import console

        with Live(Text(first), console=console(stderr=True), refresh_per_second=4, transient=True) as live:
            yield LiveDisplay(live)
    else:
        yield _Plain(first)


def stepper(display: Display, what: str, total: int, unit: str = "images") -> Callable[[int], None]:
    """Return a callback for library code that counts what it has done."""
    display.step(what, 0, total, unit)
    return lambda done: display.step(what, done, total, unit)


# ---- words


def job_line(progress: Progress) -> str:
    """Return what is done, in words; what earlier sessions did is counted in, but for the objects."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    objects = sum(progress.objects.values())
    done, total = progress.finished + progress.before, progress.total + progress.before
    frames = ""
    if progress.videos:
        frames = f", {progress.frames:,} of" if progress.frames_total >= progress.frames else ","
        frames += f" {count(max(progress.frames_total, progress.frames), 'frame')} of videos"
    now = " this time" if progress.before else ""
    return f"{done:,} of {count(total, 'image')}{frames}{failed}, {count(objects, 'object')}{now}"


def done_line(progress: Progress) -> str:
    """Return what a session labelled, at its end: images, or images and videos with their frames."""
    what = count(progress.done, "image")
    if progress.videos:
        what = f"{count(progress.done, 'image or video', 'images and videos')} ({count(progress.frames, 'frame')})"
    pace = f" ({rate(progress)})" if progress.steps[0] else ""
    return f"{what} labelled in {duration(progress.seconds)}{pace}"


def pace_line(progress: Progress) -> str:
    """Return rate and time left, in words."""
    return f"{rate(progress)}, {left(progress)}"


def rate(progress: Progress) -> str:
    """Return images a second, or frames where there are videos, in words."""
    unit = "frames" if progress.videos else "images"
    return _rate(progress.steps[0], progress.seconds, unit)


def left(progress: Progress) -> str:
    seconds = progress.seconds_left
    return "time left unknown" if seconds is None else f"{duration(seconds)} left"


def _pace(done: int, total: int, seconds: float, unit: str) -> str:
    if not done or not seconds:
        return "starting"
    return f"{_rate(done, seconds, unit)}, {duration((total - done) * seconds / done)} left"


def _rate(done: int, seconds: float, unit: str) -> str:
    """Return how fast it goes; what takes long, such as a large photo in tiles, by the seconds that one takes."""
    if not done or not seconds:
        return "starting"
    pace = done / seconds
    return f"{pace:.1f} {unit}/s" if pace >= 0.1 else f"{duration(1 / pace)} each"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


# ---- the live display


def panel(progress: Progress) -> Group:
    """Return the lines of a labelling job on a terminal."""
    from rich.console import Group
    from rich.text import Text

    classes = sorted(progress.objects.items(), key=lambda entry: -entry[1])
    counts = "  ".join(f"{name} {n}" for name, n in classes[:8]) + ("  ..." if len(classes) > 8 else "")
    busy = sum(progress.stages.values()) or 1.0
    shares = "  ".join(f"{stage} {seconds / busy:.0%}" for stage, seconds in progress.stages.items())
    done, total = progress.steps
    return Group(
        _bar(job_line(progress), done + progress.before, total + progress.before, pace_line(progress)),
        Text(visible(f"objects: {counts or 'none yet'}"), overflow="ellipsis", no_wrap=True),
        Text(f"time:    {shares or 'starting'}{advice(progress)}"),
        *(Text(visible(line), overflow="ellipsis", no_wrap=True) for line in workers_lines(progress)),
    )


_SLOW = 0.6  # of what workers do in the middle


def workers_lines(progress: Progress) -> list[str]:
    """Return several workers in a line.

    How many labels, how fast, and by name those that are slow or do something else.
    """
    if not progress.workers:
        return []
    busy = [worker for worker in progress.workers if worker.state == "labelling"]
    paces = sorted(worker.per_second for worker in busy)
    middle = paces[len(paces) // 2] if paces else 0.0
    unit = "frames" if progress.videos else "images"
    said = [f"workers: {len(busy)} of {len(progress.workers)} labelling, {middle:.1f} {unit}/s each"]
    slow = min(busy, key=lambda worker: worker.per_second, default=None)
    if slow is not None and slow.per_second < _SLOW * middle:
        said.append(f"slowest {slow.name} with {slow.per_second:.1f}")
    said += [f"{worker.name}: {worker.state}" for worker in progress.workers if worker.state != "labelling"][:3]
    return ["; ".join(said)]


def _bar(text: str, done: int, total: int, pace: str) -> Group:
    """Return a line of text, and below it a bar that takes what room the figures leave."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(ProgressBar(total=max(total, 1), completed=done), Text(pace))
    return Group(Text(visible(text)), line)


_ADVICE = {
    "decode": "decoding is the bottleneck: try more --workers",
    "post": "reading off masks is the bottleneck: a higher --floor keeps fewer",
    "write": "writing is the bottleneck: try -o on a faster disk",
}


def advice(progress: Progress) -> str:
    """Return what to change when a stage other than the model takes most of the time."""
    slowest = max(progress.stages, key=lambda stage: progress.stages[stage], default="")
    most = progress.stages.get(slowest, 0.0) > 0.5 * sum(progress.stages.values())
    return f"  ({_ADVICE[slowest]})" if progress.done > 50 and most and slowest in _ADVICE else ""

"""The log of a run: a text file in its folder that tells what was done to it, and how that went.

A session adds a paragraph: its command, settings and versions, what was said while it worked, its pace, how it ended.
Some lines each, and one every ten minutes, however many photos there are: those are in the run itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from sam3label.core.records import ConceptList
from sam3label.core.text import count, one_line
from sam3label.labelling.growing import duration
from sam3label.labelling.options import DEFAULTS, LabelOptions
from sam3label.labelling.progress import Progress, RunSummary
from sam3label.run.store_errors import DATABASE

LOG = "run.log"
PACE_SECONDS = 600.0  # between two lines about the pace
_SHOWN = 20  # names and failures in one session's paragraph


def chosen(options: LabelOptions) -> dict[str, Any]:
    """Return the options that are not at their defaults, and always the model, by name.

    >>> chosen(LabelOptions(model="demo", floor=0.2))
    {'model': 'demo', 'floor': 0.2}
    """
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    changed = {name: value for name, value in values.items() if name == "model" or value != getattr(DEFAULTS, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


class RunLog:
    """A session's paragraph. Nothing is written before the run folder is there, and a log that fails fails nothing."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._waiting: list[str] = []
        self._file: TextIO | None = None
        self._next_pace = time.monotonic() + PACE_SECONDS

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        if value is not None:
            self.say(f"ended by {kind.__name__ if kind else ''}: {value}")
        if self._file is None and (self._folder / DATABASE).is_file():
            self.open()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def open(self) -> None:
        """Write what was said so far, and from now on at once: the run folder is there."""
        with contextlib.suppress(OSError):
            self._file = (self._folder / LOG).open("a", encoding="utf-8")
            waiting, self._waiting = self._waiting, []
            self._file.write("".join(waiting))
            self._file.flush()

    def say(self, text: str) -> None:
        """Add a line, whatever is in the text."""
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')}  {one_line(text)}\n"
        if self._file is None:
            self._waiting.append(line)
            return
        with contextlib.suppress(OSError):
            self._file.write(line)
            self._file.flush()

    def also(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return `say` with every sentence added here too."""

        def both(text: str) -> None:
            self.say(text)
            say(text)

        return both

    def begin(self, sources: Sequence[str | Path], concepts: ConceptList, options: LabelOptions) -> None:
        """Say what was asked for, with what."""
        parts = ", ".join(f"{name} {version(name)}" for name in ("sam3label", "torch", "transformers"))
        self.say(f"{parts}, Python {platform.python_version()}, {platform.platform()}")
        self.say(f"command: {command_line()}")
        self.say(f"photos: {_some([str(source) for source in sources])}")
        self.say(f"classes: {_some(concepts.names)}; {count(len(concepts.phrases), 'phrase')}")
        self.say("options: " + ", ".join(f"{name} {value}" for name, value in chosen(options).items()))

    def pace(self, progress: Progress) -> None:
        """Say how it goes, if that has not been said for a while."""
        if time.monotonic() >= self._next_pace:
            self._next_pace = time.monotonic() + PACE_SECONDS
            self.say(f"{_counts(progress)}, {_rate(progress)}")

    def end(self, summary: RunSummary) -> None:
        """Say what the session came to."""
        progress = summary.progress
        for item_id, reason in summary.failures[:_SHOWN]:
            self.say(f"failed: {item_id}: {reason}")
        if len(summary.failures) > _SHOWN:
            self.say(f"... and {len(summary.failures) - _SHOWN:,} more failures")
        total = f"the run has {count(summary.already_done + progress.done, 'image')} labelled"
        total += f", {len(summary.failures):,} failed"
        if not progress.finished and not summary.interrupted:
            self.say(f"done, nothing was left to do: {total}")
            return
        objects = _some([f"{name} {n}" for name, n in progress.objects.items()])
        how = "stopped" if summary.interrupted else "done"
        self.say(f"{how}: {_counts(progress)}, {_rate(progress)}; objects: {objects or 'none'}; {total}")


def command_line() -> str:
    """Return how this process was started, as it would be typed: `python -m sam3label` is the program itself."""
    started = Path(sys.argv[0])
    name = "sam3label" if started.name == "__main__.py" else started.name.removesuffix(".exe")
    return shlex.join([name, *sys.argv[1:]])


def _counts(progress: Progress) -> str:
    frames = f" ({count(progress.frames, 'frame')} of videos)" if progress.videos else ""
    return f"{progress.done:,} of {count(progress.total, 'image')} labelled{frames}, {progress.failed:,} failed"


def _rate(progress: Progress) -> str:
    done = progress.steps[0]
    unit = "frames" if progress.videos else "images"
    pace = f"{done / progress.seconds:.2f} {unit}/s, " if done and progress.seconds else ""
    return f"{pace}{duration(progress.seconds)}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f", ... ({len(listed):,})" if len(listed) > _SHOWN else "")

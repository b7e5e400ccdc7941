"""Makes the one console of the command line: what users called their files and classes is printed, never obeyed."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sam3label.core.text import count, one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.run.reader import Run


SPLIT = "train=0.8,val=0.2"  # in commands that are shown to be typed
SHOWN_FAILURES = 20


def console(*, stderr: bool = False) -> Console:
    """Return a console without markup, so that `[review]` and `star [big]` stay as they are; controls are made visible.

    Tables are as wide as the terminal; a file or a pipe gets them whole.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

    made = PlainConsole(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
    if not made.is_terminal:
        made = PlainConsole(stderr=stderr, markup=False, highlight=False, emoji=False, width=160)
    return made


def failure_lines(failures: Sequence[tuple[str, str]], word: str = "failed", rest: str = "") -> Iterator[str]:
    """Yield a line for each of the first failures (item, why), then how many more there are, and where: `rest`."""
    yield from (f"{word}  {one_line(item)}: {one_line(why)}" for item, why in failures[:SHOWN_FAILURES])
    if len(failures) > SHOWN_FAILURES:
        yield f"... and {len(failures) - SHOWN_FAILURES:,} more{rest and ': '}{rest}"


def full_answers(run: Run) -> Iterator[str]:
    """Say where the model gave nearly all the answers that it can give, and what to do about it."""
    if full := run.full():
        item_id, _, phrase = full[0]
        advice = "; ".join(_advice(run, full))
        yield (
            f"{count(len(full), 'image and phrase', 'images and phrases')} with nearly all the answers that the model "
            f"can give, so there may be more objects ({one_line(phrase)!r} in {one_line(item_id)}"
            f"{', ...' if len(full) > 1 else ''}): {advice}"
        )


def _advice(run: Run, full: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    """Say what sees more than the model's answers can hold."""
    tracked = run.tracked_ids()
    if keys := {key for item_id, _, key in full if item_id not in tracked}:
        if all(map(run.is_tiled, keys)):
            yield "smaller tiles or a larger --image-size see more"
        else:
            yield "tile: auto in the concept list looks at them in parts"
    if any(item_id in tracked for item_id, _, _ in full):
        yield "tracked videos have no tiles, --video frames labels samples of them in parts"


def near_copies(run: Run) -> Iterator[str]:
    """Say which images were left out as near-copies, and how to have them labelled."""
    if copies := run.near_copies():
        item_id, frame, like = copies[0]
        one, other = (
            one_line(name) + (f" frame {number}" if number else "")
            for name, number in ((item_id, frame), (like.item_id, like.frame))
        )
        yield (
            f"{count(len(copies), 'near-copy', 'near-copies')} left out by --skip-similar ({one} is like {other}"
            f"{', ...' if len(copies) > 1 else ''}): the same command without it labels them too"
        )


def kept_as_boxes(run: Run) -> Iterator[str]:
    """Say how many objects that were given were kept as their boxes, and why."""
    if not any(concept.exemplars and concept.exemplars.kind == "objects" for concept in run.concepts.concepts):
        return
    doubts = Counter(label.doubt for image in run.images() for label in image.labels if label.doubt)
    if doubts:
        why = ", ".join(f"{doubt}: {number}" for doubt, number in doubts.most_common())
        yield (
            f"{count(doubts.total(), 'object')} kept as the box, for the mask was not to be believed ({why}): "
            f"sam3label review push {run.folder}"
        )


def program() -> str:
    """Return how to start this program from where the user is: by name if the shell finds it, else by its path."""
    from pathlib import Path

    if shutil.which("sam3label"):
        return "sam3label"
    beside = Path(sys.executable).with_name("sam3label")
    if not beside.is_file():
        return f"{shlex.quote(sys.executable)} -m sam3label"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside))


def figure(value: float | int) -> str:
    """Return a figure with three digits; a dash where it is undefined."""
    if isinstance(value, int):
        return str(value)
    return "-" if value <= -1 else f"{value:.3f}"

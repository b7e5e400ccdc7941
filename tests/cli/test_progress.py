"""What a person sees while work goes on: on a terminal of 80 columns, and in a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.live import Live

from sam3label.cli import progress as shown
from sam3label.cli import tables
from sam3label.labelling.progress import Progress

WIDTH = 80


def progress(**changed: Any) -> Progress:
    usual: dict[str, Any] = {
        "total": 55, "done": 12, "failed": 4, "objects": {"hard hat": 70, "person": 6}, "seconds": 4.0,
        "stages": {"decode": 0.5, "encode": 3.0, "heads": 0.3, "post": 0.1, "write": 0.1},
    }  # fmt: skip
    return Progress(**{**usual, **changed})


def lines(renderable: Any, width: int = WIDTH) -> list[str]:
    screen = tables.console()
    screen.file, screen.width = io.StringIO(), width
    screen.print(renderable)
    return screen.file.getvalue().splitlines()


def test_at_80_columns_the_text_has_its_line_and_pace_and_time_left_are_whole() -> None:
    first, bar, objects, time = lines(shown.panel(progress()))
    assert first == "16 of 55 images, 4 failed, 76 objects"
    assert bar.endswith(" 4.0 images/s, 10s left") and len(bar) == WIDTH
    assert bar.count("━") == 16 * (WIDTH - len("4.0 images/s, 10s left") - 1) // 55  # without colors: what is done
    assert objects == "objects: hard hat 70  person 6"
    assert time.startswith("time:    decode 12%  encode 75%")


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
def test_the_figures_are_never_cut_whatever_the_width(width: int) -> None:
    far = progress(total=500_000, done=123_456, failed=0, seconds=36_000.0, objects={"x" * 30: 1_234_567})
    said = " ".join(" ".join(lines(shown.panel(far), width)).split())
    for figure in ("123,456 of 500,000 images", "1,234,567 objects", "3.4 images/s, 30h 30m left"):
        assert figure in said, width


def test_totals_are_in_frames_where_there_are_videos_and_what_was_done_before_counts() -> None:
    tracked = progress(total=3, done=1, failed=0, videos=2, videos_finished=0, frames=60, frames_total=400,
                     seconds=62.0, stages={"encode": 1.0, "video": 60.0}, before=384)  # fmt: skip
    first, bar, *_ = lines(shown.panel(tracked))
    assert first == "385 of 387 images, 60 of 400 frames of videos, 76 objects this time"
    assert bar.endswith(" 1.0 frames/s, 5m 40s left")
    assert bar.count("━") == (384 + 1 + 60) * (WIDTH - len("1.0 frames/s, 5m 40s left") - 1) // (384 + 1 + 400)


def test_the_end_counts_frames_too() -> None:
    assert shown.done_line(progress(done=3, failed=0, seconds=2.0)) == "3 images labelled in 2s (1.5 images/s)"
    tracked = progress(total=3, done=3, failed=0, videos=2, videos_finished=2, frames=400, seconds=138.0)
    assert shown.done_line(tracked) == "3 images and videos (400 frames) labelled in 2m 18s (2.9 frames/s)"


def test_names_do_not_paint_the_panel() -> None:
    odd = progress(objects={"[red]square": 1, "a\x1b[2J": 2})
    assert lines(shown.panel(odd))[2] == "objects: a\\x1b[2J 2  [red]square 1"


def test_a_sentence_stays_above_the_display_and_the_display_stands_once() -> None:
    """The terminal as it is at the end: what was said, and nothing of the display."""
    screen = tables.console(stderr=True)
    screen.file, screen.width, screen._force_terminal = io.StringIO(), WIDTH, True
    with Live("loading ...", console=screen, auto_refresh=False, transient=True) as live:
        display = shown.LiveDisplay(live)
        display.job(progress())
        live.refresh()
        display.say("Stopping after the batch in flight [red] ...")
        display.step("exporting yolo", 3, 10, "images")
        live.refresh()
    assert visible_at_the_end(screen.file.getvalue()) == ["Stopping after the batch in flight [red] ..."]


def visible_at_the_end(written: str) -> list[str]:
    """A terminal in a few lines: text, carriage return, cursor up, erase line. (What rich's Live writes.)"""
    import re

    rows, row = [""], 0
    for match in re.finditer(r"\x1b\[(\??\d*(?:;\d+)*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)", written):
        number, letter, home, line, text = match.groups()
        if letter == "A":
            row -= int(number or 1)
        elif letter == "K":
            rows[row] = ""
        elif line:
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif text:
            rows[row] = text
        assert home or row >= 0
    return [text.rstrip() for text in rows if text.strip()]


def test_where_there_is_no_terminal_lines_come_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    with shown.progress_display(False, "starting ...") as display:
        step = shown.stepper(display, "exporting yolo", 1000)
        for n in range(1, 1001):
            now[0] += 0.03125
            step(n)
        display.job(progress(total=0, done=0, failed=0))
        display.job(progress(total=1, done=1, failed=0, seconds=2.0, objects={"a": 1}))
    assert capsys.readouterr().err.splitlines() == [
        "starting ...",
        "exporting yolo: 0 of 1,000 images, starting",
        *(
            f"exporting yolo: {n} of 1,000 images, 32.0 images/s, {round((1000 - n) / 32)}s left"
            for n in (160, 320, 480, 640, 800, 960)
        ),
        "1 of 1 image, 1 object, 0.5 images/s, 0s left",
    ]
    assert shown.rate(progress(total=4, done=2, failed=0, seconds=52.0)) == "26s each"
    with shown.progress_display(True) as display:
        shown.stepper(display, "exporting yolo", 10)(5)
        display.say("nothing")
    assert capsys.readouterr().err == ""

"""A person's way, in a real browser: `review open`, choose a saved view, relabel, brush, delete, vouch; then pull.

Screenshots are kept in build/review-app/.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from support.reviewing import bar, candidate, disc, make_run, photo, three_shapes

from sam3label.core import masks
from sam3label.review.fiftyone.pull import pull
from sam3label.review.fiftyone.push import push
from sam3label.run.reader import open_run

CHROMIUM = "/usr/bin/chromium"
SHOTS = Path(__file__).parents[2] / "build" / "review-app"
SIZE = (480, 640)
ITEM = "near.png"
DISC, RING, BAR = disc(SIZE, 150, 150, 90), disc(SIZE, 430, 150, 90, 40), bar(SIZE, 80, 350, 450, 70)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WAIT_S = 120.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One photo with a score near the threshold, and three that are sure."""
    near = [
        candidate(ITEM, 0, "disc", 0.55, DISC),
        candidate(ITEM, 1, "ring", 0.8, RING),
        candidate(ITEM, 2, "bar", 0.9, BAR),
    ]
    sure = [three_shapes(tmp_path, f"sure{i}.png", SIZE) for i in range(3)]
    return make_run(tmp_path / "run", [photo(tmp_path, ITEM, SIZE, near), *sure])


@pytest.fixture
def address(fo: Any, run: Path, name: str) -> Iterator[str]:
    """The App, as `sam3label review open` serves it; Ctrl-C ends it, and its server with it."""
    with open_run(run) as opened:
        push(opened, name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from sam3label.cli import main; main()", "review", "open", str(run)]
    process = subprocess.Popen(
        [*command, "--remote", "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}/datasets/{name}"
    finally:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert (
        f"FiftyOne shows 'review: all' of '{name}' (4 left) at http://127.0.0.1:{port}/datasets/{name}?view" in output
    )
    assert process.returncode == 130
    wait_until(lambda: not answers(port))


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/fiftyone", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    assert os.access(CHROMIUM, os.X_OK), "the browser test needs Debian's chromium: apt-get install -y chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "browser"), executable_path=CHROMIUM, headless=True, args=QUIET,
            viewport={"width": 1000, "height": 640},
        )  # fmt: skip
        context.add_init_script("window.IS_PLAYWRIGHT = true")  # FiftyOne's own switch: no advertisement over the page
        opened = context.new_page()
        opened.set_default_timeout(1000 * WAIT_S)
        yield opened
        SHOTS.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=SHOTS / "6-last.png")
        context.close()


class Reviewer:
    """What a person does in the App. `saved` waits until the App has written a change to the database."""

    def __init__(self, page: Page, dataset: Any) -> None:
        self.page, self.dataset = page, dataset

    def look(self, name: str) -> np.ndarray[Any, Any]:
        """A screenshot, kept, as uint8 [H, W, 3]."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return np.asarray(Image.open(path).convert("RGB"))

    def click(self, selector: str, text: str | None = None) -> None:
        found = self.page.locator(selector)
        if text is not None:
            found = found.get_by_text(text, exact=True)
        found.last.click(no_wait_after=True)

    def choose_view(self, name: str) -> None:
        self.click("[data-cy=saved-views-selection]")
        self.click(f"[data-cy=saved-views-{name}-selection-option]")
        self.page.wait_for_url(f"**?view={name}")
        self.page.get_by_text("1 sample", exact=True).wait_for()
        self.page.locator("[data-cy=looker] canvas[canvas-loaded=true]").first.wait_for()

    def open_first(self) -> None:
        box = self.page.locator("[data-cy=looker]").first.bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.4)
        self.page.locator("#modal.modalon").wait_for()
        self.click("[data-cy=annotate]")
        self.page.locator("#modal").get_by_text("review_status", exact=True).wait_for()

    def pick(self, label: str) -> None:
        self.click("#modal", label)
        self.page.locator("[data-cy=annotate-edit-back]").wait_for()

    def back(self) -> None:
        self.click("[data-cy=annotate-edit-back]")
        self.page.locator("#modal").get_by_text("PRIMITIVES", exact=True).wait_for()

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photo is on the screen: it is fitted into the canvas."""
        box = self.page.locator("[data-cy=lighter-sample-renderer-canvas]").first.bounding_box()
        assert box is not None
        scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
        left, top = (box["width"] - scale * SIZE[1]) / 2, (box["height"] - scale * SIZE[0]) / 2
        return box["x"] + left + scale * x, box["y"] + top + scale * y

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        self.page.mouse.move(*self.on_screen(*start))
        self.page.mouse.down()
        for step in range(1, 7):
            x, y = (a + (b - a) * step / 6 for a, b in zip(start, stop, strict=True))
            self.page.mouse.move(*self.on_screen(x, y))
        self.page.mouse.up()

    def colour(self, shot: np.ndarray[Any, Any], x: float, y: float) -> list[int]:
        column, row = self.on_screen(x, y)
        return [int(v) for v in shot[round(row), round(column)]]

    def truth(self) -> dict[str, Any]:
        self.dataset.reload()
        return {d.id: d for d in self.dataset.one({"item_id": ITEM}).ground_truth.detections}

    def saved(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        wait_until(lambda: condition(self.truth()))


def test_a_reviewer_in_the_app(fo: Any, run: Path, address: str, page: Page, name: str) -> None:
    person = Reviewer(page, fo.load_dataset(name))
    before = person.truth()
    ids = {d.label: d.id for d in before.values()}
    page.goto(f"{address}?view=review-all", wait_until="domcontentloaded")
    page.get_by_text("4 samples", exact=True).wait_for()
    page.get_by_text("review: all", exact=True).wait_for()  # the view that `open` names
    person.look("0-queue")
    person.choose_view("review-near-threshold")
    person.look("1-saved-view")
    assert "near threshold: disc 0.55 is a label, just over the threshold 0.50" in page.locator("body").inner_text()

    person.open_first()
    page.locator("[data-cy=lighter-sample-renderer-canvas]").first.wait_for()
    wait_until(lambda: person.colour(person.look("2-masks"), 150, 150) != [200, 60, 60])
    shot = person.look("2-masks")
    assert person.colour(shot, 360, 150) != [60, 60, 200]  # the ring is covered by its mask ...
    assert person.colour(shot, 430, 150) == [225, 225, 225]  # ... and its hole is not

    person.pick("bar")
    person.click("[data-cy=brush]")
    person.drag((300, 390), (300, 300))
    person.saved(lambda now: not np.array_equal(now[ids["bar"]].mask, before[ids["bar"]].mask))
    person.look("3-brushed")
    person.click("[data-cy=select]")
    person.back()

    person.pick("disc")
    person.click("#modal label", "bar")
    person.saved(lambda now: now[ids["disc"]].label == "bar")
    person.look("4-relabelled")
    person.back()

    person.pick("ring")
    person.click("[data-cy=label-menu-trigger]")
    person.click("body", "Delete label")
    person.saved(lambda now: ids["ring"] not in now)
    person.look("5-deleted")

    with open_run(run) as opened:
        (pulled,) = pull(opened, who="anna")
        assert pulled.actions == {"relabelled": 1, "reshaped": 1, "deleted": 1}
        assert (pulled.conflicts, pulled.notes) == ((), ())
        image = opened.image(ITEM)
        assert image is not None
        assert [(x.class_id, x.source) for x in image.labels] == [(2, "human"), (2, "human")]
        by_area = sorted(image.labels, key=lambda x: x.area)
        assert by_area[0].rle == masks.encode(DISC)
        brushed = masks.decode(by_area[1].rle)
        assert brushed.shape == SIZE
        assert brushed[320, 300]
        assert (brushed & BAR).sum() > 0.98 * BAR.sum()
        assert (brushed & ~BAR).sum() < 0.3 * BAR.sum()
        assert [e.label_id for e in opened.corrections() if e.action == "deleted"] == [before[ids["ring"]].candidate_id]

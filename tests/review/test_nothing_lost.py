"""Nothing human is ever lost: random histories of pushing, correcting, pulling and crashing in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from support.reviewing import bar, candidate, make_run, photo

from sam3label.core import masks
from sam3label.core.records import Correction, Rle, UnitResult
from sam3label.review import labels
from sam3label.review.fiftyone import pull, push
from sam3label.run.reader import open_run
from sam3label.run.store import Store

SIZE = (24, 32)
CLASSES = ("disc", "ring", "bar")
Truth = dict[str, dict[str, tuple[str, Rle]]]  # item -> FiftyOne label id -> class, mask


class Crash(BaseException):
    """The process ends here."""


class Story:
    """One run, one dataset, one person; `truth` is what the person wants, kept apart from all the code under test."""

    def __init__(self, fo: Any, folder: Path) -> None:
        self.fo, self.folder = fo, folder
        self.name = f"t{uuid.uuid4().hex[:12]}"
        self.truth: Truth = {}
        self.rows: list[Correction] = []
        self.media = 0
        self.add_media()
        self.push()

    def units(self, start: int, stop: int) -> list[UnitResult]:
        return [
            photo(
                self.folder, f"{i}.png", SIZE,
                [candidate(f"{i}.png", k, CLASSES[k], 0.9, bar(SIZE, 10 * k, 2, 8, 9)) for k in range(i % 4)],
            )
            for i in range(start, stop)
        ]  # fmt: skip

    def add_media(self) -> None:
        make_run(self.folder / "run", self.units(self.media, self.media + 3))
        self.media += 3

    # ---- the program, whole and cut short

    def push(self) -> None:
        with open_run(self.folder / "run") as run:
            push.push(run, self.name)
        for s in self.fo.load_dataset(self.name):
            self.truth.setdefault(s.item_id, self.read(s))

    def pull(self) -> None:
        with open_run(self.folder / "run") as run:
            pull.pull(run, self.name, "anna")

    def crash_in_push(self, patch: pytest.MonkeyPatch, after: int) -> None:
        """The process goes before some sample was made."""
        self.add_media()
        made = _dies_after(push.make_sample, after)
        self._crash(patch, push, "make_sample", made, self.push)

    def crash_before_commit(self, patch: pytest.MonkeyPatch) -> None:
        self._crash(patch, Store, "add_corrections", _dies_after(Store.add_corrections, 0), self.pull)

    def crash_after_commit(self, patch: pytest.MonkeyPatch) -> None:
        self._crash(patch, pull, "agree", _dies_after(pull.agree, 0), self.pull)

    def _crash(self, patch: pytest.MonkeyPatch, place: Any, name: str, dying: Any, command: Callable[[], None]) -> None:
        with patch.context() as patched:
            patched.setattr(place, name, dying)
            try:
                command()
            except Crash:
                note("crashed")

    # ---- the person

    def sample(self, pick: int) -> Any:
        dataset = self.fo.load_dataset(self.name)
        dataset.reload()
        ids = dataset.values("id")
        return dataset[ids[pick % len(ids)]]

    def edit(self, kind: str, pick: int, which: int, class_name: str) -> None:
        s = self.sample(pick)
        detections = s.ground_truth.detections
        if kind == "add":
            detections.append(self.fo.Detection(label=class_name, **_drawn(which)))
        elif kind == "review":
            s.review_status = "reviewed"
        elif detections:
            target = detections[which % len(detections)]
            if kind == "delete":
                detections.remove(target)
            elif kind == "relabel":
                target.label = class_name
            elif kind == "reshape":
                drawn = _drawn(pick + which)
                target.mask, target.bounding_box = drawn["mask"], drawn["bounding_box"]
            elif kind == "approve":
                target.tags.append(labels.APPROVED)
        s.save()
        self.truth[s.item_id] = self.read(s)

    def read(self, s: Any) -> dict[str, tuple[str, Rle]]:
        """What the person sees, by plain pixel arithmetic."""
        found = {}
        for d in s.ground_truth.detections:
            x, y = round(d.bounding_box[0] * SIZE[1]), round(d.bounding_box[1] * SIZE[0])
            full = np.zeros(SIZE, bool)
            full[y : y + d.mask.shape[0], x : x + d.mask.shape[1]] = d.mask > 0
            found[d.id] = (d.label, masks.encode(full))
        return found

    # ---- what must hold

    def check_rows_only_grow(self) -> None:
        with open_run(self.folder / "run") as run:
            rows = run.corrections()
        assert rows[: len(self.rows)] == self.rows
        self.rows = rows

    def check_nothing_lost(self) -> None:
        """After a last pull the run holds just what the person left, and another pull records nothing."""
        self.pull()
        self.check_rows_only_grow()
        with open_run(self.folder / "run") as run:
            names = run.concepts.names
            held = {
                i.item.id: {labels.object_id(x.id): (names[x.class_id], x.rle) for x in i.labels} for i in run.images()
            }
        assert {item: held[item] for item in self.truth} == self.truth
        before = len(self.rows)
        self.pull()
        self.check_rows_only_grow()
        assert len(self.rows) == before

    def end(self) -> None:
        self.fo.delete_dataset(self.name)
        shutil.rmtree(self.folder)


def _drawn(seed: int) -> dict[str, Any]:
    """A box on the pixel grid with a random mask in it."""
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(0, 20)), int(rng.integers(0, 12))
    mask = rng.random((8, 9)) < 0.6
    mask[0, 0] = True
    return {"mask": mask, "bounding_box": [x / SIZE[1], y / SIZE[0], 9 / SIZE[1], 8 / SIZE[0]]}


def _dies_after(function: Any, calls: int) -> Any:
    left = [calls]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise Crash
        left[0] -= 1
        return function(*args, **kwargs)

    return dying


EDIT = st.tuples(
    st.sampled_from(["relabel", "delete", "add", "reshape", "approve", "review"]),
    st.integers(0, 8),
    st.integers(0, 5),
    st.sampled_from(CLASSES),
)
STEP = st.one_of(
    EDIT,
    EDIT,
    st.sampled_from(["push", "media", "pull", "crash_before_commit", "crash_after_commit"]),
    st.tuples(st.just("crash_in_push"), st.integers(0, 3)),
)


@example(steps=[("add", 6, 0, "ring"), "crash_after_commit", ("delete", 6, 0, "disc")])
@example(steps=[("add", 6, 0, "ring"), "crash_after_commit", ("relabel", 6, 0, "bar"), "crash_after_commit", "push"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, min_size=3, max_size=14))
def test_whatever_happens_in_between(fo: Any, monkeypatch: pytest.MonkeyPatch, steps: list[Any]) -> None:
    monkeypatch.setattr(push, "BATCH", 2)
    story = Story(fo, Path(tempfile.mkdtemp()))
    try:
        for step in steps:
            if isinstance(step, tuple) and len(step) == 4:
                story.edit(*step)
            elif isinstance(step, tuple):
                story.crash_in_push(monkeypatch, step[1])
            elif step in ("push", "pull"):
                getattr(story, step)()
            elif step == "media":
                story.add_media()
            else:
                getattr(story, step)(monkeypatch)
            story.check_rows_only_grow()
        story.check_nothing_lost()
    finally:
        story.end()


def test_a_push_killed_for_real_is_completed_by_the_next(fo: Any, tmp_path: Path, name: str) -> None:
    """SIGKILL after the first batch; what a person did to the samples that arrived is there afterwards."""
    square = bar(SIZE, 3, 3, 9, 9)
    names = [f"{i}.png" for i in range(6)]
    units = [photo(tmp_path, item, SIZE, [candidate(item, 0, "bar", 0.9, square)]) for item in names]
    run = make_run(tmp_path / "run", units)
    code = (
        "import os, signal\nfrom sam3label.review.fiftyone import push\nfrom sam3label.run.reader import open_run\n"
        "push.BATCH = 2\n"
        f"with open_run({str(run)!r}) as run:\n"
        f"    push.push(run, {name!r}, on_progress=lambda done, _: done and os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    dataset = fo.load_dataset(name)
    assert len(dataset) == 2
    s = dataset.first()
    s.ground_truth.detections[0].label = "ring"
    s.save()
    with open_run(run) as opened:
        (result,) = push.push(opened)
        assert (result.added, result.kept) == (4, 2)
        (pulled,) = pull.pull(opened)
        assert pulled.actions == {"relabelled": 1}
    assert sorted(dataset.values("item_id")) == names

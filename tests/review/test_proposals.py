"""What is proposed for a training: much to correct, unlike each other, unlike what was reviewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Correction, MediaItem
from sam3label.review.proposals import propose
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Store

LIST = concepts("cat")
SURE, UNSURE = 0.95, 0.51  # near the threshold of 0.5: one of the reasons to look
SCORES = {"copy-1": UNSURE, "copy-2": UNSURE, "other": UNSURE, "quiet": SURE, "seen": UNSURE}
DIRECTION = {
    "copy-1": 0.0,
    "copy-2": 0.01,
    "other": 1.2,
    "quiet": 2.0,
    "seen": 2.9,
}  # of a photo's features, in radians


def make_run(folder: Path) -> Run:
    notes = {"concepts": dump_concepts(LIST), "info": {}}
    with Store.writer(folder, phrase_prompts("cat"), {"floor": 0.1}, notes=notes) as store:
        for name, score in SCORES.items():
            store.write([unit(f"{name}.jpg", candidate("cat", score, rectangle(2, 2, 20, 20), item_id=f"{name}.jpg"))])
    return open_run(folder)


def features(items: Sequence[MediaItem]) -> Mapping[str, npt.NDArray[np.float32]]:
    turns = {item.id: DIRECTION[item.id.removesuffix(".jpg")] for item in items}
    return {id_: np.array([np.cos(turn), np.sin(turn)], np.float32) for id_, turn in turns.items()}


def names(run: Run, count: int) -> list[str]:
    return [proposal.item.id.removesuffix(".jpg") for proposal in propose(run, count, features)]


def test_copies_of_the_worst_photo_are_proposed_once(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        first, second, third = propose(run, 3, features)
    assert {first.item.id, second.item.id, third.item.id} & {"copy-1.jpg", "copy-2.jpg"} == {first.item.id}
    assert first.gain > 0.5 and "near" in first.why
    assert first.distance == 1.0  # nothing is known yet


def test_what_is_like_a_reviewed_photo_waits(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        assert "seen" in names(run, 4)
        run.record([Correction("other.jpg", 0, "reviewed", at="2026-11-01T10:00:00+00:00")])
        found = propose(run, 9, features)
    assert found[0].item.id == "seen.jpg"  # farthest from the one that is known
    assert len(found) == 4 and "other.jpg" not in {one.item.id for one in found}


def test_photos_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as run:
        found = propose(run, 5, lambda items: {k: v for k, v in features(items).items() if k != "other.jpg"})
        assert propose(run, 5, lambda items: {}) == []
    assert len(found) == 4

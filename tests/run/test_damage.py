"""A damaged store gets one sentence, never another error; what is whole of it can be carried into a new run."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Correction, Likeness, MediaItem, Processor, Stamp, UnitResult, Verdict
from sam3label.errors import StoreError
from sam3label.run.reader import TRUSTED_VERIFIERS, open_run
from sam3label.run.repair import examine, repair
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    notes = {"concepts": dump_concepts(concepts("cat")), "info": {}}
    with Store.writer(tmp_path / "run", phrase_prompts("cat"), {"floor": 0.1}, notes=notes) as store:
        names = [f"{n:03d}.jpg" for n in range(60)]
        store.write([unit(n, candidate("cat", 0.9, rectangle(0, 0, 9, 9), item_id=n)) for n in names])
        store.add_corrections([Correction("000.jpg", 0, "deleted", "x", who="ann")])
    return tmp_path / "run"


@pytest.mark.parametrize("seed", range(25))
def test_flipped_bytes_end_in_a_sentence_or_in_the_truth(run: Path, seed: int) -> None:
    chance, data = random.Random(seed), bytearray((run / DATABASE).read_bytes())
    for _ in range(20):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (run / DATABASE).write_bytes(data)
    try:
        with open_run(run) as damaged:
            damaged.count_objects()
    except StoreError as error:
        assert "\n" not in str(error)
    examine(run)


def test_an_empty_file_and_masks_that_do_not_fit_are_named_and_the_rest_is_saved(run: Path, tmp_path: Path) -> None:
    db = sqlite3.connect(run / DATABASE)
    db.execute("UPDATE candidates SET counts = x'' WHERE unit_id = 2")
    db.commit()
    db.close()
    with (
        pytest.raises(StoreError, match=r"the masks of 001.jpg do not fit it.*sam3label check"),
        open_run(run) as opened,
    ):
        opened.count_objects()
    assert examine(run).lost == ["001.jpg"]
    saved = repair(run, tmp_path / "saved")
    assert (saved.units, saved.corrections, saved.lost) == (59, 1, ["001.jpg"])
    with open_run(tmp_path / "saved") as opened:
        assert (len(opened), [c.who for c in opened.corrections()]) == (59, ["ann"])
    (run / DATABASE).write_bytes(b"")
    with pytest.raises(StoreError, match="it is empty, 0 bytes"):
        open_run(run)


def test_what_is_beside_units_is_carried_too(run: Path, tmp_path: Path) -> None:
    gpu, like = Processor("node-1", "cuda:0", "a GPU"), Likeness("000.jpg", 0, 0.01)
    copy = MediaItem("copy.jpg", "/photos/copy.jpg")
    said = Verdict("000.jpg", 0, "cat", None, "any", 0.8, "a verifier", "2026-11-30T15:00:00Z", 0.5)
    with Store.writer(run, phrase_prompts("cat"), {"floor": 0.1}) as store:
        store.write([
            unit("crowd.jpg", full=("cat",), processor=gpu, look=b"features", stamp=Stamp(3, 4, "0" * 32)),
            UnitResult(copy, 0, 1, None, like=like, stamp=Stamp(1, 2, "f" * 32)),
        ])  # fmt: skip
        store.add_verdicts([said])
        store.set_meta(TRUSTED_VERIFIERS, {"masks": "a verifier"})
    found = repair(run, tmp_path / "saved")
    assert (found.units, found.problems, found.lost) == (61, [], [])
    with Store.open(tmp_path / "saved") as saved:
        assert list(saved.full()) == [("crowd.jpg", 0, "cat")]
        assert list(saved.skipped()) == [("copy.jpg", 0, like)]
        assert saved.stamp("copy.jpg") == Stamp(1, 2, "f" * 32)
        assert saved.processors() == [(gpu, 1)] and list(saved.looks()) == [("crowd.jpg", 0, b"features")]
        assert list(saved.verdicts("a verifier")) == [said] and saved.meta(TRUSTED_VERIFIERS) == {"masks": "a verifier"}
    db = sqlite3.connect(run / DATABASE)
    db.execute("UPDATE skipped SET distance = 'far'")
    db.commit()
    db.close()
    assert [problem.text for problem in examine(run).problems] == ["they cannot be read"]
    assert repair(run, tmp_path / "other").units == 61

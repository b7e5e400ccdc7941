"""The run store: whole transactions, one writer, a guarded fingerprint, clear refusals."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Correction, Processor, Verdict
from sam3label.errors import StoreError
from sam3label.run import database, row_by_row
from sam3label.run.repair import repair
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

PROMPTS = phrase_prompts("helmet", "person")
FINGERPRINT = {"phrases": ["helmet", "person"], "checkpoint": "sha256:1", "dtype": "fp32"}


def open_writer(folder: Path, **changes: object) -> Store:
    return Store.writer(folder, PROMPTS, {**FINGERPRINT, **changes})


def two_candidates(item_id: str = "a.jpg") -> tuple:
    return (
        candidate("helmet", 0.75, rectangle(1, 2, 10, 12), item_id=item_id),
        replace(candidate("person", 0.25, rectangle(20, 5, 9, 9), item_id=item_id), track_id=4, track_score=0.5),
    )


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        result = replace(unit("a.jpg", *two_candidates()), presence=np.array([[0.5, np.nan]], np.float32))
        store.write([result, unit("b.jpg", prompts=2), unit("c.jpg", error="truncated")])
    with Store.open(tmp_path) as store:
        a, b, c = store.units()
        assert (a.item, a.size_hw, a.error) == (result.item, result.size_hw, None)
        assert store.candidates(a) == result.candidates
        np.testing.assert_array_equal(store.presence(a), result.presence)
        assert store.candidates(b) == ()
        assert (c.error, c.size_hw, store.presence(c).shape) == ("truncated", None, (0, 2))
        assert (store.totals().done, store.totals().failed, store.totals().candidates) == (2, 1, 2)
        assert store.done_ids() == {"a.jpg", "b.jpg"}
        assert store.unit("a.jpg") == a
        assert store.unit("a.jpg", frame=1) is None
        assert store.prompts == tuple(PROMPTS)


def test_what_computed_a_unit_is_kept_and_a_unit_asked_more_names_the_last(tmp_path: Path) -> None:
    one, other = Processor("node-a", "cuda:0", "H100"), Processor("node-b", "cuda:0", "A100")
    with open_writer(tmp_path) as store:
        store.write([unit(f"{n}.jpg", prompts=2, processor=one) for n in range(3)])
        store.write([unit("3.jpg", prompts=2), unit("2.jpg", *two_candidates("2.jpg"), prompts=2, processor=other)])
    with Store.open(tmp_path) as store:
        assert store.processors() == [(one, 2), (other, 1)]


def test_a_failed_unit_is_replaced_with_its_candidates(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        store.write([unit("a.jpg", error="truncated")])
        store.write([unit("a.jpg", *two_candidates(), prompts=2)])
        store.write([unit("a.jpg", *two_candidates()[:1], prompts=2)])
        (only,) = store.units()
        assert only.error is None
        assert [c.prompt for c in store.candidates(only)] == ["helmet"]
        assert store.totals().candidates == 1


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        good, bad = unit("a.jpg", *two_candidates(), prompts=2), unit("b.jpg", *two_candidates("b.jpg"), prompts=2)
        broken = replace(bad, candidates=(replace(bad.candidates[0], area=None),))  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="NOT NULL"):
            store.write([good, broken])
        assert list(store.units()) == []
        assert store.totals().candidates == 0


def test_other_settings_are_refused_by_name_and_fresh_starts_over(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        store.write([unit("a.jpg", prompts=2)])
    with pytest.raises(StoreError) as refusal:
        open_writer(tmp_path, dtype="bf16", checkpoint="sha256:2")
    text = str(refusal.value)
    assert 'dtype: was "fp32", now "bf16"' in text
    assert 'checkpoint: was "sha256:1", now "sha256:2"' in text
    assert "phrases" not in text
    assert "--fresh" in text
    with open_writer(tmp_path) as store:
        assert store.totals().done == 1
    with Store.writer(tmp_path, PROMPTS, {**FINGERPRINT, "dtype": "bf16"}, fresh=True) as store:
        assert store.totals().done == 0


def test_fresh_never_throws_corrections_away(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        store.add_corrections([Correction("a.jpg", 0, "deleted", "1")])
    with pytest.raises(StoreError, match="holds 1 correction made by people.*-o"):
        Store.writer(tmp_path, PROMPTS, FINGERPRINT, fresh=True)
    with Store.open(tmp_path) as store:
        assert len(store.corrections()) == 1


def test_one_writer_at_a_time_and_readers_meanwhile(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        with pytest.raises(StoreError, match="another process is labelling"):
            open_writer(tmp_path)
        store.write([unit("a.jpg", prompts=2)])
        with Store.open(tmp_path) as reader:
            assert reader.totals().done == 1
    open_writer(tmp_path).close()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from pathlib import Path; from test_store import open_writer\n"
        f"held = open_writer(Path({str(tmp_path)!r})); print('held', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process"):
            open_writer(tmp_path)
        child.kill()
        child.wait()
    open_writer(tmp_path).close()


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = database.connect

    def small(*how: Any) -> database.Database:
        opened = connect(*how)
        opened.execute("PRAGMA max_page_count = 16")  # SQLite's own SQLITE_FULL, as on a full disk
        return opened

    with monkeypatch.context() as patched:
        patched.setattr(database, "connect", small)
        store = open_writer(tmp_path)
    with store:
        store.write([unit("a.jpg", *two_candidates(), prompts=2)])
        with pytest.raises(StoreError, match="is full.*safe.*same command again"):
            for n in range(200):
                store.write([unit(f"{n}.jpg", *two_candidates(f"{n}.jpg"), prompts=2)])
    with open_writer(tmp_path) as store:
        assert {"a.jpg"} <= store.done_ids()
        assert store.totals().candidates == 2 * store.totals().done
        assert row_by_row.integrity(store) == []
        store.write([unit("after.jpg", prompts=2)])
        assert "after.jpg" in store.done_ids()


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder. Runs are made by: sam3label run"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is not a run folder.*sam3label run"):
        Store.open(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written.*-o"):
        open_writer(blocked / "run")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / DATABASE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path / "junk")
    with open_writer(tmp_path / "old") as store:
        store.set_meta("format", 99)
    with pytest.raises(StoreError, match="newer version of sam3label .format 99; this one reads up to 5.. Update"):
        Store.open(tmp_path / "old")


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    """As an ordinary user: root may write everywhere."""
    code = (
        "import os, sys\n"
        "from sam3label.run.store import Store\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: Store.writer(sys.argv[1], [], {})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    tmp_path.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.stdout.startswith(f"StoreError the run folder {tmp_path / 'run'} cannot be written"), done
    assert "-o" in done.stdout


def test_writing_works_from_another_thread(tmp_path: Path) -> None:
    with open_writer(tmp_path) as store:
        thread = threading.Thread(target=store.write, args=([unit("a.jpg", prompts=2)],))
        thread.start()
        thread.join()
        assert store.done_ids() == {"a.jpg"}


def test_verdicts_go_with_a_photo_that_was_replaced_and_into_a_repaired_run(tmp_path: Path) -> None:
    items = [unit(name, candidate("cat", 0.9, rectangle(0, 0, 9, 9), item_id=name)) for name in ("a.jpg", "b.jpg")]
    said = [Verdict(one.item.id, 0, "cat", None, part, 0.5, "eyes") for one in items for part in ("all", "any")]
    with Store.writer(tmp_path / "run", phrase_prompts("cat"), {}) as store:
        store.write(items)
        store.set_meta("concepts", dump_concepts(concepts("cat")))
        store.forget([])  # nobody verified yet
        store.add_verdicts(said)
        store.set_meta("trusted verifiers", {"masks": "eyes"})
        assert list(store.verdicts("eyes")) == said
    repair(tmp_path / "run", tmp_path / "saved")
    with Store.open(tmp_path / "saved") as saved:
        assert list(saved.verdicts("eyes")) == said and saved.meta("trusted verifiers") == {"masks": "eyes"}
    with Store.writer(tmp_path / "run", phrase_prompts("cat"), {}) as store:
        store.forget([items[0].item])
        assert list(store.verdicts("eyes")) == said[2:]


def test_corrections_are_appended_and_read_back_in_order(tmp_path: Path) -> None:
    corrections = [
        Correction("a.jpg", 0, "deleted", "1", who="ann", at="2026-01-01T00:00:00+00:00", pull="p1"),
        Correction("a.jpg", 0, "added", "new", class_name="helmet", rle=rectangle(1, 1, 3, 3), track_id=2, pull="p1"),
        Correction("b.jpg", 3, "reviewed", pull="p2"),
    ]
    with open_writer(tmp_path) as store:
        store.add_corrections(corrections[:2])
        store.add_corrections(corrections[2:])
        assert store.corrections() == corrections
        assert store.corrections("b.jpg") == corrections[2:]
        assert store.corrected_ids() == {"a.jpg", "b.jpg"}
        with pytest.raises(sqlite3.ProgrammingError):
            store.close()
            store.corrections()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"action": "deleted"}, "label_id"),
        ({"action": "reviewed", "label_id": "1"}, "label_id"),
        ({"action": "relabelled", "label_id": "1"}, "class_name"),
        ({"action": "reshaped", "label_id": "1"}, "mask"),
    ],
)
def test_a_correction_that_says_too_little_cannot_be_made(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Correction("a.jpg", 0, **fields)

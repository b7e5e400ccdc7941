"""A store that version 0.1 wrote (commit 07b2452, demo checkpoint: three photos, a broken one, a video in two clips, a
person's corrections) opens, says what it said, and can grow."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.builders import unit

from sam3label.core.records import Prompt
from sam3label.errors import StoreError
from sam3label.run import migrate
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

OLD = gzip.decompress((Path(__file__).parents[1] / "data" / "run_format1.sqlite.gz").read_bytes())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / DATABASE).write_bytes(OLD)
    return folder


def raw(path: Path, sql: str) -> list[tuple]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_it_opens_and_says_what_it_said(old: Path) -> None:
    before = raw(old / DATABASE, "SELECT id, unit_id, prompt, score, counts FROM candidates ORDER BY rowid")
    with open_run(old) as run:
        assert [(u.item.id, u.frame_start, u.frame_stop) for u in run.done_units()] == [
            ("a/1.png", 0, 1), ("a/2.png", 0, 1), ("b.png", 0, 1), ("v.mp4", 0, 16), ("v.mp4", 16, 24)
        ]  # fmt: skip
        assert run.failures() == [("broken.jpg", "not an image (unknown format, or its header is damaged)")]
        assert run.count_objects() == {"disc": (22, 22), "square": (24, 23)}
        assert [(c.action, c.who) for c in run.corrections()] == [("deleted", "ann"), ("reviewed", "ann")]
        assert run.image("a/1.png").reviewed and run.image("a/1.png").labels == ()
        assert run.floor == 0.2
        assert run.coverage().waiting == ()
        for u in run.done_units():
            assert run.presence(u).shape == (u.frame_stop - u.frame_start, 3) and not np.isnan(run.presence(u)).any()
    assert raw(old / DATABASE, "SELECT id, unit_id, prompt, score, counts FROM candidates ORDER BY rowid") == before
    assert raw(old / DATABASE, "PRAGMA integrity_check") == [("ok",)]


def test_the_store_as_it_was_stays_beside(old: Path) -> None:
    with open_run(old):
        pass
    kept = old / "run.format1.sqlite"
    dump = "SELECT * FROM units"
    (old.parent / "was.sqlite").write_bytes(OLD)
    assert raw(kept, dump) == raw(old.parent / "was.sqlite", dump)
    assert raw(old / DATABASE, "SELECT value FROM meta WHERE key = 'format'") == [(str(migrate.FORMAT),)]


def test_a_store_that_knew_no_given_objects_opens_and_stays_beside(tmp_path: Path) -> None:
    with Store.writer(tmp_path, [Prompt("disc", "disc")], {}) as store:
        store.write([unit("a.jpg")])
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db, db:
        db.executescript("".join(f'DROP TABLE "{name}";' for name in ("given", "full", "skipped", "looks")))
        db.execute("UPDATE meta SET value = '3' WHERE key = 'format'")
    with Store.open(tmp_path) as store:
        assert [one.item.id for one in store.units()] == ["a.jpg"]
    assert raw(tmp_path / DATABASE, "SELECT count(*) FROM given") == [(0,)]
    assert raw(tmp_path / DATABASE, "SELECT value FROM meta WHERE key = 'format'") == [(str(migrate.FORMAT),)]
    assert raw(tmp_path / "run.format3.sqlite", "SELECT value FROM meta WHERE key = 'format'") == [("3",)]


def test_a_migration_that_is_killed_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "share_questions", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_run(old)
    assert raw(old / DATABASE, "SELECT value FROM meta WHERE key = 'format'") == [("1",)]
    assert len(raw(old / DATABASE, "SELECT * FROM units")) == 6
    monkeypatch.undo()
    with open_run(old) as run:
        assert len(run) == 5


def test_it_goes_on_and_grows(old: Path) -> None:
    fingerprint = {}
    with Store.open(old) as store:
        fingerprint = store.meta("fingerprint")
        prompts = store.prompts
    assert "phrases" not in fingerprint
    grown = (*prompts, Prompt("star", "star"))
    with Store.writer(old, grown, fingerprint) as store:
        store.write([unit("new.jpg", prompts=4)])
        assert "new.jpg" in store.done_ids()
        assert [p.key for p in store.prompts] == ["circle", "disc", "square", "star"]
    with open_run(old) as run:
        assert len(run) == 6


def test_no_migration_while_another_process_labels(old: Path) -> None:
    code = (
        "import sys, filelock\n"
        f"lock = filelock.FileLock({str(old / 'run.lock')!r}); lock.acquire(); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process is labelling"):
            open_run(old)
        held.kill()
    with open_run(old):
        pass


# ---- format 2, as the version before near-copies wrote it (demo checkpoint, as above; grown by a second phrase)

BEFORE = gzip.decompress((Path(__file__).parents[1] / "data" / "run_format2.sqlite.gz").read_bytes())


def test_a_store_of_format_2_says_what_it_said_and_knows_no_near_copies(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(BEFORE)
    before = raw(tmp_path / DATABASE, "SELECT * FROM candidates ORDER BY rowid")
    with open_run(tmp_path) as run:
        assert [(u.item.id, u.frame_start, u.frame_stop) for u in run.done_units()] == [
            ("a/1.png", 0, 1), ("a/2.png", 0, 1), ("b.png", 0, 1), ("v.mp4", 0, 16), ("v.mp4", 16, 24)
        ]  # fmt: skip
        assert run.failures() == [("broken.jpg", "not an image (unknown format, or its header is damaged)")]
        assert run.count_objects() == {"disc": (7, 2), "square": (0, 0)}
        assert [(c.action, c.who) for c in run.corrections()] == [("deleted", "ann"), ("reviewed", "ann")]
        assert run.near_copies() == [] and run.full() == []
        assert run.coverage().asked == {"circle": 5, "square": 5}
    assert raw(tmp_path / DATABASE, "SELECT * FROM candidates ORDER BY rowid") == before
    assert raw(tmp_path / "run.format2.sqlite", "SELECT value FROM meta WHERE key = 'format'") == [("2",)]
    assert raw(tmp_path / DATABASE, "SELECT value FROM meta WHERE key = 'format'") == [(str(migrate.FORMAT),)]
    tables = "SELECT name FROM sqlite_master WHERE name IN ('full', 'skipped', 'looks') ORDER BY name"
    new = tmp_path / "new"
    with Store.writer(new, [], {}):
        assert len(raw(new / DATABASE, tables)) == 3
        assert raw(tmp_path / DATABASE, tables) == raw(new / DATABASE, tables)


# ---- format 4, as commit 95a712b wrote it (demo checkpoint, as above; grown by a second phrase, in tiles)


def test_a_store_of_format_4_says_what_it_said_and_its_copy_stays_beside(tmp_path: Path) -> None:
    packed = Path(__file__).parents[1] / "data" / "run_format4.sqlite.gz"
    (tmp_path / DATABASE).write_bytes(gzip.decompress(packed.read_bytes()))
    kept = ("units", "candidates", "prompts", "questions", "items", "corrections", "processors", "given")
    before = {table: raw(tmp_path / DATABASE, f"SELECT * FROM {table}") for table in kept}
    assert before["candidates"]
    with open_run(tmp_path) as run:
        assert [(u.item.id, u.frame_start, u.frame_stop) for u in run.done_units()] == [
            ("a/1.png", 0, 1), ("a/2.png", 0, 1), ("b.png", 0, 1), ("v.mp4", 0, 16), ("v.mp4", 16, 24)
        ]  # fmt: skip
        assert run.failures() == [("broken.jpg", "not an image (unknown format, or its header is damaged)")]
        assert run.count_objects() == {"disc": (0, 0), "square": (3, 2)}
        assert [(c.action, c.who) for c in run.corrections()] == [("deleted", "ann"), ("reviewed", "ann")]
        assert run.near_copies() == [] and run.full() == []
        assert run.coverage().asked == {"circle": 5, "square": 5}
        assert run.is_tiled("square") and not run.is_tiled("circle")
    for name in (DATABASE, "run.format4.sqlite"):
        assert {table: raw(tmp_path / name, f"SELECT * FROM {table}") for table in kept} == before
    assert raw(tmp_path / "run.format4.sqlite", "SELECT value FROM meta WHERE key = 'format'") == [("4",)]
    assert raw(tmp_path / DATABASE, "SELECT value FROM meta WHERE key = 'format'") == [(str(migrate.FORMAT),)]
    assert raw(tmp_path / DATABASE, "PRAGMA integrity_check") == [("ok",)]

"""The labelling run end to end on a tiny random checkpoint: nothing lost, nothing twice, whatever happens."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from support import oddfiles
from support.nursery import Command, Nursery

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import ConceptList
from sam3label.errors import ConfigError, StoreError
from sam3label.labelling import job, writer
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.run import database
from sam3label.run.reader import open_run
from sam3label.run.store import Store

CONCEPTS = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.3}\nconcepts: {dog: {prompts: [dog, puppy]}}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 small photos in two folders, with equal base names: 40 in `few`, the rest in `more`."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(100):
        path = folder / ("few" if n < 40 else "more") / f"{n % 40:03d}-{n // 40}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))
    return folder


def label(
    sources: list[Path], out: Path, checkpoint: Path, concepts: ConceptList = CONCEPTS, **options: Any
) -> tuple[Any, list[Progress]]:
    seen: list[Progress] = []
    chosen = LabelOptions(**{"model": str(checkpoint), "workers": 0, "floor": 0.2, **options})
    return job.label(sources, concepts, out, chosen, on_progress=seen.append), seen


def rows(out: Path) -> list[tuple[Any, ...]]:
    """Everything a run holds, by item, without SQLite's own numbering."""
    with Store.open(out) as store:
        return [
            (u.item, u.frame_start, u.frame_stop, u.size_hw, u.error, store.presence(u).tobytes(), store.candidates(u))
            for u in store.units()
        ]


@pytest.fixture(scope="module")
def few(photos: Path) -> Path:
    return photos / "few"


@pytest.fixture(scope="module")
def uninterrupted_few(few: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "few"
    summary, _ = label([few], out, least_checkpoint)
    assert (summary.progress.done, summary.progress.failed, summary.interrupted) == (40, 0, False)
    return out


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    summary, _ = label([photos], out, least_checkpoint)
    assert (summary.progress.done, summary.progress.failed, summary.interrupted) == (100, 0, False)
    return out


def test_a_run_labels_everything_once_and_says_how_it_goes(few: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    summary, seen = label([few], tmp_path / "run", least_checkpoint, limit=20)
    assert summary.progress.done == 20
    assert summary.found == 40
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].total == 20
    assert set(seen[-1].stages) == {"decode", "encode", "heads", "post", "write"}
    with open_run(tmp_path / "run") as labelled:
        counted = dict.fromkeys(labelled.concepts.names, 0)
        for image in labelled.images():
            for found in image.labels:
                counted[labelled.concepts.names[found.class_id]] += 1
        assert {k: v for k, v in counted.items() if v} == seen[-1].objects
        assert sum(counted.values()) > 0
        assert labelled.info["checkpoint"].startswith("sha256:")


def test_the_same_command_again_does_nothing_and_new_photos_are_added(
    few: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["000-0.jpg", "001-0.jpg", "002-0.jpg"]
    for name in names[:2]:
        (folder / name).write_bytes((few / name).read_bytes())
    label([folder], tmp_path / "run", least_checkpoint)
    before = rows(tmp_path / "run")
    again, _ = label([folder], tmp_path / "run", least_checkpoint)
    assert (again.progress.total, again.already_done) == (0, 2)
    assert rows(tmp_path / "run") == before
    (folder / names[2]).write_bytes((few / names[2]).read_bytes())
    (folder / names[0]).unlink()
    more, _ = label([folder], tmp_path / "run", least_checkpoint)
    assert (more.progress.done, more.missing) == (1, (names[0],))
    assert rows(tmp_path / "run")[:2] == before


def test_changed_settings_are_refused_by_name(few: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    label([few], tmp_path / "run", least_checkpoint, limit=2)
    other = parse_concepts("names: [cat, dog, hat]\ndefaults: {conf: 0.3}")
    with pytest.raises(StoreError, match='prompt_style: was "official", now "transformers"'):
        label([few], tmp_path / "run", least_checkpoint, prompt_style="transformers", limit=2)
    fresh, _ = label([few], tmp_path / "run", least_checkpoint, other, fresh=True, limit=2)
    assert (fresh.already_done, fresh.progress.done) == (0, 2)


def test_thresholds_may_change_between_sessions(few: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    label([few], tmp_path / "run", least_checkpoint, limit=2)
    stricter = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.9}\nconcepts: {dog: {prompts: [puppy, dog]}}")
    summary, _ = label([few], tmp_path / "run", least_checkpoint, stricter, limit=4)
    assert summary.already_done == 2
    with open_run(tmp_path / "run") as labelled:
        assert labelled.concepts == stricter


def test_a_class_below_the_floor_is_refused(few: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cat \(0\.3\), dog \(0\.3\).*--floor"):
        label([few], tmp_path / "run", least_checkpoint, floor=0.4)


def test_stop_ends_after_the_batch_in_flight_and_the_rest_follows(
    few: Path, least_checkpoint: Path, tmp_path: Path, uninterrupted_few: Path
) -> None:
    stop = threading.Event()
    options = LabelOptions(model=str(least_checkpoint), workers=0, floor=0.2)

    def ask(progress: Progress) -> None:
        if progress.done >= 8:
            stop.set()

    summary = job.label([few], CONCEPTS, tmp_path / "run", options, on_progress=ask, stop=stop)
    assert summary.interrupted
    assert 8 <= summary.progress.done < 40
    assert len(rows(tmp_path / "run")) == summary.progress.done
    label([few], tmp_path / "run", least_checkpoint)
    assert rows(tmp_path / "run") == rows(uninterrupted_few)


Start = Callable[..., Command]


@pytest.fixture
def start(nursery: Nursery, least_checkpoint: Path, tmp_path: Path) -> Start:
    """`sam3label run` over photos in a process of its own; it writes into `run`."""
    concepts = tmp_path / "concepts.yaml"
    concepts.write_text("names: [cat, dog]\ndefaults: {conf: 0.3}\nconcepts: {dog: {prompts: [dog, puppy]}}\n")

    def started(photos: Path, workers: int = 1) -> Command:
        arguments = ["run", photos, "-c", concepts, "-o", tmp_path / "run", "--floor", "0.2", "--workers", workers]
        return nursery.command(tmp_path / "said", least_checkpoint, *arguments, "--device", "cpu")

    return started


def wait_for_rows(out: Path, command: Command, more_than: int) -> int:
    """Until the run has committed more than so many units (or has ended)."""
    while command.lives():
        try:
            with Store.open(out) as store:
                done = store.totals().done
            if done > more_than:
                return done
        except (StoreError, sqlite3.Error):
            pass
        time.sleep(0.02)
    return -1


def test_kill_nine_again_and_again_gives_the_uninterrupted_store(
    start: Start, photos: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    out, chance, reached = tmp_path / "run", random.Random(0), 0
    for kill in range(4):
        command = start(photos, workers=int(kill == 0))
        reached = wait_for_rows(out, command, reached)
        time.sleep(chance.uniform(0, 0.2))
        assert command.lives(), command.ended()
        command.send(signal.SIGKILL)
        assert command.ended()[0] == -signal.SIGKILL
    code, output = start(photos, workers=0).ended()
    assert code == 0, output
    assert "were labelled before" in output
    assert rows(out) == rows(uninterrupted)


def test_a_killed_worker_costs_nothing(start: Start, few: Path, tmp_path: Path, uninterrupted_few: Path) -> None:
    command = start(few, workers=2)
    assert wait_for_rows(tmp_path / "run", command, 5) > 5
    workers = [child for child in psutil.Process(command.pid).children(recursive=True) if child.is_running()]
    assert workers
    workers[0].kill()
    code, output = command.ended()
    assert code == 0, output
    assert rows(tmp_path / "run") == rows(uninterrupted_few)


def test_ctrl_c_commits_says_how_to_go_on_and_leaves_with_130(
    start: Start, few: Path, tmp_path: Path, uninterrupted_few: Path
) -> None:
    command = start(few)
    wait_for_rows(tmp_path / "run", command, 3)
    command.send(signal.SIGINT)
    code, output = command.ended()
    assert code == 130, output
    assert "the same command continues" in output
    assert "Traceback" not in output and "Next" not in output
    code, output = start(few).ended()
    assert code == 0, output
    assert rows(tmp_path / "run") == rows(uninterrupted_few)


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives(
    start: Start, few: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    command = start(few, workers=0)
    wait_for_rows(tmp_path / "run", command, 1)
    with pytest.raises(StoreError, match="another process is labelling"):
        label([few], tmp_path / "run", least_checkpoint)
    command.send(signal.SIGKILL)
    command.ended()


def test_a_disk_that_fills_up_ends_the_run_with_a_sentence_and_the_store_intact(
    few: Path, least_checkpoint: Path, tmp_path: Path, uninterrupted_few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own "full" at commit, from a cap on the pages of the database."""
    connect = database.connect

    def small_disk(path: Path, how: str = "mode=rw") -> database.Database:
        db = connect(path, how)
        db.execute("PRAGMA max_page_count = 40")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", small_disk)
        patch.setattr(writer, "COMMIT_SECONDS", 0)  # each batch a transaction, however fast the machine is
        with pytest.raises(StoreError, match="is full.*safe"):
            label([few], tmp_path / "run", least_checkpoint)
    held = rows(tmp_path / "run")
    whole = rows(uninterrupted_few)
    assert 0 < len(held) < len(whole)
    assert all(row in whole for row in held)
    label([few], tmp_path / "run", least_checkpoint)
    assert rows(tmp_path / "run") == whole


def test_broken_and_odd_files_are_listed_and_all_others_labelled(start: Start, tmp_path: Path) -> None:
    expected = oddfiles.write(tmp_path / "odd")
    assert len(expected) >= 30
    code, output = start(tmp_path / "odd").ended()
    assert code == 3, output
    assert "Traceback" not in output
    with open_run(tmp_path / "run") as labelled:
        sizes = {image.item.id: image.size_hw for image in labelled.images()}
        failures = dict(labelled.failures())
    for odd in expected:
        if odd.size_hw is not None:
            assert sizes[odd.name] == odd.size_hw, odd
        else:
            assert odd.reason in failures[odd.name], odd
            assert odd.name in output
    assert sizes.keys() | failures.keys() == {odd.name for odd in expected}

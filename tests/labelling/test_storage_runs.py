"""Runs over photos and videos in object storage, against a real S3 endpoint: what a disk gives, whatever happens."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from support.objects import BUCKET, Store, Weather, forget_connections, proxy
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import load_concepts, parse_concepts
from sam3label.core.records import ConceptList
from sam3label.errors import ConfigError, InputError, OutputError, StoreError
from sam3label.export.options import Options
from sam3label.export.write import export
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import RunSummary
from sam3label.media.video_writer import VideoWriter
from sam3label.run import store as run_store
from sam3label.run.reader import open_run

PLACE = f"s3://{BUCKET}"
NUMBERS = (*range(11), 15)  # of photos: each of three shards gets some
PHOTOS = len(NUMBERS)
CONCEPTS = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.3}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 photos in two folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in NUMBERS:
        path = folder / f"{n % 2}" / f"{n:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))
    (folder / "0" / "broken.jpg").write_bytes(b"not a photo")
    return folder


@pytest.fixture(scope="module")
def there(s3_store: Store, photos: Path) -> str:
    return s3_store.upload(photos, "labelled")


def label(
    sources: list[Any], out: Path, checkpoint: Path, concepts: ConceptList = CONCEPTS, **options: Any
) -> tuple[RunSummary, list[str]]:
    said: list[str] = []
    chosen = LabelOptions(**{"model": str(checkpoint), "workers": 0, "floor": 0.2, "batch_size": 1, **options})
    return job.label(sources, concepts, out, chosen, on_message=said.append), said


def rows(*folders: Path) -> list[tuple[Any, ...]]:
    """Everything that runs hold but places, by item, without SQLite's own numbering."""
    found = []
    for folder in folders:
        with run_store.Store.open(folder) as store:
            digests = {item.id: stamp.digest if stamp else None for item, stamp in store.items()}
            found += [
                (u.item.id, digests[u.item.id], u.frame_start, u.frame_stop, u.size_hw, u.error,
                 store.presence(u).tobytes(), store.candidates(u))
                for u in store.units()
            ]  # fmt: skip
    return sorted(found, key=lambda row: (row[0], row[2]))


@pytest.fixture(scope="module")
def on_disk(photos: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "disk"
    summary, _ = label([photos], out, least_checkpoint)
    assert (summary.progress.done, len(summary.failures)) == (PHOTOS, 1)
    return out


def test_a_run_over_storage_is_the_run_over_the_same_files(
    s3: Store, there: str, on_disk: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "sam3label", "run", there, "-c", f"{PLACE}/lists/concepts.yaml"),
        *("-o", str(tmp_path / "run"), "--model", str(least_checkpoint), "--floor", "0.2"),
        *("--workers", "1", "--batch-size", "1"),
    ]
    s3.put("lists/concepts.yaml", b"names: [cat, dog]\ndefaults: {conf: 0.3}\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr  # the broken one
    assert rows(tmp_path / "run") == rows(on_disk)
    with open_run(tmp_path / "run") as run:
        assert {item.root for item in run.items()} == {there}
        assert not run.changed_photos()
    again, _ = label([there], tmp_path / "run", least_checkpoint)
    assert (again.already_done, again.progress.finished) == (PHOTOS, 0)
    assert again.not_tried == 1  # the broken one, whose object is the same


def test_a_photo_that_changed_there_is_labelled_again_and_said(
    s3: Store, photos: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    place = s3.upload(photos / "1", "changing")
    label([place], tmp_path, least_checkpoint)
    before = {row[0]: row for row in rows(tmp_path)}
    s3.put("changing/03.jpg", (photos / "0" / "00.jpg").read_bytes())
    s3.put("changing/05.jpg", (photos / "1" / "05.jpg").read_bytes())  # the same again
    s3.remove("changing/07.jpg")
    with open_run(tmp_path) as run:
        assert run.changed_photos() == [
            ("03.jpg", "replaced since it was labelled"),
            ("07.jpg", "gone since it was labelled"),
        ]
        with pytest.raises(OutputError, match="2 photos of the run cannot be exported"):
            export(run, "coco", tmp_path / "coco")
    summary, said = label([place], tmp_path, least_checkpoint)
    assert any(line.startswith("1 file was replaced since the last time") and "03.jpg" in line for line in said)
    assert summary.progress.done == 1
    assert summary.missing == ("07.jpg",)
    after = {row[0]: row for row in rows(tmp_path)}
    assert {name for name in before if before[name] != after[name]} == {"03.jpg"}


def test_a_busy_endpoint_costs_no_photo(
    s3: Store, there: str, on_disk: Path, least_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, short_pauses: None,
) -> None:  # fmt: skip
    weather = Weather(busy=0.1)
    with proxy(s3.url, weather) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        label([there], tmp_path, least_checkpoint)
    assert weather.refused
    assert rows(tmp_path) == rows(on_disk)


def test_an_endpoint_that_goes_away_loses_nothing(
    s3: Store, there: str, on_disk: Path, least_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, short_pauses: None,
) -> None:  # fmt: skip
    weather = Weather(until=5)
    with proxy(s3.url, weather) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_connections()
        summary, _ = label([there], tmp_path, least_checkpoint)
        lost = [reason for _, reason in summary.failures if "the storage does not answer" in reason]
        assert 0 < summary.progress.done < PHOTOS
        assert summary.progress.done + len(lost) == PHOTOS + 1
        assert not any("X-Amz" in reason or "not-a-secret" in reason for _, reason in summary.failures)
        with pytest.raises(InputError, match="the storage does not answer"):
            label([there], tmp_path, least_checkpoint)
        weather.until = None
        label([there], tmp_path, least_checkpoint)
    assert rows(tmp_path) == rows(on_disk)


def test_a_moved_run_knows_its_photos_by_their_content(
    s3: Store, photos: Path, there: str, least_checkpoint: Path, tmp_path: Path
) -> None:
    label([photos / "1"], tmp_path / "run", least_checkpoint)
    summary, _ = label([f"{there}/1"], tmp_path / "run", least_checkpoint)
    assert not summary.progress.finished
    with open_run(tmp_path / "run") as run:
        assert {item.root for item in run.items()} == {f"{there}/1"}
    label([photos / "1"], tmp_path / "other", least_checkpoint)
    with open_run(tmp_path / "other", photos=f"{there}/1") as run:
        assert all(item.path.startswith(there) for item in run.items())
        assert not run.changed_photos()
    with pytest.raises(InputError, match="does not hold the photos of this run"):
        open_run(tmp_path / "other", photos=f"{there}/0")


def test_exports_download_or_leave_and_never_link(
    s3: Store, there: str, photos: Path, on_disk: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    label([there], tmp_path / "run", least_checkpoint)
    with open_run(tmp_path / "run") as run:
        for means in ("hardlink", "symlink"):
            with pytest.raises(OutputError, match="lies in storage and cannot be linked to. --images copy"):
                export(run, "yolo", tmp_path / "linked", Options(images=means))
        copied = export(run, "yolo", tmp_path / "copied", Options(images="copy"))
        export(run, "yolo", tmp_path / "usual")
        export(run, "coco", tmp_path / "none", Options(images="none"))
    assert copied.images == PHOTOS
    assert not (tmp_path / "linked").exists()
    for name in ("copied", "usual"):
        placed = sorted((tmp_path / name / "images").rglob("*.jpg"))
        assert [p.read_bytes() for p in placed] == [p.read_bytes() for p in sorted(photos.rglob("[0-9]*.jpg"))]
        assert not list((tmp_path / name).rglob("*.partial"))
    assert not list((tmp_path / "none").rglob("*.jpg"))


def test_videos_there_are_tracked_from_the_cache(s3: Store, least_checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with VideoWriter(tmp_path / "videos" / "walk.mp4", 10, repeatable=True) as video:
        for _ in range(6):
            video.write(cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))
    place = s3.upload(tmp_path / "videos", "videos")
    options = {"video": "frames", "every": 2}
    label([tmp_path / "videos"], tmp_path / "disk", least_checkpoint, **options)
    label([place], tmp_path / "there", least_checkpoint, **options)
    assert len(rows(tmp_path / "there")) == 3
    assert rows(tmp_path / "there") == rows(tmp_path / "disk")
    s3.remove("videos/walk.mp4")
    s3.put("videos/walk.mp4", b"no video at all")
    summary, _ = label([place], tmp_path / "there", least_checkpoint, **options)
    assert "not a video" in summary.failures[0][1]


def test_exemplars_and_paths_in_a_list_there(s3: Store, there: str, photos: Path, tmp_path: Path) -> None:
    document = {"names": ["cat"], "concepts": {"cat": {"exemplars": {"labels": "boxes.yaml"}}}}
    s3.put("lists/with.yaml", yaml.safe_dump(document).encode())
    concepts = load_concepts(f"{PLACE}/lists/with.yaml")
    assert concepts.concepts[0].exemplars is not None
    assert concepts.concepts[0].exemplars.path == f"{PLACE}/lists/boxes.yaml"
    from sam3label.concepts.exemplars import read_examples
    from sam3label.media.discovery import discover

    items = discover([there])
    with pytest.raises(InputError, match=r"exemplars of cat: s3://site/lists/boxes.yaml cannot be read: there is noth"):
        read_examples(concepts, items)
    s3.put("lists/boxes.yaml", b"1/01.jpg: [[4, 4, 30, 30]]\n")
    (examples,) = read_examples(concepts, items)
    assert set(examples.photos) == {"1/01.jpg"}
    with pytest.raises(ConfigError, match=r"s3://site/lists/gone.yaml: there is nothing at this address; `sam3label"):
        load_concepts(f"{PLACE}/lists/gone.yaml")


# ---- shards


@pytest.fixture(scope="module")
def shards(photos: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for n in (1, 2, 3):
        label([photos], folder / str(n), least_checkpoint, shard=f"{n}/3")
    return [folder / str(n) for n in (1, 2, 3)]


def test_shards_are_parts_that_stay_as_photos_come(photos: Path, shards: list[Path], on_disk: Path) -> None:
    assert all(rows(shard) for shard in shards)
    assert rows(*shards) == rows(on_disk)
    few, many = (LabelOptions(shard=f"{n}/64") for n in (3, 64))
    ids = [f"{n}.jpg" for n in range(6400)]
    assert 60 < sum(few.takes(id_) for id_ in ids) < 140
    assert not any(few.takes(id_) and many.takes(id_) for id_ in ids)
    assert sum(LabelOptions(shard=f"{n}/7").takes(id_) for n in range(1, 8) for id_ in ids) == len(ids)
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ConfigError, match="is not a part of several, such as 3/64"):
            LabelOptions(shard=wrong)


def test_a_shard_goes_on_as_itself_only(photos: Path, shards: list[Path], least_checkpoint: Path) -> None:
    summary, said = label([photos], shards[0], least_checkpoint, shard="1/3")
    assert summary.already_done + len(summary.failures) == summary.found
    assert said[0].startswith("shard 1/3: ") and said[0].endswith(f" of {PHOTOS + 1} images and videos")
    with pytest.raises(StoreError, match='shard: was "1/3", now "2/3"'):
        label([photos], shards[0], least_checkpoint, shard="2/3")
    with pytest.raises(StoreError, match='shard: was "1/3", now null'):
        label([photos], shards[0], least_checkpoint)


def test_several_run_folders_read_as_one(shards: list[Path], on_disk: Path, tmp_path: Path) -> None:
    with open_run(shards) as joined, open_run(on_disk) as one:
        assert list(joined.images()) == list(one.images())
        assert (len(joined), joined.totals(), joined.failures()) == (len(one), one.totals(), one.failures())
        assert (joined.coverage(), joined.full()) == (one.coverage(), one.full())
        units = list(zip(joined.done_units(), one.done_units(), strict=True))
        assert len({(a.part, a.id) for a, _ in units}) == len(units)
        for a, b in units:
            assert joined.candidates(a) == one.candidates(b)
            assert np.array_equal(joined.presence(a), one.presence(b), equal_nan=True)
            assert joined.stamp(a.item.id) == one.stamp(b.item.id)
        for run, out in ((joined, "joined"), (one, "one")):
            export(run, "coco", tmp_path / out, Options(images="none"))
    documents = [json.loads(coco_file(tmp_path / name).read_text()) for name in ("joined", "one")]
    assert documents[0]["annotations"] == documents[1]["annotations"]
    assert documents[0]["images"] == documents[1]["images"]


def test_verbs_take_several_run_folders(shards: list[Path], on_disk: Path, tmp_path: Path) -> None:
    folders, runner = [str(shard) for shard in shards], CliRunner()

    def said(*command: str, leaves: int = 0) -> str:
        result = runner.invoke(app, command)
        assert result.exit_code == leaves, result.output
        return result.output

    assert f"{PHOTOS} of {PHOTOS + 1} images labelled, 1 failed" in said("status", *folders)
    said("export", *folders, "-f", "coco", "-o", str(tmp_path / "coco"), "--images", "none", leaves=3)
    truth = str(coco_file(tmp_path / "coco"))
    figures = [said("evaluate", *runs, "--gt", truth) for runs in (folders, [str(on_disk)])]
    assert figures[0] == figures[1]
    said("report", *folders, "-o", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_runs_that_are_not_one_are_refused(
    photos: Path, shards: list[Path], on_disk: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=rf"cannot be read as one:\n  0/00.jpg: {on_disk} and {shards[2]}\n"):
        open_run([shards[0], shards[1], shards[2], on_disk])
    label([photos], tmp_path / "low", least_checkpoint, shard="1/3", floor=0.25)
    with pytest.raises(StoreError, match=r"different settings, and cannot be read as one:\n  floor: 0.25 and 0.2\n"):
        open_run([tmp_path / "low", shards[1]])
    other = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.4}")
    label([photos], tmp_path / "strict", least_checkpoint, other, shard="1/3")
    with pytest.raises(StoreError, match="class cat: .*\n  class dog: "):
        open_run([tmp_path / "strict", shards[1]])
    with open_run([tmp_path / "strict", shards[1]], CONCEPTS) as run:
        assert run.concepts == CONCEPTS


def test_an_empty_shard_is_a_run(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    taken = {n for n in range(1, 65) if any(LabelOptions(shard=f"{n}/64").takes(row) for row in ids_of(photos))}
    empty = next(n for n in range(1, 65) if n not in taken)
    summary, _ = label([photos], tmp_path, least_checkpoint, shard=f"{empty}/64")
    assert (summary.found, summary.progress.done, summary.interrupted) == (0, 0, False)
    with sqlite3.connect(tmp_path / "run.sqlite") as db:
        assert db.execute("SELECT count(*) FROM units").fetchone() == (0,)


def coco_file(dataset: Path) -> Path:
    return next(path for path in dataset.rglob("*.json") if path.name != "sam3label.json")


def ids_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")]

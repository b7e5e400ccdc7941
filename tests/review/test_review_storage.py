"""Review of runs whose photos lie in object storage, and of several run folders as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.objects import BUCKET, Store
from support.reviewing import make_run, three_shapes

from sam3label.core.records import UnitResult
from sam3label.errors import OutputError
from sam3label.media.stamps import stamp_of
from sam3label.review.fiftyone import pull, push
from sam3label.review.fiftyone.folder import write_folder
from sam3label.run import store
from sam3label.run.reader import open_run


def stored(folder: Path, s3: Store, item_ids: Sequence[str]) -> list[UnitResult]:
    """Units of photos that are put into the bucket and are nowhere else."""
    units = []
    for item_id in item_ids:
        unit = three_shapes(folder, item_id)
        path = Path(unit.item.path)
        s3.put(f"review/{item_id}", path.read_bytes())
        path.unlink()
        item = replace(unit.item, path=f"s3://{BUCKET}/review/{item_id}", root=f"s3://{BUCKET}/review")
        units.append(replace(unit, item=item, stamp=stamp_of(item)))
    return units


@pytest.fixture
def runs(s3: Store, tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "one", stored(tmp_path, s3, ["a.png", "c.png"])),
        make_run(tmp_path / "two", stored(tmp_path, s3, ["b.png"])),
    ]


def test_photos_in_two_runs_are_reviewed_as_one(runs: list[Path], fo: Any, name: str) -> None:
    with open_run(runs) as run:
        (pushed,) = push.push(run, name)
        assert (pushed.added, pushed.kept) == (3, 0)
        dataset = fo.load_dataset(name)
        assert [Path(path).is_file() for path in dataset.values("filepath")] == [True] * 3
        for sample in dataset:
            if sample.item_id in ("a.png", "b.png"):
                sample.ground_truth.detections = sample.ground_truth.detections[1:]
                sample.save()
        (pulled,) = pull.pull(run, name, "ada")
        assert pulled.actions == {"deleted": 2}
        (again,) = pull.pull(run, name, "ada")
        assert again.actions == {}
    for folder, corrected in zip(runs, ("a.png", "b.png"), strict=True):
        with store.Store.open(folder) as one:
            assert [c.item_id for c in one.corrections()] == [corrected]


def test_copies_are_bounded_and_of_what_was_labelled(
    runs: list[Path], s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM3LABEL_CACHE_GB", "0.0000001")
    with open_run(runs) as run:
        with pytest.raises(OutputError, match=r"copies of 3 photos and videos that lie in storage.*--shard 1/10"):
            write_folder(run, tmp_path / "out")
        assert not (tmp_path / "one" / "review").exists()
        monkeypatch.delenv("SAM3LABEL_CACHE_GB")
        write_folder(run, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "data").iterdir()) == ["a.png", "b.png", "c.png"]

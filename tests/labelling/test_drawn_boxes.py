"""Masks of boxes that people drew are made as the run was: by its checkpoint, in its revision, at its image size."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from random_checkpoint import make_checkpoint

import sam3label as sl
from sam3label.core.records import Hint
from sam3label.errors import CheckpointError
from sam3label.labelling.drawn_boxes import DrawnBoxes

SIDE = 224  # twice the checkpoint's own


@pytest.fixture
def model(least_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(least_checkpoint, tmp_path / "model")


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Iterator[sl.Run]:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    options = {"model": str(model), "image_size": SIDE, "workers": 0, "device": "cpu"}
    with sl.label(tmp_path / "photos", ["cat"], tmp_path / "run", **options) as opened:
        yield opened


def maker_of(run: sl.Run, monkeypatch: pytest.MonkeyPatch, **options: Any) -> DrawnBoxes:
    """What a pull with --masks is given to make them by."""
    given: list[Any] = []
    monkeypatch.setattr(
        "sam3label.review.fiftyone.pull.pull", lambda _run, _dataset, _who, maker, _: given.append(maker)
    )
    run.review_pull(masks=True, **options)
    (maker,) = given
    assert isinstance(maker, DrawnBoxes)
    return maker


def test_the_runs_own_checkpoint_at_its_image_size(run: sl.Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = maker_of(run, monkeypatch)
    assert (maker.options.model, maker.options.image_size) == (str(model), SIDE)
    maker("a.png", 0, Hint((10.0, 10.0, 40.0, 40.0)))
    assert maker.encodes == 1
    run.keep_note("settings", {**run.note("settings"), "revision": "v1"})
    assert maker_of(run, monkeypatch).options.revision == "v1"
    named = maker_of(run, monkeypatch, model="demo")
    assert (named.options.model, named.options.revision) == ("demo", None)


def test_a_checkpoint_that_has_become_another_is_refused(
    run: sl.Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_checkpoint(tmp_path / "other", "least", seed=1)
    shutil.copy(other / "model.safetensors", model / "model.safetensors")
    hint = Hint((10.0, 10.0, 40.0, 40.0))
    with pytest.raises(CheckpointError, match="is not the checkpoint that the run was made with any more"):
        maker_of(run, monkeypatch)("a.png", 0, hint)
    maker_of(run, monkeypatch, model=str(other), device="cpu")("a.png", 0, hint)

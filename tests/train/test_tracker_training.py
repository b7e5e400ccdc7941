"""Training the tracker: losses, a clip learned by heart, the detector untouched, a checkpoint that then tracks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_checkpoint import SIZES, make_checkpoint
from safetensors.torch import load_file
from train_tracker import FRAMES, HELD_OUT, examine, lesson, load, overlap, save

from sam3label.core.records import Frame, MediaItem, Prompt
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.tracker import Tracker
from sam3label.train.tracker import Clip, Tracked, TrackerTrainer, follow, loss, trained_parts


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose neck is 64 wide, like the demo's, at a quarter of the tiny one's pixels."""
    import dataclasses

    SIZES["narrow"] = dataclasses.replace(SIZES["tiny"], image=112, window=4, width=64)
    return make_checkpoint(tmp_path_factory.mktemp("narrow") / "checkpoint", "narrow")


@pytest.fixture(scope="module")
def bare(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a tracker."""
    import shutil

    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bare") / "checkpoint"
    shutil.copytree(narrow, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("detector_model.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_lessons_are_the_same_again_and_hold_what_they_promise() -> None:
    one, again = lesson(3, 112), lesson(3, 112)
    assert torch.equal(one.pixels, again.pixels) and torch.equal(one.masks, again.masks)
    assert one.pixels.shape == (FRAMES, 3, 112, 112) and one.masks.shape[0] == FRAMES
    assert not torch.equal(lesson(HELD_OUT, 112).pixels, one.pixels)
    assert lesson(3, 112, frames=2).pixels.shape == (2, 3, 112, 112)
    assert one.masks[0].flatten(1).any(1).all()
    assert set(one.masks.unique().tolist()) == {0.0, 1.0}
    assert one.drawn is not None and one.drawn.shape == one.masks.shape
    assert set(one.drawn.unique().tolist()) == {0.0, 1.0}
    told = overlap(one.drawn[0] > 0, one.masks[0] > 0)
    assert (told > 0.3).all() and (told < 1).all()  # as a detector would draw them


def test_clips_that_cannot_be_learned_from_are_refused() -> None:
    pixels = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"masks must be \(2, N > 0, X, X\), got \(3, 1, 8, 8\)"):
        Clip(pixels, torch.ones(3, 1, 8, 8))
    with pytest.raises(ValueError, match="every object must be seen in the first frame"):
        Clip(pixels, torch.zeros(2, 1, 8, 8))


def test_the_loss_asks_for_masks_of_what_is_seen_and_for_nothing_else() -> None:
    masks = torch.zeros(2, 2, 8, 8)
    masks[0, :, :4], masks[1, 0, 4:] = 1.0, 1.0  # the second object is hidden in frame 1
    clip = Clip(torch.zeros(2, 3, 8, 8), masks)
    right = torch.full((2, 8, 8), -20.0)
    right[0, 4:] = 20.0
    seen = torch.tensor([20.0, -20.0])
    assert float(loss([clip], [Tracked(right, seen)])) < 1e-4
    wild = right.clone()
    wild[1] = 20.0
    assert float(loss([clip], [Tracked(wild, seen)])) < 1e-4  # of the hidden one nothing is asked
    assert float(loss([clip], [Tracked(-right, seen)])) > 5
    assert float(loss([clip], [Tracked(right, -seen)])) > 5


def test_training_moves_the_tracker_and_only_it(bare: Path, tmp_path: Path) -> None:
    video, trained = load(bare, bare, seed=0)
    assert not trained
    before = {name: value.clone() for name, value in video.state_dict().items()}
    trainer, clip = TrackerTrainer(video), lesson(1, 112, 4)
    losses = [trainer.step([clip], 2e-3, own=0.0) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]  # one clip, by heart
    moved = {name.split(".")[0] for name, value in video.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"tracker_model", "tracker_neck"}
    assert len(list(trained_parts(video))) == len(trainer.weights)
    found = follow(video, [clip], coin(clip, True))
    assert len(found) == 3
    assert found[0].masks.shape == (clip.masks.shape[1], 32, 32) and found[0].seen.shape == (clip.masks.shape[1],)
    save(video, bare, tmp_path / "out")
    assert_it_tracks(tmp_path / "out", bare)


def assert_it_tracks(folder: Path, bare: Path) -> None:
    """The saved checkpoint loads whole, its detector unchanged to the bit, and tracks."""
    old, new = load_file(bare / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(new[name], value) for name, value in old.items())
    checkpoint = resolve(str(folder))
    tracker = Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu"))
    tracker.settings = replace(tracker.settings, score_threshold_detection=0.0, new_det_thresh=0.0)
    item, pixels = MediaItem("clip", "clip", "video"), np.zeros((60, 80, 3), np.uint8)
    frames: list[Any] = list(tracker.track([Frame(item, i, pixels) for i in range(3)], [Prompt("car", "car")]))
    assert len(frames) == 3


def coin(clip: Clip, side: bool) -> torch.Tensor:
    return torch.full(clip.masks.shape[:2], side)


def test_objects_in_one_batch_are_tracked_as_if_alone(bare: Path) -> None:
    video, clips = load(bare, bare, seed=0)[0], [lesson(4, 112, 4), lesson(5, 112, 4)]
    together = follow(video, clips, torch.cat([coin(clip, True) for clip in clips], dim=1))
    row = 0
    for clip in clips:
        drawn = clip.drawn
        assert drawn is not None
        for n in range(drawn.shape[1]):
            one = Clip(clip.pixels, clip.masks[:, n : n + 1], drawn[:, n : n + 1])
            for alone, both in zip(follow(video, [one], coin(one, True)), together, strict=True):
                assert torch.allclose(alone.masks[0], both.masks[row], atol=0.05)  # memories are in bfloat16
                assert torch.allclose(alone.seen[0], both.seen[row], atol=0.05)
            row += 1
    assert row == len(together[0].masks) > 2


def test_a_fresh_tracker_receives_what_is_remembered(bare: Path) -> None:
    """Other masks in the first frame, other masks in the next: what the library's own beginning all but loses."""
    video, clip = load(bare, bare, seed=0)[0], lesson(2, 112, 2)
    one = follow(video, [clip], coin(clip, False))[0].masks.detach()
    moved = Clip(clip.pixels, clip.masks, clip.masks.roll(28, dims=-1))
    other = follow(video, [moved], coin(clip, False))[0].masks.detach()
    assert float((one - other).abs().mean()) > 0.05 * float(one.std())


def test_what_is_remembered_matters(bare: Path) -> None:
    video, clip = load(bare, bare, seed=0)[0], lesson(2, 112, 4)
    truth = follow(video, [clip], coin(clip, False))
    own = follow(video, [clip], coin(clip, True))
    assert torch.equal(truth[0].masks, own[0].masks)  # up to here only the first frame is remembered
    assert not torch.equal(truth[-1].masks, own[-1].masks)


def test_a_corrected_frame_is_remembered_as_drawn_and_kept_like_the_first(bare: Path) -> None:
    video, clip = load(bare, bare, seed=0)[0], lesson(2, 112, 4)
    own = follow(video, [clip], coin(clip, True))
    corrected = follow(video, [clip], coin(clip, True), corrected=[1])
    assert torch.equal(own[0].masks, corrected[0].masks)  # what is seen in a frame does not depend on its correction
    assert not torch.equal(own[1].masks, corrected[1].masks)
    assert clip.drawn is not None
    nothing = clip.drawn.clone()
    nothing[1] = 0  # nothing is drawn of it: the own mask is remembered, whatever the coin says
    undrawn = Clip(clip.pixels, clip.masks, nothing)
    with_truth = follow(video, [undrawn], coin(clip, False), corrected=[1])
    with_own = follow(video, [undrawn], coin(clip, True), corrected=[1])
    assert torch.equal(with_truth[1].masks, with_own[1].masks)


def test_the_examination_measures_overlap(bare: Path) -> None:
    a = torch.zeros(1, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[0, :2], b[0, 1:3] = True, True
    assert overlap(a, b).tolist() == pytest.approx([1 / 3])
    ours, still = examine(load(bare, bare, seed=0)[0], 2)
    assert 0 <= ours <= 1 and 0 < still < 1

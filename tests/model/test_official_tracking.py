"""The official rules: each against what it says, and all together against a plain restatement of the official loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.plain_official import PlainOfficial
from support.videolib import liven

from sam3label.model.checkpoint import resolve
from sam3label.model.matching_tracks import Found
from sam3label.model.track_rules import OFFICIAL, TrackSettings
from sam3label.model.track_session import TrackSession
from sam3label.model.tracker_parts import TrackerParts
from sam3label.model.weights import load_video_model

FRAMES, SIZE_HW = 40, (60, 80)
OCCLUDED = range(18, 26)
SETTINGS = {
    "new_det_thresh": 0.9,
    "assoc_iou_thresh": 0.25,
    "trk_assoc_iou_thresh": 0.25,
    "high_iou_thresh": 0.3,
    "high_conf_thresh": 0.6,
    "recondition_every_nth_frame": 8,
    "hotstart_unmatch_thresh": 8,
    "hotstart_dup_thresh": 4,
    "fill_hole_area": 4,
}


@pytest.fixture(scope="module")
def video(tiny_checkpoint: Path) -> Any:
    """A tracker with random weights that say something."""
    model = load_video_model(resolve(str(tiny_checkpoint)))
    liven(model.tracker_model)
    return model


def blobs(generator: torch.Generator, n: int, side: int) -> torch.Tensor:
    """Logits [n, side, side] of random smooth shapes."""
    coarse = torch.randn((n, 1, 4, 4), generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[:, 0] * 4


@contextmanager
def occluded(video: Any, frame: list[int]) -> Iterator[None]:
    """In some frames the tracker sees no object."""

    def hide(_module: Any, _inputs: Any, output: Any) -> Any:
        masks, ious, tokens, scores = output
        return masks, ious, tokens, scores - 100 if frame[0] in OCCLUDED else scores

    hook = video.tracker_model.mask_decoder.register_forward_hook(hide)
    try:
        yield
    finally:
        hook.remove()


def scripted(video: Any, seed: int) -> Iterator[tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]]:
    """For each frame the image encoder's answer [1, g * g, V] and three phrases' detections: lasting shapes."""
    parts, generator = TrackerParts(video), torch.Generator().manual_seed(seed)
    width = video.config.detector_config.vision_config.backbone_config.hidden_size
    base = torch.randn((1, parts.grid**2, width), generator=generator)
    shapes = [blobs(generator, n, parts.mask_side) for n in (3, 2, 1)]
    for _ in range(FRAMES):
        hidden = base + 0.1 * torch.randn(base.shape, generator=generator)
        found = []
        for own in shapes:
            here = torch.rand(len(own), generator=generator) < 0.8
            moved = own[here] + 0.3 * blobs(generator, int(here.sum()), parts.mask_side)
            found.append((moved, 0.5 + 0.5 * torch.rand(len(moved), generator=generator)))
        yield hidden, found


def as_found(found: list[tuple[torch.Tensor, torch.Tensor]]) -> Found:
    phrases = np.repeat(np.arange(len(found)), [len(scores) for _, scores in found])
    scores = torch.cat([scores for _, scores in found]).numpy()
    return Found(torch.cat([masks for masks, _ in found]), scores, phrases, np.zeros(len(scores), bool))


@pytest.mark.parametrize("seed", [0, 1])
def test_all_rules_together_are_those_of_the_official_loop(video: Any, seed: int) -> None:
    settings = replace(TrackSettings.of(video.config, OFFICIAL), **SETTINGS)
    parts, now = TrackerParts(video), [0]
    session, plain = TrackSession(parts, OFFICIAL, settings, 10**6), PlainOfficial(video, settings, 3, 10**6)
    seen = 0
    with torch.inference_mode(), occluded(video, now):
        for now[0], (hidden, found) in enumerate(scripted(video, seed)):
            grid = hidden.transpose(1, 2).unflatten(2, (parts.grid, parts.grid))
            ours = session.step(now[0], parts.features(grid), as_found(found), SIZE_HW)
            theirs = plain.step(now[0], hidden, found, SIZE_HW)
            assert ours.masks.keys() == theirs.keys(), now
            assert session.removed == plain.removed
            for number, mask in theirs.items():
                assert torch.allclose(ours.masks[number], mask, atol=2e-2, rtol=1e-3), (now, number)
                seen += bool((mask > 0).any())
    born = {one.number: one.born for one in session.targets}
    assert born == {thing.id: thing.born for s in plain.sessions for thing in s.things}
    print(dict(plain.events), len(born), seen)
    events = plain.events
    assert seen > 60
    through = sum(frame < OCCLUDED.start for frame in born.values())
    assert events["unseen"] >= len(OCCLUDED) * through > 0 and events["memories chosen"] > 0
    assert events["confirmed"] > 0 and events["born together"] > 0 and events["born over another"] > 0
    assert events["removed"] > 0

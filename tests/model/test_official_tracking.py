"""The official rules: each against what it says, and all together against a plain restatement of the official loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.plain_official import PlainOfficial
from support.videolib import liven

from sam3label.core.records import Frame, MediaItem
from sam3label.model import track_session
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.matching_tracks import FrameDetections, FrameMatches
from sam3label.model.track_rules import OFFICIAL, Rules, TrackSettings
from sam3label.model.track_session import TrackSession
from sam3label.model.tracker import Tracker
from sam3label.model.tracker_parts import FrameFeatures, Heads, TrackerParts, enlarge
from sam3label.model.weights import load_video_model

FRAMES, SIZE_HW = 40, (60, 80)
OCCLUDED, BLINK = range(18, 26), 28
TELLING = 4  # a seed with which each rule makes a difference
SETTINGS = {
    "new_det_thresh": 0.9,
    "assoc_iou_thresh": 0.25,
    "trk_assoc_iou_thresh": 0.35,
    "high_iou_thresh": 0.3,
    "high_conf_thresh": 0.6,
    "recondition_every_nth_frame": 3,
    "hotstart_unmatch_thresh": 3,
    "hotstart_dup_thresh": 2,
    "fill_hole_area": 4,
}


def random_tracker(checkpoint: Path) -> Any:
    """A tracker with random weights that say something."""
    model = load_video_model(resolve(str(checkpoint)))
    liven(model.tracker_model)
    with torch.no_grad():  # tokens that tell single from multiple masks
        model.tracker_model.mask_decoder.mask_tokens.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def video(tiny_checkpoint: Path) -> Any:
    return random_tracker(tiny_checkpoint)


def blobs(generator: torch.Generator, n: int, side: int) -> torch.Tensor:
    """Logits [n, side, side] of random smooth shapes."""
    coarse = torch.randn((n, 1, 4, 4), generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[:, 0] * 4


@contextmanager
def occluded(video: Any, frame: list[int]) -> Iterator[None]:
    """In some frames the tracker sees no object, in one of them it sees about every other."""

    def hide(_module: Any, _inputs: Any, output: Any) -> Any:
        masks, ious, tokens, scores = output
        if frame[0] in OCCLUDED:
            return masks, ious, tokens, scores - 100
        if frame[0] == BLINK:
            chance = (masks.mean((1, 2, 3, 4)) * 10_000).floor() % 2
            return masks, ious, tokens, scores - 100 * chance[:, None, None]
        return output

    hook = video.tracker_model.mask_decoder.register_forward_hook(hide)
    try:
        yield
    finally:
        hook.remove()


Detected = list[tuple[torch.Tensor, torch.Tensor]]  # of each phrase masks [K, h, w] and scores [K]


class Script:
    """What a video shows: a scene that hardly changes, and detections of three phrases in each of its frames."""

    def __init__(self, video: Any, seed: int) -> None:
        parts, self.generator = TrackerParts(video), torch.Generator().manual_seed(seed)
        self.side = parts.mask_side
        width = video.config.detector_config.vision_config.backbone_config.hidden_size
        self.scene = torch.randn((1, parts.grid**2, width), generator=self.generator)
        self.shapes = [blobs(self.generator, n, self.side) for n in (3, 2, 1)]

    def frame(self, tracked: list[torch.Tensor]) -> tuple[torch.Tensor, Detected]:
        """Return the image encoder's answer [1, g * g, V], and the detections: lasting shapes, not all in every frame.

        What is `tracked` of each phrase, masks [0 or 1, h, w] of the frame before, is found again, so that detections
        confirm what random weights draw.
        """
        hidden = self.scene + 0.1 * torch.randn(self.scene.shape, generator=self.generator)
        found = []
        for own, again in zip(self.shapes, tracked, strict=True):
            here = torch.rand(len(own), generator=self.generator) < 0.6
            moved = own[here] + 0.3 * blobs(self.generator, int(here.sum()), self.side)
            scores = 0.5 + 0.5 * torch.rand(len(moved), generator=self.generator)
            found.append((torch.cat((moved, again)), torch.cat((scores, torch.full((len(again),), 0.8)))))
        return hidden, found


@dataclass
class Told:
    """A video of which the restatement has said what it holds: of each frame the masks by id, and who is taken back."""

    plain: PlainOfficial
    frames: list[tuple[torch.Tensor, Detected, dict[int, torch.Tensor], set[int]]]


@torch.inference_mode()
def told(video: Any, seed: int) -> Told:
    script, now = Script(video, seed), [0]
    plain = PlainOfficial(video, settings_of(video, OFFICIAL), 3, 10**6)
    frames, tracked = [], [torch.empty((0, script.side, script.side))] * 3
    with occluded(video, now):
        for now[0] in range(FRAMES):
            hidden, found = script.frame(tracked)
            shown = plain.step(now[0], hidden, found, SIZE_HW)
            frames.append((hidden, found, shown, set(plain.removed)))
            tracked = [
                torch.stack(own) if (own := [mask for mask in eldest if (mask > 0).any()]) else tracked[0][:0]
                for eldest in ([shown[thing.id] for thing in one.things[:1]] for one in plain.sessions)
            ]
    return Told(plain, frames)


def settings_of(video: Any, rules: Rules) -> TrackSettings:
    return replace(TrackSettings.of(video.config, rules), **SETTINGS)


@torch.inference_mode()
def first_difference(video: Any, rules: Rules, told: Told) -> int | None:
    """Return the first frame in which a session of ours, by these rules, says anything else than what was told."""
    parts, now = TrackerParts(video), [0]
    session = TrackSession(parts, rules, settings_of(video, rules), 10**6)
    with occluded(video, now):
        for now[0], (hidden, found, shown, removed) in enumerate(told.frames):
            grid = hidden.transpose(1, 2).unflatten(2, (parts.grid, parts.grid))
            ours = session.step(now[0], parts.features(grid), as_found(found), SIZE_HW).masks
            if ours.keys() != shown.keys() or session.removed != removed:
                return now[0]
            if not all(torch.allclose(ours[number], mask, atol=2e-2, rtol=1e-3) for number, mask in shown.items()):
                return now[0]
    born = {thing.id: thing.born for one in told.plain.sessions for thing in one.things}
    assert {one.number: one.born for one in session.targets} == born
    return None


def as_found(found: list[tuple[torch.Tensor, torch.Tensor]]) -> FrameDetections:
    phrases = np.repeat(np.arange(len(found)), [len(scores) for _, scores in found])
    scores = torch.cat([scores for _, scores in found]).numpy()
    masks = torch.cat([masks for masks, _ in found])
    return FrameDetections(masks, (masks > 0).numpy(), scores, phrases, np.zeros(len(scores), bool))


@pytest.fixture(scope="module")
def least_video(least_checkpoint: Path) -> Any:
    return random_tracker(least_checkpoint)


@pytest.fixture(scope="module")
def telling(least_video: Any) -> Told:
    """A video in which each rule makes a difference."""
    return told(least_video, TELLING)


@pytest.mark.parametrize("seed", [TELLING, 1])
def test_all_rules_together_are_those_of_the_official_loop(seed: int, least_video: Any, telling: Told) -> None:
    telling = telling if seed == TELLING else told(least_video, seed)
    assert first_difference(least_video, OFFICIAL, telling) is None
    events = telling.plain.events
    assert sum(bool((mask > 0).any()) for _, _, shown, _ in telling.frames for mask in shown.values()) > 60
    assert events["unseen"] >= len(OCCLUDED) and events["memories chosen"] > 0
    assert events["confirmed after the first frame"] > 4 and events["pointers of four"] > 4
    assert events["born together"] > 0 and events["born over another"] > 0
    assert events["removed"] > 0 and events["hidden"] > 0


OF_SESSIONS = sorted(one.name for one in fields(Rules) if getattr(OFFICIAL, one.name) and one.name != "bicubic")


@pytest.mark.parametrize("rule", OF_SESSIONS)
def test_without_any_one_of_the_rules_it_is_another_loop(rule: str, least_video: Any, telling: Told) -> None:
    """But for V12, of frames before they are encoded."""
    assert first_difference(least_video, replace(OFFICIAL, **{rule: False}), telling) is not None


# ---- each rule against what it says, in the parts that compute


class Watched(TrackerParts):
    """Real parts that note the masks they are given: for pointers, and for memories."""

    def __init__(self, video: Any) -> None:
        super().__init__(video)
        self.pointed: list[torch.Tensor] = []
        self.remembered: list[torch.Tensor] = []

    def pointer_of(self, features: FrameFeatures, mask: torch.Tensor, single: bool) -> torch.Tensor:
        self.pointed.append(mask)
        return super().pointer_of(features, mask, single)

    def memory_of(self, features: FrameFeatures, mask: torch.Tensor, appears: torch.Tensor) -> torch.Tensor:
        self.remembered.append(mask)
        return super().memory_of(features, mask, appears)


def plate(side: int, x: int, y: int, size: int, inside: float = 5.0) -> torch.Tensor:
    logits = torch.full((side, side), -5.0)
    logits[y : y + size, x : x + size] = inside
    return logits


def opened(video: Any, rules: Rules, **settings: Any) -> tuple[TrackSession, Watched, FrameFeatures]:
    parts = Watched(video)
    generator = torch.Generator().manual_seed(0)
    width = video.config.detector_config.vision_config.backbone_config.hidden_size
    features = parts.features(torch.randn((1, width, parts.grid, parts.grid), generator=generator))
    changed = replace(TrackSettings.of(video.config, rules), **settings)
    return TrackSession(parts, rules, changed, 10**6), parts, features


def seen(*masks: torch.Tensor, scores: tuple[float, ...] = (), phrases: tuple[int, ...] = ()) -> FrameDetections:
    n = len(masks)
    stacked = torch.stack(masks) if masks else torch.empty((0, 64, 64))
    given = np.array(scores or [0.9] * n, np.float32)
    numbers = np.array(phrases or [0] * n, np.int64)
    return FrameDetections(stacked, (stacked > 0).numpy(), given, numbers, np.zeros(n, bool))


@torch.inference_mode()
def test_a_new_objects_mask_is_its_logits_over_0_at_four_times_their_size(video: Any) -> None:
    """V2: 1,152 for 288; the other form takes logits over 0.5 at their own size, and the image's side."""
    weak = plate(64, 10, 10, 20, inside=0.3)
    session, parts, features = opened(video, replace(OFFICIAL, first_frame_twice=False))
    session.step(0, features, seen(weak), SIZE_HW)
    assert parts.pointed[0].shape[-1] == parts.memory_side == 4 * 64
    assert parts.pointed[0].sum() > 70**2
    session, parts, features = opened(video, Rules.of("transformers"))
    session.step(0, features, seen(weak), SIZE_HW)
    assert parts.pointed[0].shape[-1] == parts.image_side and parts.pointed[0].sum() == 0


@torch.inference_mode()
def test_a_new_objects_pointer_is_the_single_mask_tokens(video: Any) -> None:
    """V3: what the library's own heads say for one mask, and not what they say for the best of three."""
    _, parts, features = opened(video, OFFICIAL)
    mask = (plate(256, 40, 40, 90)[None, None] > 0).float()
    maps = [features.fine, features.middle, parts.as_map(features.tokens)]
    for single in (True, False):
        heads = parts.model._single_frame_forward(
            input_masks=parts.model.mask_downsample(mask), image_embeddings=maps, multimask_output=not single
        )
        pointer = heads.object_pointer.reshape(1, -1)
        assert torch.allclose(TrackerParts.pointer_of(parts, features, mask, single), pointer, atol=1e-5)
        assert not torch.allclose(TrackerParts.pointer_of(parts, features, mask, not single), pointer, atol=1e-3)


@torch.inference_mode()
def test_of_objects_born_together_later_ones_take_pixels_from_earlier_ones(video: Any) -> None:
    """V4, within a phrase: another phrase's object keeps its own."""
    one, two = plate(64, 5, 5, 30), plate(64, 25, 5, 30)
    session, parts, features = opened(video, replace(OFFICIAL, first_frame_twice=False))
    session.step(0, features, seen(one, two, two, phrases=(0, 0, 1)), SIZE_HW)
    first, second, foreign = parts.remembered[-1][:, 0] > 0.5
    assert not (first & second).any() and second.equal(foreign)
    assert 0.5 < first.sum() / second.sum() < 0.8
    session, parts, features = opened(video, replace(OFFICIAL, first_frame_twice=False, first_masks_apart=False))
    session.step(0, features, seen(one, two), SIZE_HW)
    assert (parts.remembered[-1][0] * parts.remembered[-1][1]).any()


@torch.inference_mode()
def test_the_first_frame_is_gone_through_twice(video: Any) -> None:
    """V5: memories are made again, from the masks of the first pass; what lost its pixels there is found once more."""
    inner, outer = plate(64, 20, 20, 8), plate(64, 5, 5, 50)
    session, parts, features = opened(video, OFFICIAL)
    tracks = session.step(0, features, seen(inner, outer), SIZE_HW)
    assert len(parts.remembered) == 3  # births, all again, births again
    assert parts.remembered[0].unique().tolist() != parts.remembered[1].unique().tolist()  # not of 0 and 1 any more
    assert [one.number for one in session.targets] == [0, 1, 2] and len(tracks.masks) == 3
    assert torch.equal(tracks.masks[1], outer)  # what is given out is the detection's, as everywhere at a birth
    session, parts, features = opened(video, replace(OFFICIAL, first_frame_twice=False))
    session.step(0, features, seen(inner, outer), SIZE_HW)
    assert len(parts.remembered) == 1 and len(session.targets) == 2
    session.step(1, features, seen(), SIZE_HW)
    assert len(parts.remembered) == 2  # any other frame once


@torch.inference_mode()
def test_masks_are_kept_apart_at_the_memorys_resolution(video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """V6: of an object's six columns another, whose logits are higher, leaves two. Enlarged they are 7 of 24.

    That is less than 0.3, and the object is remembered as one that is not there.
    """
    one, over = plate(64, 10, 10, 6), plate(64, 0, 5, 14, inside=30.0)
    heads = TrackerParts.track

    def answered(parts: TrackerParts, *args: Any) -> Heads:
        found = heads(parts, *args)
        return replace(found, masks=torch.stack((one, over)), scores=torch.full_like(found.scores, 5.0))

    monkeypatch.setattr(Watched, "track", answered)
    for fine in (True, False):
        rules = replace(OFFICIAL, first_frame_twice=False, fine_overlap=fine)
        session, parts, features = opened(video, rules, fill_hole_area=0)
        session.step(0, features, seen(one, over), SIZE_HW)
        tracks = session.step(1, features, seen(), SIZE_HW)
        there, kept = (parts.remembered[-1][:, 0] > 0.5).flatten(1).any(1).tolist()
        assert kept and there != fine
        assert torch.equal(tracks.masks[0], one)  # what is given out keeps its pixels
    session, parts, features = opened(video, replace(OFFICIAL, first_frame_twice=False), fill_hole_area=0)
    session.step(0, features, seen(one, over, phrases=(0, 1)), SIZE_HW)
    session.step(1, features, seen(), SIZE_HW)
    assert (parts.remembered[-1] > 0.5).flatten(1).any(1).all()  # of another phrase it takes nothing


@torch.inference_mode()
def test_births_leave_the_memories_of_others_alone(video: Any) -> None:
    for rules, made in ((OFFICIAL, 1), (replace(OFFICIAL, births_leave_others=False), 2)):
        session, parts, features = opened(video, replace(rules, first_frame_twice=False), assoc_iou_thresh=2.0)
        session.step(0, features, seen(plate(64, 5, 5, 30)), SIZE_HW)
        session.step(1, features, seen(plate(64, 40, 40, 20)), SIZE_HW)
        assert len(parts.remembered[-1]) == made


@torch.inference_mode()
@pytest.mark.parametrize("official", [True, False])
def test_a_sure_detection_confirms_all_that_were_born_with_the_object(
    video: Any, official: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V7: the pointer is the detection's, the mask that is given out the tracker's. The other form is the other way."""
    rules = replace(OFFICIAL, first_frame_twice=False, pointer_from_detection=official)
    session, parts, features = opened(video, rules, recondition_every_nth_frame=4, recondition_on_trk_masks=True)
    one, other = plate(64, 5, 5, 20), plate(64, 40, 40, 20)
    session.step(0, features, seen(one, other), SIZE_HW)
    for frame in range(1, 4):
        session.step(frame, features, seen(), SIZE_HW)
    sure = FrameMatches([], [], [], {0: [0]}, {0: 0})
    monkeypatch.setattr(track_session, "match", lambda *_: sure)
    heads = TrackerParts.track

    def certain(parts: TrackerParts, *args: Any) -> Heads:
        found = heads(parts, *args)
        return replace(found, scores=torch.full_like(found.scores, 5.0))

    monkeypatch.setattr(Watched, "track", certain)
    detection = plate(64, 6, 6, 20)
    tracks = session.step(4, features, seen(detection, scores=(0.95,)), SIZE_HW)
    first, second = session.targets
    own = parts.pointer_of(features, (enlarge(detection[None, None], parts.memory_side) > 0).float(), True)[0]
    assert torch.allclose(first.memories[4].pointer, own, atol=1e-5) == official
    assert first.memories[4].conditioning and second.memories[4].conditioning == official
    assert torch.equal(tracks.masks[0], detection) != official


@torch.inference_mode()
def test_videos_are_resized_bicubically_as_official_videos_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """V12: files by OpenCV, folders of frames by Pillow; the other form as photos are."""
    import cv2
    from PIL import Image

    checkpoint = resolve(str(tiny_checkpoint))
    detector = Detector.load(checkpoint, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file, folder = (
        Frame(MediaItem("a", "a.mp4", "video"), 0, pixels),
        Frame(MediaItem("b", str(tmp_path), "video"), 0, pixels),
    )
    side = (detector.image_size, detector.image_size)
    tracker = Tracker.load(checkpoint, detector)
    cubic = cv2.resize(pixels, side, interpolation=cv2.INTER_CUBIC)
    smooth = np.array(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC))
    for frame, expected in ((file, cubic), (folder, smooth)):
        got = (tracker.preprocess(frame)[0].permute(1, 2, 0) + 1) * 127.5
        assert np.abs(got.numpy() - expected).max() < 1e-3
    plain = Tracker.load(checkpoint, detector, Rules.of("transformers"))
    assert torch.equal(plain.preprocess(file), detector.preprocess([file]))
    assert not torch.equal(plain.preprocess(file), tracker.preprocess(file))

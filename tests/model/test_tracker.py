"""The tracker against transformers' own video loop, and its promises: duplicates, holes, memory, bad checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from support.videolib import Library, LibraryFrame, liven

from sam3label.core import masks
from sam3label.core.records import BoxPrompt, Frame, MediaItem, Prompt
from sam3label.demo.shapes import make_clip
from sam3label.errors import CheckpointError
from sam3label.model.both_ways import Sighted, believed, joined
from sam3label.model.checkpoint import resolve
from sam3label.model.clean_masks import CLEARED, FILLED, clean_masks, keep_best
from sam3label.model.detector import Detector, Seen
from sam3label.model.mask_runs import Instance
from sam3label.model.track_rules import OFFICIAL, Rules, TrackerForm, TrackingExtra
from sam3label.model.track_session import TrackSession
from sam3label.model.tracker import Ask, TrackedFrame, TrackedObject, Tracker

PHRASES = ("car", "star", "red circle")
PROMPTS = tuple(Prompt(phrase, phrase) for phrase in PHRASES)
SETTINGS = {  # random weights agree with nothing: let tracks live, and some be taken back
    "score_threshold_detection": 0.3,
    "new_det_thresh": 0.4,
    "high_conf_thresh": 0.3,
    "high_iou_thresh": 0.0,
    "assoc_iou_thresh": 0.02,
    "trk_assoc_iou_thresh": 0.0,
    "hotstart_dup_thresh": 9,
}
STYLES = ("official", "transformers")


def clip_frames(n: int, seed: int = 5) -> list[Frame]:
    item = MediaItem("clip", "clip", "video")
    return [Frame(item, i, scene.image) for i, scene in enumerate(make_clip(seed, n, size_hw=(60, 80)))]


LIBRARY = Rules.of("transformers")


def make_tracker(folder: Path, style: str, rules: Rules = LIBRARY) -> Tracker:
    checkpoint = resolve(str(folder))
    tracker = Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu", prompt_style=style), rules)
    liven(tracker.parts.model)
    tracker.settings = replace(tracker.settings, **SETTINGS)
    return tracker


def make_library(folder: Path, style: str) -> Library:
    library = Library(folder, style, SETTINGS)
    liven(library.model.tracker_model)
    return library


def decoded(frame: TrackedFrame) -> dict[int, np.ndarray]:
    return {one.number: masks.decode(one.instance.rle) for one in frame.objects}


@pytest.fixture(scope="module")
def pairs(tiny_checkpoint: Path) -> Callable[[str], tuple[list[TrackedFrame], list[LibraryFrame], int]]:
    """The same clip our way and the library's, for a prompt style; and how many images ours encoded."""
    made: dict[str, tuple[list[TrackedFrame], list[LibraryFrame], int]] = {}

    def make(style: str) -> tuple[list[TrackedFrame], list[LibraryFrame], int]:
        if style not in made:
            tracker, frames = make_tracker(tiny_checkpoint, style), clip_frames(18)
            n = 3 if style == "official" else 2
            encodes: list[int] = []
            tracker.detector.model.vision_encoder.backbone.register_forward_hook(lambda *_: encodes.append(1))
            ours = list(tracker.track(frames, PROMPTS[:n]))
            theirs = make_library(tiny_checkpoint, style).track(tracker.detector, frames, PHRASES[:n])
            made[style] = ours, theirs, len(encodes)
        return made[style]

    return make


@pytest.mark.parametrize("style", STYLES)
def test_ids_masks_and_scores_are_those_of_the_librarys_own_loop(style: str, pairs: Any) -> None:
    ours, theirs, _ = pairs(style)
    assert len(ours) == len(theirs) == 18
    compared = 0
    for one, other in zip(ours, theirs, strict=True):
        found = decoded(one)
        assert found.keys() == other.masks.keys()
        if other.removal:  # the library's masks go to the wrong ids there: see the next test
            continue
        assert {o.number: o.prompt for o in one.objects} == {n: other.prompts[n] for n in found}
        for number, mask in found.items():
            assert np.array_equal(mask, other.masks[number])
            compared += 1
        assert {o.number: o.score for o in one.objects} == pytest.approx({n: other.scores[n] for n in found}, abs=1e-5)
    assert compared > 20


@pytest.mark.parametrize("style", STYLES)
def test_when_an_object_is_taken_back_the_others_keep_their_own_masks(style: str, pairs: Any) -> None:
    """The library hands the tracker's rows to ids from which the removed one is already missing."""
    ours, theirs, _ = pairs(style)
    astray = 0
    for one, other in zip(ours, theirs, strict=True):
        if not other.removal:
            continue
        for number, mask in decoded(one).items():
            row = other.aligned.get(number)
            if row is None:
                continue  # born in this frame
            own = torch.nn.functional.interpolate(row[None, None], mask.shape, mode="bilinear")[0, 0].numpy() > 0
            assert not (mask & ~own).any()  # less where a better object lies over it
            astray += bool((other.masks[number] & ~own).any())
    assert astray > 0


@pytest.fixture(scope="module")
def demo_pair() -> tuple[list[TrackedFrame], list[LibraryFrame], int]:
    """The demo checkpoint, with its own thresholds, on a video with three kinds of objects."""
    checkpoint = resolve("demo")
    tracker = Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu"), LIBRARY)
    item, phrases = MediaItem("video", "video", "video"), ("circle", "star", "square")
    frames = [Frame(item, i, scene.image) for i, scene in enumerate(make_clip(9_000_000, 36, objects=6))]
    encodes: list[int] = []
    tracker.detector.model.vision_encoder.backbone.register_forward_hook(lambda *_: encodes.append(1))
    ours = list(tracker.track(frames, [Prompt(phrase, phrase) for phrase in phrases]))
    return ours, Library(checkpoint.folder, "official", {}).track(tracker.detector, frames, phrases), len(encodes)


def test_the_demo_checkpoint_tracks_as_in_the_librarys_own_loop(demo_pair: Any) -> None:
    ours, theirs, encodes = demo_pair
    assert len(ours) == len(theirs) == encodes == 36
    compared = 0
    for one, other in zip(ours, theirs, strict=True):
        found = decoded(one)
        assert found.keys() == other.masks.keys()
        if other.removal:
            continue
        assert {o.number: o.prompt for o in one.objects} == {n: other.prompts[n] for n in found}
        assert all(np.array_equal(mask, other.masks[number]) for number, mask in found.items())
        assert {o.number: o.score for o in one.objects} == pytest.approx({n: other.scores[n] for n in found}, abs=1e-5)
        compared += len(found)
    assert compared > 36


def test_three_prompts_cost_one_image_encoding_a_frame(pairs: Any) -> None:
    assert pairs("official")[2] == 18


# ---- duplicates and holes


def test_overlapping_masks_leave_the_best() -> None:
    inside = np.zeros((4, 10, 10), bool)
    inside[0, :, :5], inside[1, :, :6], inside[2, :, 5:], inside[3, :2, :2] = True, True, True, True
    scores = np.array([0.6, 0.9, 0.7, 0.6], np.float32)
    assert keep_best(inside, scores, 0.1) == [1, 2, 3]  # 1 and 2 share a tenth of their union or less
    assert keep_best(inside, scores, 0.08) == [1, 3]
    assert keep_best(inside, scores, 0.0) == [0, 1, 2, 3]  # 0 is "do not"
    assert keep_best(inside[:1], scores[:1], 0.1) == [0]
    assert keep_best(inside[[0, 0]], scores[[0, 0]], 0.1) == [0]
    assert keep_best(inside[:0], scores[:0], 0.1) == []


def cleaned_of(logits: torch.Tensor, most: int) -> torch.Tensor:
    cleaned, inside = clean_masks(logits, (logits > 0).numpy(), most)
    assert np.array_equal(inside, (cleaned > 0).numpy())
    return cleaned


def test_by_the_share_of_the_smaller_a_part_is_a_duplicate_of_the_whole() -> None:
    inside = np.zeros((3, 10, 10), bool)
    inside[0], inside[1, :3, :3], inside[2, 9:, :] = True, True, True
    scores = np.array([0.7, 0.6, 0.9], np.float32)
    assert keep_best(inside, scores, 0.5) == [0, 1, 2]  # a ninth, a tenth of the union
    assert keep_best(inside, scores, 0.5, of_smaller=True) == [1, 2]  # the best is kept, be it the part


def test_small_holes_are_filled_and_specks_cleared() -> None:
    logits = torch.full((1, 40, 40), -5.0)
    logits[0, 5:35, 5:35] = 5.0
    logits[0, 10:14, 10:14] = -5.0  # a hole of 16
    logits[0, 20:25, 20:25] = -5.0  # a hole of 25
    logits[0, 0, :4] = 5.0  # a speck of 4
    cleaned = cleaned_of(logits, 16)[0]
    assert (cleaned[10:14, 10:14] == FILLED).all()
    assert (cleaned[20:25, 20:25] == -5.0).all()
    assert (cleaned[0, :4] == CLEARED).all()
    assert int((cleaned != logits[0]).sum()) == 20
    assert cleaned_of(logits, 0) is logits


def test_a_small_object_is_not_a_speck() -> None:
    logits = torch.full((2, 30, 30), -5.0)
    logits[0, 3:6, 3:6] = 5.0
    logits[1, 3:6, 3:6], logits[1, 20, 20:22] = 5.0, 5.0
    cleaned = cleaned_of(logits, 16)
    assert torch.equal(cleaned[0], logits[0])
    assert (cleaned[1, 3:6, 3:6] == 5.0).all() and (cleaned[1, 20, 20:22] == CLEARED).all()


@pytest.mark.parametrize("seed", range(4))
def test_cleaning_agrees_with_another_library(seed: int) -> None:
    """scipy's connected parts, 8 neighbours, on blotchy random masks."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, 48, 48)), (0, 1.2, 1.2))
    logits = torch.from_numpy(noise.astype(np.float32))
    around = np.ones((3, 3))
    expected = []
    for mask in noise > 0:
        labels, _ = ndimage.label(~mask, around)
        mask = mask | ((labels > 0) & (np.bincount(labels.ravel())[labels] <= 9))
        labels, _ = ndimage.label(mask, around)
        limit = min(9, int(mask.sum()) // 2)
        expected.append(mask & (np.bincount(labels.ravel())[labels] > limit))
    assert np.array_equal((cleaned_of(logits, 9) > 0).numpy(), np.stack(expected))


# ---- memory


def held_bytes(session: TrackSession) -> int:
    """Bytes of every tensor storage that a session holds on to, the model's aside."""
    storages: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for one in value.values():
                walk(one)
        elif isinstance(value, list | tuple):
            for one in value:
                walk(one)
        elif is_dataclass(value):
            walk([getattr(value, one.name) for one in fields(value)])

    walk([value for name, value in vars(session).items() if name != "parts"])
    return sum(storages.values())


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[TrackSession]:
    """The sessions that trackers open, as they open them."""
    made: list[TrackSession] = []

    def opened(*args: Any, **kwargs: Any) -> TrackSession:
        made.append(TrackSession(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("sam3label.model.tracker.TrackSession", opened)
    return made


@pytest.mark.parametrize("rules", [LIBRARY, OFFICIAL], ids=["transformers", "official"])
def test_memory_stops_growing_and_frames_are_read_as_needed(
    least_checkpoint: Path, rules: Rules, sessions: list[TrackSession]
) -> None:
    tracker = make_tracker(least_checkpoint, "official", rules)
    # one object, alive throughout, confirmed every 16th frame
    tracker.settings = replace(tracker.settings, assoc_iou_thresh=0.0, hotstart_unmatch_thresh=10**6)
    frames, read, held = clip_frames(100), 0, {}

    def reading() -> Iterator[Frame]:
        nonlocal read
        for frame in frames:
            read += 1
            yield frame

    for one in tracker.track(reading(), PROMPTS[:1]):
        assert read <= one.frame.index + 17  # its hotstart, and what decides whether the clip is a short one
        held[read] = held_bytes(sessions[0])
    assert len(sessions[0].targets) > 0
    assert held[100] <= 1.01 * held[84] and held[84] <= 1.01 * held[68]  # as long after a confirmation each


# ---- what can go wrong


def test_an_error_while_reading_comes_after_the_frames_before_it(tiny_checkpoint: Path) -> None:
    def reading() -> Iterator[Frame]:
        yield from clip_frames(4)
        raise OSError("the tape tore")

    tracker, seen = make_tracker(tiny_checkpoint, "official"), list[int]()
    with pytest.raises(OSError, match="the tape tore"):
        for one in tracker.track(reading(), PROMPTS[:1]):
            seen.append(one.frame.index)
    assert seen == [0, 1, 2, 3]


def without_tracker(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("detector_model.")}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_checkpoint_without_tracker_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(without_tracker(tiny_checkpoint, tmp_path / "half")))
    detector = Detector.load(checkpoint, device="cpu")
    with pytest.raises(CheckpointError, match=r"has no complete tracker: \d+ weights missing .*--video frames"):
        Tracker.load(checkpoint, detector)


def test_a_detector_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = without_tracker(tiny_checkpoint, tmp_path / "detector")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["detector_config"]))
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("detector_model."): value for name, value in weights.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = resolve(str(folder))
    with pytest.raises(CheckpointError, match=r"has no tracker \(a detector only\).*--model facebook/sam3"):
        Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu"))


def test_no_prompt_finds_nothing(tiny_checkpoint: Path) -> None:
    tracker = make_tracker(tiny_checkpoint, "official")
    frames: Sequence[TrackedFrame] = list(tracker.track(clip_frames(2), ()))
    assert [one.objects for one in frames] == [(), ()]


def test_an_object_may_be_taken_back_in_the_frame_that_would_have_confirmed_it(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = make_tracker(tiny_checkpoint, "official")
    tracker.settings = replace(tracker.settings, recondition_every_nth_frame=1)
    confirmed, both = set[int](), set[int]()
    correct, take_back = TrackSession.correct, TrackSession.take_back

    def correcting(session: TrackSession, now: int, *rest: Any) -> Any:
        found = correct(session, now, *rest)
        confirmed.clear()
        confirmed.update(one.number for one in session.targets if one.memories[now].conditioning)
        return found

    def taking_back(session: TrackSession, gone: set[int]) -> None:
        both.update(confirmed & gone)
        take_back(session, gone)

    monkeypatch.setattr(TrackSession, "correct", correcting)
    monkeypatch.setattr(TrackSession, "take_back", taking_back)
    tracked = list(tracker.track(clip_frames(18), PROMPTS))
    assert len(tracked) == 18
    assert both
    assert not any(one.number in both for frame in tracked for one in frame.objects)


# ---- SAM 3.1's rules, from what the detector says to what is given out


def at(x: int, y: int, width: int, height: int, side: int = 128) -> tuple[torch.Tensor, list[float]]:
    """A mask's logits and its box, in [0, 1]."""
    logits = torch.full((side, side), -5.0)
    logits[y : y + height, x : x + width] = 5.0
    return logits, [x / side, y / side, (x + width) / side, (y + height) / side]


def scripted(
    folder: Path, rules: Rules, script: Callable[[int], Sequence[tuple[float, tuple[torch.Tensor, list[float]]]]]
) -> tuple[Tracker, Ask]:
    """A tracker whose detector finds, in each frame, what is written: scores, masks and boxes of one phrase."""
    tracker, now = make_tracker(folder, "official", rules), [0]
    side = tracker.parts.mask_side

    def seen(*_: Any) -> list[Seen]:
        written = script(now[0])
        masks = [torch.nn.functional.interpolate(mask[None, None], (side, side))[0, 0] for _, (mask, _) in written]
        return [
            Seen(
                1.0,
                torch.tensor([score for score, _ in written]),
                torch.stack(masks) if masks else torch.empty((0, side, side)),
                torch.tensor([box for _, (_, box) in written]).reshape(-1, 4),
            )
        ]

    def asked(frame: Frame) -> dict[str, None]:
        now[0] = frame.index
        return {}

    tracker.detector.seen = seen  # type: ignore[method-assign]
    return tracker, asked


def scores_at_birth(tracker: Tracker, asked: Ask) -> list[float]:
    (frame,) = tracker.track(clip_frames(1), PROMPTS[:1], asked)
    return sorted(round(one.score, 2) for one in frame.objects)


def test_duplicates_go_by_the_share_of_the_smaller_where_that_is_asked(least_checkpoint: Path) -> None:
    whole, part = at(16, 16, 80, 80), at(32, 32, 20, 20)  # a sixteenth of it
    for extras, born in ((), [0.8, 0.9]), (["nms-smaller"], [0.9]):
        rules = Rules.of("transformers", extras)
        tracker, asked = scripted(least_checkpoint, rules, lambda _: [(0.8, whole), (0.9, part)])
        tracker.settings = replace(tracker.settings, det_nms_thresh=0.1)
        assert scores_at_birth(tracker, asked) == born


def test_nothing_is_born_where_the_center_of_its_box_is_close_to_an_edge(least_checkpoint: Path) -> None:
    """Within 2.5 %: 3.2 of 128."""
    written = [
        (0.91, at(0, 40, 6, 20)),  # left: its center at 3
        (0.92, at(122, 40, 6, 20)),  # right
        (0.93, at(40, 0, 20, 6)),  # top
        (0.94, at(40, 122, 20, 6)),  # bottom
        (0.95, at(0, 80, 8, 20)),  # touches the edge: its center at 4
        (0.96, at(60, 60, 20, 20)),
    ]
    for extras, born in ((), [0.91, 0.92, 0.93, 0.94, 0.95, 0.96]), (["no-border-births"], [0.95, 0.96]):
        tracker, asked = scripted(least_checkpoint, Rules.of("transformers", extras), lambda _: written)
        assert scores_at_birth(tracker, asked) == born


@pytest.mark.parametrize(("length", "shown"), [(7, []), (8, [5, 6, 7]), (10, [5, 6, 7, 8, 9])])
def test_an_object_is_shown_from_the_first_of_three_frames_that_confirm_it(
    length: int, shown: list[int], least_checkpoint: Path
) -> None:
    """Born in frame 2, found in 3 again, then in 5 to 7: a frame waits for two others, as far as the clip has them."""
    rules, one = Rules.of("official", ["confirm"]), at(30, 30, 60, 60)
    tracker, asked = scripted(least_checkpoint, rules, lambda now: [(0.9, one)] if now in (2, 3, 5, 6, 7) else [])
    tracker.settings = replace(tracker.settings, assoc_iou_thresh=0.0)  # wherever random weights follow it to
    tracked = list(tracker.track(clip_frames(length), PROMPTS[:1], asked))
    assert [frame.frame.index for frame in tracked if frame.objects] == shown
    tracker.rules = OFFICIAL
    plain = list(tracker.track(clip_frames(length), PROMPTS[:1], asked))
    assert [frame.frame.index for frame in plain if frame.objects] == list(range(2, length))


@pytest.mark.parametrize(
    ("form", "found_in", "shown"),
    [
        ("official", (0, 1), [0, 1, 2, 3]),
        ("official", (0, 2, 3), []),  # two in a row
        ("transformers", (0, 1), []),
        ("transformers", (0, 1, 2), [0, 1, 2, 3]),
    ],
)
def test_the_first_frame_confirms_twice_where_it_is_gone_through_twice(
    form: TrackerForm, found_in: tuple[int, ...], shown: list[int], least_checkpoint: Path
) -> None:
    """As in the official code, by its API: `add_prompt` goes through the frame, and `propagate_in_video` again."""
    one = at(30, 30, 60, 60)
    script = {now: [(0.9, one)] for now in found_in}
    tracker, asked = scripted(least_checkpoint, Rules.of(form, ["confirm"]), lambda now: script.get(now, []))
    tracker.settings = replace(tracker.settings, assoc_iou_thresh=0.0)  # wherever random weights follow it to
    tracked = list(tracker.track(clip_frames(4), PROMPTS[:1], asked))
    assert [frame.frame.index for frame in tracked if frame.objects] == shown


# ---- both ways


def demo_clip(n: int) -> list[Frame]:
    item = MediaItem("video", "video.mp4", "video")
    return [Frame(item, i, scene.image) for i, scene in enumerate(make_clip(9_000_003, n))]


def first_frames(frames: Sequence[TrackedFrame]) -> dict[int, int]:
    found: dict[int, int] = {}
    for one in frames:
        for o in one.objects:
            found.setdefault(o.number, one.frame.index)
    return found


def late_tracker(unsure_until: int, extras: Sequence[TrackingExtra] = ()) -> tuple[Tracker, Ask]:
    """The demo's tracker, and what it is to be asked, as if the detector were unsure of all before a frame."""
    checkpoint = resolve("demo")
    detector = Detector.load(checkpoint, device="cpu")
    rules = Rules.of("official", ["birth-065", *extras])  # the first of a phrase too
    tracker, seen, now = Tracker.load(checkpoint, detector, rules), detector.seen, [0]

    def unsure(*args: Any, **kwargs: Any) -> Any:
        most = 0.6 if now[0] < unsure_until else 1.0
        return [replace(one, scores=one.scores.clamp(max=most)) for one in seen(*args, **kwargs)]

    def asked(frame: Frame) -> dict[str, None]:
        now[0] = frame.index
        return {}

    detector.seen = unsure  # type: ignore[method-assign]
    tracker.settings = replace(tracker.settings, new_det_thresh=0.7)
    return tracker, asked


def test_an_object_that_was_first_sure_late_is_labelled_in_the_frames_before_too() -> None:
    """An object is born late, as if the detector had been unsure of it; then the video is tracked both ways."""
    (tracker, asked), frames, prompts = late_tracker(12), demo_clip(24), [Prompt("shape", "shape")]
    forward = list(tracker.track(frames, prompts, asked))
    tracker.both_ways = True
    both = list(tracker.track(frames, prompts, asked))
    assert [one.frame.index for one in both] == list(range(24))
    assert all(one.frame.size_hw == frames[0].size_hw for one in both)
    before, after = first_frames(forward), first_frames(both)
    assert before and min(before.values()) == 12 and before.keys() == after.keys()
    assert min(after.values()) < 6
    for one, other in zip(forward[12:], both[12:], strict=True):  # what was found forwards stays
        assert {o.number for o in one.objects} <= {o.number for o in other.objects}


@pytest.mark.parametrize("length", [14, 15])
def test_what_was_never_confirmed_is_not_followed_backwards_either(length: int) -> None:
    """Births in frame 12: the third frame that confirms them is the fifteenth of the clip."""
    (tracker, asked), frames, prompts = late_tracker(12, ["confirm"]), demo_clip(length), [Prompt("shape", "shape")]
    tracker.both_ways = True
    labelled = [one.frame.index for one in tracker.track(frames, prompts, asked) if one.objects]
    assert labelled == [] if length == 14 else min(labelled) < 6 and max(labelled) == 14


def test_backwards_only_what_a_detection_confirms_is_believed() -> None:
    size = (20, 20)

    def at(x: int, number: int, prompt: int = 0) -> TrackedObject:
        mask = np.zeros(size, bool)
        mask[5:10, x : x + 5] = True
        rle = masks.encode(mask)
        return TrackedObject(number, prompt, 0.9, 0.9, Instance(rle, masks.box_xywh(rle), 25))

    item = MediaItem("v", "v.mp4", "video")
    there = {2: (at(0, 1),), 4: (at(0, 2, prompt=1),)}
    frames = [
        TrackedFrame(Frame(item, i, np.zeros((*size, 3), np.uint8)), np.ones(2, np.float32), there.get(i, ()))
        for i in range(8)
    ]

    def sighted(confirmed: set[int], downto: int) -> list[tuple[int, Sighted]]:
        return [(place, Sighted(at(0, 7), place in confirmed)) for place in range(7, downto - 1, -1)]

    places = [place for place, _ in believed(sighted({6, 5}, 3), frames)]
    assert places == [7, 6, 5]  # 4 and 3 no detection confirms
    assert [place for place, _ in believed(sighted({6, 0}, 0), frames)] == [7, 6]  # in frame 2 lies another object
    assert believed(sighted(set(), 3), frames) == []
    joined_frames = list(joined(frames, {5: [Sighted(at(0, 7), True)]}, {7}, lambda objects: objects))
    assert joined_frames == frames  # taken back on the way


# ---- exemplars on a frame


def test_boxes_on_one_frame_find_objects_that_live_on_in_frames_where_nothing_is_asked() -> None:
    checkpoint = resolve("demo")
    tracker, frames = Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu")), demo_clip(24)
    scene = make_clip(9_000_003, 24)[4]
    ys, xs = np.nonzero(scene.mask(1))
    height, width = scene.size_hw
    box = np.array([[xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]], np.float32)
    given = {4: {"exemplar": BoxPrompt(box, (True,))}}
    tracked = list(
        tracker.track(frames, [Prompt("exemplar", None, "exemplar", "thing")], lambda frame: given.get(frame.index, {}))
    )
    assert [bool(one.objects) for one in tracked[:4]] == [False] * 4
    assert all(np.isnan(one.presence[0]) for one in tracked if one.frame.index != 4)
    assert not np.isnan(tracked[4].presence[0])
    assert all(one.objects for one in tracked[4:14])  # not taken back for want of detections
    assert masks.iou_matrix([tracked[4].objects[0].instance.rle], [masks.encode(scene.mask(1))])[0, 0] > 0.5

"""What each rule of the tracker is worth: `transformers`' loop, then the official loop's rules added one by one.

    python scripts/demo_weights/ablate_tracker.py OUT [--videos 36] [--kind easy hard] [--way ladder extras alone]
    python scripts/demo_weights/ablate_tracker.py OUT --show

Two kinds of synthetic videos, both held out: those of `score_video.py` (easy), and harder ones: twelve objects, ninety
frames, and two curtains behind which objects are hidden for long. Five classes are asked at once, whole videos are one
clip. Every video's tracks lie in OUT as they are made: a killed run goes on, `--show` judges what there is so far. The
image encoder and the detector see each frame once for all variants.

`ladder`: each rule added to those before it. `extras`: each of SAM 3.1's rules added to the official ones. `alone`: the
class that is asked last, beside being the only one asked.
"""

from __future__ import annotations

import argparse
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3label.annotations.coco import Pair
from sam3label.annotations.youtube_vis import Track, VideoTruth, read_video_truth
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, ConceptList, Frame, MediaItem, Prompt, prompts_of
from sam3label.demo.shapes import Scene
from sam3label.demo.videos import CONCEPTS, SAME, identity, write_videos
from sam3label.media import video as media_video
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector, Seen
from sam3label.model.track_rules import EXTRAS, Rules, TrackSettings
from sam3label.model.tracker import Tracker
from sam3label.quality.evaluate_tracks import TrackPredictions, evaluate_tracks
from sam3label.run.decide import select_labels

SEEDS = {"easy": 20_000_000, "hard": 21_000_000}
CURTAINS = ((70, 120), (200, 250))  # columns of 320
LADDER = (
    ("V1 good memories", "good_memories"),
    ("V2 first mask over 0 at 4x", "first_mask_whole"),
    ("V3 single-mask pointer", "first_pointer_single"),
    ("V4 born apart", "first_masks_apart"),
    ("births leave others alone", "births_leave_others"),
    ("V5 first frame twice", "first_frame_twice"),
    ("V6 overlap at 4x", "fine_overlap"),
    ("V7 pointer from detection", "pointer_from_detection"),
    ("V8 four pointers", "few_pointers"),
    ("V9 clear matches only", "clear_matches_only"),
    ("V10 births by phrase", "phrase_by_phrase"),
    ("V12 bicubic (official)", "bicubic"),
)
Variant = tuple[str, Rules, tuple[int, ...]]  # name, rules, which classes are asked


def variants(ways: Sequence[str], n_classes: int) -> Iterator[Variant]:
    everything, rules = tuple(range(n_classes)), Rules.of("transformers")
    if "ladder" in ways:
        yield "transformers", rules, everything
        for name, rule in LADDER:
            rules = replace(rules, **{rule: True})
            yield f"+ {name}", rules, everything
    if "ends" in ways:
        yield "transformers", Rules.of("transformers"), everything
        yield f"+ {LADDER[-1][0]}", Rules(), everything
    if "extras" in ways:
        for extra in EXTRAS:
            yield f"official + {extra}", Rules.of("official", [extra]), everything
    if "alone" in ways:
        yield "transformers, last class alone", Rules.of("transformers"), everything[-1:]
        yield "official, last class alone", Rules(), everything[-1:]


# ---- videos


def curtained(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes behind two grey curtains."""
    hidden = []
    for scene in scenes:
        image, index = scene.image.copy(), scene.index.copy()
        for left, right in CURTAINS:
            image[:, left:right], index[:, left:right] = 96, 0
        seen = [k for k in range(1, len(scene.things) + 1) if (index == k).any()]
        renumber = np.zeros(256, np.uint8)
        renumber[seen] = np.arange(1, len(seen) + 1)
        hidden.append(Scene(image, renumber[index], tuple(scene.things[k - 1] for k in seen)))
    return hidden


def videos(folder: Path, kind: str, n: int) -> Path:
    """Write the videos of a kind once; returns their truth."""
    place = folder / f"{kind}_{n}"
    if (place / "truth.json").is_file():
        return place / "truth.json"
    if kind == "easy":
        return write_videos(place / "videos", n, SEEDS[kind])
    return write_videos(place / "videos", n, SEEDS[kind], frames=90, objects=12, change=curtained)


# ---- perception, once


class Perceived:
    """Stands in for a detector: what the real one said of each frame, computed once for all variants."""

    def __init__(self, detector: Detector, prompts: Sequence[Prompt]) -> None:
        self.real, self.prompts = detector, prompts
        self.device, self.image_size, self.upsampling = detector.device, detector.image_size, detector.upsampling
        self._known: dict[bytes, tuple[Tensor, list[Seen]]] = {}

    def precision(self) -> Any:
        return self.real.precision()

    def preprocess(self, frames: Sequence[Frame]) -> Tensor:
        return self.real.preprocess(frames)

    def encode_grid(self, pixels: Tensor) -> bytes:
        key = pixels.numpy().tobytes()
        if key not in self._known:
            grid = self.real.encode_grid(pixels)
            self._known[key] = grid, self.real.look(self.real.state_of_grid(grid), self.prompts, self.threshold)
        self.key = key
        return key

    threshold = 0.5

    def state_of_grid(self, grid: bytes) -> bytes:
        return grid

    def ask(self, state: bytes, prompts: Sequence[Prompt], _: Any) -> list[Seen]:
        places = [self.prompts.index(prompt) for prompt in prompts]
        return [self._known[state][1][place] for place in places]

    def seen(self, asked: list[Seen], _: float) -> list[Seen]:
        return asked

    def grid_of(self, key: bytes) -> Tensor:
        return self._known[key][0]


@contextmanager
def reading(tracker: Tracker, perceived: Perceived) -> Iterator[None]:
    """Let the tracker's parts take the key of a grid for the grid."""
    features = tracker.parts.features
    tracker.parts.features = lambda key: features(perceived.grid_of(key))  # type: ignore[method-assign,assignment,arg-type]
    try:
        yield
    finally:
        tracker.parts.features = features  # type: ignore[method-assign]


# ---- tracking


@dataclass(frozen=True)
class Job:
    folder: Path
    model: Any
    detector: Detector
    concepts: ConceptList
    settings: Mapping[str, Any]

    def video(self, kind: str, path: Path, chosen: Sequence[Variant]) -> None:
        """Track one video by every variant that has not been."""
        left = [one for one in chosen if not self.place(kind, one[0], path).is_file()]
        if not left:
            return
        item = MediaItem(path.name, str(path), "video")
        frames, prompts = list(media_video.frames(item)), prompts_of(self.concepts)
        perceived = Perceived(self.detector, prompts)
        for name, rules, classes in left:
            settings = replace(TrackSettings.of(self.model.config, rules), **self.settings)
            perceived.threshold = settings.score_threshold_detection
            tracker = Tracker(self.model, perceived, rules, settings)  # type: ignore[arg-type]
            with reading(tracker, perceived):
                found = self.candidates(tracker, item, frames, [prompts[c] for c in classes])
            labels = tracks_of(found, self.concepts), tracks_of(found, replace(self.concepts, exclusive=()))
            place = self.place(kind, name, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.with_suffix(".tmp").write_bytes(pickle.dumps(labels))
            place.with_suffix(".tmp").rename(place)

    def place(self, kind: str, variant: str, path: Path) -> Path:
        return self.folder / kind / variant.replace(" ", "_") / f"{path.stem}.pickle"

    def candidates(
        self, tracker: Tracker, item: MediaItem, frames: Sequence[Frame], prompts: Sequence[Prompt]
    ) -> dict[int, list[Candidate]]:
        """frame -> what a run would keep of it."""
        by_frame: dict[int, list[Candidate]] = defaultdict(list)
        for one in tracker.track(frames, prompts):
            for o in one.objects:
                candidate = Candidate(
                    f"{one.frame.index}-{o.number}", item.id, one.frame.index, prompts[o.prompt].key, o.score, 1.0,
                    o.instance.box_xywh, o.instance.area, o.instance.rle, o.number, o.track_score,
                )  # fmt: skip
                by_frame[one.frame.index].append(candidate)
        return by_frame


def tracks_of(by_frame: Mapping[int, Sequence[Candidate]], concepts: ConceptList) -> dict[int, list[Track]]:
    """class -> its tracks, as an evaluation has them."""
    seen: dict[tuple[int, int], dict[int, Any]] = defaultdict(dict)
    for frame, candidates in by_frame.items():
        for label in select_labels(candidates, concepts):
            assert label.track_id is not None
            seen[label.class_id, label.track_id][frame] = label.rle
    tracks: dict[int, list[Track]] = defaultdict(list)
    for (class_id, _), rles in seen.items():
        tracks[class_id].append(Track(rles))
    return dict(tracks)


# ---- judging


def figures(
    job: Job, kind: str, truth: VideoTruth, variant: Variant, exclusive: bool = True
) -> tuple[int, dict[str, float]]:
    """(how many videos there are so far, HOTA and its parts over them and what was asked, recall, identity switches).

    Without `exclusive`, before classes compete for the same object.
    """
    name, _, classes = variant
    found: dict[Pair, list[Track]] = {}
    known: set[int] = set()
    for video_id, video in truth.videos.items():
        place = job.place(kind, name, Path(f"{video.name}.mp4"))
        if place.is_file():
            known.add(video_id)
            for class_id, tracks in pickle.loads(place.read_bytes())[not exclusive].items():
                found[video_id, class_id + 1] = tracks
    pairs = tuple(pair for pair in truth.pairs if pair[0] in known and pair[1] - 1 in classes)
    if not pairs:
        return 0, {}
    judged = evaluate_tracks(replace(truth, pairs=pairs), TrackPredictions(found, found, found)).figures["segm"] or {}
    values = {key: float(judged[key]) for key in ("HOTA", "DetA", "AssA")}
    switches = sum(identity(truth.tracks.get(pair, ()), found.get(pair, ()), ()).switches for pair in pairs)
    return len(known), values | {"recall": recall(truth, pairs, found), "switches": switches}


def recall(truth: VideoTruth, pairs: Sequence[Pair], found: Mapping[Pair, Sequence[Track]]) -> float:
    """The share of the objects' frames in which a track of their class covers them by an IoU of half."""
    hits = total = 0
    for pair in pairs:
        for track in truth.tracks.get(pair, ()):
            for frame, rle in track.masks.items():
                others = [one.masks[frame] for one in found.get(pair, ()) if frame in one.masks]
                hits += bool((masks.iou_matrix([rle], others) >= SAME).any())
                total += 1
    return hits / max(total, 1)


def show(job: Job, kinds: Sequence[str], n: int, chosen: Sequence[Variant]) -> None:
    for kind in kinds:
        truth = read_video_truth(videos(job.folder, kind, n))
        last = max(truth.categories) - 1
        print(f"{kind} videos")
        for variant in chosen:
            counted, values = figures(job, kind, truth, variant)
            if counted:
                said = "  ".join(
                    f"{key} {value}" if isinstance(value, int) else f"{key} {value:.3f}"
                    for key, value in values.items()
                )
                mine = (variant[0], variant[1], (last,))
                of_last, before = (
                    figures(job, kind, truth, mine, which)[1].get("recall", 0) for which in (True, False)
                )
                said += f"  last class recall {of_last:.3f}, before classes compete {before:.3f}"
                print(f"  {variant[0]:34} {counted:3d} videos  {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What each rule of the tracker is worth.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--videos", type=int, default=36)
    parser.add_argument("--upto", type=int, help="only the first so many videos now")
    parser.add_argument("--kind", nargs="+", default=["easy", "hard"], choices=["easy", "hard"])
    parser.add_argument("--way", nargs="+", default=["ladder"], choices=["ladder", "ends", "extras", "alone"])
    parser.add_argument("--set", nargs="*", default=[], help="settings, as NAME=VALUE")
    parser.add_argument("--show", action="store_true", help="judge what there is; track nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = resolve(arguments.model)
    from sam3label.model.weights import load_video_model

    concepts = parse_concepts(CONCEPTS.format(videos="videos", here="this list", runs="run"))
    settings = {name: type_of(name)(value) for name, value in (one.split("=") for one in arguments.set)}
    video = None if arguments.show else load_video_model(checkpoint)
    detector = Detector.load(checkpoint, device="cpu")
    job = Job(arguments.out, video, detector, concepts, settings)
    chosen = list(variants(arguments.way, len(concepts.names)))
    if not arguments.show:
        truths = {kind: videos(job.folder, kind, arguments.videos) for kind in arguments.kind}
        for number in range(arguments.upto or arguments.videos):
            for kind, truth in truths.items():
                job.video(kind, truth.parent / "videos" / f"video_{number:02d}.mp4", chosen)
                print(f"{kind} {number}", flush=True)
    show(job, arguments.kind, arguments.videos, chosen)


def type_of(name: str) -> Callable[[str], Any]:
    kind = TrackSettings.__annotations__[name]
    return {"float": float, "int": int, "bool": lambda text: text == "True"}[kind]


if __name__ == "__main__":
    main()

"""Makes `sam3label demo --videos`: synthetic videos, tracked like any other, and how well each object stayed itself.

The truth is a YouTube-VIS file. `HOTA` and its parts are those of `sam3label evaluate`; identity switches and broken
borders between clips are counted here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.youtube_vis import Track, read_video_truth
from sam3label.concepts.concept_list import load_concepts
from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import LabeledImage
from sam3label.demo.job import HELD_OUT, quoted, refuse_foreign
from sam3label.demo.shapes import Scene, make_clip, matches
from sam3label.errors import OutputError
from sam3label.export.write import export
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress, RunSummary
from sam3label.media.video import VideoFrames
from sam3label.media.video_writer import VideoWriter
from sam3label.quality.evaluate_tracks import evaluate_tracks, tracks_of_run
from sam3label.run.reader import Run, open_run
from sam3label.show.contact_sheet import contact_sheet
from sam3label.show.draw import draw_labels
from sam3label.show.render import render

TRUTH = {"disc": "circle", "ring": "ring", "star": "star", "square": "square", "triangle": "triangle"}
CONCEPTS = """\
# The concept list of the video demo. Change it and run the same command again with another -o, or:
#   sam3label run {videos} -c {here} --model demo -o {runs}
names: {{0: disc, 1: ring, 2: star, 3: square, 4: triangle}}

concepts:
  disc:
    prompts: [circle]

# A shape is of one kind: where two classes find the same object in a frame, the surer one keeps it.
exclusive: [[disc, ring, star, square, triangle]]
"""
FRAMES, SIZE_HW = 60, (240, 320)
CLIP_FRAMES = 24  # short, so that identities must pass borders between clips
SHEET_FRAMES = 12
SAME = 0.5  # a truth object is found where a mask of its class overlaps it by this IoU


@dataclass(frozen=True, slots=True)
class Identity:
    """Counts over all objects. A border is passed when an object is found on both sides of one, in adjacent frames."""

    switches: int = 0  # frames in which an object is found under another id than the last time
    borders: int = 0
    broken: int = 0  # borders that an object passed with a new id

    def __add__(self, other: Identity) -> Identity:
        return Identity(self.switches + other.switches, self.borders + other.borders, self.broken + other.broken)


@dataclass(frozen=True, slots=True)
class VideoDemoMetrics:
    """The tracks against the truth. HOTA, DetA, AssA and LocA (overlap of what is found) as TrackEval defines them, of
    masks; `objects` and `frames` are the truth's; `seconds` is the labelling alone."""

    hota: float
    det_a: float
    ass_a: float
    loc_a: float
    id_switches: int
    borders_passed: int
    borders_broken: int
    objects: int
    videos: int
    frames: int
    seconds: float


@dataclass(frozen=True, slots=True)
class VideoDemoResult:
    """Where everything is."""

    metrics: VideoDemoMetrics
    summary: RunSummary
    videos: Path
    concepts: Path
    runs: Path
    exports: Mapping[str, Path]
    rendered: Path
    contact_sheet: Path
    metrics_file: Path


def video_demo(
    out: str | Path, videos: int = 2, seed: int = 0, on_progress: Callable[[Progress], None] = lambda _: None
) -> VideoDemoResult:
    """Run the video demo into the folder `out`. The same seed gives the same videos and labels.

    Raises `OutputError` when `out` holds something else than an earlier demo, `CheckpointError` when the demo
    checkpoint has no tracker.
    """
    folder = Path(out)
    refuse_foreign(folder)
    truth = write_videos(folder / "videos", videos, HELD_OUT + seed)
    concepts_file, runs = folder / "concepts.yaml", folder / "run"
    text = CONCEPTS.format(**quoted(videos=folder / "videos", here=concepts_file, runs=folder / "run-2"))
    concepts_file.write_text(text, encoding="utf-8")
    options = LabelOptions(model="demo", video="track", clip_frames=CLIP_FRAMES, fresh=True)
    start = time.perf_counter()
    summary = label([folder / "videos"], load_concepts(concepts_file), runs, options, on_progress=on_progress)
    seconds = time.perf_counter() - start
    exports = {name: folder / "datasets" / name for name in ("ytvis", "mot")}
    with open_run(runs) as labelled:
        for name, target in exports.items():
            export(labelled, name, target)
        metrics = score(labelled, truth, CLIP_FRAMES, seconds)
        render(labelled, folder / "rendered")
        _draw(labelled, folder / "contact_sheet.png")
    (folder / "metrics.json").write_text(json.dumps(asdict(metrics), indent=2) + "\n", encoding="utf-8")
    places = (folder / "rendered", folder / "contact_sheet.png", folder / "metrics.json")
    return VideoDemoResult(metrics, summary, folder / "videos", concepts_file, runs, exports, *places)


# ---- videos and their truth


def write_videos(
    folder: Path,
    n: int,
    seed: int,
    frames: int = FRAMES,
    objects: int = 4,
    phrases: Mapping[str, str] = TRUTH,
    change: Callable[[Sequence[Scene]], Sequence[Scene]] = lambda scenes: scenes,
) -> Path:
    """Write `video_00.mp4` ... and, beside the folder, `truth.json`, whose path is returned.

    `phrases` maps class names to phrases: an object belongs to every class whose phrase names it. Video i comes from
    seed `seed + i`, its scenes go through `change`.
    """
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("video_*.mp4"):
            old.unlink()
        for i in range(n):
            scenes = change(make_clip(seed + i, frames, SIZE_HW, objects))
            _write_video(folder / f"video_{i:02d}.mp4", scenes)
            size = {"height": SIZE_HW[0], "width": SIZE_HW[1], "length": frames}
            videos.append({"id": i + 1, "file_name": f"video_{i:02d}.mp4", **size})
            for one in _annotations(scenes, tuple(phrases.values())):
                annotations.append({"id": len(annotations) + 1, "video_id": i + 1, **one})
        categories = [{"id": c, "name": name} for c, name in enumerate(phrases, start=1)]
        truth = folder.parent / "truth.json"
        truth.write_text(
            json.dumps({"videos": videos, "annotations": annotations, "categories": categories}), encoding="utf-8"
        )
        return truth
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}). Choose another folder with -o.") from error


def _write_video(path: Path, scenes: Sequence[Scene]) -> None:
    """Encode the same bytes every time: x264's macroblock tree, left out here, chose other bits from run to run."""
    with VideoWriter(path, 12, crf=12, repeatable=True) as video:
        for scene in scenes:
            video.write(scene.image)


def _annotations(scenes: Sequence[Scene], phrases: Sequence[str]) -> Iterable[dict[str, Any]]:
    """YouTube-VIS annotations without their ids: each object, once for every phrase that names it."""
    things = {thing.track: thing for scene in scenes for thing in scene.things}
    for track, thing in sorted(things.items()):
        shown = [_mask(scene, track) for scene in scenes]
        for category, phrase in enumerate(phrases, start=1):
            if matches(phrase, thing):
                yield {"category_id": category, "iscrowd": 0, "segmentations": shown}


def _mask(scene: Scene, track: int) -> dict[str, Any] | None:
    for number, thing in enumerate(scene.things, start=1):
        if thing.track == track:
            rle = masks.encode(scene.mask(number))
            return {"size": rle.size_hw, "counts": rle.counts.decode()}
    return None


# ---- figures


def score(labelled: Run, truth_path: Path, clip_frames: int, seconds: float) -> VideoDemoMetrics:
    """Compare a tracked run with a YouTube-VIS truth of the same class names."""
    truth, predictions = tracks_of_run(labelled, read_video_truth(truth_path), [])
    figures = evaluate_tracks(truth, predictions).figures["segm"] or {}
    total = Identity()
    for pair in truth.pairs:
        borders = range(clip_frames, truth.videos[pair[0]].length, clip_frames)
        total += identity(truth.tracks.get(pair, ()), predictions.followed.get(pair, ()), borders)
    overall = {name: round(float(figures[name]), 4) for name in ("HOTA", "DetA", "AssA", "LocA")}
    return VideoDemoMetrics(
        hota=overall["HOTA"],
        det_a=overall["DetA"],
        ass_a=overall["AssA"],
        loc_a=overall["LocA"],
        id_switches=total.switches,
        borders_passed=total.borders,
        borders_broken=total.broken,
        objects=sum(len(tracks) for tracks in truth.tracks.values()),
        videos=len(truth.videos),
        frames=sum(video.length for video in truth.videos.values()),
        seconds=round(seconds, 2),
    )


def identity(truth: Sequence[Track], found: Sequence[Track], borders: Collection[int]) -> Identity:
    """Return which of the found tracks is each truth object in each frame, and how often that changes.

    One to one in each frame, by the largest sum of IoU. `borders` are the first frames of clips.
    """
    last: dict[int, tuple[int, int]] = {}  # truth object -> the last frame in which it was found, and the track
    total = Identity()
    for frame in sorted({frame for track in truth for frame in track.masks}):
        for one, track in _matched(truth, found, frame):
            before, was = last.get(one, (-1, track))
            passed = before == frame - 1 and frame in borders
            total += Identity(was != track, passed, passed and was != track)
            last[one] = frame, track
    return total


def _matched(truth: Sequence[Track], found: Sequence[Track], frame: int) -> list[tuple[int, int]]:
    rows = [i for i, track in enumerate(truth) if frame in track.masks]
    columns = [i for i, track in enumerate(found) if frame in track.masks]
    iou = masks.iou_matrix([truth[i].masks[frame] for i in rows], [found[i].masks[frame] for i in columns])
    iou = np.where(iou >= SAME, iou, 0.0)
    pairs = zip(*optimal(iou), strict=True)  # optimal: an exchange of ids is counted only where there is one
    return [(rows[r], columns[c]) for r, c in pairs if iou[r, c] > 0]


# ---- to look at


def _draw(labelled: Run, path: Path) -> None:
    """Draw frames spread over the videos, as `render` draws them."""
    images = [image for image in labelled.images() if image.item.kind == "video"]
    chosen = images[:: max(1, len(images) // SHEET_FRAMES)][:SHEET_FRAMES]
    opened: dict[str, VideoFrames] = {}
    cells = [_cell(image, opened.setdefault(image.item.id, VideoFrames(image.item.path)), labelled) for image in chosen]
    contact_sheet(cells, labelled.concepts.names, path)


def _cell(image: LabeledImage, source: VideoFrames, labelled: Run) -> tuple[npt.NDArray[np.uint8], tuple[()], str]:
    drawn = draw_labels(source.pixels(image.frame), image.labels, labelled.concepts.names, tracks=True)
    return drawn, (), f"{image.item.id} frame {image.frame}"

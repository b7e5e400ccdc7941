"""Video truth (YouTube-VIS, SA-Co/VEval) and tracks, in pairs of (video, concept).

A track is an object with a mask in some of the frames of a video. Pairs are every video x category, or those that the
file lists: `video_np_pairs` (SA-Co/VEval), or what an LVIS-like file says about each video.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sam3label.annotations.coco import Pair, field_of, judged_pairs, load_json, read_rle
from sam3label.core import masks
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError
from sam3label.media.discovery import VIDEO_SUFFIXES


@dataclass(frozen=True, slots=True)
class Track:
    """One object through a video: frame number -> mask, empty ones left out; and its boxes, where a file gives them."""

    masks: Mapping[int, Rle]
    score: float = 1.0
    crowd: bool = False
    given_boxes: Mapping[int, Box] | None = None  # xywh in pixels, boxes without area left out

    @property
    def boxes(self) -> Mapping[int, Box]:
        """Frame number -> box: those that were given, else those of the masks."""
        if self.given_boxes is not None:
            return self.given_boxes
        return {frame: masks.box_xywh(rle) for frame, rle in self.masks.items()}


@dataclass(frozen=True, slots=True)
class Video:
    """`name` is what a run may call it: its file without suffix, or its folder of frames."""

    name: str
    length: int
    size_hw: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class VideoTruth:
    """One truth file of videos, like `truth.Truth` of images."""

    path: str
    videos: Mapping[int, Video]
    categories: Mapping[int, str]
    tracks: Mapping[Pair, Sequence[Track]]
    pairs: tuple[Pair, ...]


def is_video_truth(path: str | Path) -> bool:
    """Return whether a truth is a JSON file that lists videos; a YOLO dataset is none."""
    if Path(path).suffix.lower() in (".yaml", ".yml") or Path(path).is_dir():
        return False
    data = load_json(path)
    return isinstance(data, dict) and "videos" in data


def read_video_truth(path: str | Path) -> VideoTruth:
    """Read a YouTube-VIS or SA-Co/VEval file. Raises `InputError` in one sentence when it is not one."""
    data = load_json(path)
    videos = {field_of(v, "id", path, "video"): _video(v) for v in data["videos"]}
    named_pairs = data.get("video_np_pairs")
    categories = _categories(data, named_pairs or (), path)
    tracks: dict[Pair, list[Track]] = defaultdict(list)
    for annotation in data.get("annotations") or ():
        pair = tuple(field_of(annotation, key, path, "annotation") for key in ("video_id", "category_id"))
        where = f"{path}: annotation {annotation.get('id')}"
        if pair[0] not in videos or pair[1] not in categories:
            raise InputError(f"{where} belongs to a video or a category that is not listed.")
        tracks[pair[0], pair[1]].append(_track(annotation, videos[pair[0]], where))
    if named_pairs is None:
        pairs, _ = judged_pairs(data["videos"], categories, tracks, by_phrase=False)
    else:
        pairs = tuple(dict.fromkeys((p["video_id"], p["category_id"]) for p in named_pairs))
    return VideoTruth(str(path), videos, categories, tracks, pairs)


def read_track_results(path: str | Path, truth: VideoTruth) -> tuple[dict[Pair, list[Track]], int]:
    """Return tracks of a YouTube-VIS results list by pair, and how many name a video or category that `truth` lacks."""
    data = load_json(path)
    if not isinstance(data, list):
        raise InputError(f"{path} is not a results file: a JSON list with video_id, category_id, segmentations, score.")
    found: dict[Pair, list[Track]] = defaultdict(list)
    unknown = 0
    for position, result in enumerate(data):
        video_id, category_id, _ = (
            field_of(result, key, path, f"result {position}") for key in ("video_id", "category_id", "score")
        )
        if video_id in truth.videos and category_id in truth.categories:
            track = _track(result, truth.videos[video_id], f"{path}: result {position}")
            found[video_id, category_id].append(track)
        else:
            unknown += 1
    return found, unknown


def video_name(path: str) -> str:
    """Return the name that `a/clip.mp4` and a folder of frames `a/clip` share: `a/clip`."""
    clean = PurePosixPath(path.replace("\\", "/").removeprefix("./"))
    return str(clean.with_suffix("") if clean.suffix.lower() in VIDEO_SUFFIXES else clean)


def _video(video: Mapping[str, Any]) -> Video:
    files = video.get("file_names") or ()
    folder = str(PurePosixPath(files[0]).parent) if files else ""
    name = video.get("file_name") or video.get("name") or video.get("video_name") or folder or str(video["id"])
    height, width = video.get("height"), video.get("width")
    return Video(
        video_name(str(name)),
        int(video.get("length") or len(files) or sys.maxsize),
        (int(height), int(width)) if height and width else None,
    )


def _categories(data: Mapping[str, Any], named_pairs: Iterable[Mapping[str, Any]], path: str | Path) -> dict[int, str]:
    listed = {
        field_of(c, "id", path, "category"): str(field_of(c, "name", path, "category")) for c in data["categories"]
    }
    phrases = {p["category_id"]: str(p["noun_phrase"]) for p in named_pairs if "noun_phrase" in p}
    return {**listed, **phrases}


def _track(record: Mapping[str, Any], video: Video, where: str) -> Track:
    try:
        by_frame = {
            index: rle
            for index, segmentation in enumerate(_frames_of(record, "segmentations"))
            if (rle := read_rle(segmentation, video.size_hw)) is not None and masks.area(rle)
        }
        boxes = {
            index: (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            for index, box in enumerate(_frames_of(record, "bboxes"))
            if box and box[2] > 0 and box[3] > 0
        }
        score = float(record.get("score", 1.0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    if any(rle.size_hw != video.size_hw for rle in by_frame.values() if video.size_hw):
        raise InputError(f"{where} has masks of another size than its video.")
    return Track(by_frame, score, bool(record.get("iscrowd", 0)), boxes if record.get("bboxes") else None)


def _frames_of(record: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return what a record says of its frames; one of the two is enough."""
    if not record.get("segmentations") and not record.get("bboxes"):
        raise ValueError("it has neither segmentations nor bboxes")
    return record.get(key) or ()

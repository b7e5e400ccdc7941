"""YouTube-VIS: SPLIT/instances.json, one annotation per object of a video, and SPLIT/JPEGImages/VIDEO/FRAME.

`segmentations`, `bboxes` and `areas` have one entry per frame of the video, null where the object is not seen. Masks
are run-length code, plain lists of run lengths as the benchmark's own files have them (TrackEval reads no others), or
compressed, which is a quarter of the size; frames are listed in `file_names` relative to JPEGImages, and `frames` keeps
their numbers in the source video.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sam3label.core import masks
from sam3label.core.records import Label, MediaItem
from sam3label.export.dataset import Sample, Target, number
from sam3label.export.options import Segmentation
from sam3label.export.tracks import Numbers, by_video
from sam3label.media import video


def write_ytvis(target: Target, samples: Iterable[Sample]) -> None:
    """Write the splits, the masks of one video held at a time."""
    with ExitStack() as stack:
        parts = {split: stack.enter_context(_Part(target, target.folder / split)) for split in target.splits}
        for item, split, frames in by_video(samples):
            parts[split].add(item, frames)


@dataclass(slots=True)
class _Object:
    """One object of a video: its labels by place among the labelled frames."""

    class_id: int
    score: float
    labels: dict[int, Label] = field(default_factory=dict)


class _Part:
    """One split's file in the making: annotations are spooled, videos are short enough to keep."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.files = video.FrameFiles()
        self.videos: list[dict[str, Any]] = []
        self.annotations = 0

    def __enter__(self) -> _Part:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.spool: IO[str] = (self.folder / "annotations.part").open("w+", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write()
        self.spool.close()
        (self.folder / "annotations.part").unlink(missing_ok=True)

    def add(self, item: MediaItem, frames: Iterable[Sample]) -> None:
        files = list[str]()
        places = list[int]()
        numbers = Numbers(item)
        objects = dict[tuple[int, int], _Object]()
        size_hw = (0, 0)
        for sample in frames:
            image, size_hw = sample.image, sample.image.size_hw
            files.append(f"{item.id}/{self.files.name(item, image.frame)}")
            self.target.placer.place(image, self.folder / "JPEGImages" / files[-1])
            for label in image.labels:
                key = numbers.of(label), label.class_id
                one = objects.setdefault(key, _Object(label.class_id, label.score))
                one.labels[len(places)] = label
            places.append(image.frame)
        shape = {"height": size_hw[0], "width": size_hw[1], "length": len(files)}
        self.videos.append({"id": len(self.videos) + 1, "file_names": files, "frames": places, **shape})
        for one in objects.values():
            self.annotations += 1
            self.spool.write(json.dumps(self._annotation(one, shape)) + "\n")

    def _annotation(self, one: _Object, shape: dict[str, int]) -> dict[str, Any]:
        per_frame = [one.labels.get(place) for place in range(shape["length"])]
        return {
            "id": self.annotations,
            "video_id": len(self.videos),
            "category_id": one.class_id,
            "iscrowd": 0,
            "score": round(one.score, 6),
            **shape,
            "segmentations": [_rle(label, self.target.segmentation) for label in per_frame],
            "bboxes": [label and [number(v) for v in label.box_xywh] for label in per_frame],
            "areas": [label and label.area for label in per_frame],
        }

    def _write(self) -> None:
        categories = [{"id": i, "name": name, "supercategory": "object"} for i, name in self.target.classes.items()]
        head = {"info": dict(self.target.info), "categories": categories, "videos": self.videos}
        with (self.folder / "instances.json").open("w", encoding="utf-8") as file:
            file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
            for line in _joined(self.spool):
                file.write(line)
            file.write("]}\n")


def _joined(spool: IO[str]) -> Iterator[str]:
    spool.seek(0)
    for place, line in enumerate(spool):
        yield (",\n" if place else "\n") + line.rstrip("\n")


def _rle(label: Label | None, kind: Segmentation | None) -> dict[str, Any] | None:
    if label is None:
        return None
    counts = label.rle.counts.decode() if kind == "rle" else masks.to_runs(label.rle).tolist()
    return {"size": list(label.rle.size_hw), "counts": counts}

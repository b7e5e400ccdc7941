"""The formats by name: who writes each, at which number its classes start, and what else a caller must know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from sam3label.errors import ConfigError
from sam3label.export.dataset import Sample, Target
from sam3label.export.formats import coco, cvat, labelstudio, maps, mot, mots, voc, yolo, ytvis
from sam3label.export.options import Placement, Segmentation


@dataclass(frozen=True, slots=True)
class Format:
    """How a format is written, at which number its classes start, and what else a caller must know.

    `classes` reads an existing dataset's, where `--append` is possible. `segmentations` are the ways in which it can
    hold masks, its own first; none where there is only one. `outlined`: masks become polygons whatever is chosen.
    `images` is how photos get there: upright copies of those that EXIF turns where its readers ignore EXIF.
    `train` is the command that trains on it, {} in it being the dataset's folder, where one command does.
    """

    write: Callable[[Target, Iterable[Sample]], None]
    what: str
    first_id: int = 0
    classes: Callable[[Path], dict[int, str]] | None = None
    segmentations: tuple[Segmentation, ...] = ()
    outlined: bool = False
    images: Placement = "hardlink"
    videos: bool = False  # holds whole videos, not images
    train: tuple[str, ...] = ()

    def draws_polygons(self, chosen: Segmentation | None) -> bool:
        return self.outlined or (chosen or next(iter(self.segmentations), None)) == "polygon"


def _coco(profile: coco.Profile, what: str, *segmentations: Segmentation) -> Format:
    return Format(
        partial(coco.write_coco, profile=profile),
        what,
        profile.first_id,
        partial(coco.read_classes, profile=profile),
        segmentations,
        images="upright",
    )


def _yolo(task: yolo.Task, suffix: str, what: str) -> Format:
    return Format(
        partial(yolo.write_yolo, task=task),
        what,
        classes=partial(yolo.read_classes, task=task),
        outlined=task == "segment",
        train=("yolo", task, "train", f"model=yolo11n{suffix}.pt", "data={}/data.yaml"),
    )


_COCO_ZERO = "COCO JSON, classes from 0: RT-DETR, Hugging Face processors"

FORMATS: Mapping[str, Format] = {
    "coco": _coco(coco.COCO, "COCO JSON, classes from 1: pycocotools, Detectron2, MMDetection", "rle", "polygon"),
    "coco-zero": _coco(coco.COCO_ZERO, _COCO_ZERO, "polygon", "rle"),
    "coco-roboflow": _coco(coco.COCO_ROBOFLOW, "COCO JSON beside the photos of each split: RF-DETR", "rle", "polygon"),
    "yolo": _yolo("segment", "-seg", "Ultralytics segment"),
    "yolo-detect": _yolo("detect", "", "Ultralytics detect"),
    "yolo-obb": _yolo("obb", "-obb", "Ultralytics oriented boxes"),
    "voc": Format(voc.write_voc, "Pascal VOC XML, boxes", images="upright"),
    "cvat": Format(
        cvat.write_cvat,
        "CVAT for images 1.1, a zip a subset",
        classes=cvat.read_classes,
        segmentations=("rle", "polygon"),
    ),
    "labelstudio": Format(labelstudio.write_labelstudio, "Label Studio tasks with brush predictions"),
    "masks": Format(maps.write_maps, "PNG instance and semantic maps with a legend", images="upright"),
    "ytvis": Format(
        ytvis.write_ytvis,
        "YouTube-VIS JSON: masks of tracked objects",
        1,
        segmentations=("uncompressed", "rle"),
        images="upright",
        videos=True,
    ),
    "mot": Format(mot.write_mot, "MOTChallenge: boxes of tracked objects", 1, images="upright", videos=True),
    "mots": Format(
        mots.write_mots, "MOTS: masks of tracked objects, one object a pixel", 1, images="upright", videos=True
    ),
}


def refuse_unknown_formats(names: Iterable[str]) -> None:
    """Raise `ConfigError` naming every unknown format, with the nearest known one."""
    problems = []
    for name in names:
        if name not in FORMATS:
            near = get_close_matches(name, FORMATS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"{name!r} is not an export format.{hint} Known: {', '.join(FORMATS)}.")
    if problems:
        raise ConfigError("\n".join(problems))

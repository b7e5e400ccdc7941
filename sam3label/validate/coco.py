"""COCO JSON as pycocotools, RF-DETR, RT-DETR and Hugging Face read it, whoever wrote it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Rle
from sam3label.errors import InputError
from sam3label.validate.photos import check_photo, read_photo
from sam3label.validate.report import Consumer, Findings, Split

EVALUATED_IMAGES = 2000
PROCESSED_IMAGES = 100
_NO_PARENT = ("none", "null", "", None)
_DETR = "RF-DETR, RT-DETR, Hugging Face"


@dataclass(frozen=True, slots=True)
class CocoFile:
    """One JSON with the folder its file names are relative to; None where the photos were not found."""

    split: str
    path: Path
    document: dict[str, Any]
    image_root: Path | None
    roboflow: bool

    @property
    def names(self) -> dict[int, str]:
        return {c["id"]: str(c["name"]) for c in self.document["categories"]}


def find(dataset: Path) -> list[CocoFile]:
    """The COCO files of a JSON path or of a dataset folder; [] if there are none. Raises `InputError` if unreadable."""
    if dataset.is_file():
        return [_open(dataset, dataset.stem)] if dataset.suffix == ".json" else []
    beside = sorted(dataset.glob("*/_annotations.coco.json"))
    if beside:
        return [_open(path, path.parent.name) for path in beside]
    inside = sorted((dataset / "annotations").glob("*.json"))
    return [_open(path, path.stem.removeprefix("instances_")) for path in inside if _looks_like_instances(path)]


def check(file: CocoFile, findings: Findings) -> Split:
    """Go through every record once. Returns what the file states."""
    document, names = file.document, file.names
    images = {i["id"]: i for i in document["images"] if "id" in i}
    _check_ids(document, findings)
    _check_categories(file, findings)
    split = Split(file.split, images=len(document["images"]))
    with_labels = set()
    segmented = any(a.get("segmentation") for a in document["annotations"])
    for annotation in document["annotations"]:
        split.instances[names.get(annotation.get("category_id"), "?")] += 1
        with_labels.add(annotation.get("image_id"))
        _check_annotation(annotation, images, names, segmented, findings)
    split.empty = len(images.keys() - with_labels)
    _check_images(file, findings)
    return split


def consume(file: CocoFile, findings: Findings) -> Iterator[Consumer]:
    """Load the file with the real consumers."""
    yield _pycocotools(file, findings)
    ids = sorted(file.names)
    if ids == list(range(len(ids))):
        yield _hugging_face(file, findings)
    else:
        result = f"not meant for it: class ids are {_range(ids)}, it wants 0 to N-1 (export --format coco-zero)"
        yield Consumer(f"RT-DETR, Hugging Face RTDetrImageProcessor ({file.split})", result)


def instances(file: CocoFile) -> dict[str, list[tuple[str, Rle]]]:
    """Readable masks by file name: (class name, mask)."""
    found: dict[str, list[tuple[str, Rle]]] = {i["file_name"]: [] for i in file.document["images"]}
    images = {i["id"]: i for i in file.document["images"]}
    for annotation in file.document["annotations"]:
        image = images.get(annotation.get("image_id"))
        if image is not None and (rle := read_mask(annotation.get("segmentation"), _size(image))) is not None:
            found[image["file_name"]].append((file.names.get(annotation.get("category_id"), "?"), rle))
    return found


def read_mask(segmentation: Any, size_hw: tuple[int, int]) -> Rle | None:
    """A `segmentation` of any of COCO's three kinds, as pycocotools reads it; None if it cannot."""
    try:
        if isinstance(segmentation, dict):
            size = (int(segmentation["size"][0]), int(segmentation["size"][1]))
            counts = segmentation["counts"]
            rle = masks.from_runs(counts, size) if isinstance(counts, list) else Rle(size, _bytes(counts))
            return masks.from_runs(masks.to_runs(rle), size_hw) if size == size_hw else None
        return masks.from_polygons(segmentation, size_hw) if segmentation else None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError):
        return None


# ------------------------------------------------------------------------------------------------------------ reading


def _open(path: Path, split: str) -> CocoFile:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        lists = [document[k] for k in ("images", "annotations", "categories")]
        if not all(isinstance(x, list) for x in lists) or any("id" not in c or "name" not in c for c in lists[2]):
            raise ValueError("images, annotations and categories must be lists, and categories have an id and a name")
        if any("file_name" not in i for i in lists[0]):
            raise ValueError("an image has no file_name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a COCO instances file: {error}") from error
    roboflow = path.name == "_annotations.coco.json"
    return CocoFile(split, path, document, _image_root(path, split, document["images"]), roboflow)


def _image_root(path: Path, split: str, images: list[dict[str, Any]]) -> Path | None:
    above = path.parent.parent
    places = [path.parent, above / "images", above / split, above / "images" / split, above, path.parent / "images"]
    names = [i["file_name"] for i in images[:50]]
    return next((place for place in places if any((place / n).is_file() for n in names)), None)


def _looks_like_instances(path: Path) -> bool:
    return not path.name.startswith(("captions_", "person_keypoints_", "stuff_", "panoptic_"))


def _bytes(counts: str | bytes) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    return int(image.get("height") or 1), int(image.get("width") or 1)


def _range(ids: list[int]) -> str:
    return f"{ids[0]} to {ids[-1]}" if ids == list(range(ids[0], ids[-1] + 1)) else ", ".join(map(str, ids[:8]))


# -------------------------------------------------------------------------------------------------------------- rules


def _check_ids(document: Mapping[str, Any], findings: Findings) -> None:
    for key in ("images", "annotations", "categories"):
        seen = Counter(record.get("id") for record in document[key])
        for number, times in seen.items():
            if times > 1:
                findings.drops("pycocotools", f"{key} share an id: only the last one is read", str(number), times - 1)


def _check_categories(file: CocoFile, findings: Findings) -> None:
    categories = file.document["categories"]
    names = Counter(str(c["name"]) for c in categories)
    for name in (n for n, times in names.items() if times > 1):
        findings.drops("every trainer", "two classes have the same name", name)
    parents = {c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]}
    report = findings.drops if file.roboflow else findings.note
    for category in categories:
        if category["name"] in parents:
            report("RF-DETR", "the class is another one's supercategory: taken for a group, left out", category["name"])
        elif category.get("supercategory") in _NO_PARENT:
            report(
                "RF-DETR", "the supercategory is none or missing: older versions leave the class out", category["name"]
            )


def _check_annotation(
    annotation: Mapping[str, Any],
    images: Mapping[int, Any],
    names: Mapping[int, str],
    segmented: bool,
    findings: Findings,
) -> None:
    where = f"annotation {annotation.get('id', '?')}"
    image = images.get(annotation.get("image_id", -1))
    if image is None:
        findings.drops("every trainer", "the annotation's image_id is unknown", where)
        return
    where = f"{where} in {image['file_name']}"
    if annotation.get("category_id") not in names:
        findings.drops("every trainer", "the annotation's category_id is unknown", where)
    if annotation.get("iscrowd"):
        findings.drops(f"{_DETR}, Ultralytics", "iscrowd is 1: left out at training", where)
    _check_box(annotation.get("bbox"), _size(image), where, findings)
    mask = read_mask(annotation.get("segmentation"), _size(image))
    _check_mask(annotation, mask, segmented, where, findings)


def _check_box(box: Any, size_hw: tuple[int, int], where: str, findings: Findings) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        findings.drops("every trainer", "bbox is not four numbers", where)
        return
    x, y, w, h = box
    height, width = size_hw
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        findings.drops(_DETR, "the box is empty (inside its image): left out", where)
    elif x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
        findings.note("every trainer", "the box sticks out of its image and is cut", where)


def _check_mask(
    annotation: Mapping[str, Any], mask: Rle | None, segmented: bool, where: str, findings: Findings
) -> None:
    if "area" not in annotation:
        findings.drops(_DETR, "area is missing: the annotation cannot be loaded", where)
    if mask is None:
        if segmented:
            what = "the segmentation is empty or unreadable (a ring needs 3 points, run lengths the image's size)"
            findings.drops("segmentation trainers", what, where)
        return
    pixels = masks.area(mask)
    if not pixels:
        findings.drops("segmentation trainers", "the mask has no pixel", where)
        return
    stated = annotation.get("area", pixels)
    if abs(stated - pixels) > max(4, 0.2 * pixels):
        findings.note("COCOeval", "area is not the mask's: AP by object size is wrong", where)


def _check_images(file: CocoFile, findings: Findings) -> None:
    names = Counter(i["file_name"] for i in file.document["images"])
    for name in (n for n, times in names.items() if times > 1):
        findings.note("every trainer", "two images have the same file_name", name)
    if file.image_root is None:
        if file.document["images"]:
            findings.note(
                "validate", "the photos were not found: their presence and sizes are unchecked", str(file.path)
            )
        return
    for image in file.document["images"]:
        check_photo(file.image_root / image["file_name"], image["file_name"], _size(image), findings)


# ---------------------------------------------------------------------------------------------------------- consumers


def _pycocotools(file: CocoFile, findings: Findings) -> Consumer:
    """Load, then score the labels against themselves: anything under 1.0 was lost on the way."""
    name = f"pycocotools ({file.split})"
    truth = [a for a in file.document["annotations"] if not a.get("iscrowd")]
    if not truth:
        return Consumer(name, "loads; no instances to score")
    kinds = ["bbox"] + (["segm"] if all(a.get("segmentation") for a in truth) else [])
    try:
        scores = {kind: _self_score(file.document, kind) for kind in kinds}
    except Exception as error:  # the consumer's own failure, in its own words, is the finding
        findings.drops("pycocotools", f"COCOeval fails: {type(error).__name__}: {error}", str(file.path))
        return Consumer(name, "fails")
    for kind, score in scores.items():
        if score < 0.9999:
            what = f"labels scored against themselves reach {kind} AP {score:.4f} instead of 1"
            findings.drops("pycocotools", what, str(file.path))
    parts = ", ".join(f"{kind} AP {score:.4f}" for kind, score in scores.items())
    return Consumer(name, f"loads {len(truth)} instances; against themselves {parts}")


def _self_score(document: dict[str, Any], kind: str) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found.dataset = copy.deepcopy(document)
        for annotation in found.dataset["annotations"]:
            annotation["score"] = 1.0
        found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.imgIds = evaluation.params.imgIds[:EVALUATED_IMAGES]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [100_000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    scored = precision[precision > -1]
    return float(np.mean(scored)) if scored.size else 1.0


def _hugging_face(file: CocoFile, findings: Findings) -> Consumer:
    """Put photos and annotations through RTDetrImageProcessor, and count what comes out."""
    name = f"Hugging Face RTDetrImageProcessor ({file.split})"
    if file.image_root is None:
        return Consumer(name, "not tried: the photos were not found")
    from PIL import Image
    from transformers import RTDetrImageProcessor

    processor = RTDetrImageProcessor()
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in file.document["annotations"]:
        by_image.setdefault(annotation.get("image_id"), []).append(annotation)
    given = kept = tried = 0
    for image in file.document["images"]:
        path = file.image_root / image["file_name"]
        if tried == PROCESSED_IMAGES or read_photo(path) is None:
            continue
        annotations = by_image.get(image["id"], [])
        with Image.open(path) as photo:
            target = {"image_id": image["id"], "annotations": annotations}
            try:
                output = processor(images=photo.convert("RGB"), annotations=target, return_tensors="pt")
            except Exception as error:  # as above
                findings.drops(
                    "Hugging Face", f"the processor fails: {type(error).__name__}: {error}", image["file_name"]
                )
                continue
        tried += 1
        given += len(annotations)
        kept += len(output["labels"][0]["class_labels"])
    if kept < given:
        findings.drops("Hugging Face", "the processor left instances out", str(file.path), given - kept)
    return Consumer(name, f"{kept} of {given} instances kept in the {tried} images tried")

"""COCO JSON by the rules of pycocotools, RF-DETR, RT-DETR and Hugging Face, whoever wrote it.

Records are checked one by one first, and only those found readable ever reach a consumer: pycocotools' C code is killed
by a polygon with a far point or a run-length code longer than its image.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.core import masks, outlines
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError
from sam3label.validate.photos import check_photo, is_file
from sam3label.validate.report import Findings, Split

Size = tuple[int, int]  # height, width

_MOST_PIXELS = 1 << 31  # of a record: more than any reader opens
_LONGEST_BORDER_PX = 2e6  # pycocotools walks it in fifths of a pixel
_FEWEST_NUMBERS = 6  # of a ring: three points
_NO_PARENT = ("none", "null", "", None)
_LOOKED_UP = 500  # names by which the photos' folder is found
DETR = "RF-DETR, RT-DETR, Hugging Face"
SEGMENT = "segmentation trainers"
_UNREADABLE = "the segmentation is empty or unreadable (a ring needs 3 points, run lengths the image's size)"


@dataclass(frozen=True, slots=True)
class CocoFile:
    """One JSON with the folder its file names are relative to; None where the photos were not found."""

    split: str
    path: Path
    document: dict[str, Any]
    image_root: Path | None
    roboflow: bool

    @property
    def images(self) -> list[dict[str, Any]]:
        """The records that are images."""
        return [i for i in self.document["images"] if _fault_of_image(i) is None]

    @property
    def names(self) -> dict[Any, str]:
        """Class names by id, of the records that are classes."""
        return {c["id"]: str(c["name"]) for c in self.document["categories"] if _is_category(c)}

    def photos(self) -> Iterator[Path]:
        if self.image_root is not None:
            yield from (self.image_root / i["file_name"] for i in self.images)


@dataclass(slots=True)
class CheckedFile:
    """What a file states, and the annotations that its readers can be given."""

    split: Split
    readable: list[dict[str, Any]] = field(default_factory=list)
    segmented: bool = False  # all of the readable ones have a mask


def find(dataset: Path) -> list[tuple[str, Path]]:
    """Return (split, JSON) of a JSON path or of a dataset folder; [] if there are none."""
    if dataset.is_file():
        return [(dataset.stem.removeprefix("instances_"), dataset)] if dataset.suffix == ".json" else []
    beside = sorted(p for p in dataset.glob("*/_annotations.coco.json") if p.is_file())
    if beside:
        return [(path.parent.name, path) for path in beside]
    inside = sorted(p for p in (dataset / "annotations").glob("*.json") if p.is_file())
    return [(path.stem.removeprefix("instances_"), path) for path in inside if _looks_like_instances(path)]


def read(split: str, path: Path) -> CocoFile:
    """Load one file. Raises `InputError` when it is no JSON with the three lists."""
    document = read_json(path)
    try:
        lists = [document[k] for k in ("images", "annotations", "categories")]
        if not all(isinstance(x, list) for x in lists):
            raise TypeError("images, annotations and categories must be lists")
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a COCO instances file: {error}") from error
    roboflow = path.name == "_annotations.coco.json"
    file = CocoFile(split, path, document, None, roboflow)
    return CocoFile(split, path, document, _image_root(path, split, file.images), roboflow)


def read_json(path: Path) -> Any:
    """Return the JSON in a file. Raises `InputError` when there is none, or it is nested too deeply to be a dataset."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(f"{path} is not a COCO instances file: its JSON is nested too deeply.") from error
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path} is not a COCO instances file: {error}") from error


def check(file: CocoFile, findings: Findings) -> CheckedFile:
    """Go through every record once."""
    names, images = file.names, _check_images(file, findings)
    _check_ids(file.document, findings)
    _check_categories(file, findings)
    checked = CheckedFile(Split(file.split, images=len(file.document["images"])))
    rules = _Rules(images, names, any_segmentation(file.document["annotations"]), findings)
    checked.segmented = rules.segmented
    with_labels: set[Any] = set()
    for annotation in file.document["annotations"]:
        if not isinstance(annotation, dict):
            findings.drops("every trainer", "an annotation is no object", repr(annotation)[:60])
            continue
        checked.split.instances[names.get(_key(annotation.get("category_id")), "?")] += 1
        with_labels.add(_key(annotation.get("image_id")))
        if rules.check(annotation):
            checked.readable.append(annotation)
    checked.split.empty = len(images.keys() - with_labels)
    return checked


def any_segmentation(annotations: list[Any]) -> bool:
    return any(isinstance(a, dict) and a.get("segmentation") for a in annotations)


def instances(file: CocoFile) -> dict[str, list[tuple[str, Rle | Box]]]:
    """Return readable masks by file name: (class name, mask)."""
    names = file.names
    images = {i["id"]: i for i in file.images}
    found: dict[str, list[tuple[str, Rle | Box]]] = {i["file_name"]: [] for i in images.values()}
    for annotation in file.document["annotations"]:
        image = images.get(_key(annotation.get("image_id"))) if isinstance(annotation, dict) else None
        size = size_of(image) if image is not None else None
        if image is None or size is None:
            continue
        if (rle := read_mask(annotation.get("segmentation"), size)) is not None:
            found[image["file_name"]].append((names.get(_key(annotation.get("category_id")), "?"), rle))
    return found


def read_mask(segmentation: Any, size_hw: Size) -> Rle | None:
    """Return a `segmentation` of any of COCO's three kinds, as pycocotools reads it; None if it cannot."""
    try:
        if isinstance(segmentation, dict):
            size = (int(segmentation["size"][0]), int(segmentation["size"][1]))
            counts = segmentation["counts"]
            if size != size_hw:
                return None
            rle = masks.from_runs(counts, size) if isinstance(counts, list) else Rle(size, _bytes(counts))
            return masks.from_runs(masks.to_runs(rle), size_hw)
        rings = _rings(segmentation)
        with np.errstate(all="ignore"):  # what overflows is too long
            if not rings or _border_px(rings) > _LONGEST_BORDER_PX:
                return None
        return outlines.from_polygons(rings, size_hw)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError):
        return None


def size_of(image: Mapping[str, Any]) -> Size | None:
    """Return the size an image's record states, None where it is missing or no photo's."""
    height, width = image.get("height"), image.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width > _MOST_PIXELS:
        return None
    return height, width


# ------------------------------------------------------------------------------------------------------------ reading


def _image_root(path: Path, split: str, images: list[dict[str, Any]]) -> Path | None:
    """Return the place where most of the photos are."""
    above = path.parent.parent
    places = [path.parent, above / "images", above / split, above / "images" / split, above, path.parent / "images"]
    step = max(1, len(images) // _LOOKED_UP)
    names = [i["file_name"] for i in images[::step]]
    hits = [sum(is_file(place / name) for name in names) for place in places]
    return places[hits.index(max(hits))] if any(hits) else None


def _looks_like_instances(path: Path) -> bool:
    return not path.name.startswith(("captions_", "person_keypoints_", "stuff_", "panoptic_"))


def _bytes(counts: Any) -> bytes:
    return bytes(counts.encode("ascii") if isinstance(counts, str) else counts)


def _rings(segmentation: Any) -> list[Any]:
    """Return rings long enough to be drawn; but a short one in front makes pycocotools misread all."""
    if not segmentation or len(segmentation[0]) < _FEWEST_NUMBERS:
        return []
    return [ring for ring in segmentation if len(ring) >= _FEWEST_NUMBERS]


def _border_px(rings: Any) -> float:
    """Return the length of all rings' borders in pixels; infinite where a point is no number."""
    total = 0.0
    for ring in rings:
        flat = np.asarray(ring, dtype=np.float64).reshape(-1)
        points = flat[: len(flat) // 2 * 2].reshape(-1, 2)
        total += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum())
    return total if math.isfinite(total) else math.inf


def _key(value: Any) -> Hashable:
    """Return a value that can be an id, else None, which finds nothing."""
    return value if isinstance(value, int | str | float) else None


def _has_id(record: Mapping[str, Any]) -> bool:
    """Return whether a record has an id; null counts as one, as long as no two have it."""
    return "id" in record and isinstance(record["id"], int | str | float | None)


def _is_category(record: Any) -> bool:
    named = isinstance(record, dict) and isinstance(record.get("name"), int | float | str)
    return named and _key(record.get("id")) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -------------------------------------------------------------------------------------------------- images and classes


def _fault_of_image(image: Any) -> str | None:
    if not isinstance(image, dict):
        return "an image is no object"
    if _key(image.get("id")) is None:
        return "an image has no id"
    name = image.get("file_name")
    return None if isinstance(name, str) and name else "an image has no file_name"


def _check_images(file: CocoFile, findings: Findings) -> dict[Hashable, dict[str, Any]]:
    """Return the images by id."""
    images: dict[Hashable, dict[str, Any]] = {}
    for image in file.document["images"]:
        if fault := _fault_of_image(image):
            findings.drops("every trainer", fault, repr(image)[:60])
            continue
        images[image["id"]] = image
        if type(image["id"]) is not int:
            what = "an image's id is not a whole number: the file cannot be loaded"
            findings.drops("RF-DETR, Hugging Face", what, repr(image["id"]))
        _check_size(image, findings)
    for name, times in Counter(i["file_name"] for i in images.values()).items():
        if times > 1:
            findings.note("every trainer", "two images have the same file_name", name)
    _check_photos(file, findings)
    return images


def _check_size(image: Mapping[str, Any], findings: Findings) -> None:
    if size_of(image) is not None:
        return
    if image.get("height") is None or image.get("width") is None:
        findings.drops("pycocotools", "width or height is missing: masks cannot be drawn", image["file_name"])
    else:
        findings.drops("every trainer", "width and height are not those of a photo", image["file_name"])


def _check_photos(file: CocoFile, findings: Findings) -> None:
    images = file.images
    if file.image_root is None:
        if images:
            findings.drops("every trainer", "none of the photos was found", str(file.path), len(images))
        return
    for image in images:
        name = image["file_name"]
        check_photo(file.image_root / name, name, size_of(image), findings, turned="turns")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            findings.note("every trainer", "the photo lies outside the dataset's folder", name)


def _check_ids(document: Mapping[str, Any], findings: Findings) -> None:
    for key in ("images", "annotations", "categories"):
        records = [record for record in document[key] if isinstance(record, dict)]
        ids = Counter(record["id"] for record in records if _has_id(record))
        if (unnamed := len(records) - ids.total()) and key == "annotations":
            findings.drops("pycocotools", "an annotation has no id: the file cannot be loaded", key, unnamed)
        for number, times in ids.items():
            if times > 1:
                findings.drops("pycocotools", f"{key} share an id: only the last one is read", str(number), times - 1)


def _check_categories(file: CocoFile, findings: Findings) -> None:
    for record in file.document["categories"]:
        if not _is_category(record):
            findings.drops("every trainer", "a class has no id or no name", repr(record)[:60])
        elif type(record["id"]) is not int:
            findings.drops(DETR, "a class's id is not a whole number", repr(record["id"]))
    categories = [c for c in file.document["categories"] if _is_category(c)]
    for name, times in Counter(str(c["name"]) for c in categories).items():
        if times > 1:
            findings.drops("every trainer", "two classes have the same name", name)
    _check_parents(file, categories, findings)


def _check_parents(file: CocoFile, categories: list[dict[str, Any]], findings: Findings) -> None:
    """Check parents where labels are at stake: a Roboflow export's root class has none, and nothing is lost with it."""
    used = {_key(a.get("category_id")) for a in file.document["annotations"] if isinstance(a, dict)}
    parents = {_key(c.get("supercategory")) for c in categories if c.get("supercategory") != c["name"]}
    for category in (c for c in categories if c["id"] in used):
        name = str(category["name"])
        if category["name"] in parents:
            findings.note("RF-DETR", "the class is another one's supercategory: older versions leave it out", name)
        elif category.get("supercategory") in _NO_PARENT:
            findings.note("RF-DETR", "the supercategory is none or missing: older versions leave the class out", name)


# -------------------------------------------------------------------------------------------------------- annotations


@dataclass(slots=True)
class _Rules:
    """The rules for one annotation, with what they need to know of its file."""

    images: Mapping[Hashable, dict[str, Any]]
    names: Mapping[Any, str]
    segmented: bool
    findings: Findings
    seen: set[int] = field(default_factory=set)

    def check(self, annotation: dict[str, Any]) -> bool:
        """Return whether consumers can be given it."""
        where = f"annotation {str(annotation.get('id', '?'))[:40]}"
        image = self.images.get(_key(annotation.get("image_id")))
        if image is None:
            self.findings.drops("every trainer", "the annotation's image_id is unknown", where)
            return False
        where = f"{where} in {image['file_name']}"
        known = self._check_class(annotation, where) and _has_id(annotation)
        size = size_of(image)
        box = self._check_box(annotation.get("bbox"), size, where)
        mask = read_mask(annotation.get("segmentation"), size) if size else None
        drawn = self._check_mask(annotation, mask, box, size, where)
        weighed = self._check_area(annotation, mask, where)
        self._check_twin(annotation, where)
        return known and box is not None and drawn and weighed and size is not None

    def _check_class(self, annotation: dict[str, Any], where: str) -> bool:
        crowd = annotation.get("iscrowd")
        if crowd is None:
            self.findings.drops("pycocotools", "iscrowd is missing: COCOeval stops", where)
        elif crowd not in (0, 1):
            self.findings.drops(f"pycocotools, {DETR}", "iscrowd is neither 0 nor 1", where)
        elif crowd:
            self.findings.drops(f"{DETR}, Ultralytics", "iscrowd is 1: left out at training", where)
        if _key(annotation.get("category_id")) not in self.names:
            self.findings.drops("every trainer", "the annotation's category_id is unknown", where)
            return False
        return crowd in (0, 1)

    def _check_box(self, box: Any, size: Size | None, where: str) -> Box | None:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
            self.findings.drops("every trainer", "bbox is not four numbers", where)
            return None
        x, y, w, h = box
        height, width = size or (math.inf, math.inf)
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            self.findings.drops(DETR, "the box is empty (inside its image): left out", where)
        elif max(box) <= 1 and any(v % 1 for v in box):
            self.findings.drops("every trainer", "the box is in shares of the image, where pixels are meant", where)
        elif x < -0.5 or y < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
            self.findings.note("every trainer", "the box sticks out of its image and is cut", where)
        return x, y, w, h

    def _check_mask(
        self, annotation: dict[str, Any], mask: Rle | None, box: Box | None, size: Size | None, where: str
    ) -> bool:
        if mask is None:
            if self.segmented and size is not None:
                self.findings.drops(SEGMENT, _UNREADABLE, where)
            return not self.segmented
        if not masks.area(mask):
            self.findings.drops(SEGMENT, "the mask has no pixel", where)
        elif box is not None and _contradict(box, masks.box_xywh(mask)):
            self.findings.drops("every trainer", "the box is not the one around its mask", where)
        return True

    def _check_area(self, annotation: dict[str, Any], mask: Rle | None, where: str) -> bool:
        area = annotation.get("area")
        if "area" not in annotation:
            self.findings.drops(DETR, "area is missing: the annotation cannot be loaded", where)
            return False
        if not isinstance(area, int | float) or not _is_number(area):
            self.findings.drops(f"pycocotools, {DETR}", "area is not a number", where)
            return False
        if area < 0:
            self.findings.drops("pycocotools", "area is below 0: left out of every score", where)
        pixels = masks.area(mask) if mask is not None else 0
        if pixels and abs(area - pixels) > max(4.0, 0.2 * pixels):
            self.findings.note("COCOeval", "area is not the mask's: AP by object size is wrong", where)
        return True

    def _check_twin(self, annotation: dict[str, Any], where: str) -> None:
        parts = (annotation.get(k) for k in ("image_id", "category_id", "bbox", "segmentation"))
        code = hash(repr(tuple(parts)))
        if code in self.seen:
            self.findings.note("every trainer", "the same label twice on a photo: both are learned", where)
        self.seen.add(code)


def _contradict(box: Box, drawn: Box) -> bool:
    """Return whether a box shares less than half with its mask's, by more than pixels cut off or rounded."""
    x, y, w, h = box
    a, b, c, d = drawn
    inside = max(0.0, min(x + w, a + c) - max(x, a)) * max(0.0, min(y + h, b + d) - max(y, b))
    off = max(abs(x - a), abs(y - b), abs(x + w - a - c), abs(y + h - b - d))
    return off > 2 and inside < 0.5 * (w * h + c * d - inside)

"""Ground truth and results files: COCO, LVIS and SA-Co JSON in, pairs of (image, concept) and their objects out.

A *pair* is (image id, category id). In COCO every image x category is a pair: an image that lists none of a category
says that there is none, except where the file says otherwise as LVIS does: an image with `neg_category_ids` was only
looked at for those and for what it shows, and `not_exhaustive_category_ids` were not labelled to the end. In an SA-Co
file each "image" is one pair already, of a photo and its `text_input`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam3label.core import masks, outlines
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError

Pair = tuple[int, int]  # (image id, category id)
PHRASE_CATEGORY = 1  # the one category of an SA-Co file

_SIDES = ("height", "width")
_LARGEST = 1e6  # pixels of a side


@dataclass(frozen=True, slots=True)
class JudgedObject:
    """A truth object or a prediction; `rle` None means that it is only a box.

    `area` sorts it into small, medium and large when masks are compared, `box_area` when boxes are. In truth both are
    the file's `area`; in results pycocotools takes the mask's, and width x height where a box was given.
    """

    box_xywh: Box
    area: float
    box_area: float
    rle: Rle | None
    score: float = 1.0
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class TruthImage:
    """`phrase` is set in SA-Co files alone; `size_hw` is None where the file does not say."""

    file_name: str
    size_hw: tuple[int, int] | None
    phrase: str | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """One truth file. `pairs` are those that may be judged, in file order; `objects` come in file order too."""

    path: str
    images: Mapping[int, TruthImage]
    categories: Mapping[int, str]
    objects: Mapping[Pair, Sequence[JudgedObject]]
    pairs: tuple[Pair, ...]
    unsure: frozenset[Pair]  # not labelled to the end: no other annotator may be judged on them either
    by_phrase: bool  # an SA-Co file
    notes: tuple[str, ...] = ()  # what reading it took for granted, in words
    numbered: bool = True  # whether its ids are a file's own, which results may name

    def name(self, pair: Pair) -> str:
        """Return the phrase or class that the pair asks for."""
        phrase = self.images[pair[0]].phrase
        return self.categories[pair[1]] if phrase is None else phrase

    def only(self, pairs: Iterable[Pair]) -> Truth:
        """Return the same truth, judged on fewer pairs."""
        keep = set(pairs)
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair in keep))


def read_coco(path: str | Path, points: bool = False) -> Truth:
    """Read a COCO, LVIS or SA-Co file. Raises `InputError` in one sentence when it is not one.

    With `points`, objects with nothing but keypoints (`points_of`) are read too, each with the box around these.
    """
    data = load_json(path)
    if isinstance(data, dict) and "videos" in data:
        raise InputError(
            f"{path} is a video truth (YouTube-VIS). Truth of images is expected here: COCO or SA-Co JSON."
        )
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise InputError(f"{path} is not a truth file: COCO or SA-Co JSON with 'images' and 'annotations' is expected.")
    images = {field_of(image, "id", path, "image"): _image(image, path) for image in data["images"]}
    by_phrase = any(image.phrase is not None for image in images.values())
    categories = {PHRASE_CATEGORY: "phrase"} if by_phrase else _categories(data, path)
    objects: dict[Pair, list[JudgedObject]] = {}
    for annotation in data["annotations"]:
        image_id = field_of(annotation, "image_id", path, "annotation")
        category_id = PHRASE_CATEGORY if by_phrase else field_of(annotation, "category_id", path, "annotation")
        if image_id not in images or category_id not in categories:
            unknown = f"image {image_id}" if image_id not in images else f"category {category_id}"
            raise InputError(f"{path}: annotation {annotation.get('id')} belongs to {unknown}, which is not listed.")
        where = f"{path}: annotation {annotation.get('id')}"
        instance = _instance(annotation, images[image_id], where, points)
        area = _number(annotation["area"], f"{where}: area") if annotation.get("area") else instance.area
        instance = replace(instance, area=area, box_area=area, crowd=bool(annotation.get("iscrowd", 0)))
        objects.setdefault((image_id, category_id), []).append(instance)
    pairs, unsure = judged_pairs(data["images"], categories, objects, by_phrase)
    return Truth(str(path), images, categories, objects, pairs, unsure, by_phrase)


def read_results(path: str | Path, truth: Truth) -> tuple[dict[Pair, list[JudgedObject]], int]:
    """Return (predictions by pair in file order, how many name an image or category that `truth` does not have)."""
    if not truth.numbered:
        raise InputError(
            f"{path} names images and classes by the ids of a COCO file, and {truth.path} has none. Give the label "
            "files that yolo predict save_txt=True save_conf=True writes (--pred FOLDER), or the truth as COCO."
        )
    data = load_json(path)
    if not isinstance(data, list):
        raise InputError(f"{path} is not a results file: a JSON list with image_id, category_id, segmentation, score.")
    found: dict[Pair, list[JudgedObject]] = {}
    unknown = 0
    for position, result in enumerate(data):
        where = f"{path}: result {position}"
        image_id = field_of(result, "image_id", path, f"result {position}")
        category_id = (
            PHRASE_CATEGORY if truth.by_phrase else field_of(result, "category_id", path, f"result {position}")
        )
        field_of(result, "score", path, f"result {position}")
        if image_id not in truth.images or category_id not in truth.categories:
            unknown += 1
            continue
        instance = _instance(result, truth.images[image_id], where)
        found.setdefault((image_id, category_id), []).append(instance)
    return found, unknown


def align(truth: Truth, first: Truth) -> Truth:
    """Return another annotator's file with the image and category ids of the first.

    By file name and phrase, and by name.
    """
    images = {(image.file_name, image.phrase): image_id for image_id, image in first.images.items()}
    names = {name: category_id for category_id, name in first.categories.items()}
    image_of = {i: images[key] for i, im in truth.images.items() if (key := (im.file_name, im.phrase)) in images}
    category_of = {i: names[name] for i, name in truth.categories.items() if name in names}
    if not image_of or not category_of:
        raise InputError(f"{truth.path} and {first.path} have no image or no category in common: not two annotators.")

    def renamed(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, Pair]]:
        for pair in pairs:
            if pair[0] in image_of and pair[1] in category_of:
                yield pair, (image_of[pair[0]], category_of[pair[1]])

    return replace(
        truth,
        images={image_of[i]: image for i, image in truth.images.items() if i in image_of},
        categories={category_of[i]: name for i, name in truth.categories.items() if i in category_of},
        objects={new: truth.objects[old] for old, new in renamed(truth.objects)},
        pairs=tuple(new for _, new in renamed(truth.pairs)),
        unsure=frozenset(new for _, new in renamed(truth.unsure)),
    )


def load_json(path: str | Path) -> Any:
    """Return the content of a JSON file. Raises `InputError`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error


def field_of(record: Any, key: str, path: str | Path, what: str) -> Any:
    """Return a field that every record must have; `what` names the record in the `InputError`."""
    if not isinstance(record, dict) or key not in record:
        raise InputError(f"{path}: an entry of kind '{what.split()[0]}' has no '{key}' ({what}).")
    if isinstance(record[key], dict | list):
        raise InputError(
            f"{path}: an entry of kind '{what.split()[0]}' has a '{key}' that is no single value ({what})."
        )
    return record[key]


def _number(value: Any, where: str, most: float = math.inf) -> float:
    """Return a number from 0 to `most`, not NaN. `where` names it in the `InputError`."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= most:
        raise InputError(
            f"{where}: got {value!r}; allowed: a number from 0{f' to {most:g}' if most < math.inf else ''}."
        )
    return number


def _image(image: Mapping[str, Any], path: str | Path) -> TruthImage:
    sides = [_number(image.get(key) or 0, f"{path}: image {image['id']}: {key}", _LARGEST) for key in _SIDES]
    size_hw = (int(sides[0]), int(sides[1])) if all(sides) else None
    return TruthImage(str(image.get("file_name", image["id"])), size_hw, image.get("text_input"))


def _categories(data: Mapping[str, Any], path: str | Path) -> dict[int, str]:
    listed = data.get("categories") or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: 'categories' is not a list.")
    categories = {field_of(c, "id", path, "category"): str(field_of(c, "name", path, "category")) for c in listed}
    if not categories:
        raise InputError(f"{path} lists no 'categories', and its images have no 'text_input': neither COCO nor SA-Co.")
    return categories


def judged_pairs(
    images: Sequence[Mapping[str, Any]], categories: Mapping[int, str], objects: Mapping[Pair, Any], by_phrase: bool
) -> tuple[tuple[Pair, ...], frozenset[Pair]]:
    """Return (pairs that may be judged, pairs that were not labelled to the end)."""
    pairs: list[Pair] = []
    unsure: set[Pair] = set()
    for image in images:
        image_id = image["id"]
        open_ended = set(image.get("not_exhaustive_category_ids") or ())
        if by_phrase and not image.get("is_instance_exhaustive", True):
            open_ended.add(PHRASE_CATEGORY)
        looked_for = image.get("neg_category_ids")
        for category_id in categories:
            pair = image_id, category_id
            if category_id in open_ended:
                unsure.add(pair)
            elif looked_for is None or category_id in looked_for or pair in objects:
                pairs.append(pair)
    return tuple(pairs), frozenset(unsure)


def points_of(annotation: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the keypoints (x, y) of an annotation that has neither mask nor box: those that show, if any does.

    A point that does not show lies on what hides the object. Raises ValueError, TypeError for what is no list of them.
    """
    if annotation.get("segmentation") or annotation.get("bbox"):
        return []
    values = [float(value) for value in annotation.get("keypoints") or ()]
    points = list(zip(values[::3], values[1::3], values[2::3], strict=True))
    seen = max((visibility for _, _, visibility in points), default=0)
    return [(x, y) for x, y, visibility in points if visibility == seen > 0]


def _around(points: Sequence[tuple[float, float]]) -> Box | None:
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _instance(record: Mapping[str, Any], image: TruthImage, where: str, points: bool = False) -> JudgedObject:
    """Return a result, or an annotation before its own area is taken over. A box that is not given is the mask's."""
    try:
        rle = read_rle(record.get("segmentation"), image.size_hw)
        given = record.get("bbox") or (_around(points_of(record)) if points else None)
        if rle is None and given is None:
            raise ValueError("it has neither a mask nor a box")
        x, y, width, height = (float(v) for v in given) if given is not None else masks.box_xywh(_mask(rle))
        box_area = width * height if given is not None else float(masks.area(_mask(rle)))
        area = float(masks.area(rle)) if rle is not None else box_area
        score = float(record.get("score", 1.0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    if rle and image.size_hw and rle.size_hw != image.size_hw:
        raise InputError(
            f"{where} has a mask of {rle.size_hw[0]} x {rle.size_hw[1]} pixels (height x width), its image "
            f"{image.file_name} has {image.size_hw[0]} x {image.size_hw[1]}. They do not belong together."
        )
    return JudgedObject((x, y, width, height), area, box_area, rle, score)


def _mask(rle: Rle | None) -> Rle:
    assert rle is not None  # without a box there is a mask
    return rle


def read_rle(segmentation: Any, size_hw: tuple[int, int] | None) -> Rle | None:
    """Return a mask from compressed or plain run-length code or polygons; None when there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        height, width = (int(v) for v in segmentation["size"])
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return masks.from_runs(counts, (height, width))
        rle = Rle((height, width), counts.encode())
        if masks.area(rle) > height * width:
            raise ValueError(f"its run-length code is of a larger mask than {height} x {width} pixels")
        return rle
    if size_hw is None:
        raise ValueError("a polygon needs the image's height and width")
    return outlines.from_polygons(segmentation, size_hw)

"""Labelled examples of a class: partial labels of the photos themselves, or a folder of reference images.

Three forms are read: COCO JSON, a YOLO folder (whose classes a data.yaml or classes.txt names), and YAML of boxes,

    a.jpg: [[40, 30, 120, 90]]                                   # x, y, width, height in pixels, of the class at hand
    b.jpg: {helmet: [[1, 2, 30, 40]], baseball cap: [[5, 6, 70, 80]]}

A box of the class is a positive exemplar, a box of a class that its `not:` names a negative one, and boxes of the
list's other classes say nothing about it. Problems are collected, so that one message lists them all.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import read_truth
from sam3label.core.records import Box, BoxPrompt, Concept, ConceptList, Frame, MediaItem
from sam3label.core.yamlnodes import Node, read_nodes, short
from sam3label.errors import ConfigError, InputError, UndecodableError
from sam3label.media import discovery
from sam3label.media.image import decode_image

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2

_OUTSIDE_PX = 1.0  # tools round: a box may leave the image by this much, and is cut to it
_OUTSIDE_SHARE = 0.005
_SHOWN = 20  # problems listed in one message
_LAYOUT = {"images", "labels"}  # folders that YOLO datasets put around names


@dataclass(frozen=True, slots=True)
class Mark:
    """A box as a label file gives it; `class_name` None means the class whose exemplars are read."""

    class_name: str | None
    corners: Corners  # pixels, or fractions of the image in a YOLO file
    where: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a label file says about one image. A YOLO file is `relative`: fractions, and names without a suffix."""

    name: str
    marks: tuple[Mark, ...]
    where: str = ""
    size_hw: tuple[int, int] | None = None
    relative: bool = False

    def problems(self, size_hw: tuple[int, int] | None) -> Iterator[str]:
        """What is wrong with the boxes, as far as it can be told from what is known of the image's size."""
        if self.size_hw and size_hw and self.size_hw != size_hw:
            yield (
                f"{self.where}: its labels are for an image of {_size(self.size_hw)} pixels and it has "
                f"{_size(size_hw)}: label the image as it is now"
            )
            return
        size_hw = size_hw or self.size_hw
        limit = (1.0, 1.0) if self.relative else None if size_hw is None else (size_hw[1], size_hw[0])
        slack = _OUTSIDE_SHARE if self.relative else _OUTSIDE_PX
        for mark in self.marks:
            x1, y1, x2, y2 = mark.corners
            if not (x2 > x1 and y2 > y1):  # so that NaN counts too
                yield f"{mark.where}: the box {_shown(mark.corners)} has no area: draw it again or remove it"
            elif limit and (min(x1, y1) < -slack or x2 > limit[0] + slack or y2 > limit[1] + slack):
                size = "" if self.relative or size_hw is None else f" of {_size(size_hw)} pixels"
                yield f"{mark.where}: the box {_shown(mark.corners)} is not inside the image{size}"

    def prompt(self, concept: Concept, size_hw: tuple[int, int]) -> BoxPrompt | None:
        """The exemplars of a class on this image; None if there are none. Raises InputError for wrong boxes."""
        wrong = list(self.problems(size_hw))
        if wrong:
            raise InputError(listed(wrong))
        scale = np.ones(4) if self.relative else np.array((size_hw[1], size_hw[0]) * 2, np.float64)
        found = [(mark, sign) for mark in self.marks if (sign := _sign(mark.class_name, concept)) is not None]
        if not found:
            return None
        boxes = np.array([mark.corners for mark, _ in found]) / scale
        return BoxPrompt(boxes.clip(0, 1).astype(np.float32), tuple(sign for _, sign in found))


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image; `boxes` None means that it shows nothing of the class, as its labels say."""

    name: str
    path: str
    size_hw: tuple[int, int]
    digest: str  # of the pixels
    boxes: BoxPrompt | None

    @property
    def shows_class(self) -> bool:
        return self.boxes is not None and any(self.boxes.positive)

    def frame(self) -> Frame:
        """The image, decoded anew: many large references would not fit into memory."""
        try:
            return Frame(MediaItem(self.name, self.path), 0, decode_image(self.path))
        except UndecodableError as error:
            raise InputError(f"{self.path} can no longer be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one class: references, or partial labels by the id of the photo that they are of."""

    concept: Concept
    references: tuple[Reference, ...] = ()
    photos: Mapping[str, Labelled] = field(default_factory=dict)
    digest: str = ""  # of everything in the examples that changes the numbers
    notes: tuple[str, ...] = ()

    def boxes_on(self, frame: Frame) -> BoxPrompt | None:
        """The partial labels of a photo, as exemplars. Raises InputError."""
        labelled = self.photos.get(frame.item.id)
        return labelled.prompt(self.concept, frame.size_hw) if labelled else None

    def references_for(self, digest: str) -> tuple[Reference, ...]:
        """The references for a photo of that `pixel_digest`, "" for one that is certainly none of them.

        An image is never its own exemplar. Empty if none of the others shows the class.
        """
        others = tuple(reference for reference in self.references if reference.digest != digest)
        return others if any(reference.shows_class for reference in others) else ()


def read_examples(concepts: ConceptList, items: Sequence[MediaItem]) -> tuple[Examples, ...]:
    """The examples of every class that has some. Raises InputError listing every problem in all of them."""
    problems: list[str] = []
    found = []
    for concept in concepts.concepts:
        if concept.exemplars is None:
            continue
        try:
            labelled = _read(Path(concept.exemplars.path))
        except InputError as error:
            problems.append(f"exemplars of {concept.name}: {error}")
            continue
        except OSError as error:
            problems.append(f"exemplars of {concept.name}: {error.filename} cannot be read: {error.strerror}")
            continue
        _refuse_unknown_classes(labelled, concepts, concept.exemplars.path, problems)
        read = _photos if concept.exemplars.kind == "labels" else _references
        found.append(read(concept, labelled, items, problems))
    if problems:
        raise InputError(listed(dict.fromkeys(problems)))
    return tuple(found)


def listed(problems: Iterable[str]) -> str:
    """One problem as it is, several as a list."""
    lines = list(problems)
    if len(lines) == 1:
        return lines[0]
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([f"the exemplars have {len(lines)} problems", *(f"  {line}" for line in lines[:_SHOWN]), *more])


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """Equal for two images exactly if their pixels and sizes are."""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


# ---- partial labels of the photos


def _photos(
    concept: Concept, labelled: Sequence[Labelled], items: Sequence[MediaItem], problems: list[str]
) -> Examples:
    assert concept.exemplars is not None
    path = concept.exemplars.path
    telling = (True, False) if concept.prompts else (True,)  # "not this" alone says nothing about what is sought
    used = [entry for entry in labelled if any(_sign(m.class_name, concept) in telling for m in entry.marks)]
    for entry in used:
        problems += entry.problems(None)
    photos, lost = _assigned(used, [item.id for item in items], path, problems)
    notes = []
    if not used:
        problems.append(f"{path} has no box of class '{concept.name}'{_others(labelled)}")
    elif lost and len(lost) == len(used):
        problems.append(f"{path} has labels of {_some(lost)}, and none of these is among the photos")
    elif lost:
        notes.append(f"{path} has labels of {len(lost)} images that are not among the photos: {_some(lost)}")
    without = len(items) - len(photos)
    if without and not concept.prompts:
        notes.append(
            f"{concept.name} has boxes on {len(photos)} of {len(items)} photos and no phrases: on the other {without} "
            "it is not looked for. Give it a phrase or references, or label only the photos with boxes."
        )
    return Examples(concept, (), photos, _digest(used, concept), tuple(notes))


def _digest(labelled: Sequence[Labelled], concept: Concept) -> str:
    signed = (
        (entry.name, [(*m.corners, sign) for m in entry.marks if (sign := _sign(m.class_name, concept)) is not None])
        for entry in labelled
    )
    content = sorted((name, sorted(boxes)) for name, boxes in signed)
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


# ---- reference folders


def _references(
    concept: Concept, labelled: Sequence[Labelled], _: Sequence[MediaItem], problems: list[str]
) -> Examples:
    assert concept.exemplars is not None
    path = Path(concept.exemplars.path)
    folder = path if path.is_dir() else path.parent
    images = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if _is_image(p)}
    found, lost = _assigned(labelled, list(images), path, problems)
    for name in lost:
        problems.append(f"{path}: '{name}' has labels, and there is no such image in {folder}")
    for name in images.keys() - found.keys():
        problems.append(f"{images[name]} has no labels: label every object of the class in it, or take it out")
    references = [r for name in sorted(found) if (r := _reference(concept, name, images[name], found[name], problems))]
    if not any(reference.shows_class for reference in references) and not problems:
        problems.append(f"{path} has no box of class '{concept.name}'{_others(labelled)}")
    return Examples(concept, tuple(references), {}, _references_digest(references))


def _reference(concept: Concept, name: str, path: Path, labelled: Labelled, problems: list[str]) -> Reference | None:
    try:
        pixels = decode_image(path)
    except UndecodableError as error:
        problems.append(f"{path} cannot be read: {error}")
        return None
    size_hw = pixels.shape[0], pixels.shape[1]
    wrong = list(labelled.problems(size_hw))
    problems += wrong
    boxes = None if wrong else labelled.prompt(concept, size_hw)
    return Reference(name, str(path), size_hw, pixel_digest(pixels), boxes)


def _references_digest(references: Sequence[Reference]) -> str:
    """Of what the references show, not of their names."""
    digest = hashlib.blake2b(digest_size=8)
    for reference in references:
        digest.update(reference.digest.encode())
        if reference.boxes is not None:
            digest.update(reference.boxes.boxes_xyxy.tobytes() + bytes(reference.boxes.positive))
    return digest.hexdigest()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in discovery.IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")


# ---- names and classes


def _sign(name: str | None, concept: Concept) -> bool | None:
    """Whether a box of a class is a positive or a negative exemplar of the concept, or None: neither."""
    if name is None or name == concept.name:
        return True
    return False if name in concept.negatives else None


def _refuse_unknown_classes(
    labelled: Sequence[Labelled], concepts: ConceptList, path: str, problems: list[str]
) -> None:
    known = {*concepts.names, *(phrase for c in concepts.concepts for phrase in c.negatives)}
    for name in dict.fromkeys(m.class_name for entry in labelled for m in entry.marks if m.class_name is not None):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(
                f"{path}: the class '{name}' is not in the concept list{hint}: rename it there, or add it to `names:` "
                "or to a `not:`"
            )


def _others(labelled: Sequence[Labelled]) -> str:
    names = list(dict.fromkeys(m.class_name for entry in labelled for m in entry.marks if m.class_name))
    return f" (its boxes are of {_some(names)})" if names else ""


def _assigned(
    labelled: Sequence[Labelled], ids: Sequence[str], path: str | Path, problems: list[str]
) -> tuple[dict[str, Labelled], list[str]]:
    """(what is said about each image, names with boxes that none of the images has)."""
    found: dict[str, Labelled] = {}
    lost = []
    for entry, own in zip(labelled, _match(labelled, ids), strict=True):
        if len(own) > 1:
            problems.append(f"{path}: '{entry.name}' may be {_some(own)}: write its path as in the folder")
        elif own and own[0] in found:
            problems.append(f"{path}: '{found[own[0]].name}' and '{entry.name}' both label {own[0]}: make them one")
        elif own:
            found[own[0]] = entry
        elif entry.marks:
            lost.append(entry.name)
    return found, lost


def _match(labelled: Sequence[Labelled], ids: Sequence[str]) -> list[list[str]]:
    """For each entry the images that it may be about: the one of that name, else those whose path ends alike."""
    wanted = {_key(entry.name, entry.relative).rsplit("/", 1)[-1] for entry in labelled}
    relative = bool(labelled) and labelled[0].relative  # one file, one form
    by_base: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for image in ids:
        key = _key(image, relative)
        base = key.rsplit("/", 1)[-1]
        if base in wanted:
            by_base[base].append((key, image))
    return [_matches(_key(entry.name, entry.relative), by_base) for entry in labelled]


def _matches(name: str, by_base: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    near = by_base.get(name.rsplit("/", 1)[-1], ())
    same = [image for key, image in near if key == name]
    return same or [image for key, image in near if key.endswith(f"/{name}") or name.endswith(f"/{key}")]


def _key(name: str, without_suffix: bool) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in path.parts if part not in _LAYOUT]
    if without_suffix and path.suffix.lower() in discovery.IMAGE_SUFFIXES:
        parts[-1] = path.stem
    return "/".join(parts)


def _shown(corners: Corners) -> str:
    x1, y1, x2, y2 = corners
    return f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}] (x, y, width, height)"


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


# ---- label files


def _read(path: Path) -> list[Labelled]:
    """What a label file or folder says. Raises InputError in one sentence when it is none."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{path} is no label file: a COCO .json, a .yaml of boxes or a YOLO folder is expected")
    content = _load_yaml(path)
    return _read_yolo(path.parent, _yolo_names(content["names"])) if "names" in content else _read_boxes(content)


def _read_folder(folder: Path) -> list[Labelled]:
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".json", ".yaml", ".yml")]
    if len(files) > 1:
        raise InputError(f"{folder} has several label files ({_some([p.name for p in files])}): name one of them")
    if files:
        return _read(files[0])
    classes = folder / "classes.txt"
    if classes.is_file():
        return _read_yolo(folder, dict(enumerate(_lines(classes))))
    if any(folder.rglob("*.txt")):
        raise InputError(f"{folder} has YOLO labels and neither data.yaml nor classes.txt to name their classes")
    raise InputError(f"{folder} has no labels: a COCO .json, a .yaml of boxes, or YOLO .txt files with a data.yaml")


def _read_coco(path: Path) -> list[Labelled]:
    truth = read_truth(path)
    if truth.by_phrase:
        raise InputError(f"{path} is an SA-Co file: exemplars are read from COCO files, with categories")
    marks: dict[int, list[Mark]] = defaultdict(list)
    for (image_id, category_id), objects in truth.objects.items():
        name, file_name = truth.categories[category_id], truth.images[image_id].file_name
        for instance in (one for one in objects if not one.crowd):
            marks[image_id].append(Mark(name, _corners(instance.box_xywh), f"{path}: {file_name}, {name}"))
    return [
        Labelled(image.file_name, tuple(marks[i]), f"{path}: {image.file_name}", image.size_hw)
        for i, image in truth.images.items()
    ]


def _corners(box_xywh: Box) -> Corners:
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def _read_boxes(content: Mapping[Any, Node]) -> list[Labelled]:
    where = ((str(name), node, f"{node.where}: {name}") for name, node in content.items())
    return [Labelled(name, tuple(_marks(node, place)), place) for name, node, place in where]


def _marks(node: Node, where: str) -> Iterator[Mark]:
    """The boxes of one image: a list, or a mapping of class names to lists."""
    for name, boxes in node.value.items() if isinstance(node.value, dict) else [(None, node)]:
        place = where if name is None else f"{where}, {name}"
        for number, box in enumerate(boxes.value if isinstance(boxes.value, list) else [boxes], start=1):
            values = [child.value for child in box.value] if isinstance(box.value, list) else []
            if len(values) != 4 or not all(_is_number(value) for value in values):
                got = f"[{', '.join(child.text for child in box.value)}]" if isinstance(box.value, list) else box.text
                raise InputError(
                    f"{place}, box {number}: got {short(got)}; allowed: a list of boxes such as [[40, 30, 120, 90]], "
                    "each x, y, width, height in pixels"
                )
            corners = _corners((values[0], values[1], values[2], values[3]))
            yield Mark(None if name is None else str(name), corners, f"{place}, box {number}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _read_yolo(folder: Path, names: Mapping[int, str]) -> list[Labelled]:
    files = [p for p in sorted(folder.rglob("*.txt")) if p.name != "classes.txt"]
    inside = [p for p in files if "labels" in p.relative_to(folder).parts[:-1]]
    return [
        Labelled(p.relative_to(folder).with_suffix("").as_posix(), tuple(_yolo_marks(p, names)), str(p), None, True)
        for p in inside or files
    ]


def _yolo_marks(path: Path, names: Mapping[int, str]) -> Iterator[Mark]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in line.split()]
            name = names.get(int(values[0])) if values and values[0].is_integer() else None
        except ValueError:
            raise InputError(f"{where}: '{line[:40]}' is not a row of numbers") from None
        if not values:
            continue
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise InputError(f"{where}: {len(values)} numbers; allowed: class and box (5), or class and polygon")
        if name is None:
            raise InputError(f"{where}: class {values[0]:g} has no name: the classes are {_some(list(names.values()))}")
        yield Mark(name, _yolo_corners(values[1:]), where)


def _yolo_corners(values: Sequence[float]) -> Corners:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _yolo_names(names: Node) -> dict[int, str]:
    children = dict(enumerate(names.value)) if isinstance(names.value, list) else names.value
    if not isinstance(children, dict) or not all(isinstance(number, int) for number in children):
        raise InputError(f"{names.where}: `names:` is neither a list nor numbers with names")
    return {number: str(child.value) for number, child in children.items()}


def _load_yaml(path: Path) -> Mapping[Any, Node]:
    problems: list[str] = []
    try:
        root = read_nodes("\n".join(_lines(path)), str(path), lambda line: f"{path}:{line}", problems)
    except ConfigError as error:
        raise InputError(str(error)) from None
    if problems:
        raise InputError("; ".join(problems))
    if root is None or not isinstance(root.value, dict):
        raise InputError(f"{path} holds no boxes: write for each image a line such as  a.jpg: [[40, 30, 120, 90]]")
    return root.value


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error

"""Labelled examples of a class: partial labels of the photos themselves, or a folder of reference images.

`annotations/` reads them: COCO JSON, YAML of boxes, or a YOLO folder, whose classes a data.yaml or classes.txt names. A
box of the class is a positive exemplar, a box of a class that its `not:` names a negative one, and boxes of the list's
other classes say nothing about it. Problems are collected, so that one message lists them all.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from sam3label.annotations.label_files import read_dataset, read_label_file
from sam3label.annotations.marks import Labelled, some
from sam3label.core.problems import Problem, first_of
from sam3label.core.records import BoxPrompt, Concept, ConceptList, Exemplars, Frame, MediaItem
from sam3label.core.text import count
from sam3label.errors import InputError, UndecodableError
from sam3label.media import discovery, storage, video
from sam3label.media.image import decode_image, megapixels

_SHOWN = 20  # problems listed in one message
_LAYOUT = {"images", "labels"}  # folders that YOLO datasets put around names


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
        """Return the image, decoded anew: many large references would not fit into memory."""
        try:
            return Frame(MediaItem(self.name, self.path), 0, decode_image(self.path, megapixels(self.size_hw)))
        except UndecodableError as error:
            raise InputError(f"{self.path} can no longer be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one class: references, or partial labels by the id of the photo that they are of.

    Or its objects, by the photo, or the frame of a video, on which they are given.
    """

    concept: Concept
    references: tuple[Reference, ...] = ()
    photos: Mapping[str, Labelled] = field(default_factory=dict)
    digest: str = ""  # of everything in the examples that changes the numbers
    notes: tuple[str, ...] = ()

    @property
    def gives_objects(self) -> bool:
        """Whether these are no examples but the objects themselves."""
        return self.concept.exemplars is not None and self.concept.exemplars.kind == "objects"

    def labels_of(self, frame: Frame) -> Labelled | None:
        """Return what is said of a photo or of a frame of a video."""
        return self.photos.get(_frame_key(frame.item, frame.index))

    def boxes_on(self, frame: Frame) -> BoxPrompt | None:
        """Return the partial labels of a photo or of a frame of a video, as exemplars. Raises InputError."""
        labelled = self.labels_of(frame)
        return exemplars_on(labelled, self.concept, frame.size_hw) if labelled else None

    def has_boxes_in(self, item: MediaItem) -> bool:
        """Return whether any frame of a video has partial labels."""
        return any(name.startswith(f"{item.id}/") for name in self.photos)

    def references_for(self, digest: str) -> tuple[Reference, ...]:
        """Return the references for a photo of that `pixel_digest`, "" for one that is certainly none of them.

        An image is never its own exemplar. Empty if none of the others shows the class.
        """
        others = tuple(reference for reference in self.references if reference.digest != digest)
        return others if any(reference.shows_class for reference in others) else ()


def read_examples(
    concepts: ConceptList, items: Sequence[MediaItem], max_megapixels: float | None = None
) -> tuple[Examples, ...]:
    """Return the examples of every class that has some. Raises InputError listing every problem in all of them.

    References over `max_megapixels` are refused as photos are.
    """
    problems: list[Problem] = []
    found = []
    for concept in concepts.concepts:
        if concept.exemplars is None:
            continue
        gives_objects = concept.exemplars.kind == "objects"
        try:
            place = _on_disk(concept.exemplars)
            labelled = read_dataset(place).images if gives_objects else read_label_file(place)
        except InputError as error:
            problems.append(Problem(f"exemplars of {concept.name}", str(error)))
            continue
        except OSError as error:
            where = error.filename or concept.exemplars.path
            problems.append(Problem(f"exemplars of {concept.name}", f"{where} cannot be read: {error.strerror}"))
            continue
        _refuse_unknown_classes(labelled, concepts, concept.exemplars.path, problems)
        if gives_objects:
            found.append(_given(concept, labelled, items, problems))
        elif concept.exemplars.kind == "labels":
            found.append(_photos(concept, labelled, items, problems))
        else:
            found.append(_references(concept, labelled, place, max_megapixels, problems))
    if problems:
        raise InputError(listed(dict.fromkeys(problems)))
    return tuple(found)


def _on_disk(exemplars: Exemplars) -> Path:
    """Return where the examples are on this machine: of those in storage a copy in the cache. Raises OSError.

    Label files of references lie among their images, and are copied with them.
    """
    url = exemplars.path
    if not storage.is_remote(url):
        return Path(url)
    if exemplars.kind == "references" and PurePosixPath(url).suffix.lower() in (".json", ".yaml", ".yml"):
        return storage.local_folder(storage.parent(url)) / PurePosixPath(url).name
    return storage.local_folder(url)


def listed(problems: Iterable[Problem]) -> str:
    """Return one problem as it is, several as a list."""
    found = list(problems)
    if len(found) == 1:
        return str(found[0])
    return "\n".join([f"the exemplars have {len(found)} problems", *first_of(found, _SHOWN, "  ")])


def exemplars_on(labelled: Labelled, concept: Concept, size_hw: tuple[int, int]) -> BoxPrompt | None:
    """Return the exemplars of a class on this image; None if there are none. Raises InputError for wrong boxes."""
    wrong = list(labelled.problems(size_hw))
    if wrong:
        raise InputError(listed(wrong))
    scale = np.ones(4) if labelled.relative else np.array((size_hw[1], size_hw[0]) * 2, np.float64)
    found = [(mark, sign) for mark in labelled.marks if (sign := _sign(mark.class_name, concept)) is not None]
    if not found:
        return None
    boxes = np.array([mark.corners for mark, _ in found]) / scale
    return BoxPrompt(boxes.clip(0, 1).astype(np.float32), tuple(sign for _, sign in found))


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """Equal for two images exactly if their pixels and sizes are."""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


# ---- partial labels of the photos


def _photos(
    concept: Concept, labelled: Sequence[Labelled], items: Sequence[MediaItem], problems: list[Problem]
) -> Examples:
    assert concept.exemplars is not None
    path = concept.exemplars.path
    telling = (True, False) if concept.prompts else (True,)  # "not this" alone says nothing about what is sought
    used = [entry for entry in labelled if any(_sign(m.class_name, concept) in telling for m in entry.marks)]
    for entry in used:
        problems += entry.problems(None)
    photos, lost = _by_item(used, items, path, problems)
    notes = []
    if not used:
        problems.append(Problem(str(path), f"no box of class '{concept.name}' in it{_others(labelled)}"))
    elif lost and len(lost) == len(used):
        problems.append(Problem(path, f"its labels are of {some(lost)}, and none of these is among the photos"))
    elif lost:
        notes.append(f"{path} has labels of {count(len(lost), 'image')} not among the photos: {some(lost)}")
    notes += _not_looked_for(concept, items, photos, "a phrase or references")
    return Examples(concept, (), photos, _digest(used, concept), tuple(notes))


def _by_item(
    used: Sequence[Labelled], items: Sequence[MediaItem], path: str, problems: list[Problem]
) -> tuple[dict[str, Labelled], list[str]]:
    """Return (what is said of each photo, by its id, and of each frame of a video; names that are none of them)."""
    frames = _frames_named(used, [item for item in items if item.kind == "video"])
    images = [item.id for item in items if item.kind == "image"]
    found, lost = _assigned(used, [*images, *frames], path, problems)
    return {frames.get(name, name): entry for name, entry in found.items()}, lost


def _not_looked_for(
    concept: Concept, items: Sequence[MediaItem], labelled: Mapping[str, Labelled], what: str
) -> Iterator[str]:
    images = {item.id for item in items if item.kind == "image"}
    without = len(images - labelled.keys())
    if without and not concept.prompts:
        yield (
            f"{concept.name} has boxes on {len(images) - without} of {count(len(images), 'photo')} and no phrases: on "
            f"the other {without} it is not looked for. Give it {what}, or label only the photos with boxes."
        )


def _given(
    concept: Concept, labelled: Sequence[Labelled], items: Sequence[MediaItem], problems: list[Problem]
) -> Examples:
    """Return the objects of a class on photos and in frames of videos."""
    assert concept.exemplars is not None
    path = concept.exemplars.path
    used = [entry for entry in labelled if any(m.class_name == concept.name for m in entry.marks)]
    for entry in used:
        problems += entry.problems(None)
    photos, lost = _by_item(used, items, path, problems)
    notes = []
    if not used:
        problems.append(Problem(path, f"no object of class '{concept.name}' in it{_others(labelled)}"))
    elif len(lost) == len(used):
        here = "none of these is a photo here, or a frame of a video, as walk.mp4/000120.jpg"
        problems.append(Problem(path, f"its objects are of {some(lost)}, and {here}"))
    elif lost:
        notes.append(
            f"{path} has objects of {count(len(lost), 'image')} that are no photos or frames of videos here: "
            f"{some(lost)}"
        )
    if any(item.id in photos for item in items):  # else they are all of videos
        notes += _not_looked_for(concept, items, photos, "a phrase")
    return Examples(concept, (), photos, _objects_digest(used), (*notes,))


def _objects_digest(labelled: Sequence[Labelled]) -> str:
    said = sorted(
        (entry.name, [repr((m.class_name, m.corners, m.points, m.id, m.attributes, m.mask)) for m in entry.marks])
        for entry in labelled
    )
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()


def _frame_key(item: MediaItem, index: int) -> str:
    return item.id if item.kind == "image" else f"{item.id}/{index:06d}"


def _frames_named(labelled: Sequence[Labelled], videos: Sequence[MediaItem]) -> dict[str, str]:
    """Return the frames of the videos that the labels may name, `walk.mp4/000120.jpg`, and their keys."""
    named = [PurePosixPath(entry.name.replace("\\", "/")) for entry in labelled]
    frames, files = dict[str, str](), video.FrameFiles()
    for item in videos:
        own = PurePosixPath(item.id)
        for path in named:
            if path.parent.name == own.name and (index := files.number(item, path.name)) is not None:
                frames[f"{item.id}/{path.name}"] = _frame_key(item, index)
    return frames


def _digest(labelled: Sequence[Labelled], concept: Concept) -> str:
    signed = (
        (entry.name, [(*m.corners, sign) for m in entry.marks if (sign := _sign(m.class_name, concept)) is not None])
        for entry in labelled
    )
    content = sorted((name, sorted(boxes)) for name, boxes in signed)
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


# ---- reference folders


def _references(
    concept: Concept,
    labelled: Sequence[Labelled],
    path: Path,
    max_megapixels: float | None,
    problems: list[Problem],
) -> Examples:
    folder = path if path.is_dir() else path.parent
    images = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if _is_image(p)}
    found, lost = _assigned(labelled, list(images), path, problems)
    for name in lost:
        problems.append(Problem(str(path), f"'{name}' has labels, and there is no such image in {folder}"))
    for name in images.keys() - found.keys():
        problems.append(Problem(str(images[name]), "no labels: label every object of the class in it, or take it out"))
    references = []
    for name in sorted(found):
        try:
            pixels = decode_image(images[name], max_megapixels)
        except UndecodableError as error:
            problems.append(Problem(str(images[name]), f"cannot be read: {error}"))
        else:
            references.append(_reference(concept, name, images[name], pixels, found[name], problems))
    if not any(reference.shows_class for reference in references) and not problems:
        problems.append(Problem(str(path), f"no box of class '{concept.name}' in it{_others(labelled)}"))
    return Examples(concept, tuple(references), {}, _references_digest(references))


def _reference(
    concept: Concept, name: str, path: Path, pixels: npt.NDArray[np.uint8], labelled: Labelled, problems: list[Problem]
) -> Reference:
    size_hw = pixels.shape[0], pixels.shape[1]
    wrong = list(labelled.problems(size_hw))
    problems += wrong
    boxes = None if wrong else exemplars_on(labelled, concept, size_hw)
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
    """Return whether a box of a class is a positive or a negative exemplar of the concept, or None: neither."""
    if name is None or name == concept.name:
        return True
    return False if name in concept.negatives else None


def _refuse_unknown_classes(
    labelled: Sequence[Labelled], concepts: ConceptList, path: str, problems: list[Problem]
) -> None:
    known = {*concepts.names, *(phrase for c in concepts.concepts for phrase in c.negatives)}
    for name in dict.fromkeys(m.class_name for entry in labelled for m in entry.marks if m.class_name is not None):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(
                Problem(
                    path,
                    f"the class '{name}' is not in the concept list{hint}: rename it there, or add it to `names:` "
                    "or to a `not:`",
                )
            )


def _others(labelled: Sequence[Labelled]) -> str:
    names = list(dict.fromkeys(m.class_name for entry in labelled for m in entry.marks if m.class_name))
    return f" (its boxes are of {some(names)})" if names else ""


def _assigned(
    labelled: Sequence[Labelled], ids: Sequence[str], path: str | Path, problems: list[Problem]
) -> tuple[dict[str, Labelled], list[str]]:
    """Return (what is said about each image, names with boxes that none of the images has)."""
    found: dict[str, Labelled] = {}
    lost = []
    for entry, own in zip(labelled, _match(labelled, ids), strict=True):
        if len(own) > 1:
            problems.append(Problem(str(path), f"'{entry.name}' may be {some(own)}: write its path as in the folder"))
        elif own and own[0] in found:
            problems.append(
                Problem(str(path), f"'{found[own[0]].name}' and '{entry.name}' both label {own[0]}: make them one")
            )
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

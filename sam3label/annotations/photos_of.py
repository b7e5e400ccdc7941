"""Where the photos of a dataset of boxes are: its images as media items, found or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam3label.annotations.marks import Labelled, LabelledDataset, some
from sam3label.core.records import MediaItem
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.media.discovery import VIDEO_SUFFIXES


@dataclass(frozen=True, slots=True)
class LabelledPhotos:
    """A dataset's photos in order of their ids, with what it says of each. Those in `missing` are not there."""

    items: tuple[MediaItem, ...]
    labels: Mapping[str, Labelled]  # by the photo's id
    missing: frozenset[str]  # ids


def find_photos(dataset: LabelledDataset, photos: Path | None = None) -> LabelledPhotos:
    """Find the photos of a dataset: below `photos`, or where its form usually has them.

    Ids are the names in the dataset. Raises InputError where not one is found, and where two images have one name.
    """
    places = (photos,) if photos is not None else dataset.photos
    items: list[MediaItem] = []
    labels: dict[str, Labelled] = {}
    missing: set[str] = set()
    for image in dataset.images:
        id_ = _id(image.name)
        if id_ in labels:
            raise InputError(f"{dataset.path} has two images named {image.name}: make them one, or rename one.")
        found = dataset.files.get(image.name) if photos is None else None
        found = found or next(_found(id_, image.name, places), None)
        if found is None:
            missing.add(id_)
        root = places[0] if places else dataset.path
        path = found if found is not None else root / id_
        items.append(MediaItem(id_, str(path.absolute()), root=str(root.absolute())))
        labels[id_] = image
    if missing and len(missing) == len(items):
        looked = some([str(place) for place in dict.fromkeys(places)])
        if all(PurePosixPath(id_).parent.suffix.lower() in VIDEO_SUFFIXES for id_ in missing):
            raise InputError(
                f"the images of {dataset.path} are frames of videos ({some(sorted(missing), 2)}): "
                "sam3label run --video track follows their objects, with "
                f"`exemplars: {{objects: {dataset.path}}}` in the concept list."
            )
        raise InputError(
            f"not one of the {count(len(items), 'image')} of {dataset.path} is in {looked}: say where they are with "
            "--photos."
        )
    if not items:
        raise InputError(f"{dataset.path} names no images.")
    return LabelledPhotos(tuple(sorted(items, key=lambda item: item.id)), labels, frozenset(missing))


def _id(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "/".join(part for part in parts if part not in ("/", ".", "..") and not part.endswith(":"))


def _found(id_: str, name: str, places: Sequence[Path]) -> Iterator[Path]:
    """Yield files that the name may mean: below a place, in an `images` folder on the way, or by its last part."""
    parts = id_.split("/")
    ways = [id_, *("/".join((*parts[:i], "images", *parts[i:])) for i in range(len(parts))), parts[-1]]
    if Path(name).is_absolute() and Path(name).is_file():
        yield Path(name)
    for place in places:
        yield from (place / way for way in ways if (place / way).is_file())

"""Where the photos of a run are now, when they are not where they were labelled."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sam3label.core.records import MediaItem, Stamp
from sam3label.core.text import one_line
from sam3label.errors import InputError
from sam3label.media import storage
from sam3label.media.stamps import is_unchanged, looked_up

_COMPARED = 16  # files of a folder whose content is compared; of all others the size is

_Labelled = tuple[MediaItem, Stamp | None]


def relocated(items: Iterable[_Labelled], photos: str) -> dict[str, str]:
    """Return root as it was -> where its files are under `photos`: the folder itself, or the one of the root's name.

    Either may be on a disk or in storage. Raises `InputError` when files are missing there, or are others.
    """
    by_root: dict[str, list[_Labelled]] = {}
    for item, stamp in items:
        root = item.root or _root_of(item)
        by_root.setdefault(root, []).append((replace(item, root=root), stamp))
    places: dict[str, str] = {}
    for root, own in by_root.items():
        candidates = (photos, _joined(photos, posixpath.basename(Path(root).as_posix())))
        places[root] = next((place for place in candidates if _holds(own[0][0], root, place)), photos)
        _refuse_others(own, places, photos)
    return places


def moved(item: MediaItem, places: Mapping[str, str]) -> MediaItem:
    """Return an item at its new place."""
    root = item.root or _root_of(item)
    if root not in places:
        return item
    return replace(item, root=places[root], path=_joined(places[root], _below(item.path, root)), version=0)


def _root_of(item: MediaItem) -> str:
    """Return the root of an item that an earlier version stored without: its path without its id."""
    return item.path.removesuffix(f"/{item.id}") if item.path.endswith(f"/{item.id}") else str(Path(item.path).parent)


def _below(path: str, root: str) -> str:
    """Return a path relative to its root, with forward slashes."""
    if storage.is_remote(path):
        return path.removeprefix(root).lstrip("/")
    return Path(path).relative_to(root).as_posix()


def _joined(place: str, path: str) -> str:
    return f"{place.rstrip('/')}/{path}" if storage.is_remote(place) else str(Path(place) / path)


def _holds(item: MediaItem, root: str, place: str) -> bool:
    path = _joined(place, _below(item.path, root))
    if not storage.is_remote(path):
        return Path(path).exists()
    try:
        storage.stored_object(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return True


def _refuse_others(own: Sequence[_Labelled], places: Mapping[str, str], photos: str) -> None:
    step = max(1, len(own) // _COMPARED)
    now = looked_up(moved(item, places) for item, _ in own)
    files = zip(now, (stamp for _, stamp in own), strict=True)
    wrong = list(_wrong((item, stamp, n % step == 0) for n, (item, stamp) in enumerate(files)))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"{photos} does not hold the photos of this run: {', '.join(wrong[:5])}{more}. "
            "Give the folder they are in now."
        )


def _wrong(files: Iterable[tuple[MediaItem, Stamp | None, bool]]) -> Iterator[str]:
    for item, stamp, compare in files:
        try:
            if not _may_be(item, stamp) or (compare and stamp is not None and not is_unchanged(item, stamp)):
                yield f"{one_line(item.id)} is another file there"
        except OSError:
            yield f"{one_line(item.id)} is missing"


def _may_be(item: MediaItem, stamp: Stamp | None) -> bool:
    """Return whether a file has the size of what was labelled. Of objects it is compared with the content, of a few."""
    if storage.is_remote(item.path):
        if not item.version:
            raise FileNotFoundError(item.path)
        return True
    size = Path(item.path).stat().st_size
    return stamp is None or Path(item.path).is_dir() or size == stamp.size

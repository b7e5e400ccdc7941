"""Where the photos of a run are now, when they are not where they were labelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sam3label.core.records import MediaItem, Stamp
from sam3label.core.stamps import is_unchanged
from sam3label.core.text import one_line
from sam3label.errors import InputError

_COMPARED = 16  # files of a folder whose content is compared; of all others the size is


def relocated(items: Iterable[tuple[MediaItem, Stamp | None]], photos: Path) -> dict[str, str]:
    """Return root as it was -> where its files are under `photos`: the folder itself, or the one of the root's name.

    Raises `InputError` when files are missing there, or are others.
    """
    by_root: dict[str, list[tuple[MediaItem, Stamp | None]]] = {}
    for item, stamp in items:
        root = item.root or _root_of(item)
        by_root.setdefault(root, []).append((replace(item, root=root), stamp))
    places: dict[str, str] = {}
    for root, own in by_root.items():
        place = next((p for p in (photos, photos / Path(root).name) if _holds(own[0][0], root, p)), photos)
        places[root] = str(place)
        _refuse_others(own, places, photos)
    return places


def moved(item: MediaItem, places: Mapping[str, str]) -> MediaItem:
    """Return an item at its new place."""
    root = item.root or _root_of(item)
    if root not in places:
        return item
    return replace(item, root=places[root], path=str(Path(places[root]) / Path(item.path).relative_to(root)))


def _root_of(item: MediaItem) -> str:
    """Return the root of an item that an earlier version stored without: its path without its id."""
    return item.path.removesuffix(f"/{item.id}") if item.path.endswith(f"/{item.id}") else str(Path(item.path).parent)


def _holds(item: MediaItem, root: str, place: Path) -> bool:
    return (place / Path(item.path).relative_to(root)).exists()


def _refuse_others(own: list[tuple[MediaItem, Stamp | None]], places: Mapping[str, str], photos: Path) -> None:
    step = max(1, len(own) // _COMPARED)
    wrong = list(_wrong((moved(item, places), stamp, n % step == 0) for n, (item, stamp) in enumerate(own)))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"{photos} does not hold the photos of this run: {', '.join(wrong[:5])}{more}. "
            "Give the folder they are in now."
        )


def _wrong(files: Iterable[tuple[MediaItem, Stamp | None, bool]]) -> Iterator[str]:
    for item, stamp, compare in files:
        try:
            size = Path(item.path).stat().st_size
            same = stamp is None or Path(item.path).is_dir() or size == stamp.size
            if not same or (compare and stamp is not None and not is_unchanged(item, stamp)):
                yield f"{one_line(item.id)} is another file there"
        except OSError:
            yield f"{one_line(item.id)} is missing"

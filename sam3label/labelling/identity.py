"""Whether the files a job found are those its run has labelled: a name alone never stands for a photo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sam3label.core.records import MediaItem, Stamp
from sam3label.core.text import count, one_line, verb
from sam3label.errors import InputError
from sam3label.media.image import TOO_LARGE, is_too_large
from sam3label.media.stamps import looks_unchanged, stamp_of
from sam3label.run.store import Store
from sam3label.run.unit_writer import REPLACED

_READERS = 8  # files hashed at a time
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """The files that are found elsewhere, or touched, with the same content; and those replaced in their place.

    `unknown` counts files found elsewhere whose content no earlier version kept a hash of.
    """

    moved: tuple[tuple[MediaItem, Stamp | None], ...] = ()
    replaced: tuple[MediaItem, ...] = ()
    unknown: int = 0

    def sentences(self) -> list[str]:
        """Return what a user should read before anything is labelled."""
        said = []
        if self.replaced:
            said.append(
                f"{_files_were(len(self.replaced))} replaced since the last time, and will be labelled again "
                "(corrections of the old content are kept, and do not count for the new): "
                f"{_some(i.id for i in self.replaced)}"
            )
        if self.unknown:
            said.append(
                f"{_files_were(self.unknown)} labelled by an earlier version, which kept no hash, and found in another "
                "place: taken to be the same by the name alone."
            )
        return said


def compare(store: Store, items: Sequence[MediaItem]) -> Comparison:
    """Compare the files found with those the run has answers for; only those that may differ are read.

    Raises `InputError` naming files that have the id of another from another place: they would be taken for labelled.
    """
    here, done = {item.id: item for item in items}, store.done_ids()
    moved: list[tuple[MediaItem, Stamp | None]] = []
    replaced: list[MediaItem] = []
    foreign: list[tuple[MediaItem, MediaItem]] = []
    unknown = 0
    for stored, now, stamp, same in _differing(store, here, done):
        if stamp is None:
            unknown += 1
            moved.append((now, None))
        elif same:
            moved.append((now, same))
        elif stored.path == now.path:
            replaced.append(now)
        else:
            foreign.append((stored, now))
    if foreign:
        raise InputError(_refusal(foreign))
    return Comparison(tuple(moved), tuple(replaced), unknown)


def broken(store: Store, items: Sequence[MediaItem], max_megapixels: float) -> frozenset[str]:
    """Return ids of files that failed for what is in them and are as they were: another try would end as the last did.

    A photo that was too large is among them as long as it is.
    """
    failed = {u.item.id: u.error for u in store.units() if u.error is not None and u.error != REPLACED}
    here = {item.id: item for item in items if item.id in failed}
    return frozenset(
        stored.id
        for stored, stamp in store.items()
        if stamp is not None
        and (item := here.get(stored.id)) is not None
        and item.path == stored.path
        and looks_unchanged(item, stamp)
        and not (failed[item.id].startswith(TOO_LARGE) and not is_too_large(item.path, max_megapixels))
    )


_Row = tuple[MediaItem, MediaItem, Stamp | None, Stamp | None]  # as stored, as found; its stamp, and now if the same


def _differing(store: Store, here: dict[str, MediaItem], done: set[str]) -> Iterable[_Row]:
    """Files that are in another place than they were, or look as if they had changed."""
    rows = [
        (stored, here[stored.id], stamp)
        for stored, stamp in store.items()
        if stored.id in here and stored.id in done and not _looks_the_same(stored, here[stored.id], stamp)
    ]
    with ThreadPoolExecutor(_READERS) as readers:
        now = readers.map(lambda row: None if row[2] is None else _same(row[1], row[2]), rows)
        return [(stored, item, stamp, same) for (stored, item, stamp), same in zip(rows, now, strict=True)]


def _looks_the_same(stored: MediaItem, item: MediaItem, stamp: Stamp | None) -> bool:
    if stored.path != item.path:
        return False
    return stamp is None or looks_unchanged(item, stamp)


def _same(item: MediaItem, stamp: Stamp) -> Stamp | None:
    """Return the file's stamp as it is now, if it has the content that was stamped; one that cannot be read has not."""
    try:
        now = stamp_of(item)
    except OSError:
        return None
    return now if now.digest == stamp.digest else None


def _refusal(foreign: Sequence[tuple[MediaItem, MediaItem]]) -> str:
    lines = "".join(
        f"\n  {one_line(now.id)}: was {one_line(stored.path)}, now {one_line(now.path)}"
        for stored, now in foreign[:_SHOWN]
    )
    more = f"\n  ... and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    root = foreign[0][1].root
    have = verb(len(foreign), "has the name", "have the names")
    return (
        f"{len(foreign):,} of the files found {have} of others that this run holds, and other content:"
        f"{lines}{more}\nTo label them too, give their folder a name: new={root}. Or label them into another run: -o."
    )


def _files_were(number: int) -> str:
    return f"{count(number, 'file')} {verb(number, 'was', 'were')}"


def _some(names: Iterable[str], n: int = 5) -> str:
    listed = list(names)
    return ", ".join(map(one_line, listed[:n])) + (f" and {len(listed) - n:,} more" if len(listed) > n else "")

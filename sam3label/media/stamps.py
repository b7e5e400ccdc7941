"""What tells one file's content from another's, so that a name never stands for a photo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from sam3label.core.records import MediaItem, Stamp
from sam3label.errors import InputError, os_reason
from sam3label.media import storage

PART = 1 << 20  # bytes at the start, the middle and the end of a video that its hash is of, beside its size


def digest_of(parts: Iterable[bytes]) -> str:
    """Return a hash of bytes: blake2b, 16 bytes, in hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def stamp_of(item: MediaItem) -> Stamp:
    """Return the stamp of a file as it is now. Raises OSError where it cannot be read.

    A photo is hashed whole. A video is hashed in three parts, since it may be hours long, and a folder of frames by its
    names and sizes and three of its frames.
    """
    if storage.is_remote(item.path):
        return _object_stamp(item)
    path = Path(item.path)
    if path.is_dir():
        return _folder_stamp(path)
    status = path.stat()
    if item.kind == "image":
        return Stamp(status.st_size, status.st_mtime_ns, digest_of([path.read_bytes()]))
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return Stamp(status.st_size, status.st_mtime_ns, digest_of(_parts(status.st_size, read)))


def _object_stamp(item: MediaItem) -> Stamp:
    now = storage.stored_object(item.path)
    if item.kind == "image":
        data = storage.read(item.path)
        return Stamp(len(data), now.version, digest_of([data]))
    return Stamp(now.size, now.version, digest_of(_parts(now.size, partial(storage.read_part, item.path))))


def _parts(size: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    yield str(size).encode()
    for start in sorted({0, max(0, (size - PART) // 2), max(0, size - PART)}):
        yield read(start, min(start + PART, size))


def _folder_stamp(folder: Path) -> Stamp:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file())
    names = "\n".join(f"{name} {status.st_size}" for name, status in found)
    shown = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    digest = digest_of([names.encode(), *((folder / found[i][0]).read_bytes() for i in shown)])
    size, changed = sum(s.st_size for _, s in found), max((s.st_mtime_ns for _, s in found), default=0)
    return Stamp(size, changed, digest)


def looks_unchanged(item: MediaItem, stamp: Stamp) -> bool:
    """Return whether a file has the size and version it was stamped with: then it is not read again.

    An object in storage is taken for what it was when `item` was listed, and asked about only if it was not.
    """
    path = Path(item.path)
    try:
        if storage.is_remote(item.path):
            return (item.version or storage.stored_object(item.path).version) == stamp.version
        status = path.stat()
        if not path.is_dir():
            return (status.st_size, status.st_mtime_ns) == (stamp.size, stamp.version)
        return _folder_stamp(path) == stamp
    except OSError:
        return False


def is_unchanged(item: MediaItem, stamp: Stamp) -> bool:
    """Return whether a file has the content that was stamped. It is read only if its size is the same and its time not.

    Raises OSError where the file is gone.
    """
    if looks_unchanged(item, stamp):
        return True
    if storage.is_remote(item.path):
        size = storage.stored_object(item.path).size
    else:
        path = Path(item.path)
        size = stamp.size if path.is_dir() else path.stat().st_size
    return size in (-1, stamp.size) and stamp_of(item).digest == stamp.digest


def looked_up(items: Iterable[MediaItem]) -> Iterator[MediaItem]:
    """Return the items, those in storage with the version they have now, asked for together; 0 where one is gone.

    Raises `InputError` where the storage does not say.
    """
    listed = list(items)
    remote = [item.path for item in listed if storage.is_remote(item.path)]
    now = dict[str, int]()
    for url, one in storage.stored_objects(remote):
        if isinstance(one, OSError) and not isinstance(one, FileNotFoundError):
            raise InputError(f"{url}: {os_reason(one)}")
        now[url] = 0 if isinstance(one, OSError) else one.version
    return (replace(item, version=now[item.path]) if item.path in now else item for item in listed)

"""What tells one file's content from another's, so that a name never stands for a photo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from sam3label.core.records import MediaItem, Stamp

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
    path = Path(item.path)
    if path.is_dir():
        return _folder_stamp(path)
    status = path.stat()
    parts = [path.read_bytes()] if item.kind == "image" else _parts(path, status.st_size)
    return Stamp(status.st_size, status.st_mtime_ns, digest_of(parts))


def _parts(path: Path, size: int) -> list[bytes]:
    with path.open("rb") as file:
        parts = [str(size).encode()]
        for start in sorted({0, max(0, (size - PART) // 2), max(0, size - PART)}):
            file.seek(start)
            parts.append(file.read(PART))
        return parts


def _folder_stamp(folder: Path) -> Stamp:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file())
    names = "\n".join(f"{name} {status.st_size}" for name, status in found)
    shown = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    digest = digest_of([names.encode(), *((folder / found[i][0]).read_bytes() for i in shown)])
    size, changed = sum(s.st_size for _, s in found), max((s.st_mtime_ns for _, s in found), default=0)
    return Stamp(size, changed, digest)


def looks_unchanged(item: MediaItem, stamp: Stamp) -> bool:
    """Return whether a file has the size and the time of change it was stamped with: then it is not read again."""
    path = Path(item.path)
    try:
        status = path.stat()
        if not path.is_dir():
            return (status.st_size, status.st_mtime_ns) == (stamp.size, stamp.mtime_ns)
        return _folder_stamp(path) == stamp
    except OSError:
        return False


def is_unchanged(item: MediaItem, stamp: Stamp) -> bool:
    """Return whether a file has the content that was stamped. It is read only if its size is the same and its time not.

    Raises OSError where the file is gone.
    """
    if looks_unchanged(item, stamp):
        return True
    path = Path(item.path)
    if not path.is_dir() and path.stat().st_size != stamp.size:
        return False
    return stamp_of(item).digest == stamp.digest

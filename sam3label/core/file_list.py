"""The list of files an export wrote into a folder, and what is there beside them.

One JSON array a line, `[size, mtime in ns, digest, path]`: a file is as it was written if its size and time are, or, in
a copy of the folder, its size and content. Links, hard or symbolic, have no digest: what they lead to is somewhere else
too, and is not lost with them. Everything streams, so a million files take no memory.
"""

# Paths are strings here: a Path object for each of a million files costs more than finding them.
# ruff: noqa: PTH123

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

LIST = "sam3label.files.jsonl"
RUN_FILE = "run.sqlite"  # what makes a folder a run
# what trainers and file managers leave behind and make again when it is gone
_LITTER_NAMES = {".DS_Store", "Thumbs.db", "desktop.ini"}
_LITTER_SUFFIXES = (".cache", ".cache.npy")

_Entry = tuple[int, int, str, str]


def write(folder: Path, before: Path | None, besides: str) -> None:
    """List what is in `folder`, but for the list itself and the file `besides`.

    With `before`, the folder that this one adds to: what is as it was there keeps the line it has there, or has none.
    """
    inherited: dict[str, bool] = {}  # files of `before` that were written anew: was each as its line says?
    with open(folder / f"{LIST}.new", "w", encoding="ascii") as lines:
        if before is not None:
            for entry in _read(before):
                if _same_file(folder, before, entry[3]):
                    _put(lines, entry)
                else:
                    inherited[entry[3]] = _as_written(before, entry)
        for path in _files(folder):
            if path in (LIST, f"{LIST}.new", besides):
                continue
            if before is None or inherited.get(path, not os.path.lexists(before / path)):
                _put(lines, _entry(folder, path))
    (folder / f"{LIST}.new").replace(folder / LIST)


def strangers(folder: Path, besides: str, at_most: int) -> list[str]:
    """Return up to `at_most` files of `folder` that were changed since they were listed, or were never listed."""
    listed, changed = 0, list[str]()
    for entry in _read(folder):
        there = os.path.lexists(folder / entry[3])
        listed += there
        if there and not _as_written(folder, entry):
            changed.append(f"{entry[3]} (changed)")
            if len(changed) == at_most:
                return changed
    present = sum(not _litter(path) and path not in (LIST, besides) for path in _files(folder))
    if present == listed:
        return changed
    known = {LIST, besides, *(entry[3] for entry in _read(folder))}
    added = (path for path in _files(folder) if path not in known and not _litter(path))
    return [*changed, *(path for path, _ in zip(added, range(at_most - len(changed)), strict=False))]


def find_run(folder: Path) -> str | None:
    """Return the path of the first run inside `folder`, at any depth."""
    return next((path for path in _files(folder) if path.rpartition("/")[2] == RUN_FILE), None)


def _read(folder: Path) -> Iterator[_Entry]:
    """Yield the lines of a folder's list; none if it has no list, so that everything in it counts as a stranger."""
    try:
        with open(folder / LIST, encoding="ascii") as lines:
            for line in lines:
                size, time, digest, path = json.loads(line)
                yield size, time, digest, path
    except (OSError, ValueError, TypeError):
        return


def _put(lines: IO[str], entry: _Entry) -> None:
    lines.write(json.dumps(entry, separators=(",", ":")) + "\n")


def _files(folder: Path) -> Iterator[str]:
    """Yield paths below `folder`, with slashes, of all that is no folder; a link to a folder is a file here."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    yield path


def _entry(folder: Path, path: str) -> _Entry:
    state = os.lstat(folder / path)
    linked = state.st_nlink > 1 or stat.S_ISLNK(state.st_mode)
    return state.st_size, state.st_mtime_ns, "" if linked else _digest(folder / path), path


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=8)).hexdigest()


def _as_written(folder: Path, entry: _Entry) -> bool:
    size, time, digest, path = entry
    state = os.lstat(folder / path)
    if not digest and state.st_nlink > 1:
        return True
    if state.st_size != size or (not stat.S_ISREG(state.st_mode) and digest):
        return False
    return state.st_mtime_ns == time or not digest or _digest(folder / path) == digest


def _same_file(folder: Path, before: Path, path: str) -> bool:
    """Return whether a file that was linked (or, on disks without links, copied) from `before` is still that."""
    try:
        new, old = os.lstat(folder / path), os.lstat(before / path)
    except FileNotFoundError:
        return True  # gone before, so no one's to list: its line says nothing
    same = (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    return os.path.samestat(new, old) or same


def _litter(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in _LITTER_NAMES or name.endswith(_LITTER_SUFFIXES)

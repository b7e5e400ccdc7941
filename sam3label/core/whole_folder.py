"""Datasets appear whole: built beside their final place and moved there at the end.

`NAME` is built as `.NAME.partial-PID`. The exchange of an older dataset takes two renames; a kill between them leaves
the older one whole as `.NAME.old-PID`, and the next export puts it back before it starts. Leftovers of processes that
are gone are removed then, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam3label.errors import OutputError

MARKER = "sam3label.json"


@contextlib.contextmanager
def whole_folder(final: Path, *, append: bool = False) -> Iterator[Path]:
    """Yield an empty folder (with `append`, one that holds the old dataset by hard links) that becomes `final`.

    Files in it must be replaced, not written into. Raises `OutputError` when `final` is something this program did
    not write, or cannot be written. On any exception `final` stays as it was.
    """
    final = final.absolute()
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(final)
        _refuse_foreign(final, append)
        if append:
            shutil.copytree(final, partial, symlinks=True, copy_function=_link_or_copy)
        else:
            partial.mkdir()
        yield partial
        _exchange(partial, final)
    except OSError as error:
        raise OutputError(
            f"the dataset {final} cannot be written ({error.strerror or error}). "
            "Free some space or choose another place with -o; nothing was left half done."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What an export noted about the dataset in `folder`, or None if it is not one of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("tool") == "sam3label" else None


def _refuse_foreign(final: Path, append: bool) -> None:
    if append and not final.is_dir():
        raise OutputError(f"there is no dataset in {final} to append to. Leave out --append to make one.")
    if not append and final.exists() and not (final.is_dir() and (not any(final.iterdir()) or read_marker(final))):
        raise OutputError(
            f"{final} exists and was not written by sam3label export; it is left alone. "
            "Choose another -o, or --append to add to a dataset."
        )


def _exchange(partial: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _clean_up(final: Path) -> None:
    for old in final.parent.glob(f".{_escaped(final.name)}.old-*"):
        if _abandoned(old) and not final.exists():
            old.rename(final)
    for rest in final.parent.glob(f".{_escaped(final.name)}.*-*"):
        if _is_ours(rest, final.name) and _abandoned(rest):
            shutil.rmtree(rest, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_ours(rest: Path, name: str) -> bool:
    return rest.name.removeprefix(f".{name}.").rpartition("-")[0] in ("partial", "old")


def _abandoned(path: Path) -> bool:
    """The process that made it is gone (or is this one: it is only called before anything is made)."""
    pid = path.name.rpartition("-")[2]
    if not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target

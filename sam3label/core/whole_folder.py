"""Datasets appear whole: built beside their final place and moved there at the end, over nothing that is not ours.

`NAME` is built as `.NAME.partial-HOST-PID`. The exchange of an older dataset takes two renames; a kill between them
leaves the older one whole as `.NAME.old-HOST-PID`, and the next export into the same parent puts it back before it
starts. Leftovers of processes of this machine that are gone are removed then, too.

`sam3label.json` marks a folder as ours, `sam3label.files.jsonl` lists what was written into it. An older dataset is
replaced only if it holds exactly that: a file that a person added or changed is named, and the folder left alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam3label.core import file_list
from sam3label.core.files import write_whole
from sam3label.errors import OutputError

MARKER = "sam3label.json"
_SHOWN = 5  # foreign files named in a message


@contextlib.contextmanager
def whole_folder(final: Path, *, append: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder (with `append`, one that holds the old dataset by hard links) that becomes `final`.

    Files in it must be replaced, not written into. Raises `OutputError` when `final` is something this program did
    not write, holds anything added or changed since (`overwrite` replaces that too, but never a run), or cannot be
    written. On any exception `final` stays as it was. A link is followed: what it leads to is replaced.
    """
    final = _followed(final)
    partial = final.with_name(f".{final.name}.partial-{_here()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(final)
        _refuse_foreign(final, append, overwrite)
        if append:
            shutil.copytree(final, partial, symlinks=True, copy_function=_link_or_copy)
        else:
            partial.mkdir()
        yield partial
        if (partial / MARKER).exists():
            file_list.write(partial, before=final if append else None, besides=MARKER)
        _refuse_foreign(final, append, overwrite)  # again: an export takes a while, and people work meanwhile
        _exchange(partial, final)
    except OSError as error:
        raise OutputError(
            f"the dataset {final} cannot be written ({error.strerror or error}). {_advice(error)}; "
            "nothing was left half done."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return what an export noted about the dataset in `folder`, or None if it is not one of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("tool") == "sam3label" else None


def write_marker(folder: Path, marker: dict[str, Any]) -> None:
    """Mark a folder in the making as ours."""
    write_whole(folder / MARKER, json.dumps({"tool": "sam3label", **marker}, ensure_ascii=False, indent=1) + "\n")


def _followed(final: Path) -> Path:
    """The folder meant. Raises `OutputError` for what cannot be one: the root, a link to nothing, a circle of links."""
    try:
        target = final.resolve()
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{final} cannot be a dataset folder: it is a circle of links. Choose another -o.") from error
    if not target.name:
        raise OutputError(f"{target} cannot be a dataset folder: name a folder of its own with -o.")
    if final.is_symlink() and not target.exists():
        raise OutputError(
            f"{final} is a link to {target}, which does not exist. Mount its disk or make that folder, "
            "remove the link, or choose another -o."
        )
    return target


def _refuse_foreign(final: Path, append: bool, overwrite: bool) -> None:
    if append and not final.is_dir():
        raise OutputError(f"there is no dataset in {final} to append to. Leave out --append to make one.")
    if append or not final.exists():
        return
    if not final.is_dir() or (any(final.iterdir()) and not read_marker(final)):
        raise OutputError(
            f"{final} exists and was not written by sam3label export; it is left alone. "
            "Choose another -o, or --append to add to a dataset."
        )
    if run := file_list.find_run(final):
        raise OutputError(
            f"{final} is a dataset, and there is a run in it ({run}), which an export never replaces. "
            "Move the run elsewhere, or choose another -o."
        )
    if not overwrite and (found := file_list.strangers(final, MARKER, at_most=_SHOWN + 1)):
        more = ", ..." if len(found) > _SHOWN else ""
        raise OutputError(
            f"{final} holds what this program did not write: {', '.join(found[:_SHOWN])}{more}. Move that elsewhere, "
            "choose another -o, or give --overwrite to replace the dataset and lose it."
        )


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space or choose another place with -o"
    if error.errno == errno.ENAMETOOLONG:
        return "Give shorter names, or choose a shorter -o"
    return "Check its permissions or choose another place with -o"


def _exchange(partial: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old-{_here()}")
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _here() -> str:
    """This process, among those of all machines that may share a disk."""
    return f"{re.sub('[^A-Za-z0-9]', '', socket.gethostname())[:24]}-{os.getpid()}"


def _clean_up(final: Path) -> None:
    """Put back or remove what dead exports into the same parent left."""
    machine = re.escape(_here().rpartition("-")[0])
    pattern = re.compile(rf"\.(?P<name>.+)\.(?P<kind>partial|old)-{machine}-(?P<pid>\d+)", re.DOTALL)
    for name in os.listdir(final.parent):  # noqa: PTH208 - names, among them those no Path can match
        rest = pattern.fullmatch(name)
        if rest is None or _alive(int(rest["pid"]), rest["name"] == final.name):
            continue
        path, place = final.with_name(name), final.with_name(rest["name"])
        if rest["kind"] == "old" and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int, own_place: bool) -> bool:
    """Return whether the process that made it lives. With this process's number and place it is an earlier one's."""
    if pid == os.getpid():
        return not own_place
    if os.name == "nt":  # there, asking a process by signal ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target

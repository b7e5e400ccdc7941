"""Result files: whole or not at all, and for others to read; and what a path that leads nowhere may have meant."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path

from sam3label.errors import OutputError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader never sees half a file, and a failure leaves the old one. UTF-8.

    Makes missing folders. Raises `OutputError` when the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. Give another place.") from error


def share(path: Path) -> None:
    """Give a file the permissions that new files have here: safetensors makes its own readable by nobody else."""
    mask = os.umask(0)  # there is no other way to ask
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def close_match(path: str | Path) -> str:
    """Return a hint, " (did you mean NAME?)", for the part of a path that leads nowhere; empty if none is like it."""
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

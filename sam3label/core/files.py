"""Result files that appear whole or not at all."""

from __future__ import annotations

import contextlib
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

"""The checkpoint on a worker's node: the same numbers as the driver's, fetched or shipped once a node."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sam3label.errors import CheckpointError

if TYPE_CHECKING:
    from sam3label.model.checkpoint import Checkpoint

Parts = Iterable[tuple[str, Iterable[bytes]]]  # files by name, in pieces
PIECE = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Where the driver has its checkpoint and what its numbers are; its name and commit, if it is no local one."""

    model: str
    revision: str | None
    folder: str
    identity: str

    @classmethod
    def of(cls, model: str, revision: str | None, checkpoint: Checkpoint) -> CheckpointSource:
        """Return it with the commit that a hub's branch stood for, so that every node gets the same."""
        local = Path(model).exists()
        folder = checkpoint.adapter.folder if checkpoint.adapter else checkpoint.folder
        commit = "" if local else checkpoint.source.partition("@")[2]
        return cls("" if local else model, commit or revision, str(folder), checkpoint.identity)


class MissingCheckpointError(Exception):
    """This node has no checkpoint with these numbers: it must be shipped."""


def on_this_node(source: CheckpointSource, parts: Parts | None = None) -> Checkpoint:
    """Return the checkpoint; one worker of a node looks for it at a time. Raises MissingCheckpointError.

    It is looked for where the driver has it, then on the hub or among what was shipped before. `parts` are its files,
    which are kept in this program's cache.
    """
    from sam3label.model.identity import cache_folder

    shipped = cache_folder() / "checkpoints" / source.identity.removeprefix("sha256:")[:32]
    shipped.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(shipped.with_suffix(".lock")):
        for model, revision in _places(source, shipped):
            found = _resolved(model, revision)
            if found is not None and found.identity == source.identity:
                return found
        if parts is None:
            raise MissingCheckpointError
        _write(shipped, parts)
        found = _resolved(str(shipped), None)
    if found is None or found.identity != source.identity:
        shutil.rmtree(shipped)
        raise CheckpointError("the checkpoint came to this node damaged: try again.")
    return found


def files_of(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that a node needs."""
    return [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".txt")]


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, some at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _places(source: CheckpointSource, shipped: Path) -> Iterator[tuple[str, str | None]]:
    if Path(source.folder).is_dir():
        yield source.folder, None
    if shipped.is_dir():
        yield str(shipped), None
    if source.model:
        yield source.model, source.revision


def _resolved(model: str, revision: str | None) -> Checkpoint | None:
    from sam3label.model.checkpoint import resolve

    try:
        return resolve(model, revision)
    except CheckpointError:  # not here, not whole, no access: then it is shipped
        return None


def _write(folder: Path, parts: Parts) -> None:
    new = folder.with_suffix(".new")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    new.mkdir()
    for name, pieces in parts:
        with (new / name).open("wb") as file:
            for piece in pieces:
                file.write(piece)
    new.replace(folder)

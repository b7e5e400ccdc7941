"""What SQLite, the disk and damaged rows say, in one sentence each, with the next step."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam3label.errors import StoreError

DATABASE = "run.sqlite"
LOCK = "run.lock"


class DamagedStoreError(StoreError):
    """The run's database, or something in it, is not what was written. `what` says so in a few words."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"{folder / DATABASE} is damaged ({what}). Restore it from a copy, or see what can be saved: "
            f"sam3label check {folder}"
        )
        self.what = what


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Turns refusals of SQLite and of the file system into a `StoreError`."""
    try:
        yield
    except sqlite3.ProgrammingError:  # a mistake of ours, like reading after close
        raise
    except sqlite3.Error as error:
        raise _explained(folder, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite names a damaged table or column by its damaged name
        raise DamagedStoreError(folder, "text that is not UTF-8") from error
    except OSError as error:
        raise _explained(folder, error.strerror or str(error)) from error


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """`in_words`, and values that no version ever wrote are damage."""
    with in_words(folder):
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise DamagedStoreError(folder, f"a value that nothing here wrote: {_short(str(error))}") from error


def _explained(folder: Path, text: str) -> StoreError:
    if "disk is full" in text or "No space" in text:
        return StoreError(
            f"the disk that holds {folder} is full. What was committed is safe: "
            "free some space and give the same command again."
        )
    if "readonly" in text or "unable to open" in text or "denied" in text.lower() or "Read-only" in text:
        return StoreError(
            f"the run folder {folder} cannot be written ({text}). Check its permissions, or choose another with -o."
        )
    if "locked" in text:
        return StoreError(
            f"{folder / DATABASE} is locked by another program. Close it and give the same command again."
        )
    if any(sign in text for sign in ("not a database", "malformed", "no such", "decode", "schema", "interrupted")):
        return DamagedStoreError(folder, _short(text))
    return StoreError(f"the run store in {folder} failed: {_short(text)}.")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else line[:117] + "..."

"""What a run holds, in a form that two runs can be compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3label.run.store import Store


def rows(out: Path) -> list[tuple[Any, ...]]:
    """Everything a run holds, by item, without SQLite's own numbering and without what computed it."""
    with Store.open(out) as store:
        return [
            (u.item, u.frame_start, u.frame_stop, u.size_hw, u.error, store.presence(u).tobytes(), store.candidates(u))
            for u in store.units()
        ]

"""What a new run may not be put into."""

from __future__ import annotations

import os
from pathlib import Path

from sam3label.core.whole_folder import read_marker
from sam3label.errors import OutputError
from sam3label.media.discovery import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from sam3label.run.store_errors import DATABASE

_ADVICE = "Give the run a folder of its own: -o runs/NAME."


def refuse_unfit(out: str | Path) -> None:
    """Raise `OutputError` where `out` is a dataset or a folder of photos. A run that is there already may go on."""
    folder = Path(out)
    if (folder / DATABASE).is_file() or not folder.is_dir():
        return
    if read_marker(folder):
        raise OutputError(f"{folder} is a dataset, which the next export replaces. {_ADVICE}")
    with os.scandir(folder) as entries:
        found = next((e.name for e in entries if e.name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))), None)
    if found is not None:
        raise OutputError(f"{folder} holds photos ({found}), and a run would lie among them. {_ADVICE}")

"""How large a photo may be: by the memory that is free, and by what decoding was measured to take."""

from __future__ import annotations

import os
from pathlib import Path

# Measured with `/usr/bin/time -v` on PNGs of 178 megapixels: 10.2 bytes a pixel as RGB, 14.2 with alpha, the most of
# all formats (a JPEG's pixels, which OpenCV decodes, take 2 to 3).
BYTES_A_PIXEL = 14.2
_SHARE = 0.5  # of the free memory, for all processes that decode together: the model and the other photos need the rest
LEAST_MEGAPIXELS = 64.0  # whatever is free: cameras make such photos, and JPEGs take far less than the most


def megapixels_that_fit(processes: int = 1, free: int | None = None) -> float:
    """Return how many megapixels a photo may have where so many processes decode at a time; `free` in bytes.

    >>> megapixels_that_fit(1, 8_000_000_000), megapixels_that_fit(9, 8_000_000_000)
    (281.0, 64.0)
    """
    free = free_memory() if free is None else free
    return max(LEAST_MEGAPIXELS, float(_SHARE * free / max(1, processes) / BYTES_A_PIXEL // 1_000_000))


def free_memory(root: Path = Path("/")) -> int:
    """Return bytes that may be taken without swapping: of the machine, or of the container; 0 where neither says."""
    found = [value for value in (_of_machine(root / "proc/meminfo"), _of_container(root / "sys/fs/cgroup")) if value]
    return min(found, default=_half_of_all())


def _of_machine(path: Path) -> int | None:
    try:
        lines = dict(line.split(b":", 1) for line in path.read_bytes().splitlines())
        return int(lines[b"MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _of_container(folder: Path) -> int | None:
    """Return what a control group (version 2) leaves; None without a limit."""
    try:
        limit, used = (int((folder / name).read_bytes()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return None
    return max(0, limit - used)


def _half_of_all() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows has none of this
        return 0

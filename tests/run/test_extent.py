"""How far a run is, counted from its units and from what the last session found."""

from __future__ import annotations

from typing import Any

import pytest

from sam3label.core.records import MediaItem
from sam3label.run.extent import Extent
from sam3label.run.rows import Unit


def unit(name: str, start: int = 0, stop: int = 1, **more: Any) -> Unit:
    kind = "video" if name.endswith(".mp4") else "image"
    size = None if more.get("error") else (60, 80)
    return Unit(0, MediaItem(name, name, kind), start, stop, size, **{"error": None, **more})


UNITS = [
    unit("a.jpg"),
    unit("b.jpg"),
    unit("c.jpg", error="not an image"),
    unit("v.mp4", 0, 60, last=False),
    unit("v.mp4", 60, 120),
    unit("w.mp4", 0, 60, last=False),
    unit("x.mp4", 0, 60, last=False),
    unit("x.mp4", 60, 61, error="the video is damaged"),
]


@pytest.mark.parametrize(
    ("units", "found", "said", "complete"),
    [
        ([], None, "0 images labelled, 0 failed", True),
        (UNITS[:1], None, "1 image labelled, 0 failed", True),
        (UNITS[:3], {"images": 400, "videos": 0, "frames": 0}, "2 of 400 images labelled, 1 failed", False),
        (UNITS[3:5], {"images": 0, "videos": 1, "frames": 120}, "1 video (120 frames) labelled, 0 failed", True),
        (
            UNITS,
            {"images": 400, "videos": 5, "frames": 1540},
            "2 of 400 images, 1 of 5 videos (240 of 1,540 frames) labelled, 2 failed",
            False,
        ),
        (
            UNITS,
            {"images": 3, "videos": 3, "frames": 100},
            "2 of 3 images, 1 of 3 videos (240 frames) labelled, 2 failed",
            False,
        ),
    ],
)  # fmt: skip
def test_an_extent_counts_what_is_done_of_what_there_is(
    units: list[Unit], found: dict[str, int] | None, said: str, complete: bool
) -> None:
    extent = Extent.of(units, found)
    assert (str(extent), extent.is_complete) == (said, complete)


def test_extents_of_runs_that_are_read_as_one_add_up() -> None:
    whole = Extent.of(UNITS[:3], {"images": 5}) + Extent.of(UNITS[3:5], None)
    assert str(whole) == "2 of 5 images, 1 video (120 frames) labelled, 1 failed"

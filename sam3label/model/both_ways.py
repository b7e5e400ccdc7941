"""Tracking both ways: an object that was first sure in frame 50 is labelled in the frames before it too.

A clip is tracked forwards as ever. Then its frames are gone through once more from the last to the first: each object
joins in the frame of its birth and is followed from there towards the clip's beginning. Nothing is born on the way, and
only what detections confirm is believed: a track ends at the earliest frame in which one did, and is dropped where the
rules take it back. What was never shown forwards (taken back, or not confirmed where that is asked) is not followed
backwards either. Where another object of the same prompt is already labelled, it ends before that.

The frames wait in a temporary file, as the model takes them (3 MB each at full size); memory does not grow with them.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sam3label.core import masks
from sam3label.core.records import Frame
from sam3label.errors import OutputError, os_reason
from sam3label.model.device import send
from sam3label.model.tracks import Births

if TYPE_CHECKING:
    from sam3label.model.tracker import TrackedFrame, TrackedObject

SAME_OBJECT = 0.5  # IoU of two masks of a prompt that are one object


@dataclass(frozen=True, slots=True)
class Sighted:
    """An object in a frame, tracked backwards: confirmed by a detection there or not."""

    tracked: TrackedObject
    confirmed: bool


class Spool:
    """Preprocessed frames [1, 3, X, X] in a file, by number."""

    def __init__(self, file: IO[bytes], side: int) -> None:
        self._file, self._side, self.count = file, side, 0

    def append(self, pixels: Tensor) -> None:
        """Write a frame, whose values are levels of 8 bits in [-1, 1]. Raises OutputError where there is no room."""
        left = memoryview(pixels.mul(127.5).add(127.5).round().to(torch.uint8).cpu().numpy().tobytes())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _unwritable(error) from error
        self.count += 1

    def read(self, number: int, device: torch.device) -> Tensor:
        """Return the frame as it was written."""
        size = 3 * self._side**2
        self._file.seek(number * size)
        levels = np.frombuffer(bytearray(self._file.read(size)), np.uint8).reshape(1, 3, self._side, self._side)
        return send(levels, device).float().sub_(127.5).mul_(1 / 127.5)


def spooled() -> IO[bytes]:
    """Open a temporary file that is gone when it is closed. Raises OutputError where there can be none.

    It has no buffer, which would be written once more, and fail, when the file of a full disk is closed.
    """
    try:
        return tempfile.TemporaryFile(prefix="sam3label-frames-", buffering=0)
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> OutputError:
    return OutputError(
        f"--both-ways keeps a clip's frames in a temporary file, and {tempfile.tempdir or 'its folder'} cannot be "
        f"written ({os_reason(error)}): free space, or set TMPDIR to a folder on a larger disk. "
        "The same command goes on."
    )


def without_pixels(frame: Frame) -> Frame:
    """Return a frame of the same size that takes no memory."""
    return replace(frame, pixels=np.broadcast_to(np.uint8(0), frame.pixels.shape))


def joined(
    forward: Sequence[TrackedFrame],
    backward: Mapping[int, Sequence[Sighted]],
    removed: set[int],
    apart: Callable[[Sequence[TrackedObject]], Iterable[TrackedObject]],
) -> Iterator[TrackedFrame]:
    """Yield a clip's frames with what was found backwards (by place in the clip) added to what was found forwards."""
    added: dict[int, list[TrackedObject]] = defaultdict(list)
    for number, sightings in _by_number(backward).items():
        for place, one in believed(sightings, forward) if number not in removed else ():
            added[place].append(one)
    for place, frame in enumerate(forward):
        yield replace(frame, objects=tuple(apart([*frame.objects, *added[place]]))) if added[place] else frame


def _by_number(backward: Mapping[int, Sequence[Sighted]]) -> dict[int, list[tuple[int, Sighted]]]:
    """Object -> its sightings, latest first."""
    found: dict[int, list[tuple[int, Sighted]]] = defaultdict(list)
    for place in sorted(backward, reverse=True):
        for one in backward[place]:
            found[one.tracked.number].append((place, one))
    return found


def believed(
    sightings: Sequence[tuple[int, Sighted]], forward: Sequence[TrackedFrame]
) -> list[tuple[int, TrackedObject]]:
    """Return the sightings of an object, latest first, to the last that a detection confirms."""
    kept: list[tuple[int, TrackedObject]] = []
    confirmed = 0
    for place, one in sightings:
        others = [o.instance.rle for o in forward[place].objects if o.prompt == one.tracked.prompt]
        if (masks.iou_matrix([one.tracked.instance.rle], others) >= SAME_OBJECT).any():
            break
        kept.append((place, one.tracked))
        confirmed = len(kept) if one.confirmed else confirmed
    return kept[:confirmed]


def births_to_follow(born: Mapping[int, Births], never_shown: Collection[int]) -> dict[int, Births]:
    """Return frame -> the objects born there that were shown forwards. Before the first is nothing."""
    left = {frame: births.without(never_shown) for frame, births in born.items() if frame > 0}
    return {frame: births for frame, births in left.items() if len(births)}

"""Near-copies: images whose features are as good as those of one that was labelled shortly before.

Frames of a video and bursts of photos repeat themselves. The features are the image encoder's own, so that looking for
copies costs no more than encoding, and a copy costs no question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sam3label.core.records import Frame, Likeness, MediaItem
from sam3label.media.stamps import looks_unchanged
from sam3label.run.store import Store
from sam3label.run.unit_writer import LOOKS

Look = npt.NDArray[np.float16]  # [cells, D], each cell of length 1


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of a new image: features to keep with its answers, or what it is like."""

    look: bytes = b""
    like: Likeness | None = None


class NearCopies:
    """Compares images with the `LOOKS` labelled last. `known` are those it never leaves out: they are labelled."""

    def __init__(self, limit: float, looks: Iterable[tuple[str, int, bytes]] = (), known: Collection[str] = ()) -> None:
        self.limit, self.known = limit, known
        self._recent: deque[tuple[str, int, Look]] = deque(maxlen=LOOKS)
        for item_id, frame, features in looks:
            self._recent.append((item_id, frame, np.frombuffer(features, np.float16)))

    @classmethod
    def of(cls, store: Store, limit: float) -> NearCopies:
        """Go on from what a run has labelled."""
        return cls(limit, store.looks(), store.done_ids())

    def among(self, items: Iterable[MediaItem]) -> NearCopies:
        """Return a comparison of these alone, and of what was labelled of them, for a worker that has only them."""
        ids = {item.id for item in items}
        looks = ((item_id, frame, flat.tobytes()) for item_id, frame, flat in self._recent if item_id in ids)
        return NearCopies(self.limit, looks, ids & set(self.known))

    def judge(self, frames: Sequence[Frame], looks: Sequence[Look]) -> list[Compared]:
        """Say of images in order which are near-copies of one before them. The others are taken for labelled."""
        return [self._one(frame, look) for frame, look in zip(frames, looks, strict=True)]

    def _one(self, frame: Frame, look: Look) -> Compared:
        flat = look.astype(np.float16).ravel()
        nearest = min(
            (Likeness(item_id, number, distance(look, other)) for item_id, number, other in self._recent),
            key=lambda like: like.distance,
            default=None,
        )
        if nearest is not None and nearest.distance < self.limit:
            return Compared(like=nearest)
        self._recent.append((frame.item.id, frame.index, flat))
        return Compared(look=flat.tobytes())


def distance(look: Look, other: Look) -> float:
    """Return how far two images are: 1 less the cosine of their features, in the cell that differs most; 0 to 2."""
    cells = other.reshape(look.shape).astype(np.float32)
    return float(max(0.0, 1 - (look.astype(np.float32) * cells).sum(axis=1).min()))


def left_out(store: Store, limit: float | None) -> dict[tuple[str, int], Likeness]:
    """Return, by (item id, frame), the near-copies of a run that a job with this limit leaves out too."""
    if limit is None:
        return {}
    return {(item_id, frame): like for item_id, frame, like in store.skipped() if like.distance < limit}


def unchanged_copies(store: Store, items: Sequence[MediaItem], limit: float | None) -> set[tuple[str, int]]:
    """Return the near-copies of a run that stay left out: those whose files are as they were."""
    copies = left_out(store, limit)
    here = {item.id: item for item in items}
    changed = {
        item_id
        for item_id in {item_id for item_id, _ in copies} & here.keys()
        if (stamp := store.stamp(item_id)) is not None and not looks_unchanged(here[item_id], stamp)
    }
    return {where for where in copies if where[0] not in changed}

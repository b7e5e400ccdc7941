"""How far a run is: what is labelled, what failed, and what there is in all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass

from sam3label.core.text import count
from sam3label.run.rows import Unit


@dataclass(frozen=True, slots=True)
class Extent:
    """Counts of photos (`images`), of `videos`, and of videos' `frames`: done, failed, and all that were ever found.

    `frames` is as far as the videos' headers say. Stores of versions that did not keep what was found count what is
    done and failed as all there is.
    """

    images_done: int
    images_failed: int
    images: int
    videos_done: int
    videos_failed: int
    videos: int
    frames_done: int
    frames: int

    @classmethod
    def of(cls, units: Iterable[Unit], found: Mapping[str, int] | None) -> Extent:
        """Count a run's units. `found` is what the last session found, by kind."""
        known = found or {}
        done: dict[str, set[str]] = {"image": set(), "video": set()}
        failed: dict[str, set[str]] = {"image": set(), "video": set()}
        frames = 0
        for unit in units:
            kind = unit.item.kind
            if unit.error is not None:
                failed[kind].add(unit.item.id)
                continue
            frames += unit.frame_stop - unit.frame_start if kind == "video" else 0
            if unit.last:
                done[kind].add(unit.item.id)
        images, videos = (len(done[kind]) + len(failed[kind]) for kind in ("image", "video"))
        return cls(
            images_done=len(done["image"]),
            images_failed=len(failed["image"]),
            images=max(images, known.get("images", 0)),
            videos_done=len(done["video"]),
            videos_failed=len(failed["video"]),
            videos=max(videos, known.get("videos", 0)),
            frames_done=frames,
            frames=max(frames, known.get("frames", 0)),
        )

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing that was neither labelled nor failed."""
        return self.images_done + self.images_failed == self.images and self.videos_done + self.videos_failed == (
            self.videos
        )

    def __add__(self, other: Extent) -> Extent:
        return Extent(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        """Return it as people say it: "16 of 400 images, 1 of 3 videos (120 of 540 frames) labelled, 2 failed"."""
        return f"{', '.join(self._parts())} labelled, {self.images_failed + self.videos_failed:,} failed"

    def _parts(self) -> Iterator[str]:
        if self.images or not self.videos:
            yield _of(self.images_done, self.images, "image")
        if self.videos:
            frames = _of(self.frames_done, self.frames, "frame")
            yield f"{_of(self.videos_done, self.videos, 'video')} ({frames})"


def _of(done: int, total: int, what: str) -> str:
    return count(total, what) if done == total else f"{done:,} of {count(total, what)}"

"""What the video formats share: frames of a stream grouped by video, and numbers for the objects in one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import chain, groupby
from pathlib import PurePosixPath

from sam3label.core.records import Label, MediaItem
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample
from sam3label.media import video


def by_video(samples: Iterable[Sample]) -> Iterator[tuple[MediaItem, str, Iterator[Sample]]]:
    """(video, split, its labelled frames in order), one video after the other."""
    for _, group in groupby(samples, key=lambda sample: sample.image.item.id):
        first = next(group)
        yield first.image.item, first.split, chain((first,), group)  # noqa: B031 - its first was taken out


class Numbers:
    """Numbers for the tracks of one video, from 1 in order of appearance, within each group."""

    def __init__(self, item: MediaItem) -> None:
        self.item = item
        self.known: dict[tuple[Hashable, Hashable], int] = {}
        self.used: dict[Hashable, int] = {}

    def of(self, label: Label, group: Hashable = None) -> int:
        """A person's label without a track is a track of its own. Raises OutputError for a model's."""
        if label.track_id is None and label.source != "human":
            raise OutputError(
                f"the objects of {self.item.id} were labelled frame by frame and have no identity. Label it with "
                "--video track, or export to a format of photos."
            )
        key = group, (label.track_id if label.track_id is not None else label.id)
        if key not in self.known:
            self.known[key] = self.used[group] = self.used.get(group, 0) + 1
        return self.known[key]


def frame_suffix(item: MediaItem) -> str:
    """The extension of a video's frames as files, dot included."""
    return PurePosixPath(video.frame_name(item, 0)).suffix

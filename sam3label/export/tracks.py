"""What the video formats share: frames of a stream grouped by video, and numbers for the objects in one."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

from sam3label.core.records import Label, MediaItem
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample, Target
from sam3label.media import video


def by_video(samples: Iterable[Sample]) -> Iterator[tuple[MediaItem, str, Iterator[Sample]]]:
    """Yield (video, split, its labelled frames in order), one video after the other."""
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
        """Return a label's number. A person's without a track is a track of its own; a model's raises OutputError."""
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
    """Return the extension of a video's frames as files, dot included."""
    return PurePosixPath(video.FrameFiles().name(item, 0)).suffix


def write_sequence(target: Target, folder: Path, item: MediaItem, length: int, size_hw: tuple[int, int]) -> None:
    """Write a video's seqinfo.ini and gt/labels.txt, as MOTChallenge has them."""
    height, width = size_hw
    info = {
        "name": item.id,
        "imDir": "img1",
        "frameRate": f"{target.frame_rate(item):g}",
        "seqLength": length,
        "imWidth": width,
        "imHeight": height,
        "imExt": frame_suffix(item),
    }
    lines = "".join(f"{key}={value}\n" for key, value in info.items())
    (folder / "seqinfo.ini").write_text(f"[Sequence]\n{lines}", encoding="utf-8")
    names = "".join(f"{name}\n" for name in target.classes.values())
    (folder / "gt" / "labels.txt").write_text(names, encoding="utf-8")


def write_seqmaps(target: Target, names: Mapping[str, Iterable[str]]) -> None:
    """Write each split's seqmap.txt, a table of one column: a name with a comma or a quote in it is quoted."""
    for split, found in names.items():
        (target.folder / split).mkdir(exist_ok=True)
        with (target.folder / split / "seqmap.txt").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["name"], *([name] for name in found)])

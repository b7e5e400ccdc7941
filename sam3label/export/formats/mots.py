"""MOTS: SPLIT/VIDEO/gt/gt.txt with a mask a line, beside img1/ and gt/labels.txt.

A line is `frame id class height width rle`; frames and classes count from 1 and an id is class * 1000 + number. In this
format a pixel belongs to one object: where masks overlap, the better score keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sam3label.core import masks
from sam3label.core.records import Label, Rle
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample, Target
from sam3label.export.tracks import Numbers, by_video, frame_suffix

MOST = 999  # objects of one class in a video


def write_mots(target: Target, samples: Iterable[Sample]) -> None:
    """Streams: holds one frame at a time."""
    for split in target.splits:
        (target.folder / split).mkdir()
    for item, split, frames in by_video(samples):
        folder, numbers, suffix = target.folder / split / item.id, Numbers(item), frame_suffix(item)
        (folder / "gt").mkdir(parents=True)
        with (folder / "gt" / "gt.txt").open("w", encoding="utf-8") as file:
            for place, sample in enumerate(frames, start=1):
                height, width = sample.image.size_hw
                target.placer.place(sample.image, folder / "img1" / f"{place:06d}{suffix}")
                for label, rle in disjoint(sample.image.labels):
                    one = numbers.of(label, label.class_id)
                    if one > MOST:
                        raise OutputError(f"{item.id} has over {MOST} objects of one class, and MOTS has no more ids.")
                    identity = label.class_id * 1000 + one
                    file.write(f"{place} {identity} {label.class_id} {height} {width} {rle.counts.decode()}\n")
        (folder / "gt" / "labels.txt").write_text("".join(f"{name}\n" for name in target.classes.values()))


def disjoint(labels: Sequence[Label]) -> Iterator[tuple[Label, Rle]]:
    """Labels of a frame, best first, each with the pixels that no better one has. What has none left is dropped."""
    taken: Rle | None = None
    for label in sorted(labels, key=lambda label: (-label.score, label.id)):
        rle = label.rle if taken is None else masks.difference(label.rle, taken)
        if masks.area(rle):
            yield label, rle
        taken = rle if taken is None else masks.union([taken, rle])

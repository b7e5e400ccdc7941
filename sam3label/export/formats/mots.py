"""MOTS: SPLIT/VIDEO/gt/gt.txt with a mask a line, beside seqinfo.ini, img1/, gt/labels.txt and the split's seqmap.txt.

A line is `frame id class height width rle`; frames and classes count from 1 and an id is class * 1000 + number. In this
format a pixel belongs to one object: where masks overlap, the better score keeps it. TrackEval scores class 2 alone
(its pedestrian) and takes class 10 for regions to ignore; other readers take the classes of labels.txt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sam3label.core import masks
from sam3label.core.records import Label, Rle
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample, Target
from sam3label.export.tracks import Numbers, by_video, frame_suffix, write_seqmaps, write_sequence

MOST = 999  # objects of one class in a video


def write_mots(target: Target, samples: Iterable[Sample]) -> None:
    """Write the sequences, one frame held at a time."""
    names: dict[str, list[str]] = {split: [] for split in target.splits}
    for item, split, frames in by_video(samples):
        folder = target.folder / split / item.id
        numbers = Numbers(item)
        suffix = frame_suffix(item)
        (folder / "gt").mkdir(parents=True)
        length, size_hw = 0, (0, 0)
        with (folder / "gt" / "gt.txt").open("w", encoding="utf-8") as file:
            for length, sample in enumerate(frames, start=1):
                size_hw = sample.image.size_hw
                target.placer.place(sample.image, folder / "img1" / f"{length:06d}{suffix}")
                file.writelines(f"{length} {line}\n" for line in _lines(sample, numbers))
        write_sequence(target, folder, item, length, size_hw)
        names[split].append(item.id)
    write_seqmaps(target, names)


def _lines(sample: Sample, numbers: Numbers) -> Iterator[str]:
    height, width = sample.image.size_hw
    for label, rle in disjoint(sample.image.labels):
        one = numbers.of(label, label.class_id)
        if one > MOST:
            raise OutputError(f"{numbers.item.id} has over {MOST} objects of one class, and MOTS has no more ids.")
        yield f"{label.class_id * 1000 + one} {label.class_id} {height} {width} {rle.counts.decode()}"


def disjoint(labels: Sequence[Label]) -> Iterator[tuple[Label, Rle]]:
    """Yield a frame's labels, best first, each with the pixels no better one has. What has none left is dropped."""
    taken: Rle | None = None
    for label in sorted(labels, key=lambda label: (-label.score, label.id)):
        rle = label.rle if taken is None else masks.difference(label.rle, taken)
        if masks.area(rle):
            yield label, rle
        taken = rle if taken is None else masks.union([taken, rle])

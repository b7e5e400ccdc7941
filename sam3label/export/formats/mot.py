"""MOTChallenge: SPLIT/VIDEO/gt/gt.txt with a box a line, beside seqinfo.ini, img1/, gt/labels.txt
and, for the split, seqmap.txt.

A line is `frame, id, left, top, width, height, 1, class, visibility`; frames, ids, classes and pixels count from 1, as
the benchmark defines. Frames are numbered anew in the order of what was labelled.
"""

from __future__ import annotations

from collections.abc import Iterable

from sam3label.export.dataset import Sample, Target, number
from sam3label.export.tracks import Numbers, by_video, frame_suffix, write_seqmaps, write_sequence


def write_mot(target: Target, samples: Iterable[Sample]) -> None:
    """Write the sequences, one line held at a time."""
    names: dict[str, list[str]] = {split: [] for split in target.splits}
    for item, split, frames in by_video(samples):
        folder, numbers = target.folder / split / item.id, Numbers(item)
        (folder / "gt").mkdir(parents=True)
        length = 0
        size_hw = (0, 0)
        suffix = frame_suffix(item)
        with (folder / "gt" / "gt.txt").open("w", encoding="utf-8") as file:
            for length, sample in enumerate(frames, start=1):
                size_hw = sample.image.size_hw
                target.placer.place(sample.image, folder / "img1" / f"{length:06d}{suffix}")
                for label in sample.image.labels:
                    left, top, w, h = label.box_xywh
                    box = ",".join(str(number(v)) for v in (left + 1, top + 1, w, h))
                    file.write(f"{length},{numbers.of(label)},{box},1,{label.class_id},1\n")
        write_sequence(target, folder, item, length, size_hw)
        names[split].append(item.id)
    write_seqmaps(target, names)

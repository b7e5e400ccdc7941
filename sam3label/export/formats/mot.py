"""MOTChallenge: SPLIT/VIDEO/gt/gt.txt with a box a line, beside seqinfo.ini, img1/ and, for all, gt/labels.txt.

A line is `frame, id, left, top, width, height, 1, class, visibility`; frames, ids, classes and pixels count from 1, as
the benchmark defines. Frames are numbered anew in the order of what was labelled.
"""

from __future__ import annotations

from collections.abc import Iterable

from sam3label.export.dataset import Sample, Target, number
from sam3label.export.tracks import Numbers, by_video, frame_suffix
from sam3label.media import video


def write_mot(target: Target, samples: Iterable[Sample]) -> None:
    """Streams: holds one line at a time."""
    names: dict[str, list[str]] = {split: [] for split in target.splits}
    for item, split, frames in by_video(samples):
        folder, numbers = target.folder / split / item.id, Numbers(item)
        (folder / "gt").mkdir(parents=True)
        length, (height, width), suffix = 0, (0, 0), frame_suffix(item)
        with (folder / "gt" / "gt.txt").open("w", encoding="utf-8") as file:
            for length, sample in enumerate(frames, start=1):
                height, width = sample.image.size_hw
                target.placer.place(sample.image, folder / "img1" / f"{length:06d}{suffix}")
                for label in sample.image.labels:
                    left, top, w, h = label.box_xywh
                    box = ",".join(str(number(v)) for v in (left + 1, top + 1, w, h))
                    file.write(f"{length},{numbers.of(label)},{box},1,{label.class_id},1\n")
        (folder / "gt" / "labels.txt").write_text("".join(f"{name}\n" for name in target.classes.values()))
        info = {
            "name": item.id,
            "imDir": "img1",
            "frameRate": f"{video.frame_rate(item):g}",
            "seqLength": length,
            "imWidth": width,
            "imHeight": height,
            "imExt": suffix,
        }
        lines = "".join(f"{key}={value}\n" for key, value in info.items())
        (folder / "seqinfo.ini").write_text(f"[Sequence]\n{lines}")
        names[split].append(item.id)
    for split, found in names.items():
        (target.folder / split).mkdir(exist_ok=True)
        (target.folder / split / "seqmap.txt").write_text("".join(f"{name}\n" for name in ("name", *found)))

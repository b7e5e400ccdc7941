"""How many frames of drawn videos `--skip-similar` leaves out, and how well the frames left stand for them.

    python scripts/bench/bench_near_copies.py --videos 3 --limits 0.005 0.01 0.02 0.05 0.1

Every frame of each video is compared as a run compares sampled frames, by the demo checkpoint. *Moved* is how far the
objects of a left-out frame lie from where they are in the frame it is like: the mean IoU of their true masks, an object
that only one of the two shows counting 0; its mean over left-out frames, and the worst one.
"""

from __future__ import annotations

import argparse

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Frame, MediaItem
from sam3label.demo.job import HELD_OUT
from sam3label.demo.shapes import Scene, make_clip
from sam3label.demo.videos import FRAMES, SIZE_HW
from sam3label.labelling.near_copies import NearCopies
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector


def same(one: Scene, other: Scene) -> float:
    """Return the mean IoU of the objects of two frames, by their tracks."""
    shown = [{thing.track: masks.encode(s.mask(k)) for k, thing in enumerate(s.things, 1)} for s in (one, other)]
    both = shown[0].keys() & shown[1].keys()
    total = sum(float(masks.iou_matrix([shown[0][t]], [shown[1][t]])[0, 0]) for t in both)
    return total / max(1, len(shown[0].keys() | shown[1].keys()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--limits", nargs="+", type=float, default=[0.005, 0.01, 0.02, 0.05, 0.1])
    chosen = parser.parse_args()
    detector = Detector.load(resolve("demo"), device="cpu")
    videos = [make_clip(HELD_OUT + i, FRAMES, SIZE_HW, 4) for i in range(chosen.videos)]
    seen = []
    for number, video in enumerate(videos):
        item = MediaItem(f"{number}", f"{number}", "video")
        frames = [Frame(item, i, scene.image) for i, scene in enumerate(video)]
        seen.append((video, frames, detector.looks(frames)))
    print("| `--skip-similar` | frames left out | true masks, mean IoU | worst |\n| --- | --- | --- | --- |")
    for limit in chosen.limits:
        copies, overlap = NearCopies(limit), []
        for video, frames, looks in seen:
            for scene, one in zip(video, copies.judge(frames, looks), strict=True):
                if one.like is not None:
                    overlap.append(same(scene, videos[int(one.like.item_id)][one.like.frame]))
        total = sum(map(len, videos))
        mean, worst = (f"{value:.2f}" for value in (np.mean(overlap), min(overlap))) if overlap else ("", "")
        print(f"| {limit:g} | {len(overlap)} of {total} | {mean} | {worst} |")


if __name__ == "__main__":
    main()

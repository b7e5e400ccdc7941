"""Does labelling slow down or swell as a run grows? Time per image and memory, part by part of one run.

    .venv/bin/python scripts/bench/bench_growth.py [--images 10000] [--parts 10] [--model demo]

Photos are small and synthetic, and decoded in this process. Seconds are of the process's own CPU time, so that what
else the machine does hardly counts; memory is what is resident after each part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from bench import CACHE, checkpoint_folder, resident

from sam3label.concepts.concept_list import parse_concepts
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress


def make_photos(folder: Path, n: int) -> Path:
    """Small photos, each with its own noise, so that nothing can be cached by content."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = cv2.resize(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8), (200, 160))
        cv2.imwrite(str(folder / f"{i:06d}-photo.jpg"), pixels)
    return folder


class Parts:
    """Prints a line whenever another part of the images is done, and the spread at the end."""

    def __init__(self, images: int, parts: int) -> None:
        self.size, self.costs = max(images // parts, 1), list[float]()
        self.done, self.since = 0, time.process_time()

    def __call__(self, progress: Progress) -> None:
        now = time.process_time()
        if progress.done == 0:
            self.since = now
        elif progress.done - self.done >= self.size:
            self.costs.append((now - self.since) / (progress.done - self.done))
            self.done, self.since = progress.done, now
            memory = resident("VmRSS") / 2**20
            print(f"{self.done:>8} images {1000 * self.costs[-1]:>8.2f} ms an image {memory:>8.0f} MiB", flush=True)

    def spread(self) -> str:
        first, last = self.costs[0], self.costs[-1]
        worst = max(abs(cost / first - 1) for cost in self.costs)
        return f"last part against the first: {last / first - 1:+.1%}; the part farthest from the first: {worst:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--model", help="a checkpoint; without it a tiny one with random weights")
    options = parser.parse_args()
    model = options.model or str(checkpoint_folder("tiny", CACHE))
    concepts = parse_concepts("names: [red shape]", "bench_growth")
    parts = Parts(options.images, options.parts)
    with tempfile.TemporaryDirectory() as scratch:
        photos = make_photos(Path(scratch) / "photos", options.images)
        options_of_run = LabelOptions(model=model, device="cpu", workers=0, batch_size=20)
        label([photos], concepts, Path(scratch) / "run", options_of_run, on_progress=parts)
    print(parts.spread())


if __name__ == "__main__":
    main()

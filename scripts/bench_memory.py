"""Does a run's memory grow with the number of images? Prints the peak resident memory at two sizes and their ratio.

    .venv/bin/python scripts/bench_memory.py [--few 200] [--many 2000] [--model demo]

Every size runs in a process of its own, on small synthetic photos; peaks are of the main process, as the system counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

CHILD = """
import json, resource, sys
from sam3label.api import RunOptions, run
from sam3label.config import parse_concepts
photos, out, model, workers = sys.argv[1:]
concepts = parse_concepts("names: [red shape, star, ring]")
summary = run([photos], concepts, out, RunOptions(model=model, device="cpu", workers=int(workers)))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"images": summary.progress.done, "seconds": summary.progress.seconds, "peak": peak}))
"""


def make_photos(folder: Path, n: int) -> None:
    """Small photos, each with its own noise, so that nothing can be cached by content."""
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = cv2.resize(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8), (200, 160))
        cv2.imwrite(str(folder / f"photo-{i:06d}.jpg"), pixels)


def measure(n: int, model: str, workers: int) -> dict[str, float]:
    """Label `n` photos in a fresh process; its image count, seconds and peak resident bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        photos.mkdir()
        make_photos(photos, n)
        command = [sys.executable, "-c", CHILD, str(photos), str(Path(scratch) / "run"), model, str(workers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    peaks = []
    for n in (options.few, options.many):
        result = measure(n, options.model, options.workers)
        peaks.append(result["peak"])
        rate = result["images"] / result["seconds"]
        print(f"{n:>7} images: peak resident memory {result['peak'] / 2**20:8.1f} MiB, {rate:.1f} images/s", flush=True)
    print(f"ratio: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()

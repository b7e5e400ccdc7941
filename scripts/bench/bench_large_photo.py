"""What very large photos cost in memory: the most that a labelling run held at a time, in a process of its own.

    python scripts/bench/bench_large_photo.py --sizes 3000x2000 30000x20000 --photos 1 2 --tile off 8192

Photos are drawn scenes laid side by side, labelled by the demo checkpoint and decoded in the same process. Memory must
not grow with the number of photos, nor with tiles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from sam3label.demo.shapes import make_scene

RUN = """
import resource, sys
from sam3label.concepts.concept_list import parse_concepts
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
tile = sys.argv[3]
concepts = parse_concepts(f"names: [shape]\\ndefaults: {{tile: {tile}}}", "bench")
options = LabelOptions(model="demo", device="cpu", workers=0, batch_size=1, max_megapixels=1000)
summary = label([sys.argv[1]], concepts, sys.argv[2], options)
assert not summary.failures, summary.failures
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, summary.progress.objects.get("shape", 0))
"""


def write(path: Path, width: int, height: int) -> None:
    part = make_scene(7, (1000, 1000), objects=8).image[..., ::-1]
    row = np.concatenate([part] * -(-width // 1000), axis=1)[:, :width]
    how = [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else []
    cv2.imwrite(str(path), np.concatenate([row] * -(-height // 1000))[:height], how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["3000x2000", "30000x20000"])
    parser.add_argument("--kinds", nargs="+", default=["jpg", "png"])
    parser.add_argument("--photos", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tile", nargs="+", default=["off"])
    chosen = parser.parse_args()
    print("| photos | size | tiles | objects | most memory | bytes a pixel |\n|" + " --- |" * 6)
    for size in chosen.sizes:
        width, height = map(int, size.split("x"))
        for kind in chosen.kinds:
            for photos in chosen.photos:
                for tile in chosen.tile:
                    with tempfile.TemporaryDirectory() as scratch:
                        folder = Path(scratch)
                        (folder / "photos").mkdir()
                        write(folder / "photos" / f"0.{kind}", width, height)
                        for n in range(1, photos):
                            (folder / "photos" / f"{n}.{kind}").hardlink_to(folder / "photos" / f"0.{kind}")
                        command = [sys.executable, "-c", RUN, str(folder / "photos"), str(folder / "run"), tile]
                        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
                    peak, objects = int(done[0]), done[1]
                    each = peak / (width * height)
                    print(
                        f"| {photos} {kind} | {size} | {tile} | {objects} | {peak / 2**20:,.0f} MiB | {each:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

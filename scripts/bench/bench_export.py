"""How long exports take and how much memory they need, on a synthetic run of any size.

    python scripts/bench/bench_export.py              100,000 images, 1,000,000 instances: coco, yolo
    python scripts/bench/bench_export.py --images 5000 --formats coco yolo-obb voc

Each export runs in a process of its own, over the whole run and over a tenth of it, so that the peak memory of the two
shows whether it grows with the run. Photos are hard links to a few real files.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, Concept, ConceptList, MediaItem, Prompt, Rle, UnitResult, candidate_id
from sam3label.export.options import Options
from sam3label.export.splits import parse_splits
from sam3label.export.write import export
from sam3label.run.reader import open_run
from sam3label.run.store import Store

SIZE_HW = (480, 640)
CLASSES = 8
PHOTOS = 4  # a file system allows only so many links to one file
SHAPES = 400


def main() -> None:
    options = _arguments()
    if options.child:
        print(json.dumps(_measure(options.folder, options.child)))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-export-", dir=options.folder))
    try:
        for images in (options.images // 10, options.images):
            started = time.perf_counter()
            run = folder / f"run-{images}"
            _make_run(run, images, options.instances, folder)
            print(f"{images} images, {images * options.instances} instances (made in {_seconds(started)})", flush=True)
            for name in options.formats:
                _report(run, name)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--instances", type=int, default=10, help="per image")
    parser.add_argument("--formats", nargs="+", default=["coco", "yolo"])
    parser.add_argument("--folder", type=Path, help="where to work [the system's temporary folder]")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _report(run: Path, name: str) -> None:
    command = [sys.executable, __file__, "--folder", str(run), "--child", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {name:14} {result['wall_s']:7.1f} s wall  {result['cpu_s']:7.1f} s CPU  peak {result['peak_mib']:6.0f} MiB"
        f"  {result['instances'] / result['wall_s']:8.0f} instances/s",
        flush=True,
    )


def _measure(run: Path, name: str) -> dict[str, float]:
    out = run / "exports" / name
    wall, cpu = time.perf_counter(), time.process_time()
    with open_run(run) as labelled:
        summary = export(labelled, name, out, Options(splits=parse_splits("train=0.8,val=0.1,test=0.1")))
    result = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "instances": summary.instances,
    }
    shutil.rmtree(out)
    return result


def _make_run(run: Path, images: int, instances: int, folder: Path) -> None:
    names = [f"class {i}" for i in range(CLASSES)]
    concepts = ConceptList(tuple(Concept(i, name, (name,), iou=1.0) for i, name in enumerate(names)))
    with Store.writer(run, [Prompt(key=n, text=n) for n in names], {"synthetic": images}) as store:
        store.set_meta("concepts", dump_concepts(concepts))
        store.set_meta("info", {"checkpoint": "synthetic"})
        batch: list[UnitResult] = []
        for result in _units(images, instances, names, folder):
            batch.append(result)
            if len(batch) == 1000:
                store.write(batch)
                batch.clear()
        store.write(batch)


def _units(images: int, instances: int, names: list[str], folder: Path) -> Iterator[UnitResult]:
    rng = np.random.default_rng(0)
    shapes = [_shape(rng) for _ in range(SHAPES)]
    boxes, areas = [masks.box_xywh(r) for r in shapes], [masks.area(r) for r in shapes]
    photos = [_photo(folder / f"{i}.jpg", rng) for i in range(PHOTOS)]
    presence = np.ones((1, len(names)), dtype=np.float32)
    for number in range(images):
        item = MediaItem(f"{number // 1000:03}/{number:06}.jpg", str(photos[number % PHOTOS]))
        picks = rng.choice(SHAPES, instances, replace=instances > SHAPES)
        candidates = tuple(
            Candidate(
                candidate_id(item.id, 0, names[q % CLASSES], q), item.id, 0, names[q % CLASSES],
                0.9 - q / 1000, 0.95, boxes[k], areas[k], shapes[k],
            )
            for q, k in enumerate(picks.tolist())
        )  # fmt: skip
        yield UnitResult(item, 0, 1, SIZE_HW, candidates, presence)


def _shape(rng: np.random.Generator) -> Rle:
    """A wobbly blob, one in five with a hole, one in five in two parts."""
    canvas = np.zeros(SIZE_HW, np.uint8)
    for _ in range(2 if rng.random() < 0.2 else 1):
        centre, radius = rng.uniform((60, 60), (580, 420)), rng.uniform(15, 60)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = radius * (1 + 0.15 * np.sin(angles[:, None] * [3, 5, 9] + rng.uniform(0, 6, 3)).sum(axis=1))
        outline = centre + wobble[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(canvas, [outline.round().astype(np.int32)], 1)
        if rng.random() < 0.2:
            cv2.circle(canvas, centre.round().astype(int).tolist(), int(radius / 3), 0, -1)
    return masks.encode(canvas)


def _photo(path: Path, rng: np.random.Generator) -> Path:
    cv2.imwrite(str(path), rng.integers(0, 255, (*SIZE_HW, 3), np.uint8))
    return path


def _seconds(started: float) -> str:
    return f"{time.perf_counter() - started:.0f} s"


if __name__ == "__main__":
    main()

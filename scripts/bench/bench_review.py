"""Push a run to FiftyOne, correct it through FiftyOne's API, pull, export: exact? How long, how much memory?

    .venv/bin/python scripts/bench/bench_review.py [--images 1000] [--instances 10]

It starts a MongoDB of its own (see mongod.txt) in a temporary folder and stops it at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.reviewing import COLOURS, candidate, make_run, photo, point_fiftyone_at, start_mongod, stop

from sam3label.core import masks
from sam3label.core.records import Rle, UnitResult, candidate_id
from sam3label.export.options import Options
from sam3label.export.write import export
from sam3label.review.fiftyone.pull import Pulled, pull
from sam3label.review.fiftyone.push import push
from sam3label.run.reader import open_run

SIZE = (480, 640)
PHRASES = [p for p in COLOURS if p not in ("moon", "round plate")]

T = TypeVar("T")
Expected = dict[str, list[tuple[str, Rle]]]  # item id -> its labels, sorted


def unit(folder: Path, index: int, instances: int) -> UnitResult:
    """A picture with blobs in a grid of cells, so that none covers another."""
    rng = np.random.default_rng(index)
    item, columns = f"{index // 100:03d}/{index:05d}.jpg", 5
    candidates = []
    for k in range(instances):
        row, column = divmod(k, columns)
        mask = np.zeros(SIZE, np.bool_)
        y, x = row * 90 + int(rng.integers(0, 20)), column * 120 + int(rng.integers(0, 20))
        h, w = rng.integers(30, 65, 2).tolist()
        rows, cols = np.mgrid[:h, :w]
        blob = ((rows - h / 2) / (h / 2)) ** 2 + ((cols - w / 2) / (w / 2)) ** 2
        mask[y : y + h, x : x + w] = (blob <= 1) & (blob >= (0.2 if k % 3 == 0 else 0))
        candidates.append(candidate(item, k, PHRASES[k % len(PHRASES)], 0.9, mask))
    return photo(folder, item, SIZE, candidates)


def correct(fo: Any, dataset: Any) -> None:
    """Every kind of correction, by a rule that `expect` applies to plain values."""
    for number, s in enumerate(dataset.sort_by("item_id").iter_samples(autosave=True)):
        detections = s.ground_truth.detections
        by_id = {d.candidate_id: d for d in detections}
        first, second, third = (by_id[candidate_id(s.item_id, 0, PHRASES[k], k)] for k in range(3))
        if number % 5 == 0:
            first.label = "bar"
        if number % 5 == 1:
            detections.remove(second)
        if number % 5 == 2:
            mask, box = drawn(number)
            detections.append(fo.Detection(label="ring", mask=mask, bounding_box=box))
        if number % 5 == 3:
            third.mask, third.bounding_box = drawn(number)
        if number % 2 == 0:
            s.review_status = "reviewed"


def drawn(number: int) -> tuple[np.ndarray[Any, Any], list[float]]:
    """A person's mask, as the App sends one: 0 and 255."""
    mask = np.zeros((40, 50), np.uint8)
    mask[5:35, number % 20 : 45] = 255
    return mask, [500 / SIZE[1], 400 / SIZE[0], 50 / SIZE[1], 40 / SIZE[0]]


def expect(units: list[tuple[str, list[tuple[str, Rle]]]]) -> Expected:
    """What must come out of the export."""
    result = {}
    for number, (item, found) in enumerate(units):
        full = np.zeros(SIZE, np.bool_)
        full[400:440, 500:550] = drawn(number)[0] > 0
        match number % 5:
            case 0:
                found[0] = ("bar", found[0][1])
            case 1:
                found.pop(1)
            case 2:
                found.append(("ring", masks.encode(full)))
            case 3:
                found[2] = (found[2][0], masks.encode(full))
        result[item] = sorted(found, key=_key)
    return result


def exported(folder: Path) -> Expected:
    """The labels of a COCO dataset, by item."""
    (path,) = (folder / "annotations").iterdir()
    data = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    items = {i["id"]: "/".join(Path(i["file_name"]).parts[-2:]) for i in data["images"]}
    result: Expected = {item: [] for item in items.values()}
    for a in data["annotations"]:
        rle = Rle(tuple(a["segmentation"]["size"]), a["segmentation"]["counts"].encode())
        result[items[a["image_id"]]].append((names[a["category_id"]], rle))
    return {item: sorted(found, key=_key) for item, found in result.items()}


def _key(entry: tuple[str, Rle]) -> tuple[str, bytes]:
    return entry[0], entry[1].counts


def timed(what: str, action: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = action()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:<28}{time.perf_counter() - start:8.1f} s   peak memory {peak:6.0f} MB", flush=True)
    return result


def bench(fo: Any, folder: Path, name: str, images: int, instances: int) -> tuple[Pulled, Pulled, Expected, Expected]:
    """The whole way once: two pulls, what the export holds, and what it must hold."""
    plain: list[tuple[str, list[tuple[str, Rle]]]] = []

    def make() -> None:
        for start in range(0, images, 50):
            units = [unit(folder / "photos", i, instances) for i in range(start, min(start + 50, images))]
            make_run(folder / "run", units)
            plain.extend((u.item.id, [(c.prompt, c.rle) for c in u.candidates]) for u in units)

    timed("make the run", make)
    with open_run(folder / "run") as run:
        timed("push", lambda: push(run, name))
        timed("push again, nothing new", lambda: push(run, name))
        timed("correct, in FiftyOne's API", lambda: correct(fo, fo.load_dataset(name)))
        (first,) = timed("pull", lambda: pull(run, name, "bench"))
        (second,) = timed("pull again, nothing new", lambda: pull(run, name, "bench"))
        timed("export to COCO", lambda: export(run, "coco", folder / "coco", Options(images="none")))
    return first, second, exported(folder / "coco"), expect(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mongod, uri = start_mongod(folder / "mongod")
        try:
            point_fiftyone_at(uri, folder)
            import fiftyone as fo

            first, second, got, wanted = bench(fo, folder, "bench", given.images, given.instances)
            server = psutil.Process(mongod.pid).memory_info().rss / 2**20
        finally:
            stop(mongod)
    print(f"recorded {dict(first.actions)}; by the second pull {dict(second.actions)}")
    print(f"labels {sum(map(len, wanted.values()))}; mongod {server:.0f} MB; exact: {got == wanted}")
    sys.exit(got != wanted or bool(second.actions))


if __name__ == "__main__":
    main()

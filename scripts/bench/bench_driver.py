"""How many photos a second one driver sustains, and how far the CPU goes: Ray's workers answer at once.

    python scripts/bench/bench_driver.py [--photos 20000] [--replicas 2] [--chunk 32]
    python scripts/bench/bench_driver.py --scaling [--photos 120]

The first line is the driver's ceiling: real Ray actors return rows as a real model makes them (10 objects a photo, 20
concepts) without computing anything, and the driver leases, counts and commits them. Actors and driver share this
machine's cores, so beside the wall clock it prints the driver's own CPU seconds, of all its threads.

`--scaling` labels photos on the CPU with the demo checkpoint: one worker, two workers, and two processes side by side
without Ray, each on one thread and each half of the photos.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from sam3label.concepts.concept_list import concepts_from
from sam3label.core import masks
from sam3label.core.records import (
    Candidate,
    ConceptList,
    MediaItem,
    Processor,
    Prompt,
    Rle,
    Stamp,
    UnitResult,
    candidate_id,
)
from sam3label.demo.shapes import make_scene
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.photos import PhotoBatch, batches_of
from sam3label.labelling.progress import JobTally, labels_in
from sam3label.labelling.videos import VideoWork
from sam3label.labelling.workers import ray_cluster
from sam3label.labelling.workers.replica import Greeting, Stretch
from sam3label.labelling.workers.work import Answered, Assignment, Facts, Work
from sam3label.labelling.writer import Writer
from sam3label.run.asked import Wanted
from sam3label.run.store import Store

CONCEPTS, OBJECTS, TEMPLATES, SIZE_HW = 20, 10, 64, (3000, 4000)
NAMES = [f"concept {n}" for n in range(CONCEPTS)]
PROCESSOR = Processor("node", "cuda:0", "a GPU that answers at once")


def templates() -> list[UnitResult]:
    """Photos of 12 megapixels with ten ellipses each: run-length codes of about the size that objects have."""
    rng, made = np.random.default_rng(0), []
    concepts = concepts_from(NAMES)
    for n in range(TEMPLATES):
        item, found = MediaItem(f"{n}", f"/{n}"), []
        for query in range(OBJECTS):
            center, axes = rng.integers(400, 2600, 2).tolist(), rng.integers(80, 480, 2).tolist()
            outline = cv2.ellipse2Poly(center, axes, int(rng.integers(180)), 0, 360, 1)
            counts = coco_mask.frPyObjects([outline.flatten().tolist()], *SIZE_HW)[0]["counts"]
            rle = Rle(SIZE_HW, counts)
            name = concepts.phrases[int(rng.integers(CONCEPTS))]
            score = float(rng.uniform(0.3, 1))
            id_, box, area = candidate_id(item.id, 0, name, query), masks.box_xywh(rle), masks.area(rle)
            found.append(Candidate(id_, item.id, 0, name, score, score, box, area, rle))
        presence = rng.uniform(0, 1, (1, CONCEPTS)).astype(np.float32)
        stamp = Stamp(4_000_000, 1, "0" * 32)
        made.append(UnitResult(item, 0, 1, SIZE_HW, tuple(found), presence, stamp=stamp, processor=PROCESSOR))
    return made


class InstantActor:
    """Answers as `ray_cluster`'s actor does, from templates."""

    def __init__(self) -> None:
        self.made: list[tuple[UnitResult, Any]] = []

    def greet(self, *_: object) -> Greeting:
        return Greeting("node", 0)

    def load(self, assignment: Assignment, *_: object) -> Facts:
        self.made = [(one, labels_in(one, assignment.concepts)) for one in templates()]
        return Facts({"checkpoint": "none"}, 200, "cuda:0", 16)

    def label(self, batches: Sequence[PhotoBatch], known: Mapping[str, str]) -> Stretch:
        return Stretch(tuple(self.answer(batch) for batch in batches))

    def answer(self, batch: PhotoBatch) -> Answered:
        chosen = [self.made[hash(item.id) % TEMPLATES] for item in batch.items]
        results = [
            UnitResult(item, 0, 1, one.size_hw, one.candidates, one.presence, stamp=one.stamp, processor=PROCESSOR)
            for item, (one, _) in zip(batch.items, chosen, strict=True)
        ]
        return Answered(results, [labels for _, labels in chosen])


def parts(photos: int) -> None:
    """Print the driver's CPU time by part, without Ray: reading answers, counting labels, committing."""
    actor, concepts = InstantActor(), concepts_from(NAMES)
    actor.load(Assignment(concepts, (), LabelOptions(model="demo")))
    items = [MediaItem(f"{n:07d}.jpg", f"/photos/{n:07d}.jpg", root="/photos") for n in range(photos)]
    prompts = Wanted.of(concepts, {}).prompts
    batches = batches_of(items, dict.fromkeys((i.id for i in items), frozenset(p.key for p in prompts)), 16)
    sent = [pickle.dumps(actor.label([batch], {}), protocol=5) for batch in batches]
    times = [time.process_time()]
    answers = [answered for one in sent for answered in pickle.loads(one).answers]
    times.append(time.process_time())
    tally = JobTally(concepts, photos)
    for answer in answers:
        for result, labels in zip(answer.results, answer.labels, strict=True):
            tally.count(result, labels)
    times.append(time.process_time())
    with tempfile.TemporaryDirectory() as place, Store.writer(Path(place) / "run", prompts, {"floor": 0.1}) as store:
        for start in range(0, len(answers), 64):
            store.write([result for answer in answers[start : start + 64] for result in answer.results])
        times.append(time.process_time())
        size = (Path(place) / "run" / "run.sqlite").stat().st_size
    reading, counting, writing = (1e6 * (b - a) / photos for a, b in itertools.pairwise(times))
    print(
        f"CPU a photo, without Ray: {reading:.0f} us to read answers of {sum(map(len, sent)) / photos / 1000:.1f} kB, "
        f"{counting:.0f} us to count labels, {writing:.0f} us to commit {size / photos / 1000:.1f} kB: "
        f"{1e6 / (reading + counting + writing):.0f} photos/s for a core of its own"
    )


def ceiling(photos: int, replicas: int, chunk: int) -> None:
    """Print what the driver does with answers that take no time, for chunks of so many photos."""
    ray_cluster.ModelActor = InstantActor  # type: ignore[assignment, misc]
    concepts: ConceptList = concepts_from(NAMES)
    options = LabelOptions(model="demo", ray="local", replicas=replicas, device="cpu")
    items = [MediaItem(f"{n:07d}.jpg", f"/photos/{n:07d}.jpg", root="/photos") for n in range(photos)]
    wanted = Wanted.of(concepts, {})
    keys = frozenset(prompt.key for prompt in wanted.prompts)
    prompts: Sequence[Prompt] = wanted.prompts
    with (
        tempfile.TemporaryDirectory() as place,
        ray_cluster.on_ray(Assignment(concepts, (), options), None, print) as ray,
    ):
        tally = JobTally(concepts, photos)
        with Store.writer(Path(place) / "run", prompts, {"floor": 0.1}) as store:
            work = Work(batches_of(items, dict.fromkeys((i.id for i in items), keys), chunk), (), chunk, VideoWork)
            wall, cpu = time.perf_counter(), time.process_time()
            with Writer(store) as writer:
                for answer in ray.label(work, tally, lambda: False):
                    writer.put(answer.results)
                    for result, labels in zip(answer.results, answer.labels, strict=True):
                        tally.count(result, labels)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            assert store.totals().done == photos
            size = (Path(place) / "run" / "run.sqlite").stat().st_size
    print(
        f"{photos} photos, {replicas} workers that answer {chunk} at once: {photos / wall:.0f} photos/s on the clock, "
        f"{1e6 * cpu / photos:.0f} us of the driver's CPU a photo ({photos / cpu:.0f} photos/s for a core of its own), "
        f"{size / photos:.0f} bytes a photo in the store"
    )


ONE = """
import sys
from sam3label.concepts.concept_list import concepts_from
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
replicas = int(sys.argv[3])
ray = dict(ray="local", replicas=replicas) if replicas else {}
options = LabelOptions(model="demo", device="cpu", workers=1 if replicas else 0, **ray)
summary = job.label([sys.argv[1]], concepts_from(["disc", "star", "ring"]), sys.argv[2], options)
assert not summary.failures
print(summary.progress.seconds)
"""


def scaling(photos: int) -> None:
    """Print one and two workers, and two processes without Ray, on one thread each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for n in range(photos):
            path = folder / "photos" / ("left" if n < photos // 2 else "right") / f"{n:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), make_scene(n, (240, 320)).image[:, :, ::-1])
        apart = photos / _seconds([(folder / "photos" / side, folder / side, 0) for side in ("left", "right")])
        one, two = (photos / _seconds([(folder / "photos", folder / f"ray{n}", n)]) for n in (1, 2))
    print(
        f"{photos} photos on the CPU, demo checkpoint: one worker {one:.2f} photos/s, two {two:.2f} ({two / one:.2f} "
        f"times); two processes side by side without Ray {apart:.2f}: efficiency {two / apart:.2f}"
    )


def _seconds(runs: Sequence[tuple[Path, Path, int]]) -> float:
    """Seconds of the slowest of runs that are started together: of labelling alone, models loaded."""
    # Ray's workers give way to everything else, which on a shared machine is not the comparison
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    started = [
        subprocess.Popen([sys.executable, "-c", ONE, *map(str, run)], stdout=subprocess.PIPE, text=True, env=env)
        for run in runs
    ]
    return max(float(process.communicate()[0].split()[-1]) for process in started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--chunk", type=int, nargs="+", default=[ray_cluster.CHUNK_PHOTOS], help="photos a worker gets")
    chosen = parser.parse_args()
    if chosen.scaling:
        scaling(chosen.photos or 120)
    else:
        parts(min(chosen.photos or 20_000, 4_000))
        for chunk in chosen.chunk:
            ceiling(chosen.photos or 20_000, chosen.replicas, chunk)


if __name__ == "__main__":
    main()

"""Time and memory of `evaluate` on a large made-up dataset: a results file, and a run with the same candidates.

    python scripts/bench/bench_evaluate.py [--images 10000] [--instances 10] [--classes 10]

Each case runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, Concept, ConceptList, MediaItem, Rle, UnitResult, candidate_id, prompts_of
from sam3label.quality.evaluate import Evaluation, evaluate_results, evaluate_run
from sam3label.run.store import Store

SIZE_HW = (480, 640)


@dataclass(frozen=True)
class Found:
    """One prediction of the made-up model."""

    image: int
    class_id: int
    rle: Rle
    score: float


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> Rle:
    y, x = np.ogrid[: SIZE_HW[0], : SIZE_HW[1]]
    return masks.encode(((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1)


def object_library(rng: np.random.Generator, n: int = 2000) -> list[tuple[Rle, Rle]]:
    """(true mask, the mask a model finds for it), of all sizes."""
    library = []
    for _ in range(n):
        centre, radii = rng.uniform((30, 30), (610, 450)), rng.uniform(6, 100, 2)
        moved, scaled = centre + rng.normal(0, 4, 2), radii * rng.uniform(0.85, 1.15, 2)
        library.append((ellipse(tuple(centre), tuple(radii)), ellipse(tuple(moved), tuple(scaled))))
    return library


def make_dataset(folder: Path, images: int, instances: int, classes: int) -> None:
    """truth.json, results.json and a run: 90 % of the objects found, and 20 % as many false alarms."""
    rng = np.random.default_rng(0)
    library = object_library(rng)
    annotations: list[dict[str, object]] = []
    found: list[Found] = []
    for image in range(images):
        for _ in range(instances):
            true, predicted = library[rng.integers(len(library))]
            class_id = int(rng.integers(classes))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": class_id + 1, "iscrowd": 0,
                 "area": masks.area(true), "bbox": list(masks.box_xywh(true)), "segmentation": as_json(true)}
            )  # fmt: skip
            if rng.random() < 0.9:
                found.append(Found(image, class_id, predicted, float(rng.beta(5, 2))))
            if rng.random() < 0.2:
                alarm = library[rng.integers(len(library))][1]
                found.append(Found(image, int(rng.integers(classes)), alarm, float(rng.beta(2, 3))))
    height, width = SIZE_HW
    truth = {
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "height": height, "width": width} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class{c}"} for c in range(classes)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    results = [
        {"image_id": f.image, "category_id": f.class_id + 1, "segmentation": as_json(f.rle), "score": f.score}
        for f in found
    ]
    (folder / "results.json").write_text(json.dumps(results))
    write_run(folder / "run", found, images, classes)


def as_json(rle: Rle) -> dict[str, object]:
    return {"size": list(rle.size_hw), "counts": rle.counts.decode()}


def write_run(folder: Path, found: list[Found], images: int, classes: int) -> None:
    concepts = ConceptList(tuple(Concept(c, f"class{c}", (f"class{c}",)) for c in range(classes)))
    with Store.writer(folder, prompts_of(concepts), {}) as store:
        store.set_meta("concepts", dump_concepts(concepts))
        store.write(list(units(found, images, classes)))


def units(found: list[Found], images: int, classes: int) -> Iterator[UnitResult]:
    by_image: dict[int, list[Candidate]] = {image: [] for image in range(images)}
    for number, f in enumerate(found):
        item_id, prompt = f"{f.image:06d}.jpg", f"class{f.class_id}"
        by_image[f.image].append(
            Candidate(candidate_id(item_id, 0, prompt, number), item_id, 0, prompt, f.score, 0.9,
                      masks.box_xywh(f.rle), masks.area(f.rle), f.rle)
        )  # fmt: skip
    for image, candidates in by_image.items():
        item = MediaItem(f"{image:06d}.jpg", f"/photos/{image:06d}.jpg")
        yield UnitResult(item, 0, 1, SIZE_HW, tuple(candidates), np.full((1, classes), 0.9, np.float32))


def measured(evaluate: Callable[[], Evaluation]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    evaluation = evaluate()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = evaluation.figures["segm"]
    assert figures is not None
    print(
        f"  {evaluation.pairs} pairs, cgF1 {figures['cgF1']:.3f}, AP {figures['AP']:.3f}: "
        f"{wall:.1f} s wall, {cpu:.1f} s CPU, peak {peak:.2f} GB",
        flush=True,
    )


def evaluate_file(folder: Path) -> None:
    measured(lambda: evaluate_results([folder / "truth.json"], folder / "results.json"))


def evaluate_folder(folder: Path) -> None:
    measured(lambda: evaluate_run(folder / "run", [folder / "truth.json"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--classes", type=int, default=10)
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        steps = {
            "making the dataset": (make_dataset, (Path(scratch), given.images, given.instances, given.classes)),
            "evaluate --gt --pred": (evaluate_file, (Path(scratch),)),
            "evaluate RUN --gt": (evaluate_folder, (Path(scratch),)),
        }
        for name, (step, arguments) in steps.items():
            print(name, flush=True)
            process = spawn.Process(target=step, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} failed")


if __name__ == "__main__":
    main()

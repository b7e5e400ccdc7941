"""Measures the judge of doubt on a run whose truth is known: how often what a reason names is wrong.

    sam3label demo -o runs/doubt --images 300
    python scripts/bench/bench_reasons.py runs/doubt/run runs/doubt/truth.json

For each kind: how many reasons there are, and the share of them about an image and class with a miss or a false alarm
(mask IoU 0.5), beside that share over all pairs of an image and a class that it has labels or truth of. For "near
threshold" also by distance from the threshold: the share of labels just over it that are wrong, and of candidates
just under it that are right.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from sam3label.core import masks, matching
from sam3label.core.records import Rle
from sam3label.review.reasons import reasons
from sam3label.review.survey import look_at_all, survey_run
from sam3label.run.reader import open_run

IOU = 0.5
BINS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3)


def truth_of(path: Path) -> dict[tuple[str, str], list[Rle]]:
    """Masks by (file name, class name) of a COCO file with run-length codes."""
    content = json.loads(path.read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[tuple[str, str], list[Rle]] = defaultdict(list)
    for one in content["annotations"]:
        code = one["segmentation"]
        rle = Rle((code["size"][0], code["size"][1]), code["counts"].encode())
        found[files[one["image_id"]], names[one["category_id"]]].append(rle)
    return found


def main(run_folder: Path, truth_file: Path) -> None:
    truth = truth_of(truth_file)
    about: dict[str, list[bool]] = defaultdict(list)
    every: list[bool] = []
    near: dict[tuple[str, int], list[bool]] = defaultdict(list)
    with open_run(run_folder) as run:
        whole, names = survey_run(run, 0), run.concepts.names
        for seen in look_at_all(run):
            wrong: dict[int, bool] = {}
            for class_id, name in enumerate(names):
                own = [x for x in seen.labels if x.class_id == class_id]
                there = truth.get((seen.item_id, name), [])
                iou = masks.iou_matrix([x.rle for x in own], there)
                hits, _ = matching.optimal(np.where(iou >= IOU, iou, 0.0), IOU)
                wrong[class_id] = len(own) + len(there) - 2 * len(hits) > 0
                if own or there:
                    every.append(wrong[class_id])
                right = {own[i].id for i in hits.tolist()}
                for decision in (d for d in seen.decisions if d.label.class_id == class_id):
                    label, distance = decision.label, decision.label.score - run.concepts.concepts[class_id].conf
                    if decision.outcome == "label":
                        near["over", int(np.digitize(distance, BINS))].append(label.id not in right)
                    if decision.outcome == "low score":
                        free = [t for k, t in enumerate(there) if k not in set(matching.optimal(iou, IOU)[1].tolist())]
                        hit = bool((masks.iou_matrix([label.rle], free) >= IOU).any())
                        near["under", int(np.digitize(-distance, BINS))].append(hit)
            classes = {d.label.id: d.label.class_id for d in seen.decisions}
            for reason in reasons(seen, run.concepts, whole):
                ids = {classes[i] for i in reason.label_ids} or {
                    c.id for c in run.concepts.concepts if any(f"'{p}'" in reason.words for p in c.prompts)
                } or set(range(len(names)))  # fmt: skip
                about[reason.kind].append(any(wrong[i] for i in ids))
    print(f"all pairs: {np.mean(every):.2f} of {len(every)} wrong")
    for kind, values in about.items():
        print(f"{kind:22} {len(values):5} reasons, {np.mean(values):.2f} of them about a pair that is wrong")
    for side in ("over", "under"):
        shares = [near.get((side, k), []) for k in range(1, len(BINS) + 1)]
        parts = zip((*BINS[1:], 1.0), shares, strict=True)
        print(f"{side:6}", *(f"<{high:g}: {np.mean(v):.2f} of {len(v)}" for high, v in parts if v))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What verdicts are worth: cgF1 on drawn scenes before and after, for simulated verifiers of stated accuracy.

    python scripts/bench/bench_verify.py --scenes 300 --out figures.json

The detector is weakened by a low threshold, so that false alarms come along. A simulated person reviews every third
scene by the truth; the figures are of the others. Simulated verifiers know the truth and lie by chance: an accuracy of
0.9 says the wrong word once in ten. `trusted` says whether a verifier has proved itself on the reviewed scenes: the
verdicts of one that has not would change nothing, and the figures are what they would have done.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.concepts.concept_list import load_concepts
from sam3label.core import masks
from sam3label.core.records import USES, Correction, CorrectionAction, LabeledImage, Rle, Verdict, Verify
from sam3label.demo.job import CONCEPTS, TRUTH
from sam3label.demo.shapes import write_scenes
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.quality.metrics import cgf1
from sam3label.run.reader import Run, open_run
from sam3label.verify import reliability

CONF = 0.15  # of a score: false alarms come along
RIGHT = 0.5  # IoU with the truth from which the simulated person keeps a label
ACCURACIES = (0.7, 0.8, 0.9, 0.95)
Truth = dict[tuple[str, str], list[Rle]]  # masks by (item id, class name)
MODES = {
    "presence vetoes": Verify("veto"),
    "presence replaces": Verify("replace"),
    "masks": Verify("off", 0.5),
    "presence vetoes, masks": Verify("veto", 0.5),
}


def truth_masks(truth: Path) -> Truth:
    """Read the masks of a COCO file that `write_scenes` wrote."""
    content = json.loads(truth.read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: Truth = {}
    for annotation in content["annotations"]:
        code = annotation["segmentation"]
        rle = Rle((code["size"][0], code["size"][1]), code["counts"].encode())
        found.setdefault((files[annotation["image_id"]], names[annotation["category_id"]]), []).append(rle)
    return found


def review(image: LabeledImage, truth: Truth) -> list[Correction]:
    """Return what a person who knows the truth would do: keep a label that fits an object of its class, once each."""
    taken: set[tuple[str, int]] = set()
    rows = []
    for one in sorted(image.labels, key=lambda label: -label.score):
        objects = truth.get((image.item.id, one.class_name), [])
        overlap = masks.iou_matrix([one.rle], objects)[0].tolist() if objects else []
        free = [(iou, k) for k, iou in enumerate(overlap) if iou >= RIGHT and (one.class_name, k) not in taken]
        action: CorrectionAction = "approved" if free else "deleted"
        if free:
            taken.add((one.class_name, max(free)[1]))
        rows.append(Correction(image.item.id, 0, action, one.id))
    return [*rows, Correction(image.item.id, 0, "reviewed")]


def figures(run: Run, truth: Truth, photos: set[str]) -> dict[str, float]:
    """cgF1 and what it is made of, on the photos of these ids."""
    pairs = []
    for image in (image for image in run.images() if image.item.id in photos):
        for class_id, name in enumerate(run.concepts.names):
            found = [one.rle for one in image.labels if one.class_id == class_id]
            pairs.append(cgf1.match(masks.iou_matrix(found, truth.get((image.item.id, name), []))))
    curves = cgf1.curves(pairs)
    return {name: round(float(np.mean(curves[name])), 4) for name in ("cgF1", "F1", "IL_MCC")}


def simulate(run: Run, truth: Truth, accuracy: float, name: str) -> None:
    """Write the verdicts of a verifier that knows the truth and says so with this accuracy."""
    rng = random.Random(accuracy)

    def said(right: bool) -> float:
        return float(right == (rng.random() < accuracy))

    rows = []
    for unit in run.done_units():
        item_id = unit.item.id
        for class_name in run.concepts.names:
            there = bool(truth.get((item_id, class_name)))
            rows.append(Verdict(item_id, 0, class_name, None, "any", said(there), name))
        decided = [d.label for seen in run.frames(unit) for d in seen.decisions if d.outcome == "label"]
        for one in decided:
            objects = truth.get((item_id, one.class_name), [])
            fits = bool(objects) and float(masks.iou_matrix([one.rle], objects).max()) >= RIGHT
            rows.append(Verdict(item_id, 0, one.class_name, one.id, "right", said(fits), name))
    run.record_verdicts(rows)


@contextmanager
def reading(folder: Path, verify: Verify) -> Iterator[Run]:
    concepts = load_concepts(folder.parent / "concepts.yaml", [f"defaults.conf={CONF}"])
    heeding = replace(concepts, concepts=tuple(replace(c, verify=verify) for c in concepts.concepts))
    with open_run(folder, heeding) as run:
        yield run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=9_200_000)  # the demo checkpoint was trained on none of these
    parser.add_argument("--work", type=Path, help="keep the run here, and go on with it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    truth_file = work / "truth.json"
    if not truth_file.exists():
        write_scenes(work / "photos", arguments.scenes, seed=arguments.seed, concepts=TRUTH).replace(truth_file)
        (work / "concepts.yaml").write_text(CONCEPTS.format(photos="", here="", runs=""))
    concepts = load_concepts(work / "concepts.yaml", [f"defaults.conf={CONF}"])
    label([work / "photos"], concepts, work / "run", LabelOptions(model="demo"))
    truth = truth_masks(truth_file)
    rows: list[dict[str, Any]] = []
    with open_run(work / "run", concepts) as run:
        ids = [item.id for item in run.items()]
        reviewed = set(ids[::3])
        if not run.corrections():
            for item_id in sorted(reviewed):
                image = run.image(item_id)
                assert image is not None
                run.record(review(image, truth))
        rest = set(ids) - reviewed
        before = figures(run, truth, rest)
        rows.append({"verifier": "none", "mode": "", "trusted": "", **before})
        for accuracy in ACCURACIES:
            simulate(run, truth, accuracy, f"simulated {accuracy}")
    for name in (f"simulated {a}" for a in ACCURACIES):
        for mode, verify in MODES.items():
            with reading(work / "run", verify) as run:
                known = reliability.score(run, name).masks
                run.rely_on(dict.fromkeys(USES, name))
                after = figures(run, truth, rest)
                rows.append(
                    {"verifier": name, "mode": mode, "trusted": known.is_trusted, "mcc": round(known.mcc, 3), **after}
                )
                print(rows[-1], flush=True)
                run.rely_on(dict.fromkeys(USES))
        print(name, asdict(known))
    print(f"before: {before}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

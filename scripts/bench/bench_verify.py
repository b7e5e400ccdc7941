"""What verdicts are worth: cgF1 on drawn scenes before and after, for the demo's verifier and for simulated ones.

    python scripts/bench/bench_verify.py --scenes 300 --out figures.json
    python scripts/bench/bench_verify.py --scenes 300 --model EARLY --conf 0.4 --missing 0.15

The detector is weak: by a low threshold, so that false alarms come along, or as an early checkpoint of the demo's
(`git show f6c8a5e:sam3label/demo/checkpoint/...`). A simulated person reviews every third scene by the truth; the
figures are of the others. Simulated verifiers know the truth and lie by chance: an accuracy of 0.9 says the wrong word
once in ten. For each of them: what each use of its verdicts would do if it counted, and what becomes of it when only
what has proved itself on the reviewed scenes counts.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.concepts.concept_list import load_concepts
from sam3label.core import masks
from sam3label.core.records import USES, ConceptList, Verdict, Verify
from sam3label.demo.job import CONCEPTS, TRUTH, TruthMasks, truth_masks
from sam3label.demo.shapes import write_scenes
from sam3label.demo.verified import NAME, RIGHT, review
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.quality.metrics import cgf1
from sam3label.run.reader import Run, open_run
from sam3label.verify import judge, reliability, session
from sam3label.verify.server import ServerOptions

ACCURACIES = (0.7, 0.8, 0.9, 0.95)


def modes(missing: float) -> dict[str, Verify]:
    """Return the uses of verdicts that are compared, each alone and all together."""
    return {
        "presence: veto": Verify("veto"),
        "presence: replace": Verify("replace"),
        "missing": Verify(missing_conf=missing),
        "masks": Verify("off", 0.5),
        "veto, masks": Verify("veto", 0.5),
        "veto, missing, masks": Verify("veto", 0.5, missing),
    }


def figures(run: Run, truth: TruthMasks, photos: set[str]) -> dict[str, float]:
    """cgF1 and what it is made of, on the photos of these ids."""
    pairs = []
    for image in (image for image in run.images() if image.item.id in photos):
        for class_id, name in enumerate(run.concepts.names):
            found = [one.rle for one in image.labels if one.class_id == class_id]
            pairs.append(cgf1.match(masks.iou_matrix(found, truth.get((image.item.id, name), []))))
    curves = cgf1.curves(pairs)
    return {name: round(float(np.mean(curves[name])), 4) for name in ("cgF1", "F1", "IL_MCC")}


def simulate(run: Run, truth: TruthMasks, accuracy: float, name: str) -> None:
    """Write the verdicts of a verifier that knows the truth and says so with this accuracy.

    It is also asked about what is a label only once the threshold is lowered.
    """
    rng = random.Random(accuracy)

    def said(right: bool) -> float:
        return float(right == (rng.random() < accuracy))

    blind, rows = run.without_verdicts(), []
    for unit in run.done_units():
        item_id = unit.item.id
        standing = [d.label for seen in blind.frames(unit) for d in seen.decisions if d.outcome == "label"]
        for class_name in run.concepts.names:
            objects = truth.get((item_id, class_name), [])
            own = [one.rle for one in standing if one.class_name == class_name]
            complete = not objects or (bool(own) and bool((masks.iou_matrix(objects, own).max(axis=1) >= RIGHT).all()))
            rows.append(Verdict(item_id, 0, class_name, None, "any", said(bool(objects)), name))
            rows.append(Verdict(item_id, 0, class_name, None, "all", said(complete), name))
        for one in (d.label for seen in run.frames(unit) for d in seen.decisions):
            objects = truth.get((item_id, one.class_name), [])
            fits = bool(objects) and float(masks.iou_matrix([one.rle], objects).max()) >= RIGHT
            rows.append(Verdict(item_id, 0, one.class_name, one.id, "right", said(fits), name))
    run.record_verdicts(rows)


@contextmanager
def reading(folder: Path, concepts: ConceptList, verify: Verify) -> Iterator[Run]:
    heeding = replace(concepts, concepts=tuple(replace(c, verify=verify) for c in concepts.concepts))
    with open_run(folder, heeding) as run:
        yield run


def ask_the_demo(run_folder: Path, concepts: ConceptList, missing: float) -> None:
    """Let the demo's verifier judge; then what is only a label because it misses some."""
    from sam3label.demo.eyes import serving

    with serving() as address, reading(run_folder, concepts, Verify(missing_conf=missing)) as run:
        for _ in range(2):
            session.verify(run, session.agenda_of(run, NAME, None), ServerOptions(address, NAME, in_flight=2))
            run.rely_on({"missing": judge.verifier_of(NAME)})
        run.rely_on(dict.fromkeys(USES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=9_200_000)  # the demo checkpoint was trained on none of these
    parser.add_argument("--model", default="demo")
    parser.add_argument("--conf", type=float, default=0.15)
    parser.add_argument("--missing", type=float, default=0.1)
    parser.add_argument("--work", type=Path, help="keep the run here, and go on with it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only-label", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    truth_file, folder = work / "truth.json", work / "run"
    if not truth_file.exists():
        write_scenes(work / "photos", arguments.scenes, seed=arguments.seed, concepts=TRUTH).replace(truth_file)
        (work / "concepts.yaml").write_text(CONCEPTS.format(photos="", here="", runs=""))
    concepts = load_concepts(work / "concepts.yaml", [f"defaults.conf={arguments.conf}"])
    label([work / "photos"], concepts, folder, LabelOptions(model=arguments.model))
    if arguments.only_label:
        return
    truth = truth_masks(truth_file)
    with open_run(folder, concepts) as run:
        ids = [item.id for item in run.items()]
        reviewed = set(ids[::3])
        if not run.corrections():
            for item_id in sorted(reviewed):
                image = run.image(item_id)
                assert image is not None
                run.record(review(image, truth))
        rest = set(ids) - reviewed
        rows: list[dict[str, Any]] = [{"verifier": "none", **figures(run, truth, rest)}]
        for accuracy in ACCURACIES:
            simulate(run, truth, accuracy, f"simulated {accuracy}")
    print(rows[0], flush=True)
    ask_the_demo(folder, concepts, arguments.missing)
    for name in (judge.verifier_of(NAME), *(f"simulated {a}" for a in ACCURACIES)):
        rows.append(judged(folder, concepts, truth, rest, name, arguments.missing))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def judged(
    folder: Path, concepts: ConceptList, truth: TruthMasks, rest: set[str], name: str, missing: float
) -> dict[str, Any]:
    """Return what a verifier is worth, what each use of it would do, and what is done with what it is trusted with."""
    row: dict[str, Any] = {"verifier": name}
    for mode, verify in modes(missing).items():
        with reading(folder, concepts, verify) as run:
            run.rely_on(dict.fromkeys(USES, name))
            row[mode] = figures(run, truth, rest)["cgF1"]
    with reading(folder, concepts, Verify("veto", 0.5, missing)) as run:
        trust = reliability.score(run, name)
        run.rely_on(dict.fromkeys(USES))
        reliability.keep(run, name, trust)
        row["trusted with"] = list(trust.uses)
        row["MCC"] = {use: round(trust.of(use).mcc, 3) for use in USES}
        row["rival"] = round(trust.presence.rival, 3)
        row["as trusted"] = figures(run, truth, rest)
        run.rely_on(dict.fromkeys(USES))
    return row


if __name__ == "__main__":
    main()

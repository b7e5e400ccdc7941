"""How well a `where:` rule answers what a phrase cannot: "circle without a star beside it", on drawn scenes.

    python scripts/bench/bench_relations.py --scenes 200
    python scripts/bench/bench_relations.py --scenes 200 --conf 0.15 --verify

The truth is the same rule, put to the true masks. F1 is of masks at IoU 0.5: of circles at all, of all circles taken
for the answer, and of what the rule leaves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from sam3label.concepts.concept_list import concepts_from
from sam3label.core import masks
from sam3label.core.records import Candidate, Rle, Verify
from sam3label.demo.eyes import serving
from sam3label.demo.job import TruthMasks, truth_masks
from sam3label.demo.shapes import write_scenes
from sam3label.demo.verified import NAME
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.quality.metrics import cgf1
from sam3label.run.decide import select_labels
from sam3label.run.reader import Run, open_run
from sam3label.verify import session
from sam3label.verify.judge import verifier_of
from sam3label.verify.server import ServerOptions

RULE = "not beside star"
LIST = concepts_from(
    {
        "names": ["circle", "star", "lone circle"],
        "defaults": {"conf": 0.4},
        "concepts": {"lone circle": {"prompts": ["circle"], "where": RULE}},
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=9_400_000)  # the demo checkpoint was trained on none of these
    parser.add_argument("--conf", type=float, default=0.4)
    parser.add_argument("--verify", action="store_true", help="also with what the demo's verifier says of each label")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    named = {"circle": "circle", "star": "star"}
    truth_file = write_scenes(work / "photos", arguments.scenes, seed=arguments.seed, concepts=named)
    known = truth_masks(truth_file.replace(work / "truth.json"))
    asked = replace(LIST, concepts=tuple(replace(one, conf=arguments.conf) for one in LIST.concepts))
    label([work / "photos"], asked, work / "run", LabelOptions(model="demo"))
    with open_run(work / "run") as run:
        measure(run, known)
        if arguments.verify:
            print("with the verifier's word on each label")
            measure(verified(run), known)


def verified(run: Run) -> Run:
    """Return the run without the labels that the demo's verifier rejects, asked on its server."""
    with serving() as address:
        session.verify(run, session.agenda_of(run, NAME, None), ServerOptions(address, NAME, in_flight=2))
    return run.relying_on({"masks": verifier_of(NAME)}, Verify(reject_below=0.5))


def measure(run: Run, known: TruthMasks) -> None:
    """Print how well circles are found, and lone circles."""
    pairs: dict[str, list[cgf1.PairScore]] = defaultdict(list)
    lone = everyone = 0
    for image in run.images():
        true = {name: known.get((image.item.id, name), []) for name in ("circle", "star")}
        answer = _by_rule(image.item.id, true)
        found = {name: [x.rle for x in image.labels if x.class_name == name] for name in LIST.names}
        lone, everyone = lone + len(answer), everyone + len(true["circle"])
        pairs["circles, as circles"].append(_match(found["circle"], true["circle"]))
        pairs["all circles, as the answer"].append(_match(found["circle"], answer))
        pairs["what the rule leaves"].append(_match(found["lone circle"], answer))
    print(f"{everyone} circles, {lone} of them without a star beside them")
    for name, judged in pairs.items():
        curves = cgf1.curves(judged)
        print(f"{name}: F1 {float(curves['F1'][0]):.3f}, presence MCC {float(np.mean(curves['IL_MCC'])):.3f}")


def _match(found: list[Rle], true: list[Rle]) -> cgf1.PairScore:
    return cgf1.match(masks.iou_matrix(found, true))


def _by_rule(item_id: str, true: dict[str, list[Rle]]) -> list[Rle]:
    """Return the true circles that the rule leaves, were the truth what the model sees."""
    seen = [
        Candidate(f"{name} {k}", item_id, 0, name, 1.0, 1.0, masks.box_xywh(rle), masks.area(rle), rle)
        for name, objects in true.items()
        for k, rle in enumerate(objects)
    ]
    return [one.rle for one in select_labels(seen, LIST) if one.class_name == "lone circle"]


if __name__ == "__main__":
    main()

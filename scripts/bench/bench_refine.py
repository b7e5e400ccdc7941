"""Is `refine: true` worth it? Masks of what words find, with and without, against the truth of drawn scenes.

    python scripts/bench/bench_refine.py --photos 100

Each scene is asked for all kinds of objects by name. Compared are the objects that words find (a label of their kind
has a mask IoU of at least 0.5 with them before it is refined), at the photo's size. Calls of the image encoder are
counted.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from sam3label.concepts.concept_list import concepts_from
from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Frame, MediaItem, prompts_of
from sam3label.demo.shapes import SHAPES, make_scene
from sam3label.labelling.refining import refined
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.interactive import Clicker
from sam3label.run.decide import select_labels

FIRST_SEED = 33_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Masks with and without `refine`, against the truth.")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    concepts = concepts_from({"names": list(SHAPES), "concepts": {name: {"refine": True} for name in SHAPES}})
    checkpoint = resolve("demo")
    detector = Detector.load(checkpoint, device="cpu")
    clicker = Clicker.load(checkpoint, detector)
    prompts = prompts_of(concepts)
    detector.encode_phrases(concepts.phrases)
    encodes: list[int] = []
    detector.model.vision_encoder.backbone.register_forward_hook(lambda _m, x, _y: encodes.append(len(x[0])))
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SHAPES}
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.photos):
        scene = make_scene(seed, tuple(arguments.size))
        frame = Frame(MediaItem(str(seed), str(seed)), 0, scene.image)
        plain = detector.detect([frame], prompts, 0.1, keep_grids=True)
        sharper = {c.id: c for c in refined(clicker, concepts, [frame], plain)[0].candidates}
        labels = select_labels(plain[0].candidates, concepts)
        for name in SHAPES:
            own = [label for label in labels if label.class_name == name]
            truth = [scene.mask(k) for k, thing in enumerate(scene.things, start=1) if thing.shape == name]
            codes = [masks.encode(mask) for mask in truth]
            iou = masks.iou_matrix([label.rle for label in own], codes)
            for row, column in zip(*optimal(iou), strict=True) if own and truth else ():
                if iou[row, column] >= 0.5:
                    new = masks.iou_matrix([sharper[own[row].id].rle], [codes[column]])[0, 0]
                    found[name].append((float(iou[row, column]), float(new), float(truth[column].mean())))
    print("class | objects | mean mask IoU: as found, refined | objects that got better")
    for name, pairs in [*found.items(), ("all", [pair for own in found.values() for pair in own])]:
        one, other, _ = np.array(pairs).T
        print(f"{name} | {len(one)} | {one.mean():.3f}, {other.mean():.3f} | {(other > one).mean():.0%}")
    everything = np.array([pair for own in found.values() for pair in own])
    small = everything[:, 2] < np.median(everything[:, 2])
    for what, rows in (("smaller half", small), ("larger half", ~small)):
        print(f"{what} | {rows.sum()} | {everything[rows, 0].mean():.3f}, {everything[rows, 1].mean():.3f} |")
    print(f"image encodes a photo: {sum(encodes) / arguments.photos:.2f}")


if __name__ == "__main__":
    main()

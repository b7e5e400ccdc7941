"""What tiles find on large photos with small objects, and what they cost: the demo checkpoint on scenes it never saw.

    python scripts/bench/bench_tiles.py --scenes 200 --tiles off 256 auto

A scene is a square mosaic of drawn scenes of many sizes, so that objects of a hundredth to half of its side lie in it.
Labels are those of the run's own rules at conf 0.5; an object is found where a label of its class overlaps it by half
(one to one, by the largest sum of IoU). *Small* objects are no larger than a disc of 2 % of the photo's side in
radius. *Twice* counts labels that overlap an object that another label was matched with by half. A figure for each
scene is appended to --log, and a killed benchmark goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Concept, ConceptList, Frame, Label, MediaItem, Rle, Tiles
from sam3label.demo.shapes import SHAPES, make_scene
from sam3label.labelling.questions import Guide
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.run.decide import select_labels

FIRST_SEED = 9_000_000
SMALL = np.pi * 0.02**2  # of the photo's area
LEAF = 128  # pixels of the smallest scene in a mosaic
TILES = {"off": None, "auto": Tiles(auto=True)}


@dataclass(frozen=True, slots=True)
class Truth:
    """The objects of a photo: masks and shapes."""

    rles: tuple[Rle, ...]
    shapes: tuple[str, ...]


def mosaic(seed: int, side: int, split: float) -> tuple[npt.NDArray[np.uint8], Truth]:
    """A photo [side, side, 3] of scenes that halve with odds `split` down to `LEAF` pixels, and its objects."""
    rng = np.random.default_rng(seed)
    photo = np.zeros((side, side, 3), np.uint8)
    rles, shapes = list[Rle](), list[str]()

    def fill(y: int, x: int, size: int) -> None:
        if size > LEAF and rng.random() < split:
            for dy in (0, size // 2):
                for dx in (0, size // 2):
                    fill(y + dy, x + dx, size // 2)
            return
        scene = make_scene(int(rng.integers(2**31)), (size, size))
        photo[y : y + size, x : x + size] = scene.image
        for number, thing in enumerate(scene.things, 1):
            rles.append(masks.paste(x, y, scene.index == number, (side, side)))
            shapes.append(thing.shape)

    fill(0, 0, side)
    return photo, Truth(tuple(rles), tuple(shapes))


def judge(labels: tuple[Label, ...], truth: Truth) -> dict[str, int]:
    """Counts over all classes: objects and found ones, small and all; labels, and labels of an object found already."""
    area = truth.rles[0].size_hw[0] * truth.rles[0].size_hw[1] if truth.rles else 1
    counts = dict.fromkeys(("objects", "found", "small", "small_found", "labels", "twice"), 0)
    for class_id, shape in enumerate(SHAPES):
        own = [label.rle for label in labels if label.class_id == class_id]
        there = [rle for rle, name in zip(truth.rles, truth.shapes, strict=True) if name == shape]
        small = np.array([masks.area(rle) <= SMALL * area for rle in there], dtype=bool)
        iou = masks.iou_matrix(own, there)
        rows, columns = optimal(iou, 0.5)
        counts["objects"] += len(there)
        counts["small"] += int(small.sum())
        counts["labels"] += len(own)
        counts["found"] += len(columns)
        counts["small_found"] += int(small[columns].sum())
        left = np.setdiff1d(np.arange(len(own)), rows)
        counts["twice"] += int((iou[left][:, columns] >= 0.5).any(axis=1).sum()) if len(columns) else 0
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--split", type=float, default=0.65, help="odds that a part of a mosaic is halved again")
    parser.add_argument("--tiles", nargs="+", default=["off", "256", "auto"], help="off, auto, or pixels a side")
    parser.add_argument("--log", type=Path, default=Path("build/bench_tiles.jsonl"))
    chosen = parser.parse_args()
    chosen.log.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in chosen.log.read_text().splitlines()] if chosen.log.exists() else []
    done = {(row["tiles"], row["seed"], row["side"], row["split"]) for row in known}
    detector = Detector.load(resolve("demo"), device="cpu")
    detector.encode_phrases(SHAPES)
    with chosen.log.open("a") as log:
        for seed in range(FIRST_SEED, FIRST_SEED + chosen.scenes):
            for name in chosen.tiles:
                if (name, seed, chosen.side, chosen.split) in done:
                    continue
                scene = {"seed": seed, "side": chosen.side, "split": chosen.split}
                row = {"tiles": name, **scene, **score(detector, name, **scene)}
                known.append(row)
                print(json.dumps(row), file=log, flush=True)
    seeds = range(FIRST_SEED, FIRST_SEED + chosen.scenes)
    asked = (chosen.side, chosen.split)
    tell([row for row in known if (row["side"], row["split"]) == asked and row["seed"] in seeds], chosen.tiles)


def score(detector: Detector, name: str, seed: int, side: int, split: float) -> dict[str, float]:
    """Label one mosaic with tiles of this name."""
    photo, truth = mosaic(seed, side, split)
    tile = TILES[name] if name in TILES else Tiles(int(name))
    concepts = ConceptList(tuple(Concept(i, shape, (shape,), tile=tile) for i, shape in enumerate(SHAPES)))
    frame, since = Frame(MediaItem(f"{seed}.png", f"{seed}.png"), 0, photo), time.process_time()
    (detection,) = Guide(detector, concepts).detect([frame], 0.1)
    return {**judge(select_labels(detection.candidates, concepts), truth), "cpu_s": time.process_time() - since}


def tell(rows: list[dict[str, float]], tiles: list[str]) -> None:
    print("| tiles | scenes | recall | of small | precision | F1 | twice | CPU s a photo |\n|" + " --- |" * 8)
    for name in tiles:
        own = [row for row in rows if row["tiles"] == name]
        total = {key: sum(row[key] for row in own) for key in own[0] if key not in ("tiles", "seed", "side", "split")}
        recall, precision = total["found"] / total["objects"], total["found"] / max(total["labels"], 1)
        small = total["small_found"] / max(total["small"], 1)
        f1 = 2 * total["found"] / (total["objects"] + total["labels"])
        print(
            f"| {name} | {len(own)} | {recall:.3f} | {small:.3f} | {precision:.3f} | {f1:.3f} | "
            f"{total['twice']:.0f} of {total['labels']:.0f} | {total['cpu_s'] / len(own):.2f} |"
        )


if __name__ == "__main__":
    main()

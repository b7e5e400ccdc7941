"""What tiles find on large photos with small objects, and what they cost: the demo checkpoint on scenes it never saw.

    python scripts/bench/bench_tiles.py --scenes 200 --tiles off 256 auto
    python scripts/bench/bench_tiles.py --scenes 1 --crowd 300 --tiles off auto   # more than a phrase has answers

A scene is drawn by the demo's own generator, with objects of a hundredth to almost half of its side across. Labels are
those of the run's own rules at conf 0.5; an object is found where a label of its class overlaps it by half (one to one,
by the largest sum of IoU). *Small* objects are no larger than a disc of 2 % of the photo's side in radius. *Twice*
counts labels that overlap an object that another label was matched with by half, *parts* other labels without an object
that lie in one of their class. With --crowd, that many small shapes are tried on each photo, and all are asked for as
"shape"; *full* counts photos with a phrase whose answers ran out of room, in the closest views. A figure for each
scene is appended to --log, and a killed benchmark goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.matching import optimal
from sam3label.core.records import Concept, ConceptList, Frame, Label, MediaItem, Rle, Tiles
from sam3label.demo.shapes import RADIUS, SHAPES, make_scene
from sam3label.labelling.questions import Guide
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.run.decide import select_labels

FIRST_SEED = 9_000_000
SMALL = np.pi * 0.02**2  # of the photo's area
TILES = {"off": None, "auto": Tiles(auto=True)}
COUNTS = ("objects", "found", "small", "small_found", "labels", "twice", "parts", "full")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo [side, side, 3] and the objects on it: masks and classes."""

    pixels: npt.NDArray[np.uint8]
    rles: tuple[Rle, ...]
    classes: tuple[str, ...]


def draw(seed: int, side: int, objects: int, least: float, crowd: int) -> Photo:
    """Draw one photo; `least` is the radius of the smallest object, of the side."""
    if crowd:
        return draw_crowd(seed, side, crowd)
    drawn = make_scene(seed, (side, side), objects, (least, RADIUS[1]))
    rles = tuple(masks.encode(drawn.mask(number)) for number in range(1, len(drawn.things) + 1))
    return Photo(drawn.image, rles, tuple(thing.shape for thing in drawn.things))


def draw_crowd(seed: int, side: int, count: int) -> Photo:
    """Draw a photo of four scenes that hold a quarter each of so many small shapes."""
    half = side // 2
    radius = 0.3 / (count / 4) ** 0.5
    scenes = [make_scene(seed * 4 + i, (half, half), count // 4, (0.9 * radius, radius)) for i in range(4)]
    rows = [np.concatenate([scene.image for scene in scenes[i : i + 2]], axis=1) for i in (0, 2)]
    rles = tuple(
        masks.paste(half * (i % 2), half * (i // 2), scene.mask(number), (side, side))
        for i, scene in enumerate(scenes)
        for number in range(1, len(scene.things) + 1)
    )
    return Photo(np.concatenate(rows), rles, ("shape",) * len(rles))


def judge(labels: Sequence[Label], truth: Photo, classes: Sequence[str]) -> dict[str, int]:
    """Counts over all classes, but for `full`."""
    area = truth.pixels.shape[0] * truth.pixels.shape[1]
    counts = dict.fromkeys(COUNTS, 0)
    for class_id, name in enumerate(classes):
        own = [label.rle for label in labels if label.class_id == class_id]
        there = [rle for rle, own_class in zip(truth.rles, truth.classes, strict=True) if own_class == name]
        small = np.array([masks.area(rle) <= SMALL * area for rle in there], dtype=bool)
        iou = masks.iou_matrix(own, there)
        rows, columns = optimal(iou, 0.5)
        counts["objects"] += len(there)
        counts["small"] += int(small.sum())
        counts["labels"] += len(own)
        counts["found"] += len(columns)
        counts["small_found"] += int(small[columns].sum())
        left = np.setdiff1d(np.arange(len(own)), rows)
        again = (iou[left][:, columns] >= 0.5).any(axis=1) if len(columns) else np.zeros(len(left), bool)
        counts["twice"] += int(again.sum())
        within = (masks.cover_matrix(own, there) >= 0.8).any(axis=1)
        counts["parts"] += int((within[left] & ~again).sum())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--objects", type=int, default=40, help="tried on each photo, of all shapes together")
    parser.add_argument("--least", type=float, default=0.005, help="radius of the smallest object, of the side")
    parser.add_argument("--crowd", type=int, default=0, help="so many circles a photo, and nothing else")
    parser.add_argument("--tiles", nargs="+", default=["off", "256", "auto"], help="off, auto, or pixels a side")
    parser.add_argument("--log", type=Path, default=Path("build/bench_tiles.jsonl"))
    chosen = parser.parse_args()
    chosen.log.parent.mkdir(parents=True, exist_ok=True)
    how = {name: getattr(chosen, name) for name in ("side", "objects", "least", "crowd")}
    known = [json.loads(line) for line in chosen.log.read_text().splitlines()] if chosen.log.exists() else []
    known = [row for row in known if all(row[key] == value for key, value in how.items())]
    seeds = range(FIRST_SEED, FIRST_SEED + chosen.scenes)
    done = {(row["tiles"], row["seed"]) for row in known}
    detector = Detector.load(resolve("demo"), device="cpu")
    detector.encode_phrases([*SHAPES, "shape"])
    with chosen.log.open("a") as log:
        for seed in seeds:
            left = [name for name in chosen.tiles if (name, seed) not in done]
            photo = draw(seed, **how) if left else None
            for name in left:
                row = {"tiles": name, "seed": seed, **how, **score(detector, name, photo)}
                known.append(row)
                print(json.dumps(row), file=log, flush=True)
    tell([row for row in known if row["seed"] in seeds], chosen.tiles)


def score(detector: Detector, name: str, photo: Photo) -> dict[str, float]:
    """Label one photo with tiles of this name."""
    tile = TILES[name] if name in TILES else Tiles(int(name))
    classes = SHAPES if photo.classes[0] in SHAPES else ("shape",)
    concepts = ConceptList(tuple(Concept(i, own, (own,), tile=tile) for i, own in enumerate(classes)))
    frame, since = Frame(MediaItem("photo.png", "photo.png"), 0, photo.pixels), time.process_time()
    (detection,) = Guide(detector, concepts).detect([frame], 0.1)
    seconds = time.process_time() - since
    counts = judge(select_labels(detection.candidates, concepts), photo, classes)
    return {**counts, "full": int(bool(detection.full)), "cpu_s": seconds}


def tell(rows: list[dict[str, float]], tiles: list[str]) -> None:
    print("| tiles | scenes | recall | of small | precision | F1 | twice | parts | full | CPU s a photo |")
    print("|" + " --- |" * 10)
    for name in tiles:
        own = [row for row in rows if row["tiles"] == name]
        total = {key: sum(row[key] for row in own) for key in (*COUNTS, "cpu_s")}
        recall, precision = total["found"] / total["objects"], total["found"] / max(total["labels"], 1)
        small = total["small_found"] / max(total["small"], 1)
        f1 = 2 * total["found"] / (total["objects"] + total["labels"])
        print(
            f"| {name} | {len(own)} | {recall:.3f} | {small:.3f} | {precision:.3f} | {f1:.3f} | "
            f"{total['twice']:.0f} | {total['parts']:.0f} of {total['labels']:.0f} | {total['full']:.0f} | "
            f"{total['cpu_s'] / len(own):.2f} |"
        )


if __name__ == "__main__":
    main()

"""How good labels by example are, on synthetic scenes that the demo checkpoint never saw.

    python scripts/bench/bench_exemplars.py [--model demo] [--scenes 30] [--references 3]

Everything goes through `run`, as a user's photos would, with a `conf` of 0.4 as in the demo's concept list and the mask
NMS of every run. An object counts as found at mask IoU 0.5. The same command gives the same figures.

    completion   the largest object of each kind in a photo has a box, no words: are all objects of these kinds found?
    canvas       references of each of the 30 kinds, no words; every photo is asked for every kind, present or not
    tokens       the same with tokens
    exclusive    an object is of one kind only, as `exclusive:` in a concept list says: the best score keeps it
    leave-one-out  the figure a run prints: references labelled from one another, compared by boxes, for they may have
                 no masks. All of them show their kind, so it tells of photos that show the kind
    wrong boxes  the same references with boxes beside the objects: are they refused?
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import ConceptList, Rle
from sam3label.demo.shapes import COLORS, SHAPES, Scene, make_scene
from sam3label.errors import ConfigError
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.quality.metrics.cgf1 import match
from sam3label.run.reader import open_run
from sam3label.run.store import Store

KINDS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
CONF = 0.4
PHOTO_SEEDS, REFERENCE_SEEDS = 7_000_000, 7_500_000  # never trained on
SIZE_HW = (240, 320)


@dataclass
class Counts:
    """Objects found, wrong labels, objects missed."""

    found: int = 0
    wrong: int = 0
    missed: int = 0

    def add(self, found: Sequence[Rle], truth: Sequence[Rle], boxes: bool = False) -> None:
        """Count by the overlap of masks, or of the boxes around them."""
        if boxes:
            found, truth = _boxes(found), _boxes(truth)
        pair = match(masks.iou_matrix(found, truth))
        hits = int((pair.found_iou >= 0.5).sum())
        self.found += hits
        self.wrong += len(found) - hits
        self.missed += len(truth) - hits

    @property
    def f1(self) -> float:
        return 2 * self.found / max(1, 2 * self.found + self.wrong + self.missed)

    def __str__(self) -> str:
        precision, recall = self.found / max(1, self.found + self.wrong), self.found / max(1, self.found + self.missed)
        return f"F1 {self.f1:.3f} (precision {precision:.3f}, recall {recall:.3f}, {self.found + self.missed} objects)"


def _boxes(rles: Sequence[Rle]) -> list[Rle]:
    made = []
    for rle in rles:
        x, y, width, height = (int(value) for value in masks.box_xywh(rle))
        made.append(masks.paste(x, y, np.ones((height, width), np.bool_), rle.size_hw))
    return made


def scenes(first_seed: int, count: int, kinds: Sequence[str] = ()) -> dict[str, Scene]:
    """Scenes by file name: the first ones from a seed on that show one of the kinds, or the first ones."""
    found: dict[str, Scene] = {}
    seed = first_seed
    while len(found) < count:
        scene = make_scene(seed, SIZE_HW)
        if not kinds or any(thing.name in kinds for thing in scene.things):
            found[f"photo-{seed}.png"] = scene
        seed += 1
    return found


def write_photos(folder: Path, photos: dict[str, Scene]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in photos.items():
        cv2.imwrite(str(folder / name), scene.image[..., ::-1])
    return folder


def objects(scene: Scene, kind: str) -> Iterator[Rle]:
    for number, thing in enumerate(scene.things, start=1):
        if thing.name == kind:
            yield masks.encode(scene.mask(number))


def write_boxes(path: Path, boxes: dict[str, dict[str, list[list[float]]]]) -> Path:
    """The simple label form: YAML, of which JSON is a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(boxes))
    return path


def label(photos: Path, concepts: ConceptList, out: Path, model: str, **options: Any) -> None:
    job.label([photos], concepts, out, LabelOptions(model=model, workers=0, fresh=True, **options))


EVERY, EXCLUSIVE, SHOWING, SEVERAL, BY_BOXES = (
    "every photo",
    "every photo, exclusive",
    "photos that show the kind",
    "photos with several of it",
    "that show it, by boxes",
)


def judged(out: Path, photos: dict[str, Scene], concepts: ConceptList | None = None) -> dict[str, Counts]:
    """A run's labels, by its own rules or other ones, against the truth in all photos and in some of them."""
    counts = {name: Counts() for name in (EVERY, SHOWING, SEVERAL, BY_BOXES)}
    with open_run(out, concepts) as labelled:
        for image in labelled.images():
            for number, kind in enumerate(labelled.concepts.names):
                truth = list(objects(photos[image.item.id], kind))
                found = [one.rle for one in image.labels if one.class_id == number]
                counts[EVERY].add(found, truth)
                if truth:
                    counts[SHOWING].add(found, truth)
                    counts[BY_BOXES].add(found, truth, boxes=True)
                if len(truth) > 1:
                    counts[SEVERAL].add(found, truth)
    return counts


def completion(folder: Path, count: int, model: str = "demo", words: bool = False) -> dict[str, Counts]:
    """The largest object of each kind in a photo has a box; where a photo has none of a kind, it is not asked for."""
    photos = scenes(PHOTO_SEEDS, count)
    kinds = sorted({thing.name for scene in photos.values() for thing in scene.things})
    boxes = {
        name: {kind: [list(masks.box_xywh(max(own, key=masks.area)))] for kind in kinds if (own := [*objects(s, kind)])}
        for name, s in photos.items()
    }
    write_boxes(folder / "partial.yaml", {name: one for name, one in boxes.items() if one})
    rules = {k: {"exemplars": {"labels": "partial.yaml"}, **({} if words else {"prompts": []})} for k in kinds}
    concepts = listed(kinds, rules, folder)
    label(write_photos(folder / "photos", photos), concepts, folder / "run", model)
    return judged(folder / "run", photos)


def listed(kinds: Sequence[str], rules: dict[str, Any], folder: Path) -> ConceptList:
    content = {"names": list(kinds), "defaults": {"conf": CONF}, "concepts": rules}
    return parse_concepts(json.dumps(content), "bench", (), folder)


def write_references(folder: Path, count: int, wrong: bool = False) -> None:
    """A folder for each kind; every object of the kind has its box, or with `wrong` the box of another place."""
    for kind in KINDS:
        chosen = scenes(REFERENCE_SEEDS + 1000 * KINDS.index(kind), count, [kind])
        write_photos(folder / kind, chosen)
        boxes = {name: {kind: [_box(rle, wrong) for rle in objects(s, kind)]} for name, s in chosen.items()}
        write_boxes(folder / kind / "boxes.yaml", boxes)


def _box(rle: Rle, wrong: bool) -> list[float]:
    x, y, width, height = masks.box_xywh(rle)
    if wrong:  # the mirrored place, where by chance alone there is something
        x, y = SIZE_HW[1] - x - width, SIZE_HW[0] - y - height
    return [x, y, width, height]


def references(folder: Path, mode: str, words: bool = False) -> ConceptList:
    """The concept list: each kind by its references, with its name as the phrase or without words."""
    rules = {
        kind: {"exemplars": {"references": f"refs/{kind}", "mode": mode}, **({} if words else {"prompts": []})}
        for kind in KINDS
    }
    return listed(KINDS, rules, folder)


def across(
    folder: Path, count: int, mode: str, model: str = "demo", words: bool = False
) -> tuple[dict[str, Counts], Counts]:
    """The labels by references already written, and the figure that the run printed for these."""
    photos = scenes(PHOTO_SEEDS, count)
    out = folder / f"run-{mode}-{words}"
    concepts = references(folder, mode, words)
    label(write_photos(folder / "photos", photos), concepts, out, model, accept_exemplars=True)
    with Store.open(out) as store:
        figures = store.meta("trust").values()
    trust = Counts(*(sum(one[key] for one in figures) for key in ("found", "wrong", "missed")))
    found = judged(out, photos)
    found[EXCLUSIVE] = judged(out, photos, replace(concepts, exclusive=(KINDS,)))[EVERY]
    return found, trust


def refused(folder: Path, model: str = "demo") -> list[str]:
    """The kinds that a run by the references refuses."""
    photos = write_photos(folder / "photos", scenes(PHOTO_SEEDS, 1))
    try:
        label(photos, references(folder, "canvas"), folder / "run", model)
    except ConfigError as error:
        return [kind for kind in KINDS if f"\n  {kind}: " in str(error)]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--references", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for words in (False, True):
            with _timed(f"completion from one box of each kind, {_said(words)}"):
                found = completion(folder / f"a-{words}", 3 * given.scenes, given.model, words)
                _show(SHOWING, found[SHOWING], goal=None if words else 0.85)
                _show(SEVERAL, found[SEVERAL])
        write_references(folder / "c" / "refs", given.references)
        for mode, words in itertools.product(("canvas", "tokens"), (False, True)):
            with _timed(f"{mode}, {given.references} references of each kind, {_said(words)}"):
                found, trust = across(folder / "c", given.scenes, mode, given.model, words)
                _show(EVERY, found[EVERY])
                _show(EXCLUSIVE, found[EXCLUSIVE])
                _show(SHOWING, found[SHOWING], goal=0.75 if mode == "canvas" and not words else None)
                _show(BY_BOXES, found[BY_BOXES])
                _show("leave-one-out, by boxes", trust)
                gap = abs(trust.f1 - found[BY_BOXES].f1)
                print(f"    {'apart by':28} {gap:.3f}, {_verdict(gap <= 0.15)} (at most 0.15)", flush=True)
        write_references(folder / "d" / "refs", given.references, wrong=True)
        with _timed("wrong boxes"):
            names = refused(folder / "d", given.model)
            print(f"    {'refused':28} {len(names)} of {len(KINDS)} kinds", flush=True)


def _said(words: bool) -> str:
    return "words too" if words else "no words"


@contextmanager
def _timed(title: str) -> Iterator[None]:
    print(title, flush=True)
    start = time.perf_counter()
    yield
    print(f"    {'seconds':28} {time.perf_counter() - start:.0f}", flush=True)


def _show(what: str, counts: Counts, goal: float | None = None) -> None:
    verdict = "" if goal is None else f", {_verdict(counts.f1 >= goal)} (goal {goal})"
    print(f"    {what:28} {counts}{verdict}", flush=True)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "NOT REACHED"


if __name__ == "__main__":
    main()

"""How good labels by example are, on synthetic scenes that the demo checkpoint never saw.

    python scripts/bench_exemplars.py [--model demo] [--scenes 40] [--references 3]

Objects count as found at mask IoU 0.5 and a score of 0.5. Everything goes through `run`, as a user's photos would:

    completion   one box for each kind of object in a photo, no words: are all objects of these kinds found?
    canvas       references of each of six kinds, no words; every photo is asked for all six, present or not
    tokens       the same with tokens
    trust        F1 of the references labelled from one another, to be compared with the F1 on the photos
    wrong boxes  the same references with boxes beside the objects: are they refused?
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from sam3label import masks
from sam3label.config import parse_concepts
from sam3label.demo.shapes import Scene, make_scene
from sam3label.errors import ConfigError
from sam3label.records import ConceptList, Rle
from sam3label.run import RunOptions, run
from sam3label.saco import match
from sam3label.select import open_run
from sam3label.store import Store

KINDS = ("red circle", "blue square", "green triangle", "yellow star", "orange ring", "purple square")
PHOTO_SEEDS, REFERENCE_SEEDS = 7_000_000, 7_500_000  # never trained on
SIZE_HW = (240, 320)


@dataclass
class Counts:
    """Objects found, wrong labels, objects missed."""

    found: int = 0
    wrong: int = 0
    missed: int = 0

    def add(self, found: Sequence[Rle], truth: Sequence[Rle]) -> None:
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
    run([photos], concepts, out, RunOptions(model=model, workers=0, fresh=True, **options))


def judged(out: Path, photos: dict[str, Scene]) -> tuple[Counts, Counts]:
    """(all objects of the run's classes, those in photos that show the class)."""
    everywhere, present = Counts(), Counts()
    with open_run(out) as labelled:
        for image in labelled.images():
            for number, kind in enumerate(labelled.concepts.names):
                truth = list(objects(photos[image.item.id], kind))
                found = [one.rle for one in image.labels if one.class_id == number]
                everywhere.add(found, truth)
                if truth:
                    present.add(found, truth)
    return everywhere, present


def completion(folder: Path, count: int, model: str = "demo", words: bool = False) -> Counts:
    """The largest object of each kind in a photo is labelled; the others are to be found."""
    photos = scenes(PHOTO_SEEDS, count)
    kinds = sorted({thing.name for scene in photos.values() for thing in scene.things})
    boxes = {
        name: {kind: [list(masks.box_xywh(max(own, key=masks.area)))] for kind in kinds if (own := [*objects(s, kind)])}
        for name, s in photos.items()
    }
    write_boxes(folder / "partial.yaml", {name: one for name, one in boxes.items() if one})
    rules = {k: {"exemplars": {"labels": "partial.yaml"}, **({} if words else {"prompts": []})} for k in kinds}
    concepts = parse_concepts(json.dumps({"names": kinds, "concepts": rules}), "bench", (), folder)
    label(write_photos(folder / "photos", photos), concepts, folder / "run", model)
    return judged(folder / "run", photos)[1]  # where a photo has no box of a kind, the kind is not asked for


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


def references(kinds: Sequence[str], folder: Path, mode: str, words: bool = False, **canvas: float) -> ConceptList:
    """The concept list: each kind by its references, with its name as the phrase or without words."""
    rules = {
        kind: {
            "exemplars": {"references": f"refs/{kind}", "mode": mode, **canvas},
            **({} if words else {"prompts": []}),
        }
        for kind in kinds
    }
    return parse_concepts(json.dumps({"names": list(kinds), "concepts": rules}), "bench", (), folder)


def across(
    folder: Path, count: int, mode: str, model: str = "demo", words: bool = False
) -> tuple[Counts, Counts, Counts]:
    """(everywhere, where present, leave-one-out) for references already written."""
    photos = scenes(PHOTO_SEEDS, count, KINDS)
    out = folder / f"run-{mode}-{words}"
    concepts = references(KINDS, folder, mode, words)
    label(write_photos(folder / "photos", photos), concepts, out, model, accept_exemplars=True)
    with Store.open(out) as store:
        figures = store.meta("trust").values()
    trust = Counts(*(sum(one[key] for one in figures) for key in ("found", "wrong", "missed")))
    return (*judged(out, photos), trust)


def refused(folder: Path, model: str = "demo") -> list[str]:
    """The kinds whose references are refused, each tried alone."""
    photos = write_photos(folder / "photos", scenes(PHOTO_SEEDS, 1))
    names = []
    for kind in KINDS:
        try:
            label(photos, references([kind], folder, "canvas"), folder / f"run-{kind}", model)
        except ConfigError as error:
            assert "not to be trusted" in str(error)
            names.append(kind)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--references", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _timed("completion, boxes alone", lambda: completion(folder / "a", given.scenes, given.model))
        _timed("completion, boxes and words", lambda: completion(folder / "b", given.scenes, given.model, True))
        write_references(folder / "c" / "refs", given.references)
        for mode in ("canvas", "tokens"):
            for words in (False, True):
                title = f"{mode}, {given.references} references, {'with' if words else 'no'} words"
                _timed(title, lambda m=mode, w=words: across(folder / "c", given.scenes, m, given.model, w))
        write_references(folder / "d" / "refs", given.references, wrong=True)
        _timed("wrong boxes, refused", lambda: refused(folder / "d", given.model))


def _timed(title: str, work: Any) -> None:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    names = ("every photo", "photos that show the kind", "references, leave-one-out")
    if isinstance(result, tuple):
        print(f"{title}  [{seconds:.0f} s]")
        for what, counts in zip(names, result, strict=True):
            print(f"    {what:28} {counts}", flush=True)
    else:
        shown = f"{len(result)} of {len(KINDS)} kinds" if isinstance(result, list) else result
        print(f"{title:32} {shown}  [{seconds:.0f} s]", flush=True)


if __name__ == "__main__":
    main()

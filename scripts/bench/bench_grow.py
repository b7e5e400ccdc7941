"""A run that grows, killed in every step, beside asking all at once and beside starting over: same labels, what work?

    python scripts/bench/bench_grow.py --photos 500

500 drawn photos, the demo checkpoint: six phrases; then two more; then a class with exemplars on reference photos. Each
step is a process that dies of SIGKILL half way and is started again. Counted are images that were encoded and (image,
prompt) pairs that were asked, with what a kill threw away; seconds are of the processes' own CPU time.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2

from sam3label.core import masks
from sam3label.demo.shapes import make_scene, matches
from sam3label.run.reader import open_run

FIRST_SEED = 9_500_000
SIX = ("star", "circle", "square", "triangle", "red shape", "blue shape")
LISTS = (
    f"names: [{', '.join(SIX)}]\n",
    f"names: [{', '.join((*SIX, 'green shape', 'yellow shape'))}]\n",
    f"names: [{', '.join((*SIX, 'green shape', 'yellow shape', 'ring'))}]\n"
    "concepts: {ring: {prompts: [], exemplars: REFS}}\n",
)
STEPS = ("6 phrases", "2 phrases more", "a class with exemplars")
# labels as the command does, says after each batch what was done so far, and dies when so many photos are
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
from sam3label.concepts.concept_list import load_concepts
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.model.ask import Asker
from sam3label.model.encode import ImageEncoder
photos, list_, out, die, told = sys.argv[1:]
counts = {"encodes": 0, "pairs": 0}
encode, score = ImageEncoder.encode, Asker.score
def counting_encode(self, pixels):
    counts["encodes"] += len(pixels)
    return encode(self, pixels)
def counting_score(self, state, pairs, texts):
    counts["pairs"] += len(pairs)
    return score(self, state, pairs, texts)
ImageEncoder.encode, Asker.score = counting_encode, counting_score
def tell(progress):
    Path(told).write_text(json.dumps({**counts, "cpu": time.process_time()}))
    if progress.done >= int(die):
        os.kill(os.getpid(), signal.SIGKILL)
options = LabelOptions(model="demo", device="cpu", workers=0, batch_size=4, accept_exemplars=True)
label([photos], load_concepts(list_), out, options, on_progress=tell)
Path(told).write_text(json.dumps({**counts, "cpu": time.process_time()}))
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What one or more processes did."""

    encodes: int = 0
    pairs: int = 0
    cpu: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.encodes + other.encodes, self.pairs + other.pairs, self.cpu + other.cpu)

    def row(self, name: str) -> str:
        return f"| {name} | {self.encodes} | {self.pairs} | {self.cpu:.0f} s |"


def write_photos(folder: Path, n: int) -> None:
    (folder / "photos").mkdir()
    for i in range(n):
        cv2.imwrite(str(folder / "photos" / f"{i:04d}.png"), make_scene(FIRST_SEED + i, (160, 200)).image[..., ::-1])


def write_references(folder: Path) -> None:
    """Two photos with rings, and a box around each ring."""
    (folder / "refs").mkdir()
    images, boxes = [], []
    seed = FIRST_SEED - 1
    while len(images) < 2:
        scene = make_scene(seed, (160, 200))
        seed -= 1
        rings = [number for number, thing in enumerate(scene.things, 1) if matches("ring", thing)]
        if not rings:
            continue
        name = f"{len(images)}.png"
        cv2.imwrite(str(folder / "refs" / name), scene.image[..., ::-1])
        images.append({"id": len(images), "file_name": name, "width": 200, "height": 160})
        for number in rings:
            box = list(masks.box_xywh(masks.encode(scene.mask(number))))
            boxes.append({"id": len(boxes), "image_id": images[-1]["id"], "category_id": 1, "bbox": box})
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ring"}]}
    (folder / "refs" / "labels.json").write_text(json.dumps(truth))


def work(folder: Path, step: int, out: str, die: int = 1 << 40) -> Work:
    """Run one process to its end, or to its death."""
    told = folder / "told.json"
    given = [str(folder / "photos"), str(folder / f"{step}.yaml"), str(folder / out), str(die), str(told)]
    ended = subprocess.run([sys.executable, "-c", CHILD, *given]).returncode
    assert ended == (0 if die == 1 << 40 else -signal.SIGKILL), ended
    return Work(**json.loads(told.read_text()))


def differences(one: Path, other: Path) -> tuple[int, int, float]:
    """Return candidates of both runs, those that only one has or whose masks differ, and the largest score gap."""
    with open_run(one) as a, open_run(other) as b:
        left, right = ({c.id: c for u in run.done_units() for c in run.candidates(u)} for run in (a, b))
        labels = [[[label.id for label in image.labels] for image in run.images()] for run in (a, b)]
    both = left.keys() & right.keys()
    moved = sum(masks.iou_matrix([left[i].rle], [right[i].rle])[0, 0] < 0.99 for i in both)
    wrong = len(left.keys() ^ right.keys()) + moved + (labels[0] != labels[1])
    return len(both), wrong, max((abs(left[i].score - right[i].score) for i in both), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=500)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_photos(folder, chosen.photos)
        write_references(folder)
        for step, text in enumerate(LISTS):
            (folder / f"{step}.yaml").write_text(text.replace("REFS", str(folder / "refs")))
        print("| step | images encoded | pairs asked | CPU time |\n| --- | --- | --- | --- |")
        grown, over = Work(), Work()
        for step, name in enumerate(STEPS):
            own = work(folder, step, "grown", die=chosen.photos // 2) + work(folder, step, "grown")
            print(own.row(f"{name}, killed half way"), flush=True)
            grown += own
            if step:
                fresh = work(folder, step, f"fresh-{step}")
                print(fresh.row(f"{name}, starting over"), flush=True)
                over += fresh
        print(grown.row("grown in three steps"))
        print(over.row("starting over twice"))
        count, wrong, gap = differences(folder / "grown", folder / "fresh-2")
    print(f"against all at once: {count} candidates, {wrong} differences, scores within {gap:.1e}")


if __name__ == "__main__":
    main()

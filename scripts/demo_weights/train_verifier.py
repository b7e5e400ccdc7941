"""Train the demo's verifier (`sam3label/demo/eyes.py`) on silhouettes of drawn scenes: some seconds of one core.

    python scripts/demo_weights/train_verifier.py --out sam3label/demo/checkpoint/verifier.safetensors

Silhouettes are what `eyes.areas` finds in a scene, objects hidden in part among them, turned and mirrored. Prints how
often it is right on held-out scenes, about objects and about candidates that are wrong on purpose: another class,
masks that are moved, grown, halved, or of nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.demo.eyes import SIDE, Observer, Shapes, areas, fitted
from sam3label.demo.shapes import SHAPES, Scene, make_scene
from sam3label.verify import pictures

FIRST = 2**41  # seeds of what is trained on; scenes of lower seeds are for users, tests and figures
HELD_OUT = 2**33  # seeds of what is printed at the end
SIZE_HW = (192, 256)
FITS = 0.6  # IoU of an area with the object that it shows

Mask = npt.NDArray[np.bool_]


def lessons(first: int, scenes: int) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield a silhouette and the number of its shape for each object that is an area of its own."""
    for seed in range(first, first + scenes):
        scene = make_scene(seed, SIZE_HW)
        small = fitted(scene.image)
        index = cv2.resize(scene.index, small.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for area in areas(small):
            shared = np.bincount(index[area.pixels], minlength=len(scene.things) + 1)
            k = int(shared[1:].argmax()) + 1 if scene.things else 0
            union = int(area.pixels.sum()) + int((index == k).sum()) - int(shared[k])
            if k and shared[k] >= FITS * union:
                yield area.silhouette(), SHAPES.index(scene.things[k - 1].shape)


def learn(silhouettes: npt.NDArray[np.float32], shapes: npt.NDArray[np.int64], steps: int) -> Shapes:
    net, rng, size = Shapes(), np.random.default_rng(0), 128
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for step in range(steps):
        chosen = rng.integers(0, len(shapes), size)
        batch = torch.from_numpy(np.stack([turned(rng, silhouettes[i]) for i in chosen]))[:, None]
        loss = F.cross_entropy(net(batch), torch.from_numpy(shapes[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return net.eval()


def turned(rng: np.random.Generator, silhouette: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Turn and mirror a silhouette, and make it a little smaller."""
    middle = (SIDE - 1) / 2
    how = cv2.getRotationMatrix2D((middle, middle), float(rng.uniform(0, 360)), float(rng.uniform(0.7, 1.0)))
    moved = cv2.warpAffine(silhouette, how, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    return np.asarray(moved[:, ::-1] if rng.random() < 0.5 else moved, np.float32)


# ---- the exam


def examine(weights: Path, scenes: int) -> None:
    """Print how often the verifier is right on scenes of no lesson, as it is asked through its pictures."""
    observer = Observer(weights)
    right: dict[str, list[bool]] = {}
    for seed in range(HELD_OUT, HELD_OUT + scenes):
        scene, rng = make_scene(seed), np.random.default_rng(seed)
        for k, thing in enumerate(scene.things, start=1):
            for what, mask, expected in candidates(rng, scene, k):
                pair = [_seen(p) for p in pictures.enlarged(scene.image, _label(mask))]
                name = thing.name if what != "another class" else SHAPES[(SHAPES.index(thing.shape) + 1) % len(SHAPES)]
                said = min(observer.judge_label([name], *pair)) >= 0.5
                right.setdefault(what, []).append(said == expected)
        whole = _seen(pictures.whole(scene.image))
        for shape in SHAPES:
            own = [_label(scene.mask(k)) for k, thing in enumerate(scene.things, 1) if thing.shape == shape]
            said_any, said_all = observer.judge_class([shape], whole, _seen(pictures.numbered(scene.image, own)))
            right.setdefault("there is some" if own else "there is none", []).append((said_any >= 0.5) == bool(own))
            right.setdefault("all are masked", []).append(said_all >= 0.5)
            if own:
                fewer = _seen(pictures.numbered(scene.image, own[1:]))
                right.setdefault("one is not masked", []).append(observer.judge_class([shape], whole, fewer)[1] < 0.5)
    for what, answers in right.items():
        print(f"{what}: right in {np.mean(answers):.3f} of {len(answers)}")


def candidates(rng: np.random.Generator, scene: Scene, number: int) -> Iterator[tuple[str, Mask, bool]]:
    """Yield (what it is, mask, whether it is to be accepted)."""
    mask = scene.mask(number)
    side = float(np.sqrt(mask.sum()))
    yield "an object", mask, True
    yield "another class", mask, False
    yield "a moved mask", np.roll(mask, round(0.6 * side), axis=int(rng.integers(2))), False
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=round(0.25 * side))
    yield "a grown mask", grown > 0, False
    rows, columns = np.nonzero(mask)
    half = mask.copy()
    half[rows[rows > np.median(rows)], columns[rows > np.median(rows)]] = False
    yield "half a mask", half, False
    nothing = np.roll(mask, int(rng.integers(mask.shape[1])), axis=1) & (scene.index == 0)
    if nothing.sum() > 400:
        yield "nothing", nothing, False


def _label(mask: Mask) -> Label:
    rle = masks.encode(mask)
    return Label("", 0, 1.0, 1.0, masks.box_xywh(rle), masks.area(rle), rle, "")


def _seen(data: bytes) -> npt.NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.ascontiguousarray(pixels[..., ::-1], np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--exam", type=int, default=60, help="held-out scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.process_time()
    silhouettes, shapes = zip(*lessons(FIRST, arguments.scenes), strict=True)
    print(f"{len(shapes)} silhouettes of {arguments.scenes} scenes: {time.process_time() - start:.1f} s", flush=True)
    net = learn(np.stack(silhouettes), np.array(shapes), arguments.steps)
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
    save_file(weights, arguments.out)
    print(f"{arguments.out.name}: {arguments.out.stat().st_size / 1e3:.0f} kB, {time.process_time() - start:.1f} s")
    examine(arguments.out, arguments.exam)


if __name__ == "__main__":
    main()

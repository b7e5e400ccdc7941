"""Train the demo's verifier (`sam3label/demo/eyes.py`) on drawn scenes: four minutes of one core.

    python scripts/demo_weights/train_verifier.py --out sam3label/demo/checkpoint/verifier.safetensors

Wrong candidates are made on purpose: masks that are shifted, grown, cut, boxes, two objects as one, and nothing at all.
Prints how often it is right on held-out scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sam3label.demo.eyes import CELL, CLOSE_SIDE, WIDE_SIDE, Closeup, Overview, as_input, as_tensor
from sam3label.demo.shapes import COLORS, SHAPES, Scene, make_scene

FIRST = 2**41  # seeds of what is trained on; scenes of lower seeds are for users, tests and figures
HELD_OUT = 2**33  # seeds of what is printed at the end
SIZE_HW = (168, 224)
MARGIN, MORE = 0.5, 3  # of the longer side and pixels around an object, as `verify.pictures` shows it
COLOR_NAMES = list(COLORS)

Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator


# ---- wrong masks


def spoilt(rng: Rng, scene: Scene, number: int) -> Mask:
    """Return a mask for object `number` as a detector may draw it: well, coarsely, badly, or of something else."""
    mask = scene.mask(number)
    way = rng.random()
    if way < 0.1:
        return mask
    if way < 0.45:
        return _wobbly(rng, mask, float(rng.uniform(0.01, 0.08)))
    if way < 0.6:
        return _wobbly(rng, mask, float(rng.uniform(0.08, 0.3)))
    if way < 0.72:
        return _moved(rng, mask, scale=1.0)
    if way < 0.8:
        return _moved(rng, mask, scale=float(rng.choice([rng.uniform(0.4, 0.9), rng.uniform(1.1, 1.8)])))
    if way < 0.85:
        return _half(rng, mask)
    if way < 0.9:
        return _boxed(mask)
    if way < 0.94 and len(scene.things) > 1:
        other = int(rng.integers(1, len(scene.things) + 1))
        return mask | scene.mask(other)
    return _blob(rng, scene)


def _wobbly(rng: Rng, mask: Mask, amount: float) -> Mask:
    """Move the outline in and out, by so much of the object's side."""
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    cells = int(rng.integers(5, 24))
    waves = cv2.resize(rng.standard_normal((cells, cells)).astype(np.float32), mask.shape[::-1])
    return np.asarray(inside - outside + waves * amount * np.sqrt(mask.sum()) > 0)


def _moved(rng: Rng, mask: Mask, scale: float) -> Mask:
    rows, columns = np.nonzero(mask)
    middle = float(columns.mean()), float(rows.mean())
    away = 0.0 if scale != 1 else float(rng.uniform(0.05, 0.6)) * np.sqrt(len(rows))
    turn = rng.uniform(0, 2 * np.pi)
    how = cv2.getRotationMatrix2D(middle, 0, scale)
    how[:, 2] += away * np.cos(turn), away * np.sin(turn)
    return np.asarray(cv2.warpAffine(mask.astype(np.uint8), how, mask.shape[::-1]) > 0)


def _half(rng: Rng, mask: Mask) -> Mask:
    rows, columns = np.nonzero(mask)
    turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
    along = columns * np.cos(turn) + rows * np.sin(turn)
    kept = along > np.quantile(along, share)
    half = np.zeros_like(mask)
    half[rows[kept], columns[kept]] = True
    return half


def _boxed(mask: Mask) -> Mask:
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def _blob(rng: Rng, scene: Scene) -> Mask:
    height, width = scene.index.shape
    canvas = np.zeros((height, width), np.uint8)
    middle = int(rng.integers(width)), int(rng.integers(height))
    axes = int(rng.uniform(4, 42)), int(rng.uniform(4, 42))
    cv2.ellipse(canvas, middle, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return _wobbly(rng, canvas > 0, 0.1)


# ---- lessons


@dataclass(slots=True)
class Closeups:
    """Pictures uint8 [N, s, s, 4]; kind (0 is none) and color (-100 is not asked) [N]; IoU with the object [N]."""

    pictures: npt.NDArray[np.uint8]
    kinds: npt.NDArray[np.int64]
    colors: npt.NDArray[np.int64]
    ious: npt.NDArray[np.float32]


def closeups(rng: Rng, scene: Scene, each: int) -> Iterator[tuple[Any, ...]]:
    """Yield lessons of one scene: `each` masks of every object, and one of nothing."""
    wanted = [spoilt(rng, scene, k) for k in range(1, len(scene.things) + 1) for _ in range(each)]
    for mask in (*wanted, _blob(rng, scene)):
        area = int(mask.sum())
        if area < 12:
            continue
        shared = np.bincount(scene.index[mask], minlength=len(scene.things) + 1)
        whole = np.bincount(scene.index.ravel(), minlength=len(scene.things) + 1)
        k = int(shared[1:].argmax()) + 1 if scene.things else 0
        named = k > 0 and shared[k] >= 0.4 * area
        kind = 1 + SHAPES.index(scene.things[k - 1].shape) if named else 0
        color = COLOR_NAMES.index(scene.things[k - 1].color) if named else -100
        iou = shared[k] / (area + whole[k] - shared[k]) if named else 0.0
        yield _enlarged(scene.image, mask), kind, color, iou


def _enlarged(image: npt.NDArray[np.uint8], mask: Mask) -> npt.NDArray[np.uint8]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns))) + MORE
    part = np.s_[
        max(0, rows[0] - margin) : rows[-1] + 1 + margin, max(0, columns[0] - margin) : columns[-1] + 1 + margin
    ]
    return as_input(image[part], mask[part].astype(np.uint8) * 255, CLOSE_SIDE)


def overview(rng: Rng, scene: Scene) -> tuple[npt.NDArray[np.uint8], list[tuple[float, ...]]]:
    """Return a photo with some masks [s, s, 4], and (x, y, radius in cells, kind, color, covered or -1) an object."""
    cover = np.zeros(scene.index.shape, np.uint8)
    share, objects = float(rng.choice([0.0, 0.3, 0.7, 1.0])), []
    scale = WIDE_SIDE / max(scene.index.shape) / CELL
    for k, thing in enumerate(scene.things, start=1):
        mask, covered = scene.mask(k), 0.0
        rows, columns = np.nonzero(mask)
        if rng.random() < share:
            drawn = spoilt(rng, scene, k) if rng.random() < 0.5 else _wobbly(rng, mask, float(rng.uniform(0, 0.1)))
            iou = (drawn & mask).sum() / max(1, (drawn | mask).sum())
            covered = 1.0 if iou >= 0.55 else 0.0 if iou < 0.4 else -1.0
            cover[drawn] = 255
            _number(rng, cover, drawn)
        x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        radius = 0.5 * max(np.ptp(columns), np.ptp(rows)) * scale
        objects.append(
            (x * scale, y * scale, radius, SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color), covered)
        )
    if rng.random() < 0.15:
        cover[_blob(rng, scene)] = 255
        objects = [(*one[:5], -1.0) if one[5] == 0 else one for one in objects]  # the blob may lie on it
    return as_input(scene.image, cover, WIDE_SIDE), objects


def _number(rng: Rng, cover: npt.NDArray[np.uint8], mask: Mask) -> None:
    """A number is written at the middle of the mask's box, which covers a little more."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rng.random() < 0.8 and rows.size:
        y, x = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
        cover[max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = 255


def heat(objects: list[tuple[float, ...]], side: int) -> npt.NDArray[np.float32]:
    """Return what `Overview` should say [K, h, w]: 1 at an object's middle, less around it."""
    target = np.zeros((len(SHAPES), side, side), np.float32)
    rows, columns = np.mgrid[:side, :side]
    for x, y, radius, kind, _, _ in objects:
        sigma = max(0.7, radius / 4)
        near = np.exp(-((columns - int(x)) ** 2 + (rows - int(y)) ** 2) / (2 * sigma * sigma))
        target[int(kind)] = np.maximum(target[int(kind)], near)
    return target


# ---- learning


def learn_closeups(lessons: Closeups, epochs: int, rng: Rng) -> Closeup:
    net = Closeup().to(memory_format=torch.channels_last)
    size, count = 128, len(lessons.kinds)
    steps = epochs * (count // size)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    start, step = time.monotonic(), 0
    for _ in range(epochs):
        order = rng.permutation(count)
        for first in range(0, count - size + 1, size):
            chosen = order[first : first + size]
            pictures = _turned(rng, as_tensor(lessons.pictures[chosen]))
            loss = _closeup_loss(net(_fast(pictures)), lessons, chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                print(f"closeups {step}/{steps}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return net.eval()


def _closeup_loss(said: tuple[Tensor, Tensor, Tensor], lessons: Closeups, chosen: npt.NDArray[np.int64]) -> Tensor:
    kinds, colors, ious = (torch.from_numpy(a[chosen]) for a in (lessons.kinds, lessons.colors, lessons.ious))
    return (
        F.cross_entropy(said[0], kinds)
        + 0.5 * F.cross_entropy(said[1], colors)
        + 2 * F.binary_cross_entropy_with_logits(said[2], ious)
    )


def _fast(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)


def _turned(rng: Rng, pictures: Tensor) -> Tensor:
    """Mirror and turn a batch, and make it a little brighter or darker."""
    if rng.random() < 0.5:
        pictures = pictures.flip(3)
    pictures = torch.rot90(pictures, int(rng.integers(4)), (2, 3)).contiguous()
    light = torch.from_numpy(rng.uniform(-0.15, 0.15, (len(pictures), 1, 1, 1)).astype(np.float32))
    pictures[:, :3] += light
    return pictures


Lesson = tuple[npt.NDArray[np.uint8], list[tuple[float, ...]]]


def learn_overviews(lessons: list[Lesson], epochs: int, rng: Rng) -> Overview:
    net = Overview().to(memory_format=torch.channels_last)
    size = 32
    steps = epochs * (len(lessons) // size)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    start, step = time.monotonic(), 0
    for _ in range(epochs):
        order = rng.permutation(len(lessons))
        for first in range(0, len(order) - size + 1, size):
            batch = [lessons[i] for i in order[first : first + size]]
            loss = _overview_loss(net, batch, bool(rng.random() < 0.5), bool(rng.random() < 0.5))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                print(f"overviews {step}/{steps}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return net.eval()


def _overview_loss(net: Overview, batch: list[Lesson], swapped: bool, mirrored: bool) -> Tensor:
    """CenterNet's focal loss on the middles; color and cover are asked at the middles alone. Pictures may be turned."""
    pictures = as_tensor(np.stack([picture for picture, _ in batch]))
    target = torch.from_numpy(np.stack([heat(objects, WIDE_SIDE // CELL) for _, objects in batch]))
    places = [(n, int(o[1]), int(o[0]), o[4], o[5]) for n, (_, objects) in enumerate(batch) for o in objects]
    if swapped:
        pictures, target = pictures.transpose(2, 3).contiguous(), target.transpose(2, 3)
        places = [(n, x, y, color, covered) for n, y, x, color, covered in places]
    if mirrored:
        pictures, target = pictures.flip(3), target.flip(3)
        places = [(n, y, WIDE_SIDE // CELL - 1 - x, color, covered) for n, y, x, color, covered in places]
    kinds, colors, covered = net(_fast(pictures))
    chance = kinds.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = target >= 0.999
    right = -((1 - chance) ** 2 * chance.log())[peak].sum()
    wrong = -((1 - target) ** 4 * chance**2 * (1 - chance).log())[~peak].sum()
    loss = (right + wrong) / max(1, len(places))
    if places:
        n, y, x = (torch.tensor([place[i] for place in places], dtype=torch.long) for i in range(3))
        color = torch.tensor([place[3] for place in places], dtype=torch.long)
        cover = torch.tensor([place[4] for place in places], dtype=torch.float32)
        loss = loss + 0.5 * F.cross_entropy(colors[n, :, y, x], color)
        asked = cover >= 0
        if asked.any():
            loss = loss + F.binary_cross_entropy_with_logits(covered[n, y, x][asked], cover[asked])
    return loss


def lessons(first: int, scenes: int, each: int) -> tuple[Closeups, list[Lesson]]:
    near: list[tuple[Any, ...]] = []
    wide: list[Lesson] = []
    for seed in range(first, first + scenes):
        rng = np.random.default_rng(seed)
        scene = make_scene(seed, SIZE_HW)
        near += closeups(rng, scene, each)
        wide += [overview(rng, scene) for _ in range(2)]
    pictures, kinds, colors, ious = zip(*near, strict=True)
    return (
        Closeups(np.stack(pictures), np.array(kinds), np.array(colors), np.array(ious, np.float32)),
        wide,
    )


def examine(near: Closeup, wide: Overview, scenes: int) -> None:
    """Print how often each answer is right on scenes of no lesson."""
    seen, photos = lessons(HELD_OUT, scenes, 3)
    with torch.inference_mode():
        kinds, colors, ious = near(as_tensor(seen.pictures))
        some = seen.kinds > 0
        print(f"closeups {len(some)}: kind {np.mean(kinds.argmax(1).numpy() == seen.kinds):.3f}", end=", ")
        print(f"color {np.mean(colors.argmax(1).numpy()[some] == seen.colors[some]):.3f}", end=", ")
        print(f"IoU off by {np.abs(ious.sigmoid().numpy() - seen.ious).mean():.3f}", end=", ")
        print(f"IoU >= 0.5 told {np.mean((ious.sigmoid().numpy() >= 0.5) == (seen.ious >= 0.5)):.3f}")
        right: dict[str, list[bool]] = {"present": [], "absent": [], "color": [], "covered": [], "missed": []}
        for picture, objects in photos:
            heats, tints, covers = (part[0] for part in wide(as_tensor(picture[None])))
            for kind in range(len(SHAPES)):
                there = any(o[3] == kind for o in objects)
                said = float(heats[kind].sigmoid().max()) >= 0.35
                right["present" if there else "absent"].append(said == there)
            for x, y, _, _, color, cover in objects:
                right["color"].append(int(tints[:, int(y), int(x)].argmax()) == color)
                if cover >= 0:
                    right["covered" if cover else "missed"].append((float(covers[int(y), int(x)]) > 0) == (cover > 0))
    print(f"overviews {len(photos)}:", ", ".join(f"{k} {np.mean(v):.3f} of {len(v)}" for k, v in right.items()))


def save(near: Closeup, wide: Overview, path: Path) -> None:
    named = {f"{name}.{k}": v for name, net in (("near", near), ("wide", wide)) for k, v in net.state_dict().items()}
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in named.items()}, path)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=900)
    parser.add_argument("--each", type=int, default=3, help="masks of every object")
    parser.add_argument("--epochs", type=int, nargs=2, default=(6, 8), help="of closeups, of overviews")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng, start = np.random.default_rng(0), time.monotonic()
    near_lessons, wide_lessons = lessons(FIRST, arguments.scenes, arguments.each)
    print(f"{len(near_lessons.kinds)} closeups, {len(wide_lessons)} overviews: {time.monotonic() - start:.0f} s")
    near = learn_closeups(near_lessons, arguments.epochs[0], rng)
    save(near, Overview(), arguments.out)
    wide = learn_overviews(wide_lessons, arguments.epochs[1], rng)
    save(near, wide, arguments.out)
    examine(near, wide, 100)


if __name__ == "__main__":
    main()

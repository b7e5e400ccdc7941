"""Draws synthetic photos with exact truth: coloured shapes on plain or busy grounds, deterministic from a seed.

Shape legend: H x W pixels of the photo, N objects, k = 1..N an object's number in the index map (0 is background).
Masks are modal: every pixel belongs to at most one object, so one index map holds all of them. Lengths are fractions of
the photo's side (the geometric mean of height and width), so the same seed-independent rules hold at every size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
IndexMap = npt.NDArray[np.uint8]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 42),
    "green": (44, 168, 66),
    "blue": (48, 84, 222),
    "yellow": (234, 214, 52),
    "purple": (150, 62, 184),
    "orange": (240, 138, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "ring")
SYNONYMS = {"disc": "circle", "disk": "circle", "box": "square", "donut": "ring", "violet": "purple"}
ANYTHING = ("shape", "object")
RADIUS = (9.5 / 128, 30 / 128)  # of the side: from just over two model tokens across to half the photo
MAX_OBJECTS = 8
MAX_HIDDEN = 0.35  # of an object's area may lie behind others


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what a person would call it, and in clips which one it is."""

    color: str
    shape: str
    track: int = 0

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A photo and its truth. `index` uint8 [H, W] numbers the pixels of `things[k - 1]` with k."""

    image: Pixels  # [H, W, 3]
    index: IndexMap  # [H, W]
    things: tuple[Thing, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.index.shape[0], self.index.shape[1]

    def mask(self, number: int) -> npt.NDArray[np.bool_]:
        """Return the visible pixels of object `number` (1..N), bool [H, W]."""
        mask: npt.NDArray[np.bool_] = self.index == number
        return mask


@dataclass(frozen=True, slots=True)
class Placed:
    """An object's geometry in pixels: center (x, y), radius, angle in radians, and its paint."""

    thing: Thing
    center: tuple[float, float]
    radius: float
    angle: float
    paint: tuple[float, float, float]
    shade: tuple[float, float]  # brightness change across the object, along x and y


def matches(phrase: str, thing: Thing) -> bool:
    """Return whether a phrase names the object: colours, shapes, synonyms, "shape" for any. Unknown words never do."""
    words = [SYNONYMS.get(word, word) for word in phrase.lower().split()]
    return bool(words) and all(word in (thing.color, thing.shape, *ANYTHING) for word in words)


def make_scene(
    seed: int,
    size_hw: tuple[int, int] = (480, 640),
    objects: int | None = None,
    radius: tuple[float, float] = RADIUS,
) -> Scene:
    """Draw one photo. The same arguments give the same bytes.

    `objects` fixes how many are tried (0 to 8 by chance otherwise; a crowded photo may end with fewer, since no object
    is hidden by more than 35 %; 255 at most). A third of the objects are distractors: they share a color or a shape
    with another. `radius` is the least and the greatest, of the photo's side; blur is as fine as the least asks for.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.choice(MAX_OBJECTS + 1, p=_COUNT_ODDS)) if objects is None else objects
    things: list[Thing] = []
    for _ in range(count):
        things.append(_pick_thing(rng, things))
    placed = place(rng, things, size_hw, radius)
    return _photograph(rng, _background(rng, size_hw), placed, radius[0] / RADIUS[0])


_COUNT_ODDS = np.array([3, 8, 14, 17, 17, 15, 12, 8, 6]) / 100


def _pick_thing(rng: np.random.Generator, others: Sequence[Thing]) -> Thing:
    color = str(rng.choice(list(COLORS)))
    shape = str(rng.choice(SHAPES))
    if others and rng.random() < 0.5:
        like = others[int(rng.integers(len(others)))]
        color, shape = [(like.color, shape), (color, like.shape), (like.color, like.shape)][int(rng.integers(3))]
    return Thing(color, shape)


def _paint(rng: np.random.Generator, color: str) -> tuple[float, float, float]:
    base = np.array(COLORS[color], np.float64) * rng.uniform(0.85, 1.06) + rng.normal(0, 8, 3)
    red, green, blue = np.clip(base, 0, 255)
    return float(red), float(green), float(blue)


def _random_pose(
    rng: np.random.Generator, thing: Thing, size_hw: tuple[int, int], radii: tuple[float, float] = RADIUS
) -> Placed:
    height, width = size_hw
    side = math.sqrt(height * width)
    radius = side * math.exp(rng.uniform(math.log(radii[0]), math.log(radii[1])))
    margin = min(0.8 * radius, 0.45 * min(height, width))
    center = (float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin)))
    shade = (float(rng.normal(0, 14)), float(rng.normal(0, 14)))
    return Placed(thing, center, radius, float(rng.uniform(0, 2 * math.pi)), _paint(rng, thing.color), shade)


def place(
    rng: np.random.Generator, things: Sequence[Thing], size_hw: tuple[int, int], radii: tuple[float, float]
) -> list[Placed]:
    """Find poses, back to front, that hide no object too much; an object that fits nowhere is left out."""
    placed: list[Placed] = []
    whole: list[int] = []
    index = np.zeros(size_hw, np.uint8)
    for thing in things:
        for _ in range(10):
            pose = _random_pose(rng, thing, size_hw, radii)
            alpha = alpha_of(pose, size_hw) >= 128
            area = int(alpha.sum())
            left = np.bincount(index[~alpha], minlength=len(placed) + 1)[1:]
            if area and all(seen >= (1 - MAX_HIDDEN) * full for seen, full in zip(left, whole, strict=True)):
                placed.append(pose)
                whole.append(area)
                index[alpha] = len(placed)
                break
    return placed


def _outline(pose: Placed) -> list[npt.NDArray[np.float64]]:
    """Return the closed contours of an object in pixels, each [K, 2]; a second one is a hole."""
    corners = {"circle": 64, "ring": 64, "square": 4, "triangle": 3, "star": 10}[pose.thing.shape]
    turn = pose.angle + 2 * math.pi * np.arange(corners) / corners
    reach = np.full(corners, pose.radius)
    if pose.thing.shape == "star":
        reach[1::2] *= 0.45
    unit = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    outer = np.array(pose.center) + unit * reach[:, None]
    if pose.thing.shape != "ring":
        return [outer]
    return [outer, np.array(pose.center) + unit * (0.52 * pose.radius)]


def alpha_of(pose: Placed, size_hw: tuple[int, int]) -> Pixels:
    """Return how much of each pixel the object covers, 0 to 255, edges smooth."""
    alpha = np.zeros(size_hw, np.uint8)
    fixed = [np.round((contour - 0.5) * 16).astype(np.int32) for contour in _outline(pose)]  # 4 fractional bits
    cv2.fillPoly(alpha, fixed, 255, lineType=cv2.LINE_AA, shift=4)
    return alpha


def _background(rng: np.random.Generator, size_hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return a greyish ground: flat, a gradient, blotches or stripes, float32 [H, W, 3]."""
    height, width = size_hw
    ground = np.full((height, width, 3), rng.uniform(35, 215) + rng.uniform(-14, 14, 3), np.float32)
    kind = rng.integers(4)
    if kind >= 1:
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        ground += (rng.uniform(-35, 35) * y + rng.uniform(-35, 35) * x)[..., None].astype(np.float32)
    if kind == 2:
        cells = int(rng.integers(4, 24))
        coarse = rng.normal(0, rng.uniform(5, 16), (cells, cells, 3)).astype(np.float32)
        ground += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if kind == 3:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(8, 50)
        stripes = np.sin(waves * (math.cos(angle) * x + math.sin(angle) * y) + rng.uniform(0, 6))
        ground += (rng.uniform(4, 18) * stripes)[..., None].astype(np.float32)
    return ground


def _photograph(
    rng: np.random.Generator, ground: npt.NDArray[np.float32], placed: Sequence[Placed], detail: float = 1.0
) -> Scene:
    """Paint the objects back to front, then blur and add noise as a camera would; `detail` scales the blur."""
    size_hw = (ground.shape[0], ground.shape[1])
    index = np.zeros(size_hw, np.uint8)
    for number, pose in enumerate(placed, start=1):
        alpha = alpha_of(pose, size_hw)
        _paint_over(ground, alpha, pose)
        index[alpha >= 128] = number
    side = math.sqrt(size_hw[0] * size_hw[1])
    sigma = rng.uniform(0, 0.9) * detail * side / 128
    if sigma > 0.3:
        ground = cv2.GaussianBlur(ground, (0, 0), sigma)
    noise = rng.uniform(0, 9) * rng.standard_normal(ground.shape, np.float32)
    image = np.clip(ground * rng.uniform(0.85, 1.1) + noise, 0, 255).astype(np.uint8)
    return without_slivers(Scene(image, index, tuple(pose.thing for pose in placed)))


def _paint_over(ground: npt.NDArray[np.float32], alpha: Pixels, pose: Placed) -> None:
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not rows.size:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    part = ground[box]
    y, x = np.linspace(-1, 1, part.shape[0])[:, None], np.linspace(-1, 1, part.shape[1])[None]
    shade = (pose.shade[0] * x + pose.shade[1] * y)[..., None]
    cover = alpha[box][..., None].astype(np.float32) / 255
    ground[box] = part * (1 - cover) + (np.array(pose.paint) + shade) * cover


def without_slivers(scene: Scene, share: float = 0.0) -> Scene:
    """Drop objects that show no more than this share of the picture (default: nothing); number the rest 1..N again."""
    shown = np.bincount(scene.index.ravel(), minlength=len(scene.things) + 1) / scene.index.size
    seen = [k for k in range(1, len(scene.things) + 1) if shown[k] > share]
    renumber = np.zeros(256, np.uint8)
    renumber[seen] = np.arange(1, len(seen) + 1)
    return replace(scene, index=renumber[scene.index], things=tuple(scene.things[k - 1] for k in seen))


@dataclass(frozen=True, slots=True)
class _Path:
    """An object moving in a clip: where it starts, pixels and radians per frame, and the frames in which it exists."""

    start: Placed
    velocity: tuple[float, float]
    spin: float

    def at(self, frame: int) -> Placed:
        x, y = self.start.center
        center = (x + frame * self.velocity[0], y + frame * self.velocity[1])
        return replace(self.start, center=center, angle=self.start.angle + frame * self.spin)


def make_clip(
    seed: int,
    n_frames: int = 24,
    size_hw: tuple[int, int] = (240, 320),
    objects: int = 4,
    only: Iterable[int] | None = None,
) -> tuple[Scene, ...]:
    """Draw a short clip of moving shapes. `Thing.track` (from 1) is the same in every frame that shows the object.

    Objects cross, so later ones hide earlier ones for some frames; some enter or leave at the edges. With `only`, just
    these frames of the clip are drawn.
    """
    rng = np.random.default_rng(seed)
    things: list[Thing] = []
    for track in range(1, objects + 1):
        things.append(replace(_pick_thing(rng, things), track=track))
    paths = [_random_path(rng, thing, n_frames, size_hw) for thing in things]
    ground = _background(rng, size_hw)
    look = int(rng.integers(2**31))  # the same blur and light in every frame; noise too, as in a still lamp's flicker
    return tuple(
        _photograph(np.random.default_rng(look), ground.copy(), [path.at(frame) for path in paths])
        for frame in (range(n_frames) if only is None else only)
    )


def _random_path(rng: np.random.Generator, thing: Thing, n_frames: int, size_hw: tuple[int, int]) -> _Path:
    """Return a straight path from one random point to another; every third one starts or ends outside the picture."""
    height, width = size_hw
    start = _random_pose(rng, thing, size_hw)
    goal = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
    outside = -1.2 * start.radius
    if thing.track % 3 == 1:
        start = replace(start, center=(outside, start.center[1]))
    elif thing.track % 3 == 2:
        goal = (goal[0], height - outside)
    steps = max(n_frames - 1, 1)
    velocity = ((goal[0] - start.center[0]) / steps, (goal[1] - start.center[1]) / steps)
    return _Path(start, velocity, float(rng.uniform(-0.08, 0.08)))


def write_scenes(
    out_dir: str | Path,
    n: int,
    seed: int = 0,
    concepts: Mapping[str, str] | None = None,
    size_hw: tuple[int, int] = (480, 640),
) -> Path:
    """Write `n` photos (`scene_0000.jpg` ...) and their COCO truth; returns the path of `truth.json`.

    `concepts` maps class names to phrases ("ball": "circle"); an object gets an annotation for every class whose phrase
    names it. By default each color-shape pair is a class. Masks are compressed RLE, boxes `xywh` and areas in pixels.
    Scene i comes from seed `seed + i`.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if concepts is None:
        concepts = {name: name for name in (f"{color} {shape}" for color in COLORS for shape in SHAPES)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(n):
        scene = make_scene(seed + i, size_hw)
        name = f"scene_{i:04d}.jpg"
        cv2.imwrite(str(folder / name), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append({"id": i + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        annotations += _annotations(scene, i + 1, concepts, first_id=len(annotations) + 1)
    categories = [{"id": c, "name": name} for c, name in enumerate(concepts, start=1)]
    return _write_json(folder / "truth.json", {"images": images, "annotations": annotations, "categories": categories})


def _annotations(scene: Scene, image_id: int, concepts: Mapping[str, str], first_id: int) -> list[dict[str, Any]]:
    from pycocotools import mask as coco

    rows: list[dict[str, Any]] = []
    for number, thing in enumerate(scene.things, start=1):
        rle = coco.encode(np.asfortranarray(scene.mask(number).astype(np.uint8)))
        shared = {
            "image_id": image_id,
            "bbox": [float(v) for v in coco.toBbox(rle)],
            "area": int(coco.area(rle)),
            "iscrowd": 0,
            "segmentation": {"size": list(scene.size_hw), "counts": rle["counts"].decode()},
        }
        for category, phrase in enumerate(concepts.values(), start=1):
            if matches(phrase, thing):
                rows.append({"id": first_id + len(rows), "category_id": category, **shared})
    return rows


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(content), encoding="utf-8")
    return beside.replace(path)

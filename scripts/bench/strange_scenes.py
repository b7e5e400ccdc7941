"""Photos with things that the demo checkpoint was never taught: plus signs, hearts, and circles that are cracked.

"heart" is a word that it was taught to answer with nothing, "plus" and "cracked" are words that it has never seen. (All
words that it was taught to answer with nothing are almost one to its small text encoder: "cross" and "heart" have a
cosine of 0.995, "plus" and "heart" of 0.82. What the text encoder does not tell apart, training beside it hardly can.)
A cracked circle is still a circle. All else is as in the demo's own scenes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.demo.shapes import COLORS, SHAPES, Scene, make_scene, matches

NEW = ("plus", "heart", "cracked circle")
KNOWN = SHAPES
CLASSES = (*NEW, *KNOWN)
SIZE_HW = (240, 320)
MOST_HIDDEN = 0.3  # of what was there before, by a thing drawn over it

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Object = tuple[frozenset[str], Mask]  # the classes it is of, and where it is seen


def strange_scene(seed: int, size_hw: tuple[int, int] = SIZE_HW) -> tuple[Image, list[Object]]:
    """Return a photo and what is in it: up to four of the demo's shapes, and up to three new things over them."""
    rng = np.random.default_rng((seed, 77))
    scene = make_scene(seed, size_hw, objects=int(rng.integers(0, 5)))
    image = scene.image.copy()
    seen = [(frozenset(_known(scene, number)), scene.mask(number)) for number in range(1, len(scene.things) + 1)]
    for _ in range(int(rng.choice(4, p=[0.2, 0.4, 0.3, 0.1]))):
        for _ in range(20):
            drawn = _new_thing(rng, image, str(rng.choice(NEW)))
            if drawn is not None and all(_hidden(mask, drawn[2]) <= MOST_HIDDEN for _, mask in seen):
                image, names, where = drawn
                seen = [(own, mask & ~where) for own, mask in seen]
                seen.append((names, where))
                break
    return image, [(names, mask) for names, mask in seen if mask.sum() >= 40]


def _known(scene: Scene, number: int) -> list[str]:
    return [name for name in KNOWN if matches(name, scene.things[number - 1])]


def _hidden(mask: Mask, over: Mask) -> float:
    return float((mask & over).sum() / max(1, mask.sum()))


def _new_thing(rng: np.random.Generator, image: Image, name: str) -> tuple[Image, frozenset[str], Mask] | None:
    height, width = image.shape[:2]
    side = math.sqrt(height * width)
    radius = side * math.exp(rng.uniform(math.log(0.085), math.log(0.2)))
    margin = min(0.9 * radius, 0.45 * min(height, width))
    center = np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])
    turn = rng.uniform(0, 2 * math.pi)
    alpha = np.zeros((height, width), np.uint8)
    outline = {"plus": _plus, "heart": _heart, "cracked circle": _circle}[name]() * radius
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = np.round((outline @ rotation.T + center - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(alpha, [points], 255, lineType=cv2.LINE_AA, shift=4)
    paint = np.array(list(COLORS.values())[int(rng.integers(len(COLORS)))], np.float64) * rng.uniform(0.85, 1.05)
    layer = np.clip(paint + rng.normal(0, 6, 3), 0, 255)[None, None] * np.ones((height, width, 1))
    if name == "cracked circle":
        layer = _cracked(rng, layer, center, radius)
    blur = rng.uniform(0.3, 0.9) * side / 256
    cover = cv2.GaussianBlur(alpha, (0, 0), blur)[..., None].astype(np.float32) / 255
    layer = cv2.GaussianBlur(layer.astype(np.float32), (0, 0), blur) + rng.normal(0, rng.uniform(0, 7), layer.shape)
    made = np.clip(image * (1 - cover) + layer * cover, 0, 255).astype(np.uint8)
    names = frozenset({name, "circle"} if name == "cracked circle" else {name})
    return made, names, alpha >= 128


def _plus() -> npt.NDArray[np.float64]:
    a, b = 0.32, 0.95
    return np.array([(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a), (-b, a), (-a, a),
                     (-a, b)])  # fmt: skip


def _heart() -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) / 16


def _circle() -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def _cracked(
    rng: np.random.Generator, layer: npt.NDArray[np.float64], center: npt.NDArray[np.float64], radius: float
) -> npt.NDArray[np.float64]:
    """Draw three to five dark jagged lines from near the middle to the rim."""
    made = layer.copy()
    for _ in range(int(rng.integers(3, 6))):
        angle = rng.uniform(0, 2 * math.pi)
        steps = np.linspace(0.0, 1.05, 6)
        angles = angle + rng.normal(0, 0.35, 6) * steps
        points = center + radius * steps[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        fixed = np.round((points - 0.5) * 16).astype(np.int32)
        cv2.polylines(made, [fixed], False, (25, 22, 20), max(1, round(0.1 * radius)), cv2.LINE_AA, 4)
    return made


def write_strange_scenes(folder: Path, count: int, seed: int, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    """Write `count` photos and their COCO truth over `CLASSES`; return the truth's path, beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        image, objects = strange_scene(seed + number, size_hw)
        name = f"scene_{seed + number:07d}.jpg"
        cv2.imwrite(str(folder / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append({"id": number + 1, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        for names, mask in objects:
            rle = masks.encode(mask)
            for class_name in sorted(names):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": CLASSES.index(class_name) + 1,
                        "bbox": list(masks.box_xywh(rle)),
                        "area": masks.area(rle),
                        "iscrowd": 0,
                        "segmentation": {"size": list(size_hw), "counts": rle.counts.decode()},
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    target = folder.with_name(f"{folder.name}.json")
    target.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return target

"""PNG maps: per photo one of instances and one of classes, with a legend.

instance/...png, 16 bit: 0 background, else the number of an instance in instances.jsonl. semantic/...png: 0 background,
else class id + 1, 8 bit or, over 255 classes, 16. Grey pictures without a palette, which every reader gives back as
numbers. A pixel belongs to one instance: where masks overlap, the smaller one is drawn over the larger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.errors import OutputError
from sam3label.export.dataset import Sample, Target
from sam3label.export.photos import image_name, label_stem

_MOST_INSTANCES = 2**16 - 1


def write_maps(target: Target, samples: Iterable[Sample]) -> None:
    """Write instance/SPLIT/, semantic/SPLIT/, images/SPLIT/, legend.json and instances.jsonl."""
    _write_legend(target)
    with ExitStack() as stack:
        lines = stack.enter_context((target.folder / "instances.jsonl").open("w", encoding="utf-8"))
        for sample in samples:
            image, stem = sample.image, label_stem(sample.image.item.id)
            target.placer.place(image, target.folder / "images" / sample.split / image_name(image.item.id))
            drawn = sorted(image.labels, key=lambda label: -label.area)
            instance, semantic = _maps(drawn, image.size_hw, len(target.classes))
            _save(instance, target.folder / "instance" / sample.split / f"{stem}.png")
            _save(semantic, target.folder / "semantic" / sample.split / f"{stem}.png")
            _write_lines(lines, sample, drawn, f"{sample.split}/{stem}.png", target)


def _maps(
    drawn: list[Label], size_hw: tuple[int, int], n_classes: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any]]:
    """Return (instance numbers uint16 [H, W], class ids + 1 [H, W]), painted in order."""
    if len(drawn) > _MOST_INSTANCES:
        raise OutputError(f"a 16-bit map holds {_MOST_INSTANCES} instances, got {len(drawn)}. Use another format.")
    instance = np.zeros(size_hw, np.uint16)
    semantic = np.zeros(size_hw, np.uint8 if n_classes <= 255 else np.uint16)
    for number, label in enumerate(drawn, 1):
        x, y, inner = masks.crop(label.rle)
        window = np.s_[y : y + inner.shape[0], x : x + inner.shape[1]]
        instance[window][inner] = number
        semantic[window][inner] = label.class_id + 1
    return instance, semantic


def _save(pixels: npt.NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_lines(lines: IO[str], sample: Sample, drawn: list[Label], path: str, target: Target) -> None:
    for number, label in enumerate(drawn, 1):
        record = {
            "map": path,
            "image": sample.image.item.id,
            "instance": number,
            "class_id": label.class_id,
            "class": target.classes[label.class_id],
            "score": round(label.score, 6),
            "area": label.area,
            "label_id": label.id,
        }
        lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_legend(target: Target) -> None:
    legend = {
        "info": dict(target.info),
        "semantic": {"0": "background", **{str(i + 1): name for i, name in target.classes.items()}},
        "instance": "0 is background; other values are `instance` in instances.jsonl, per map",
    }
    text = json.dumps(legend, ensure_ascii=False, indent=1) + "\n"
    (target.folder / "legend.json").write_text(text, encoding="utf-8")

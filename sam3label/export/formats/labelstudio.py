"""Label Studio: tasks.json with predictions to import, and the labelling interface to paste.

Masks are brush regions in Label Studio's run-length code, which keeps holes and parts exactly; polygons there have no
holes and one part. Photos are addressed as local files: set LOCAL_FILES_DOCUMENT_ROOT to the dataset's folder.

The code packs bits: 32 for the number of values, 5 for the word size less one, four times 4 for the length of each of
four count sizes less one; then chunks of 1 bit (a run, or literals), 2 bits (which count size), the count less one and
the value. Values are the bytes of an RGBA picture, so a pixel counts four times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from sam3label.core import masks
from sam3label.core.records import Label, LabeledImage, Rle
from sam3label.export.dataset import Sample, Target

_WORD_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
_LONGEST = 1 << 16


def write_labelstudio(target: Target, samples: Iterable[Sample]) -> None:
    """Write tasks.json, label_config.xml and images/..."""
    (target.folder / "label_config.xml").write_text(_interface(target), encoding="utf-8")
    with (target.folder / "tasks.json").open("w", encoding="utf-8") as file:
        file.write("[")
        for number, sample in enumerate(samples):
            file.write(",\n" if number else "\n")
            json.dump(_task(sample, target), file, ensure_ascii=False, separators=(",", ":"))
            target.placer.place(sample.image, target.folder / "images" / sample.image.item.id)
        file.write("\n]\n")


def _interface(target: Target) -> str:
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in target.classes.values())
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}\n  </BrushLabels>\n</View>\n'
    )


def _task(sample: Sample, target: Target) -> dict[str, Any]:
    image = sample.image
    path = quote(f"images/{image.item.id}")
    prediction: dict[str, Any] = {
        "model_version": target.info.get("version", "sam3label"),
        "result": [_region(label, image, target.classes[label.class_id]) for label in image.labels],
    }
    if image.labels:
        prediction["score"] = round(sum(label.score for label in image.labels) / len(image.labels), 6)
    data = {"image": f"/data/local-files/?d={path}", "file_name": image.item.id, "split": sample.split}
    return {"data": data, "predictions": [prediction]}


def _region(label: Label, image: LabeledImage, name: str) -> dict[str, Any]:
    height, width = image.size_hw
    return {
        "id": label.id,
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(label.score, 6),
        "value": {"format": "rle", "rle": list(brush_rle(label.rle)), "brushlabels": [name]},
    }


def brush_rle(rle: Rle) -> bytes:
    """Return a mask in Label Studio's run-length code: 255 in all four channels inside, 0 outside."""
    runs = masks.row_runs(rle) * 4
    chunks = -(-runs // _LONGEST)  # of each run, the last one shorter than the longest
    lengths = np.full(int(chunks.sum()), _LONGEST)
    lengths[np.cumsum(chunks)[chunks > 0] - 1] = (runs - (chunks - 1) * _LONGEST)[chunks > 0]
    values = np.repeat(255 * (np.arange(len(runs)) % 2), chunks)
    kinds = np.searchsorted(1 << np.array(_COUNT_BITS), lengths)
    bits = np.array(_COUNT_BITS)[kinds]
    words = (((1 << 2 | kinds) << bits | (lengths - 1)) << _WORD_BITS) | values
    header = [(int(np.prod(rle.size_hw)) * 4, 32), (_WORD_BITS - 1, 5), *((size - 1, 4) for size in _COUNT_BITS)]
    return _packed(
        np.concatenate(([value for value, _ in header], words)),
        np.concatenate(([size for _, size in header], 1 + 2 + bits + _WORD_BITS)),
    )


def _packed(words: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> bytes:
    """Return words of `sizes` bits in a row, most significant bit first, zeros at the end."""
    places = np.arange(32)[::-1]
    digits = (words[:, None] >> places) & 1
    return np.packbits(digits[places < sizes[:, None]].astype(np.uint8)).tobytes()

"""Label Studio: a JSON list of tasks with brush masks, and the labelling interface that names the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Box, Rle
from sam3label.errors import InputError
from sam3label.validate.coco import read_json
from sam3label.validate.photos import is_file, read_photo
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, class_table, usable_size
from sam3label.validate.report import Findings

KIND = Kind("Label Studio", "segment", lambda asked: asked.image.item.id)
_CHANNELS = 4


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of a folder with tasks.json, or of a JSON that is a list; None if it is none."""
    file = path / "tasks.json" if path.is_dir() else path
    if file.suffix != ".json" or not is_file(file) or not _is_list(file):
        return None
    tasks = read_json(file)
    if not all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tasks):
        raise InputError(f"{file} is no list of Label Studio's tasks: each needs its data.")
    findings = Findings()
    names = _classes(file.parent / "label_config.xml", tasks, findings)
    return OpenedDataset(KIND, class_table(names), _pictures(file.parent, tasks, findings), findings)


def _is_list(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(1000).lstrip()[:1] == b"["
    except OSError:
        return False


def _classes(config: Path, tasks: list[dict[str, Any]], findings: Findings) -> list[str]:
    """Return names in the labelling interface; where that is missing, those that are used."""
    try:
        found = [label.get("value", "") for label in ElementTree.parse(config).getroot().iter("Label")]
        return [name for name in found if name]
    except (OSError, ElementTree.ParseError, ValueError):
        findings.note("Label Studio", "label_config.xml is missing or cannot be read", str(config))
        used = {name for task in tasks for region in _regions(task) if (name := _name(region)) is not None}
        return sorted(used)


def _pictures(root: Path, tasks: list[dict[str, Any]], findings: Findings) -> Iterator[DatasetImage]:
    for task in tasks:
        data, regions = task["data"], _regions(task)
        photo = _photo(root, data.get("image"))
        name = str(data.get("file_name") or (photo.name if photo else data.get("image")))
        if photo is None:
            findings.note("validate", "the photo is not a local file: its presence is unchecked", name)
        sizes = {usable_size(r.get("original_height"), r.get("original_width")) for r in regions}
        if len(sizes) > 1:
            findings.drops("Label Studio", "the regions of a photo state different sizes", name)
        size = next(iter(sizes)) if len(sizes) == 1 else _own_size(photo)
        picture = DatasetImage(str(data.get("split") or "all"), name, name, size, photo)
        picture.instances.extend(_instances(regions, name, findings))
        yield picture


def _own_size(photo: Path | None) -> tuple[int, int]:
    """Return the photo's own size: nothing states that of a task without regions."""
    found = read_photo(photo) if photo else None
    return found.seen_hw if found else (1, 1)


def _photo(root: Path, url: Any) -> Path | None:
    """Return where a local-files address leads."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    local = parse_qs(parts.query).get("d")
    return root / local[0] if local and "local-files" in parts.path else None


def _regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what people annotated, else what was predicted; choices and other things without a place are left out."""
    for key in ("annotations", "predictions"):
        found = task.get(key)
        if isinstance(found, list) and found:
            results = found[0].get("result") if isinstance(found[0], dict) else None
            regions = results if isinstance(results, list) else []
            return [r for r in regions if isinstance(r, dict) and isinstance(r.get("value"), dict)]
    return []


def _name(region: dict[str, Any]) -> str | None:
    labels = region["value"].get("brushlabels")
    return str(labels[0]) if isinstance(labels, list) and labels else None


def _instances(regions: list[dict[str, Any]], where: str, findings: Findings) -> Iterator[tuple[str, Rle | Box]]:
    for region in regions:
        name = _name(region)
        if name is None:
            findings.note("validate", f"a region of type {region.get('type')} is no brush mask: not compared", where)
            continue
        size = usable_size(region.get("original_height"), region.get("original_width"))
        rle = _brush(region["value"].get("rle"), size) if size else None
        if rle is None:
            findings.drops("Label Studio", "a brush mask cannot be decoded, or is not of its photo's size", where)
        else:
            yield name, rle


def _brush(code: Any, size_hw: tuple[int, int]) -> Rle | None:
    """Decode Label Studio's run-length code, which holds an RGBA picture; opaque pixels are inside."""
    try:
        values, counts = _chunks(bytes(code), _CHANNELS * size_hw[0] * size_hw[1])
    except (ValueError, TypeError, IndexError):
        return None
    pixels = np.repeat(np.array(values, dtype=np.uint8), counts)
    return masks.encode(pixels.reshape(*size_hw, _CHANNELS)[..., -1] > 127)


def _chunks(code: bytes, expected: int) -> tuple[list[int], list[int]]:
    """Return values and how often each stands there. Raises ValueError where they do not add up to `expected`."""
    bits = _Bits(code)
    total, word = bits.take(32), bits.take(5) + 1
    lengths = [bits.take(4) + 1 for _ in range(4)]
    if total != expected:
        raise ValueError(f"{expected} values expected, got {total}")
    values = list[int]()
    counts = list[int]()
    done = 0
    while done < total:
        is_run = bits.take(1)
        count = bits.take(lengths[bits.take(2)]) + 1
        values += [bits.take(word)] if is_run else [bits.take(word) for _ in range(count)]
        counts += [count] if is_run else [1] * count
        done += count
    if done != total:
        raise ValueError(f"{total} values expected, got {done}")
    return values, counts


class _Bits:
    """A row of bits, most significant first. Raises IndexError at its end."""

    def __init__(self, code: bytes) -> None:
        self.code, self.at = code, 0

    def take(self, count: int) -> int:
        end = self.at + count
        if end > 8 * len(self.code):
            raise IndexError("the code ends early")
        first, last = self.at // 8, -(-end // 8)
        whole = int.from_bytes(self.code[first:last], "big")
        self.at = end
        return (whole >> (8 * last - end)) & ((1 << count) - 1)

"""CVAT for images 1.1: annotations.xml with masks, polygons or boxes, beside images/; as zips or unpacked."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TypeVar
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Box, Rle
from sam3label.core.whole_folder import read_marker
from sam3label.errors import InputError
from sam3label.export.formats import cvat
from sam3label.validate.coco import read_mask
from sam3label.validate.photos import is_file
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, class_table, usable_size
from sam3label.validate.report import Findings

T = TypeVar("T")
KIND = Kind("CVAT for images 1.1", "segment", lambda asked: asked.image.item.id)
_SPLITS = {"Train": "train", "Validation": "val", "Test": "test"}
_SHAPES = ("mask", "polygon", "box")
_OTHER = ("polyline", "points", "ellipse", "cuboid", "skeleton")
_BROKEN = (BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error)


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of a zip, of an annotations.xml, of its folder, or of a folder of such; None if it is none."""
    if not (zips := _zips(path)):
        return _opened(_files(path))
    scratch = tempfile.TemporaryDirectory(prefix="sam3label-")
    try:
        return _opened(_unpack(zips, Path(scratch.name)), scratch)
    except BaseException:
        scratch.cleanup()
        raise


def _opened(files: Sequence[Path], scratch: tempfile.TemporaryDirectory[str] | None = None) -> OpenedDataset | None:
    if not files:
        return None
    findings = Findings()
    names = list(dict.fromkeys(name for file in files for name in _read(file, cvat.label_names)))
    pictures = (picture for file in files for picture in _pictures(file, findings))
    return OpenedDataset(KIND, class_table(names), pictures, findings, scratch)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".xml" else []
    own = path / cvat.ANNOTATIONS
    return [own] if is_file(own) else sorted(path.glob(f"*/{cvat.ANNOTATIONS}"))


def _zips(path: Path) -> list[Path]:
    """Return the subsets' zips. Raises `InputError` for a damaged one where it can be nothing else."""
    if path.is_file():
        return [path] if path.suffix == ".zip" and _is_subset(path, meant=True) else []
    meant = (read_marker(path) or {}).get("format") == "cvat"
    return [file for file in sorted(path.glob("*.zip")) if is_file(file) and _is_subset(file, meant)]


def _is_subset(path: Path, meant: bool) -> bool:
    try:
        with ZipFile(path) as archive:
            return cvat.ANNOTATIONS in archive.namelist()
    except (OSError, *_BROKEN) as error:
        if meant:
            raise InputError(f"{path} cannot be opened: {error}.") from error
        return False


def _unpack(zips: Sequence[Path], folder: Path) -> list[Path]:
    """Unpack each zip into a folder of its name; return the XML files. Raises `InputError`."""
    for path in zips:
        try:
            with ZipFile(path) as archive:
                size, free = sum(entry.file_size for entry in archive.infolist()), shutil.disk_usage(folder).free
                if size > free:
                    raise InputError(
                        f"{path} would take {size / 1e9:.1f} GB unpacked, and {folder.parent} has {free / 1e9:.1f} GB. "
                        "Set TMPDIR to a larger disk, or unpack it yourself and give that folder."
                    )
                archive.extractall(folder / path.stem)
        except (OSError, *_BROKEN) as error:
            raise InputError(f"{path} cannot be unpacked: {error}.") from error
    return [folder / path.stem / cvat.ANNOTATIONS for path in zips]


def _read(file: Path, reader: Callable[[IO[bytes]], Iterator[T]]) -> Iterator[T]:
    """Yield what a reader finds in a file. Raises `InputError` where the XML is broken."""
    try:
        with file.open("rb") as opened:
            yield from reader(opened)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not CVAT's XML, or was cut off: {error}") from error


def _pictures(file: Path, findings: Findings) -> Iterator[DatasetImage]:
    for image in _read(file, partial(cvat.elements, tags=("image",))):
        yield _picture(image, file, findings)


def _picture(image: ElementTree.Element, file: Path, findings: Findings) -> DatasetImage:
    values, subset = image.attrib, image.get("subset", "")
    name = values.get("name", "")
    place = file.parent / "images" / subset / name
    photo = place if is_file(place) else file.parent / "images" / name
    size = usable_size(values.get("height"), values.get("width"))
    split = _SPLITS.get(subset, subset) or file.parent.name
    return DatasetImage(split, name, name, size, photo, list(_instances(image, size, name, findings)))


def _instances(
    image: ElementTree.Element, size: tuple[int, int] | None, where: str, findings: Findings
) -> Iterator[tuple[str, Rle | Box]]:
    groups: dict[tuple[str, str], list[Rle]] = {}
    for number, element in enumerate(image):
        if element.tag in _OTHER:
            findings.note("validate", f"a {element.tag} is no mask: not compared", where)
        if element.tag not in _SHAPES or size is None:
            continue
        rle = _shape(element.tag, element.attrib, size)
        if rle is None:
            findings.drops("every reader", f"a {element.tag} cannot be read", where)
            continue
        group = element.get("group_id") or "0"
        alone = f"alone {number}"
        groups.setdefault((element.get("label", ""), alone if group == "0" else group), []).append(rle)
    yield from ((name, masks.union(parts)) for (name, _), parts in groups.items())


def _shape(tag: str, values: Mapping[str, str], size: tuple[int, int]) -> Rle | None:
    try:
        if tag == "mask":
            return _mask(values, size)
        if tag == "box":
            x1, y1, x2, y2 = (float(values[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
            return read_mask([[x1, y1, x2, y1, x2, y2, x1, y2]], size)
        points = [float(v) for point in values["points"].split(";") for v in point.split(",")]
        return read_mask([points], size)
    except (KeyError, ValueError, OverflowError):
        return None


def _mask(values: Mapping[str, str], size: tuple[int, int]) -> Rle | None:
    """Row-major run lengths inside the box, background first."""
    left, top, width, height = (int(values[k]) for k in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in values["rle"].split(",")], dtype=np.int64)
    inside = left >= 0 and top >= 0 and 0 < width <= size[1] - left and 0 < height <= size[0] - top
    if not inside or (runs < 0).any() or int(runs.sum()) != width * height:
        return None
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return masks.paste(left, top, pixels, size)

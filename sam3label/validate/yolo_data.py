"""Where an Ultralytics data file leads: its classes, its splits, and which photos Ultralytics finds there."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sam3label.errors import InputError
from sam3label.validate import ultralytics_reader
from sam3label.validate.photos import is_file
from sam3label.validate.report import Findings

WHO = "Ultralytics"
IMAGE_SUFFIXES = frozenset(
    ["avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"]
)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "path": (str,),
    "train": (str, list),
    "val": (str, list),
    "test": (str, list),
    "names": (list, dict),
}
_REFUSED = "the data file is refused: "


@dataclass(frozen=True, slots=True)
class YoloSplit:
    """The photos of one split, and the label file Ultralytics will look for beside each."""

    name: str
    image_root: Path
    images: tuple[Path, ...]
    names: Mapping[int, str]
    source: str  # what the data file says, for messages

    def label_path(self, image: Path) -> Path:
        """Return a photo's label file: the last `images` folder in the path becomes `labels`, the extension .txt."""
        before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
        where = f"{before}{os.sep}labels{os.sep}{after}" if found else str(image)
        return Path(where.rpartition(".")[0] + ".txt")

    def title(self, image: Path) -> str:
        return image.relative_to(self.image_root).as_posix() if image.is_relative_to(self.image_root) else str(image)


def find(dataset: Path, findings: Findings) -> list[YoloSplit]:
    """Return the splits of a data.yaml or of a folder that holds one (or images/ and labels/); [] if there are none.

    Raises `InputError` when the file cannot be read as one, or leads nowhere.
    """
    path = dataset if dataset.suffix in (".yaml", ".yml") else _data_yaml(dataset)
    if path is None:
        return _bare_folder(dataset)
    data = _load(path)
    classes = _classes(path, data, findings)
    _check_keys(path, data, findings)
    root = _root(path, data, findings)
    splits: list[YoloSplit] = []
    lost: list[Path] = []
    for name in ("train", "val", "test"):
        places = data.get(name) or (data.get("validation") if name == "val" else None)
        for place in places if isinstance(places, list) else [places] if places else []:
            found = _split(name, str(place), root, classes, in_list=isinstance(places, list))
            if isinstance(found, YoloSplit):
                splits.append(found)
            else:
                lost.append(found)
                report = findings.note if name == "test" else findings.drops
                report(WHO, f"{_REFUSED}{name}: leads to a place that does not exist", f"{place} is {found}")
    if lost and not splits:
        raise InputError(f"{path}: train:, val: and test: lead to {lost[0]}, which does not exist.")
    return splits


def skipped(split: YoloSplit) -> Iterator[Path]:
    """Yield photos below the split that Ultralytics passes over: their name, or a folder's, begins with a dot."""
    if split.image_root.is_dir():
        for folder, _, names in os.walk(split.image_root):
            inside = Path(folder).relative_to(split.image_root).parts
            for name in names:
                if _is_image(name) and any(part.startswith(".") for part in (*inside, name)):
                    yield Path(folder) / name


def _load(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig")) if is_file(path) else None
    except RecursionError as error:
        raise InputError(f"{path} is not an Ultralytics data file: it is nested too deeply.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not an Ultralytics data file: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not an Ultralytics data file: it holds no keys.")
    return data


def _classes(path: Path, data: Mapping[str, Any], findings: Findings) -> dict[int, str]:
    """Return names by number. Where the file contradicts itself its own names count."""
    names, count = data.get("names"), _whole(data.get("nc"))
    if "nc" in data and count is None:
        findings.drops(WHO, f"{_REFUSED}nc: is not a whole number", str(path))
    if names is None and count is not None:
        return {i: f"class_{i}" for i in range(min(max(count, 0), 100_000))}
    try:
        pairs = enumerate(names) if isinstance(names, list) else names.items()  # type: ignore[union-attr]
        classes = {int(k): str(v) for k, v in pairs}
    except (AttributeError, ValueError, TypeError) as error:
        what = "it has neither names: nor nc:" if names is None else "names: is no list and no table of numbers"
        raise InputError(f"{path} is not an Ultralytics data file: {what}") from error
    if count is not None and count != len(classes):
        findings.drops(WHO, f"{_REFUSED}nc: is {count} and names: has {len(classes)}", str(path))
    if not classes:
        findings.drops(WHO, f"{_REFUSED}names: is empty", str(path))
    if sorted(classes) != list(range(len(classes))):
        findings.drops(WHO, "class numbers in names must run from 0 without gaps", str(path))
    return dict(sorted(classes.items()))


def _whole(value: Any) -> int | None:
    try:
        return int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _check_keys(path: Path, data: Mapping[str, Any], findings: Findings) -> None:
    for key, types in _TYPES.items():
        if data.get(key) is not None and not isinstance(data[key], types):
            findings.drops(WHO, f"{_REFUSED}{key}: is a {type(data[key]).__name__}", str(path))
    for key in ("train", "val"):
        if not data.get(key) and not (key == "val" and data.get("validation")):
            findings.drops(WHO, f"{_REFUSED}there is no {key}:", str(path))


def _root(path: Path, data: Mapping[str, Any], findings: Findings) -> Path:
    """Return the folder from which the splits are counted; the file's own where `path:` leads nowhere."""
    own, stated = path.parent.absolute(), data.get("path")
    if not stated or not isinstance(stated, str):
        return own
    if Path(stated).exists():
        return Path(stated).absolute()
    library = ultralytics_reader.datasets_folder()
    if library is not None and not Path(stated).is_absolute() and (library / stated).exists():
        return library / stated
    where = "" if Path(stated).is_absolute() else " from here (it counts from the working directory, not from the file)"
    findings.drops(WHO, f"{_REFUSED}path: leads to nothing{where}", f"path: {stated}")
    return (own / stated).absolute() if (own / stated).is_dir() else own


def _split(name: str, place: str, root: Path, classes: Mapping[int, str], in_list: bool) -> YoloSplit | Path:
    """Return the split at `place`, or the path at which nothing is."""
    where = (root / place).resolve()
    if not where.exists() and place.startswith("../") and not in_list:
        where = (root / place[3:]).resolve()
    if where.is_dir():
        return YoloSplit(name, where, _images_in(where), classes, place)
    if is_file(where):
        return YoloSplit(name, where.parent, _listed(where), classes, place)
    return where


def _data_yaml(folder: Path) -> Path | None:
    found = sorted(p for p in [*folder.glob("*.yaml"), *folder.glob("*.yml")] if p.is_file())
    return next((p for p in found if p.stem == "data"), found[0] if found else None)


def _bare_folder(folder: Path) -> list[YoloSplit]:
    """Return the splits of images/ and labels/ without a data file: classes are numbers."""
    if not ((folder / "images").is_dir() and (folder / "labels").is_dir()):
        return []
    root = (folder / "images").resolve()
    seen = [number for path in (folder / "labels").rglob("*.txt") if is_file(path) for number in _numbers(path)]
    names = {i: str(i) for i in range(min(max(seen, default=0), 100_000) + 1)}
    return [YoloSplit("all", root, _images_in(root), names, "images")]


def _numbers(path: Path) -> Iterator[int]:
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        tokens = line.split()
        if tokens and tokens[0].isascii() and tokens[0].replace(".", "", 1).isdigit():
            yield int(float(tokens[0]))


def _images_in(folder: Path) -> tuple[Path, ...]:
    """Return photos as Ultralytics finds them: in all folders below, links too, but in none beginning with a dot."""
    names = glob.iglob(str(Path(glob.escape(str(folder))) / "**" / "*.*"), recursive=True)  # noqa: PTH207 - as it does
    return tuple(Path(name) for name in sorted(set(names)) if _is_image(name))


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _listed(path: Path) -> tuple[Path, ...]:
    """Resolve a list's line: `./` is the list's own folder; other relative paths count from the working directory."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").strip().splitlines()
    places = (path.parent / line[2:] if line.startswith("./") else Path(line).absolute() for line in lines)
    return tuple(sorted(place for place in places if _is_image(place.name)))

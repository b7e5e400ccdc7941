"""Ultralytics' text format by the rules of its own verifier, and by that verifier itself where it is installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sam3label.core import outlines
from sam3label.core.records import Box, Rle
from sam3label.core.text import count
from sam3label.validate import ultralytics_reader
from sam3label.validate.photos import PhotoHeader, check_photo, is_file, read_photo
from sam3label.validate.report import Consumer, Findings, Split
from sam3label.validate.yolo_data import IMAGE_SUFFIXES, WHO, YoloSplit, skipped

Points = npt.NDArray[np.float32]

LOADED_AT_ONCE = 1000  # photos: its dataset class keeps everything it has read
RESAMPLED_POINTS = 1000  # to which it brings every ring before it is drawn
_FEWEST_PX = 10
_IMAGE = "the whole photo is ignored: "


@dataclass(slots=True)
class Rows:
    """One label file, parsed. `task` is what its rows are; None when it has none."""

    classes: list[int] = field(default_factory=list)
    shapes: list[Points] = field(default_factory=list)
    task: str | None = None
    fault: str | None = None  # why Ultralytics ignores the whole photo


@dataclass(slots=True)
class CheckedSplit:
    """What a split states: counts, photos by the task of their rows, and how many photos have a label file."""

    facts: Split
    tasks: Counter[str] = field(default_factory=Counter)
    labelled: int = 0


def check(split: YoloSplit, findings: Findings) -> CheckedSplit:
    """Go through every photo and row once."""
    checked = CheckedSplit(Split(split.name, images=len(split.images)))
    _check_names(split, findings)
    _check_shared_labels(split, findings)
    for image in split.images:
        _check_image(split, image, checked, findings)
    for path in skipped(split):
        findings.drops(WHO, "photos whose name, or folder, begins with a dot are skipped", split.title(path))
    if not split.images:
        findings.drops(WHO, "there is no photo: training stops", split.source)
    elif split.name != "test":
        _check_any_labels(split, checked, findings)
    return checked


def _check_image(split: YoloSplit, image: Path, checked: CheckedSplit, findings: Findings) -> None:
    title = split.title(image)
    if photo := check_photo(image, title, None, findings):
        _check_taken(photo, title, findings)
    rows = read_rows(split.label_path(image), len(split.names))
    if rows is None:
        _report_unlabelled(image, split.label_path(image), title, findings)
        checked.facts.empty += 1
        return
    checked.labelled += 1
    if rows.fault:
        findings.drops(WHO, _IMAGE + rows.fault, title)
        return
    checked.facts.empty += not rows.classes
    checked.facts.instances.update(split.names.get(c, str(c)) for c in rows.classes)
    _check_rows(rows, title, findings)
    if rows.task:
        checked.tasks[rows.task] += 1


def read_rows(path: Path, n_classes: int) -> Rows | None:
    """Parse a label file as Ultralytics does; None if it is not there."""
    if not is_file(path):
        return None
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        tokens = [line.split() for line in text.splitlines() if line.strip()]
        lengths = {len(t) for t in tokens}
        rows = Rows(task=_task(lengths))
        rows.fault = _fault_of_lengths(lengths)
        if rows.fault is None:
            with np.errstate(all="ignore"):  # what overflows 32 bits is infinite, and reported as that
                _parse(tokens, rows, n_classes)
    except (ValueError, OverflowError):
        return Rows(fault="a row holds something that is not a number")
    except OSError:
        return Rows(fault="its label file cannot be read")
    return rows


def instances(split: YoloSplit, image: Path, size_hw: tuple[int, int], task: str) -> list[tuple[str, Rle | Box]]:
    """Return (class name, mask or box in pixels) of one photo, as Ultralytics draws them for a task."""
    rows = read_rows(split.label_path(image), len(split.names))
    if rows is None or rows.fault:
        return []
    names = [split.names.get(number, str(number)) for number in rows.classes]
    scale = np.array(size_hw[::-1], dtype=np.float32)
    if rows.task == "detect":
        return [(n, _box(shape * scale)) for n, shape in zip(names, rows.shapes, strict=True)]
    rings = _resampled(rows.shapes) if task == "segment" else rows.shapes
    return [(n, outlines.from_contour(ring * scale, size_hw)) for n, ring in zip(names, rings, strict=True)]


def check_orphans(splits: Sequence[YoloSplit], findings: Findings) -> None:
    """Label files that belong to no photo: in the wrong folder, with another extension's case, or left over."""
    expected = {split.label_path(image) for split in splits for image in split.images}
    names: defaultdict[str, list[str]] = defaultdict(list)
    for split in splits:
        for image in split.images:
            names[image.stem].append(split.title(image))
    for root in sorted({_label_root(split) for split in splits}):
        for path in _label_files(root):
            if path not in expected and path.name != "classes.txt" and _has_rows(path):
                _report_orphan(path, names, findings)


def _report_orphan(path: Path, names: dict[str, list[str]], findings: Findings) -> None:
    if (image := _unlisted_photo(path)) is not None:
        findings.note(WHO, "a labelled photo lies in a folder that the data file does not name", str(image))
    elif names.get(path.stem):
        what = "a label file is not where its photo's is looked for: never read"
        findings.drops(WHO, what, f"{path} (for {names[path.stem][0]}?)")
    else:
        findings.drops(WHO, "labels without a photo are never read", str(path))


# ------------------------------------------------------------------------------------------------------------ reading


def _task(lengths: set[int]) -> str | None:
    if not lengths:
        return None
    if lengths == {5}:
        return "detect"
    return "obb" if lengths == {9} else "segment"


def _fault_of_lengths(lengths: set[int]) -> str | None:
    segments = any(n > 6 for n in lengths)
    if segments and 5 in lengths:
        return "a box row among segment rows"
    if not segments and lengths - {5}:
        return "a row is neither a box (5 numbers) nor a polygon (at least 3 points)"
    if segments and any(n % 2 == 0 for n in lengths):
        return "a polygon has an x without a y"
    return "a polygon has no point" if 1 in lengths else None


def _parse(tokens: list[list[str]], rows: Rows, n_classes: int) -> None:
    for row in tokens:
        number, shape = np.float32(row[0]), np.array(row[1:], dtype=np.float32).reshape(-1, 2)
        box = _extent(shape) if rows.task != "detect" else shape
        if not np.isfinite(shape).all() or box.max() > 1.01 or box.min() < -0.01 or box[1].min() < 0:
            rows.fault = "a coordinate is outside 0 to 1"
        elif not np.isfinite(number) or number % 1 or number < 0:
            rows.fault = "a class is not a whole number from 0"
        elif number >= n_classes:
            rows.fault = f"a class number is not in names (0 to {n_classes - 1})"
        rows.classes.append(int(number) if np.isfinite(number) else -1)
        rows.shapes.append(shape)


def _extent(ring: Points) -> Points:
    """Return center, and width and height, of the box around a ring: [2, 2]."""
    low, high = ring.min(axis=0), ring.max(axis=0)
    box: Points = np.stack([(low + high) / 2, high - low])
    return box


def _box(shape: Points) -> Box:
    (cx, cy), (w, h) = shape.tolist()
    return cx - w / 2, cy - h / 2, w, h


def _resampled(rings: list[Points]) -> list[Points]:
    """Return rings as the training code draws them: brought to one number of points along their border, in 32 bits."""
    longest = max((len(ring) for ring in rings), default=0)
    count = longest + 1 if longest > RESAMPLED_POINTS else RESAMPLED_POINTS
    return [_with_points(ring, count) for ring in rings]


def _with_points(ring: Points, count: int) -> Points:
    if len(ring) == count:
        return ring
    closed = np.vstack([ring, ring[:1]])
    own = np.arange(len(closed))
    if len(closed) < count:  # it keeps its own corners, and gets more between them
        at = np.sort(np.concatenate([np.linspace(0, own[-1], count - len(closed)), own]))
    else:
        at = np.linspace(0, own[-1], count)
    return np.stack([np.interp(at, own, closed[:, axis]) for axis in (0, 1)], axis=1).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- rules


def _check_names(split: YoloSplit, findings: Findings) -> None:
    for name in (n for n, times in Counter(split.names.values()).items() if times > 1):
        findings.note(WHO, "two classes have the same name", name)


def _check_shared_labels(split: YoloSplit, findings: Findings) -> None:
    owners = Counter(split.label_path(image) for image in split.images)
    for image in split.images:
        if owners[split.label_path(image)] > 1:
            findings.drops(WHO, "photos that differ in extension alone share one label file", split.title(image))


def _check_any_labels(split: YoloSplit, checked: CheckedSplit, findings: Findings) -> None:
    if not checked.labelled:
        findings.drops(WHO, "no photo of the split has a label file: training stops, or learns nothing", split.source)
    elif not checked.facts.instances and split.name != "val":
        findings.drops(WHO, "no label file of the split has a row: there is nothing to learn", split.source)


def _check_taken(photo: PhotoHeader, title: str, findings: Findings) -> None:
    if min(photo.seen_hw) < _FEWEST_PX:
        findings.drops(WHO, "photos under 10 pixels are refused", title)
    if photo.format.lower() not in IMAGE_SUFFIXES | {"jpeg2000"}:
        findings.drops(WHO, f"photos of the kind {photo.format} are refused, whatever they are called", title)


def _check_rows(rows: Rows, title: str, findings: Findings) -> None:
    keys = Counter((c, s.tobytes()) for c, s in zip(rows.classes, rows.shapes, strict=True))
    if repeated := sum(keys.values()) - len(keys):
        findings.drops(WHO, "the same row twice: one is removed", title, repeated)
    for shape in rows.shapes:
        extent = shape[1] if rows.task == "detect" else np.ptp(shape, axis=0)
        if extent.min() <= 0:
            findings.drops(WHO, "the box has no area: removed by augmentation", title)
        elif rows.task != "detect" and len(shape) < 3:
            findings.drops(WHO, "a polygon has fewer than 3 points: its mask is a line", title)


def _report_unlabelled(image: Path, place: Path, title: str, findings: Findings) -> None:
    if os.path.lexists(place):
        what = "what lies in the place of the label file is no file (a folder, or a broken link): taken for background"
        findings.drops(WHO, what, title)
    elif _has_rows(image.with_suffix(".txt")):
        findings.drops(WHO, "a label file lies beside its photo, where it is not looked for: never read", title)
    else:
        findings.note(WHO, "no label file: taken for background (an empty file says so)", title)


# ------------------------------------------------------------------------------------------------------------ orphans


def _label_root(split: YoloSplit) -> Path:
    """Return the folder under which all label files of a split lie."""
    probe = str(split.image_root / "x.jpg")
    before, found, _ = probe.rpartition(f"{os.sep}images{os.sep}")
    return Path(before) / "labels" if found else split.image_root


def _label_files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in sorted(names) if name.lower().endswith(".txt"))


def _has_rows(path: Path) -> bool:
    """Return whether the first line is a label row; lists of photos and notes have none."""
    if not is_file(path):
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            tokens = file.readline(100_000).split()
        return len(tokens) >= 5 and all(np.isfinite(float(token)) for token in tokens)
    except (OSError, ValueError):
        return False


def _unlisted_photo(path: Path) -> Path | None:
    """Return the photo a label file is for, where one lies at the mirrored place."""
    before, found, after = str(path.with_suffix("")).rpartition(f"{os.sep}labels{os.sep}")
    if not found or path.suffix != ".txt":
        return None
    stem = Path(f"{before}{os.sep}images{os.sep}{after}")
    if stem.name.startswith(".") or any(part.startswith(".") for part in Path(after).parts):
        return None
    return next((p for s in IMAGE_SUFFIXES if is_file(p := stem.with_name(f"{stem.name}.{s}"))), None)


# ---------------------------------------------------------------------------------------------------------- consumers


def consume(split: YoloSplit, task: str, facts: Split, findings: Findings) -> Consumer:
    """Load the split with Ultralytics' own dataset class, in a shadow of links: it writes caches and repairs JPEGs."""
    if not ultralytics_reader.installed():
        return Consumer(f"Ultralytics ({split.name})", "not installed: its rules were applied, its code was not run")
    if not split.images or not split.names:
        return Consumer(f"Ultralytics ({split.name})", "no photos to load")
    photos, read, stated = 0, 0, facts.instances.total()
    for start in range(0, len(split.images), LOADED_AT_ONCE):
        part = split.images[start : start + LOADED_AT_ONCE]
        with tempfile.TemporaryDirectory(prefix="sam3label-validate-") as folder:
            shadows = _shadow(split, part, Path(folder))
            answer = ultralytics_reader.read(Path(folder) / "images", dict(split.names), task)
        name = f"Ultralytics {answer.version} {task} ({split.name})"
        if answer.failure:
            findings.drops(WHO, f"its dataset class fails: {answer.failure}", split.source)
            return Consumer(name, "fails")
        photos, read = photos + len(answer.photos), read + answer.instances
        for image in (image for shadow, image in shadows.items() if shadow not in answer.photos):
            findings.drops(WHO, "its verifier ignores photos", split.title(image))
    if read < stated:
        findings.drops(WHO, "its dataset class reads fewer instances than there are rows", split.source, stated - read)
    return Consumer(
        name, f"{photos} of {count(len(split.images), 'photo')} and {read} of {count(stated, 'instance')} read"
    )


def _shadow(split: YoloSplit, images: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Links to the photos and labels under numbered names; JPEGs that would be repaired in place are copied."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    shadows = {}
    for number, image in enumerate(images):
        link = folder / "images" / f"{number}{image.suffix.lower()}"
        shadows[link.name] = image
        if not is_file(image):  # a pipe would hold it for ever
            link.write_bytes(b"")
        elif _would_be_repaired(image):
            shutil.copyfile(image, link)
        else:
            link.symlink_to(image.absolute())
        label = split.label_path(image)
        if is_file(label):
            (folder / "labels" / f"{number}.txt").symlink_to(label.absolute())
    return shadows


def _would_be_repaired(path: Path) -> bool:
    """Return whether the verifier would rewrite the file: a JPEG without its end marker, whatever it is called."""
    photo = read_photo(path)
    if photo is None or photo.format not in ("JPEG", "MPO"):
        return False
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() != b"\xff\xd9"

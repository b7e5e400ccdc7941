"""MOTChallenge and MOTS: a gt.txt a video, with a box or a mask a line."""

from __future__ import annotations

import configparser
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam3label.core import masks
from sam3label.core.records import Box, Label, Rle
from sam3label.core.whole_folder import read_marker
from sam3label.validate.coco import read_mask
from sam3label.validate.photos import is_file, read_photo
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, class_table, usable_size
from sam3label.validate.report import Findings
from sam3label.validate.roundtrip import ExportedImage, uncovered

WHO = "TrackEval"
_LONGEST = 1_000_000  # frames of a video


def _key(asked: ExportedImage) -> tuple[str, int]:
    """Return the key of a frame. Frames are numbered anew there, in the order of what was labelled."""
    return asked.video, asked.place + 1


def _best_on_top(labels: Sequence[Label]) -> list[Label]:
    return list(uncovered(sorted(labels, key=lambda label: (-label.score, label.id))))


MOT = Kind("MOTChallenge", "detect", _key, videos_only=True)
MOTS = Kind("MOTS", "segment", _key, videos_only=True, shown=_best_on_top)


@dataclass(frozen=True, slots=True)
class _Video:
    """A sequence's folder, with what its seqinfo.ini states."""

    folder: Path
    split: str
    name: str
    names: dict[int, str]
    size_hw: tuple[int, int] | None
    length: int
    suffix: str


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of a folder with SPLIT/VIDEO/gt/gt.txt; None if it is none."""
    files = sorted(p for p in path.glob("*/**/gt/gt.txt") if is_file(p)) if path.is_dir() else []
    if not files:
        return None
    findings = Findings()
    videos = [_video(path, file.parent.parent, findings) for file in files]
    _check_seqmaps(path, videos, findings)
    kind = _kind(path, files)
    classes = {i: name for video in videos for i, name in video.names.items()}
    pictures = (picture for video in videos for picture in _pictures(video, kind, findings))
    return OpenedDataset(kind, classes, pictures, findings)


def _kind(path: Path, files: list[Path]) -> Kind:
    """Tell the kind by the first line there is: commas, or blanks; by the marker where all are empty."""
    for file in files:
        if lines := _lines(file):
            return MOT if "," in lines[0] else MOTS
    return MOTS if (read_marker(path) or {}).get("format") == "mots" else MOT


def _video(root: Path, folder: Path, findings: Findings) -> _Video:
    split, *parts = folder.relative_to(root).parts
    name = "/".join(parts) or split
    info = _seqinfo(folder / "seqinfo.ini")
    if info is None:
        findings.drops(WHO, "seqinfo.ini is missing or cannot be read", name)
        info = {}
    length, suffix = info.get("seqlength", ""), info.get("imext", "")
    names = class_table(_lines(folder / "gt" / "labels.txt"), 1)
    if not names:
        findings.note("every reader", "gt/labels.txt is missing: classes have no names", name)
    seen = sorted(p for p in (folder / "img1").glob("*") if is_file(p))
    size = usable_size(info.get("imheight"), info.get("imwidth")) if info else _own_size(seen)
    frames = int(length) if length.isdecimal() and int(length) <= _LONGEST else len(seen)
    return _Video(folder, split, name, names, size, frames, suffix or (seen[0].suffix if seen else ".jpg"))


def _own_size(frames: list[Path]) -> tuple[int, int] | None:
    photo = read_photo(frames[0]) if frames else None
    return photo.seen_hw if photo else None


def _seqinfo(path: Path) -> dict[str, str] | None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
        return dict(parser["Sequence"])
    except (OSError, ValueError, KeyError, configparser.Error):
        return None


def _check_seqmaps(root: Path, videos: list[_Video], findings: Findings) -> None:
    listed: dict[str, set[str]] = {}
    for split in sorted({video.split for video in videos}):
        path = root / split / "seqmap.txt"
        if is_file(path):
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                listed[split] = {row[0] for row in csv.reader(file) if row}
        else:
            findings.drops(WHO, "a split has no seqmap.txt: it cannot be opened", split)
    for video in videos:
        if video.split in listed and video.name not in listed[video.split]:
            findings.drops(WHO, "a video is not in its split's seqmap.txt: never read", video.name)


def _lines(path: Path) -> list[str]:
    if not is_file(path):
        return []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _pictures(video: _Video, kind: Kind, findings: Findings) -> Iterator[DatasetImage]:
    held: defaultdict[int, list[tuple[str, Rle | Box]]] = defaultdict(list)
    seen = Counter[tuple[int, str]]()
    for number, line in enumerate(_lines(video.folder / "gt" / "gt.txt"), 1):
        where = f"{video.name}, line {number}"
        row = _box_row(line) if kind is MOT else _mask_row(line, video)
        if row is None:
            findings.drops("every reader", "a line of gt.txt cannot be read", where)
            continue
        frame, identity, class_id, shape = row
        seen[frame, identity] += 1
        if seen[frame, identity] > 1:
            findings.drops(WHO, "an object is twice in one frame: the video is refused", where)
        if not 1 <= frame <= video.length:
            findings.drops("every reader", "a line's frame is not in the video", where)
            continue
        held[frame].append((video.names.get(class_id, f"class {class_id}"), shape))
    for frame in range(1, video.length + 1):
        name = f"{frame:06d}{video.suffix}"
        photo = video.folder / "img1" / name
        yield _picture(video, frame, photo, held.pop(frame, []), findings)


def _picture(
    video: _Video, frame: int, photo: Path, instances: list[tuple[str, Rle | Box]], findings: Findings
) -> DatasetImage:
    rles = [shape for _, shape in instances if isinstance(shape, Rle)]
    if len(rles) > 1 and masks.area(masks.union(rles)) < sum(masks.area(rle) for rle in rles):
        findings.drops(WHO, "masks of one frame overlap: the video is refused", f"{video.name}, frame {frame}")
    key = video.name, frame
    return DatasetImage(video.split, f"{video.name}/{photo.name}", key, video.size_hw, photo, instances)


def _box_row(line: str) -> tuple[int, str, int, Box] | None:
    """Read a row: frame, id, left, top, width, height, confidence, class, visibility; pixels count from 1."""
    try:
        frame, identity, *numbers = line.split(",")
        x, y, w, h, _, class_id = (float(v) for v in numbers[:6])
        if not all(math.isfinite(v) for v in (x, y, w, h, class_id)):
            return None
        return int(frame), identity.strip(), int(class_id), (x - 1, y - 1, w, h)
    except (ValueError, OverflowError):
        return None


def _mask_row(line: str, video: _Video) -> tuple[int, str, int, Rle] | None:
    """Read a row: frame id class height width rle."""
    try:
        frame, identity, class_id, height, width, counts = line.split()
        size = usable_size(height, width)
        if size is None or (video.size_hw is not None and size != video.size_hw):
            return None
        rle = read_mask({"size": list(size), "counts": counts}, size)
        return None if rle is None else (int(frame), identity, int(class_id), rle)
    except ValueError:
        return None

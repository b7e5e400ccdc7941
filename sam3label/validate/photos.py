"""The photos of a dataset, as trainers open them: PIL without orientation, OpenCV and Ultralytics with it."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sam3label.errors import UndecodableError
from sam3label.media.image import decode_image, megapixels
from sam3label.media.memory import megapixels_that_fit
from sam3label.validate.report import Effect, Findings

_ORIENTATION_TAG = 274
_TURNED = (5, 6, 7, 8)
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_COMPARED_BYTES = 1 << 16
_PIL = "RF-DETR, torchvision, Hugging Face (PIL)"


@dataclass(frozen=True, slots=True)
class PhotoHeader:
    """Size as stored in the file, whether EXIF asks for turning or mirroring it, and what PIL calls its format."""

    stored_hw: tuple[int, int]
    orientation: int
    format: str = ""

    @property
    def seen_hw(self) -> tuple[int, int]:
        """The size a person sees."""
        return self.stored_hw[::-1] if self.orientation in _TURNED else self.stored_hw


def is_file(path: Path) -> bool:
    """Return whether a regular file is there. Never raises: a broken file's names may be too long, or hold a NUL."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_photo(path: Path) -> PhotoHeader | None:
    """Return the photo's header, or None if there is none to read."""
    if not is_file(path):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large photos and damaged metadata
            with Image.open(path) as image:
                orientation = image.getexif().get(_ORIENTATION_TAG, 1)
                return PhotoHeader((image.height, image.width), orientation, image.format or "")
    except Exception:  # decoders answer damaged bytes with any exception there is
        return None


def check_photo(
    path: Path, name: str, stated_hw: tuple[int, int] | None, findings: Findings, turned: Effect = "note"
) -> PhotoHeader | None:
    """Check that the photo is there, whole, of the stated size (if any) and looks the same to every reader.

    `turned` is the effect of an EXIF orientation on the format's readers. The end of a JPEG or PNG is looked at and
    only a strange one decoded; other kinds are decoded whole.
    """
    if not is_file(path):
        findings.drops("every trainer", "the photo is missing", name)
        return None
    photo = read_photo(path)
    if photo is None:
        findings.drops("every trainer", "the photo cannot be opened", name)
        return None
    if reason := _damage(path, photo):
        findings.drops("every trainer", f"the photo is damaged: {reason}", name)
    if stated_hw is not None and stated_hw != photo.seen_hw:
        findings.drops("every trainer", "the photo has another size than its record", name)
    if photo.orientation not in (0, 1):
        _report_turned(turned, name, findings)
    return photo


def check_shared(parts: Mapping[str, Iterable[Path]], findings: Findings, who: str = "every trainer") -> None:
    """Name photos that are in two splits: as one path, as a link, or as a copy (same size and same first bytes)."""
    by_size: defaultdict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, paths in parts.items():
        for path in paths:
            if is_file(path):
                by_size[path.stat().st_size].append((split, path))
    for places in by_size.values():
        if len({split for split, _ in places}) > 1:
            _report_shared(places, findings, who)


def _report_shared(places: list[tuple[str, Path]], findings: Findings, who: str) -> None:
    same: defaultdict[object, dict[str, Path]] = defaultdict(dict)
    for split, path in places:
        same[_start(path)].setdefault(split, path)
    for found in same.values():
        if len(found) > 1:
            what = f"the same photo is in {' and '.join(found)}: the scores will flatter"
            findings.note(who, what, next(iter(found.values())).name)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(_COMPARED_BYTES)).digest()
    except OSError:
        return os.fsencode(path)


def _report_turned(turned: Effect, name: str, findings: Findings) -> None:
    what = (
        "EXIF orientation: readers that ignore it see the photo turned against its labels (OpenCV and Ultralytics "
        "apply it); call ImageOps.exif_transpose in the loader"
    )
    (findings.turns if turned == "turns" else findings.note)(_PIL, what, name)


def _damage(path: Path, photo: PhotoHeader) -> str | None:
    """Return why decoders stop before the photo's end; None for a whole one."""
    end = _ENDS.get(photo.format)
    try:
        if end is not None:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(end)))
                if file.read() == end:
                    return None
        if megapixels(photo.stored_hw) <= megapixels_that_fit():  # else nothing is known against it
            decode_image(path)
    except UndecodableError as error:
        return str(error)
    except OSError as error:
        return str(error.strerror)
    return None

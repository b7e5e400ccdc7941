"""The photos of a dataset, as trainers open them: PIL without orientation, OpenCV and Ultralytics with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sam3label.validate.report import Findings

_ORIENTATION_TAG = 274
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Photo:
    """Size as stored in the file, and whether EXIF asks for turning or mirroring it."""

    stored_hw: tuple[int, int]
    orientation: int

    @property
    def seen_hw(self) -> tuple[int, int]:
        """The size a person sees."""
        return self.stored_hw[::-1] if self.orientation in _TURNED else self.stored_hw


def read_photo(path: Path) -> Photo | None:
    """The photo's header, or None if there is none to read."""
    try:
        with Image.open(path) as image:
            return Photo((image.height, image.width), image.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def check_photo(path: Path, name: str, stated_hw: tuple[int, int] | None, findings: Findings) -> None:
    """The photo is there, opens, has the stated size (if any is stated) and looks the same to every reader."""
    if not path.is_file():
        findings.drops("every trainer", "the photo is missing", name)
        return
    photo = read_photo(path)
    if photo is None:
        findings.drops("every trainer", "the photo cannot be opened", name)
        return
    if stated_hw is not None and stated_hw != photo.seen_hw:
        findings.drops("every trainer", "the photo has another size than its record", name)
    if photo.orientation not in (0, 1):
        findings.note(
            "RF-DETR, Hugging Face (PIL)",
            "EXIF orientation: readers that ignore it see the photo turned against its labels (OpenCV and Ultralytics "
            "apply it); call ImageOps.exif_transpose in the loader",
            name,
        )
    if min(photo.seen_hw) < 10:
        findings.drops("Ultralytics", "photos under 10 pixels are refused", name)

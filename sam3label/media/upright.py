"""Photos that their EXIF data turns, and copies of them that need no turning: not every reader looks at EXIF."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image, ImageOps

JPEG_QUALITY = 95


def is_turned(path: Path) -> bool:
    """Return whether readers that ignore EXIF see the photo turned or mirrored. Reads its header alone."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except FileNotFoundError:
        raise
    except Exception:  # unreadable metadata turns nothing
        return False


def write_upright(source: Path, target: Path) -> None:
    """Write the photo as a person sees it, in its own format and mode; a JPEG is encoded anew with quality 95."""
    with Image.open(source) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
        image.load()  # a TIFF is turned by that
        turned = ImageOps.exif_transpose(image)
        quality = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
        exif = turned.getexif()
        exif.pop(ExifTags.Base.Orientation, None)
        turned.save(target, format=kind, icc_profile=image.info.get("icc_profile"), exif=exif, **quality)

"""Words in pictures, in every script that a font of this machine can write.

DejaVu Sans is in the package: Latin, Greek, Cyrillic, Arabic and more. A text it cannot write (Chinese, Thai, Hindi)
takes a font of the system that has all its characters; where there is none, no box-shaped stand-ins are drawn: the
caller writes something else, and `notice` says so once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sam3label.core.colors import Rgb

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]

SHIPPED = Path(__file__).with_name("fonts") / "DejaVuSans.ttf"
SYSTEM_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",
    "${WINDIR}/Fonts", "${LOCALAPPDATA}/Microsoft/Windows/Fonts",
)  # fmt: skip
_SUFFIXES = {".ttf", ".ttc", ".otf"}
_PADDING = (3, 2)  # pixels beside and under a chip's letters


def readable(text: str) -> bool:
    """Return whether one font of this machine has every character of the text."""
    return font_file(text) is not None


def notice(names: Sequence[str]) -> str | None:
    """Return what a user should know before looking at pictures of these classes; None when all can be written."""
    missing = [f"{name} (class {i})" for i, name in enumerate(names) if not readable(name)]
    if not missing:
        return None
    return (
        f"No font on this machine can write {', '.join(missing)}: pictures show the class's number instead. Install a "
        "font of that script (for Chinese, Japanese and Korean on Debian: apt install fonts-noto-cjk)."
    )


def written(text: str) -> str:
    """Return the text with a question mark for each character that cannot be drawn: for paths, which have no number."""
    if readable(text):
        return text
    return "".join(c if c.isprintable() and readable(c) else "?" for c in text)


@lru_cache(maxsize=4096)
def chip(text: str, px: int, ink: Rgb, ground: Rgb) -> Pixels:
    """Draw the text in `ink` on a rectangle of `ground`, letters `px` high: uint8 [h, w, 3], not to be written to."""
    font = _font(font_file(text), px)
    _, _, right, bottom = font.getbbox(text)
    beside, under = _PADDING
    image = Image.new("RGB", (round(right) + 2 * beside, round(bottom) + 2 * under), ground)
    ImageDraw.Draw(image).text((beside, under // 2), text, font=font, fill=ink)
    pixels = np.asarray(image)
    pixels.flags.writeable = False
    return pixels


def width_of(text: str, px: int) -> float:
    """Return how many pixels the text takes in a line."""
    return _font(font_file(text), px).getlength(text)


@lru_cache(maxsize=64)
def _font(file: str | None, px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file or str(SHIPPED), px)


# ---- which font has which characters


@lru_cache(maxsize=4096)
def font_file(text: str) -> str | None:
    """Return the font that has every character of the text: the package's, else one of the system's, else None."""
    wanted = frozenset(ord(c) for c in text if not c.isspace() and unicodedata.category(c) != "Cf")
    if wanted <= characters(str(SHIPPED)):
        return str(SHIPPED)
    if any(unicodedata.category(chr(code)) in ("Cc", "Co", "Cs") for code in wanted):
        return None  # control characters and private ones mean nothing in any font
    return next((path for path in _system_fonts(wanted) if wanted <= characters(path) and _loads(path)), None)


@cache
def characters(path: str) -> frozenset[int]:
    """Return the code points a font file has a glyph for; none for a file that is no font."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with Path(path).open("rb") as file:  # of its own, since a broken font would leave it open
            return frozenset(TTFont(file, fontNumber=0, lazy=True).getBestCmap() or ())
    except (TTLibError, OSError, AttributeError, KeyError, ValueError):
        return frozenset()


def _loads(path: str) -> bool:
    """Fonts of colored bitmaps have the characters and cannot be drawn at our sizes."""
    try:
        ImageFont.truetype(path, 12)
    except OSError:
        return False
    return True


def _system_fonts(wanted: frozenset[int]) -> list[str]:
    """Font files that may have the characters, plain upright sans-serif ones first."""
    found = _asked_fontconfig(wanted) if shutil.which("fc-list") else _in_folders()
    return sorted(set(found), key=_preference)


def _asked_fontconfig(wanted: frozenset[int]) -> Iterator[str]:
    pattern = ":charset=" + " ".join(f"{code:x}" for code in sorted(wanted))
    done = subprocess.run(["fc-list", pattern, "file"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if Path(file := line.strip().rstrip(": ")).suffix.lower() in _SUFFIXES:
            yield file


def _in_folders() -> Iterator[str]:
    for folder in SYSTEM_FOLDERS:
        root = Path(os.path.expandvars(folder)).expanduser()
        yield from (str(path) for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _preference(path: str) -> tuple[bool, bool, str]:
    name = Path(path).stem.lower()
    decorated = any(word in name for word in ("bold", "italic", "oblique", "serif", "mono", "light", "black", "thin"))
    return decorated, "sans" not in name, path

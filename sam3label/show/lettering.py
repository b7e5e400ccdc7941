"""Words in pictures, in every script that a font of this machine can write.

DejaVu Sans is in the package: Latin, Greek, Cyrillic, Arabic and more. A text it cannot write (Chinese, Thai, Hindi)
takes a font of the system that has all its characters; where there is none, no box-shaped stand-ins are drawn: the
caller writes something else, and `Fonts.notice` says so once.
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


class Fonts:
    """The fonts of this machine. What was found in them, and what was drawn with them, is kept as long as this is.

    >>> Fonts().readable("Größe")
    True
    """

    def __init__(self, folders: Sequence[str] = SYSTEM_FOLDERS) -> None:
        self._folders = folders
        self.file = lru_cache(maxsize=4096)(self._file)
        """Returns the font that has every character of a text: the package's, else one of the system's, else None."""
        self.chip = lru_cache(maxsize=4096)(self._chip)
        """Returns a text on a rectangle: see `_chip`."""
        self._characters = cache(characters)
        self._sized = lru_cache(maxsize=64)(_sized)

    def readable(self, text: str) -> bool:
        """Return whether one font of this machine has every character of the text."""
        return self.file(text) is not None

    def notice(self, names: Sequence[str]) -> str | None:
        """Return what a user should know before looking at pictures of these classes; None when all can be written."""
        missing = [f"{name} (class {i})" for i, name in enumerate(names) if not self.readable(name)]
        if not missing:
            return None
        return (
            f"No font on this machine can write {', '.join(missing)}: pictures show the class's number instead. "
            "Install a font of that script (for Chinese, Japanese and Korean on Debian: apt install fonts-noto-cjk)."
        )

    def written(self, text: str) -> str:
        """Return the text with a question mark for each character that cannot be drawn: paths have no number."""
        if self.readable(text):
            return text
        return "".join(c if c.isprintable() and self.readable(c) else "?" for c in text)

    def width_of(self, text: str, px: int) -> float:
        """Return how many pixels the text takes in a line."""
        return self._sized(self.file(text), px).getlength(text)

    def _chip(self, text: str, px: int, ink: Rgb, ground: Rgb) -> Pixels:
        """Draw the text in `ink` on a rectangle of `ground`, letters `px` high: uint8 [h, w, 3], read-only."""
        font = self._sized(self.file(text), px)
        _, _, right, bottom = font.getbbox(text)
        beside, under = _PADDING
        image = Image.new("RGB", (round(right) + 2 * beside, round(bottom) + 2 * under), ground)
        ImageDraw.Draw(image).text((beside, under // 2), text, font=font, fill=ink)
        pixels = np.asarray(image)
        pixels.flags.writeable = False
        return pixels

    def _file(self, text: str) -> str | None:
        wanted = frozenset(ord(c) for c in text if not c.isspace() and unicodedata.category(c) != "Cf")
        if wanted <= self._characters(str(SHIPPED)):
            return str(SHIPPED)
        if any(unicodedata.category(chr(code)) in ("Cc", "Co", "Cs") for code in wanted):
            return None  # control characters and private ones mean nothing in any font
        found = _asked_fontconfig(wanted) if shutil.which("fc-list") else _in_folders(self._folders)
        likely = sorted(set(found), key=_preference)
        return next((path for path in likely if wanted <= self._characters(path) and _loads(path)), None)


def _sized(file: str | None, px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file or str(SHIPPED), px)


# ---- which font has which characters


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


def _asked_fontconfig(wanted: frozenset[int]) -> Iterator[str]:
    pattern = ":charset=" + " ".join(f"{code:x}" for code in sorted(wanted))
    done = subprocess.run(["fc-list", pattern, "file"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if Path(file := line.strip().rstrip(": ")).suffix.lower() in _SUFFIXES:
            yield file


def _in_folders(folders: Sequence[str]) -> Iterator[str]:
    for folder in folders:
        root = Path(os.path.expandvars(folder)).expanduser()
        yield from (str(path) for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _preference(path: str) -> tuple[bool, bool, str]:
    name = Path(path).stem.lower()
    decorated = any(word in name for word in ("bold", "italic", "oblique", "serif", "mono", "light", "black", "thin"))
    return decorated, "sans" not in name, path

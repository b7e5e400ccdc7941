"""Letters in pictures: what the shipped font covers, when one of the system helps out, what is said where none does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from sam3label.show.lettering import SHIPPED, Fonts, characters

HAN = "安全帽"
INK, GROUND = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def fonts() -> Fonts:
    return Fonts()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Fonts:
    """A machine without fonts of its own."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    return Fonts(folders=())


def make_font(path: Path, text: str) -> Path:
    """A font whose every character is a filled square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        pen.lineTo(point) if step else pen.moveTo(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(c):x}" for c in text)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):x}" for c in text})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def ink(fonts: Fonts, text: str, px: int = 20) -> int:
    return int((fonts.chip(text, px, INK, GROUND) < 128).all(axis=2).sum())


def test_the_shipped_font_is_small_licensed_and_covers_latin_greek_and_cyrillic() -> None:
    assert SHIPPED.stat().st_size < 1_000_000
    assert "Bitstream" in SHIPPED.with_name("LICENSE-DejaVu.txt").read_text()
    for first, last in (("A", "z"), ("À", "ž"), ("\u0391", "ω"), ("Ѐ", "ӿ")):
        every = {code for code in range(ord(first), ord(last) + 1) if chr(code).isalpha()}
        assert every <= characters(str(SHIPPED)), (first, last)


@pytest.mark.parametrize("name", ["Größe", "каска", "κράνος", "naïve café", "Łódź", "Trụ sở"])
def test_names_that_need_no_font_of_the_system(no_fonts: Fonts, name: str) -> None:
    assert no_fonts.file(name) == str(SHIPPED)
    assert ink(no_fonts, name) > 100
    assert no_fonts.notice([name]) is None


def test_what_no_font_can_write_is_said_once_with_what_to_do(no_fonts: Fonts) -> None:
    assert not no_fonts.readable(HAN)
    said = no_fonts.notice(["Größe", HAN, "каска", "ヘルメット"])
    assert said == (
        f"No font on this machine can write {HAN} (class 1), ヘルメット (class 3): pictures show the class's number "
        "instead. Install a font of that script (for Chinese, Japanese and Korean on Debian: apt install "
        "fonts-noto-cjk)."
    )
    assert no_fonts.written(f"день 1/{HAN}.jpg") == "день 1/???.jpg"
    assert no_fonts.written("two\nlines\x1b[31m") == "two?lines?[31m"


def test_a_font_of_the_system_is_found_in_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = str(tmp_path), "${NOT_SET_HERE}/Fonts"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    make_font(tmp_path / "other" / "Latin.ttf", "abc")
    bold = make_font(tmp_path / "han" / "Squares Bold.ttf", HAN)
    assert Fonts(folders).file(HAN) == str(bold)
    plain = make_font(tmp_path / "han" / "Squares Sans.ttf", HAN)
    fonts = Fonts(folders)
    assert fonts.file(HAN) == str(plain), "a plain one before a bold one"
    assert not fonts.readable(HAN + "x"), "one font writes the whole name"
    assert ink(fonts, HAN) > 3 * 15 * 15, "three filled squares"


def test_fontconfig_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font = make_font(tmp_path / "Squares.ttf", HAN)
    answers = tmp_path / "fc-list"
    answers.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/asked\necho '{font}: '\necho '{tmp_path}/gone.ttf: '\n")
    answers.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Fonts().file(HAN) == str(font)
    assert (tmp_path / "asked").read_text() == ":charset=5168 5b89 5e3d\n"


def test_a_chip_is_as_large_as_its_text_and_keeps_its_colors(fonts: Fonts) -> None:
    short, long = (fonts.chip(text, 14, (255, 255, 255), (200, 0, 0)) for text in ("cup", "cup and saucer"))
    assert short.shape[0] == long.shape[0] or abs(short.shape[0] - long.shape[0]) < 5
    assert long.shape[1] > 2 * short.shape[1]
    assert (short[0] == (200, 0, 0)).all() and (short.max(axis=(0, 1)) == 255).all()
    assert not np.array_equal(fonts.chip("каска", 14, INK, GROUND), fonts.chip("□□□□□", 14, INK, GROUND))

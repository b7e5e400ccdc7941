"""Numbers with their nouns, and names that cannot steer a terminal."""

from __future__ import annotations

import pytest

from sam3label.core.text import count, visible


def test_one_is_singular_and_everything_else_plural() -> None:
    assert [count(n, "image") for n in (0, 1, 2, 21)] == ["0 images", "1 image", "2 images", "21 images"]
    assert count(1, "class", "classes") == "1 class" and count(3, "class", "classes") == "3 classes"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 安全帽 каска.jpg", "Größe 安全帽 каска.jpg"),
        ("می\u200cروم", "می\u200cروم"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2J\x07bell", r"\x1b[2J\x07bell"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\udcff.jpg", r"\udcff.jpg"),  # a name that is not UTF-8, as Python reads it from the file system
    ],
)
def test_control_characters_are_shown_and_letters_left_alone(text: str, shown: str) -> None:
    assert visible(text) == shown

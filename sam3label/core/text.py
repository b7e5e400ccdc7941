"""Words for people: what the messages and tables of all rooms share."""

from __future__ import annotations

import unicodedata


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: count(1, "image") is "1 image", count(2, "class", "classes") is "2 classes"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def verb(number: int, one: str, many: str) -> str:
    """Return the word that goes with a number of things: verb(1, "was", "were") is "was"."""
    return one if number == 1 else many


def visible(text: str) -> str:
    r"""Return a text whose control characters are shown instead of obeyed, so that no file's name can move the cursor.

    Lines and tabs stay. So do letters of every script; what turns the direction of writing is shown.

    >>> print(visible("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    if text.isprintable():
        return text
    return "".join(_shown(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in _KEPT else c for c in text)


def one_line(text: str) -> str:
    r"""Return a file's or a class's name on one line, whatever is in it: `visible`, and lines and tabs too.

    >>> print(one_line("a\nError: disk full"))
    a\nError: disk full
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


_KEPT = "\n\t\u200c\u200d"  # joiners are part of words in Persian and Hindi, and of emoji


def _shown(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")

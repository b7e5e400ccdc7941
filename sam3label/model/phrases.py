"""Phrases as SAM 3's own code reads them: repaired text, so that typography does not change the answer."""

from __future__ import annotations

import html

import ftfy


def as_read(phrase: str) -> str:
    """Return the text to tokenize for a phrase: mojibake, curly quotes, ligatures, full width and entities made plain.

    Case and inner spaces are the tokenizer's business. The user's own text stays the prompt's key. Source: the text
    cleaning of CLIP's tokenizer, which facebook/sam3 was trained with. Example: as_read("cats &amp; dogs")
    is "cats & dogs".
    """
    return html.unescape(html.unescape(ftfy.fix_text(phrase))).strip()

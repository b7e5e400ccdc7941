"""Phrases with odd characters are read like the plain text that the official code makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sam3label
from sam3label.core.records import Frame, MediaItem, Prompt
from sam3label.errors import ConfigError
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.phrases import as_read
from sam3label.model.weights import load_tokenizer

# as typed -> as the official tokenizer's cleaning leaves it, written down by hand. Case and runs of spaces are left to
# the tokenizers, so the two sides may differ in those.
SAME = {
    # typography of a Mac, a phone or Word
    "person’s hat": "person's hat",
    "person‘s hat": "person's hat",
    "dog’s": "dog's",
    "don’t walk sign": "don't walk sign",
    "“stop” sign": '"stop" sign',
    "„stop“ sign": '"stop" sign',
    "the driver’ll turn": "the driver'll turn",
    "ʼt": "'t",
    # ligatures
    "fire ﬁghter": "fire fighter",
    "ﬂag": "flag",
    "traﬃc cone": "traffic cone",
    "waﬄe": "waffle",
    "oﬀ road car": "off road car",
    # full width, as Japanese input writes Latin
    "ｈａｔ": "hat",
    "ＨＡＴ": "hat",
    "ｒｅｄ　ｈａｔ": "red hat",
    "ｃａｒ１２": "car12",
    "ｃａｒ（ｒｅｄ）": "car(red)",
    "ﾄﾗｯｸ": "トラック",
    # entities, once and twice
    "black &amp; white cat": "black & white cat",
    "black &amp;amp; white cat": "black & white cat",
    "&lt;sign&gt;": "<sign>",
    "&quot;stop&quot; sign": '"stop" sign',
    "caf&eacute;": "café",
    "hat&nbsp;rack": "hat rack",
    "&#104;at": "hat",
    "&#x68;at": "hat",
    "person&#39;s hat": "person's hat",
    "person&rsquo;s hat": "person's hat",
    # mojibake: UTF-8 read as Latin-1 or Windows-1252
    "cafÃ©": "café",
    "personâ€™s hat": "person's hat",
    "GrÃ¶ÃŸe": "größe",
    "naÃ¯ve": "naïve",
    "Ã¼ber": "über",
    "â€œstopâ€\x9d sign": '"stop" sign',
    # accents in one character or two
    "cafe\u0301": "café",
    "Zu\u0308g": "züg",
    "A\u030angstro\u0308m": "ångström",
    # spaces, breaks, signs that are not seen
    " hat ": "hat",
    "red\u00a0hat": "red hat",
    "red\u2009hat": "red hat",
    "red  hat": "red hat",
    "red\thelmet": "red helmet",
    "red\nhat": "red hat",
    "red\r\nhat": "red hat",
    "red\u2028hat": "red hat",
    "\ufeffhat": "hat",
    "h\x00at": "hat",
    "\x1b[31mhat\x1b[0m": "hat",
    "\u3000hat\u3000": "hat",
    # what must stay as it is
    "Hard Hat": "hard hat",
    "T-shirt": "t-shirt",
    "person's hat": "person's hat",
    "каска": "каска",
    "安全帽": "安全帽",
    "🚗 car": "🚗 car",
    "AT&T van": "at&t van",
    "route 66": "route 66",
    "50% off": "50% off",
    "größe": "größe",
}
DEMO = Path(sam3label.__file__).parent / "demo" / "checkpoint"


def test_there_are_sixty() -> None:
    assert len(SAME) == 60


def test_odd_phrases_have_the_tokens_of_the_plain_text() -> None:
    tokenizer = load_tokenizer(resolve(str(DEMO)))
    odd = tokenizer([as_read(phrase) for phrase in SAME])["input_ids"]
    plain = tokenizer(list(SAME.values()))["input_ids"]
    wrong = [phrase for phrase, one, other in zip(SAME, odd, plain, strict=True) if one != other]
    assert not wrong
    assert all(len(ids) > 2 for ids in odd)  # start, end, and something between them


def test_the_detector_reads_them_so_and_keeps_the_users_text(tiny_checkpoint: Path) -> None:
    detector = Detector.load(resolve(str(tiny_checkpoint)), device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    frame = Frame(MediaItem("a.png", "a.png"), 0, pixels)
    keys = ("person’s ﬂag", "person's flag", "persons flag")
    prompts = [Prompt(key=key, text=key) for key in keys]
    (detection,) = detector.detect([frame], prompts, 0.0)
    found = {key: sorted(c.score for c in detection.candidates if c.prompt == key) for key in keys}
    assert found[keys[0]]
    assert found[keys[0]] == pytest.approx(found[keys[1]], abs=1e-6)
    assert found[keys[0]] != pytest.approx(found[keys[2]], abs=1e-6)


def test_a_phrase_of_which_nothing_is_left_is_refused(tiny_checkpoint: Path) -> None:
    detector = Detector.load(resolve(str(tiny_checkpoint)), device="cpu")
    with pytest.raises(ConfigError, match="reads no word in the phrase '&nbsp;': write it as plain text"):
        detector.encode_phrases(["hat", "&nbsp;"])

"""Another input side than the checkpoint's own: the same numbers as the library's with that config, or a sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from sam3label.core.records import Frame, MediaItem, Prompt
from sam3label.errors import ConfigError
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.encode import shrink
from sam3label.model.image_size import EncoderShape
from sam3label.model.track_rules import OFFICIAL
from sam3label.model.tracker import Tracker

SIDE = 336  # the tiny checkpoint's own is 224, its windows are 112
PHRASES = ("red hat", "a person on the road")
PROMPTS = tuple(Prompt(key=phrase, text=phrase) for phrase in PHRASES)


@pytest.fixture(scope="module")
def larger(tiny_checkpoint: Path) -> Detector:
    return Detector.load(
        resolve(str(tiny_checkpoint), image_size=SIDE), device="cpu", dtype="fp32", prompt_style="transformers"
    )


def photo(side: int = 200) -> Frame:
    return Frame(MediaItem("cat", "cat"), 0, np.ascontiguousarray(data.chelsea()[:side, : side + 40]))


def test_numbers_are_those_of_the_librarys_own_config_of_that_size(larger: Detector, tiny_checkpoint: Path) -> None:
    from transformers import Sam3Config, Sam3Model, Sam3Processor

    config = Sam3Config.from_pretrained(tiny_checkpoint)
    config.image_size = SIDE
    model = Sam3Model.from_pretrained(tiny_checkpoint, config=config).eval()
    processor = Sam3Processor.from_pretrained(tiny_checkpoint)
    pixels = larger.preprocess([photo()])
    assert pixels.shape[-1] == larger.image_size == SIDE
    answer = larger.scores([photo()], PROMPTS)
    with torch.inference_mode():
        seen = larger.look(larger.encode_images(pixels), PROMPTS, 0.1)
    masks = 0
    for row, phrase in enumerate(PHRASES):
        with torch.no_grad():
            expected = model(pixel_values=pixels, **processor(text=phrase, return_tensors="pt"))
        assert (answer.logits[row] - expected.pred_logits[0]).abs().max() < 1e-4
        assert (answer.boxes_xyxy[row] - expected.pred_boxes[0]).abs().max() < 1e-4
        kept = expected.pred_masks[0][answer.scores[row] > 0.1]
        assert seen[row].masks.shape == kept.shape
        masks += len(kept)
        for own, other in zip(seen[row].masks, kept, strict=True):
            assert own.shape == (4 * SIDE // 14,) * 2
            assert (own - other).abs().max() < 1e-4 * max(1.0, other.abs().max().item())
    assert masks


def test_it_is_in_the_fingerprint_and_its_cost_is_said(larger: Detector, tiny_checkpoint: Path) -> None:
    own = Detector.load(resolve(str(tiny_checkpoint)), device="cpu", dtype="fp32", prompt_style="transformers")
    assert larger.describe() == {**own.describe(), "image_size": SIDE}
    said = larger.cost_of_size(resolve(str(tiny_checkpoint)))
    assert said.startswith("images are shown to the model at 336 x 336 pixels instead of 224 x 224: ")


def test_objects_are_tracked_at_that_size(larger: Detector, tiny_checkpoint: Path) -> None:
    tracker = Tracker.load(resolve(str(tiny_checkpoint), image_size=SIDE), larger, replace(OFFICIAL))
    frames = [Frame(MediaItem("v", "v", "video"), i, np.roll(photo().pixels, 3 * i, axis=1)) for i in range(4)]
    tracked = list(tracker.track(frames, PROMPTS))
    assert [one.frame.index for one in tracked] == [0, 1, 2, 3]
    assert all(o.instance.rle.size_hw == photo().size_hw for one in tracked for o in one.objects)


@pytest.mark.parametrize("side", [100, 230, 1008, 7])
def test_a_side_that_windows_do_not_fill_is_refused_with_those_that_fit(side: int, tiny_checkpoint: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"--image-size {side} does not fit this checkpoint: .* multiples of 112"
    ) as e:
        resolve(str(tiny_checkpoint), image_size=side)
    first, last = str(e.value).rpartition("nearest: ")[2].rstrip(".").split(" and ")
    for near in (first, last):
        resolve(str(tiny_checkpoint), image_size=int(near))


def test_the_real_models_sides_and_what_they_cost() -> None:
    shape = EncoderShape.of({})
    assert (shape.side, shape.step) == (1008, 336)
    for side in (336, 672, 1344, 2016):
        shape.refuse(side)
    assert 5 < 2 * shape.operations(1008) / 1e12 < 6  # 5.6, counted by scripts/bench/count_operations.py
    linear = (1344 / 1008) ** 2
    assert linear < shape.operations(1344) / shape.operations(1008) < linear**2
    assert math.isclose(shape.operations(1008), replace(shape, side=5).operations(1008))


@pytest.mark.parametrize("size_hw", [(400, 700), (1000, 333), (90, 100)])
def test_a_photo_resized_in_bands_has_the_same_numbers(size_hw: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8))
    whole, banded = (shrink(pixels, 128, torch.device("cpu"), at_once=n) for n in (1 << 30, 20_000))
    assert torch.equal(whole, banded)

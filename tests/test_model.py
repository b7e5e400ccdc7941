"""The detector against transformers' own SAM 3, and the promises it makes about work, memory and bad input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from sam3label import masks
from sam3label.checkpoint import Checkpoint, resolve
from sam3label.device import footprint, pick_device, pick_dtype, sizes_for
from sam3label.errors import ConfigError
from sam3label.model import BoxPrompt, Detection, Detector
from sam3label.records import Frame, MediaItem, Prompt, candidate_id

PHRASES = ("red hat", "safety helmet", "a person on the road", "xq")
PROMPTS = tuple(Prompt(key=phrase, text=phrase) for phrase in PHRASES)
FLOOR = 0.1
TOLERANCE = 1e-4


def frame(name: str, pixels: np.ndarray) -> Frame:
    return Frame(MediaItem(id=name, path=name), 0, np.ascontiguousarray(pixels))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Photos of different sizes, one flat image among them."""
    flat = np.full((50, 90, 3), 77, np.uint8)
    return [frame("cat", data.chelsea()), frame("cup", data.coffee()[::2]), frame("flat", flat)]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def official(checkpoint: Checkpoint) -> Detector:
    return Detector.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> Detector:
    return Detector.load(checkpoint, device="cpu", prompt_style="transformers")


@pytest.fixture(scope="module")
def library(tiny_checkpoint: Path) -> tuple[Any, Any]:
    """Sam3Processor and Sam3Model as anyone would load them."""
    from transformers import Sam3Model, Sam3Processor

    return Sam3Processor.from_pretrained(tiny_checkpoint), Sam3Model.from_pretrained(tiny_checkpoint).eval()


def ask_library(library: tuple[Any, Any], pixels: torch.Tensor, **prompt: Any) -> Any:
    """One image [1, 3, X, X], one prompt, every token padded: the slow way."""
    processor, model = library
    text = processor(text=prompt.pop("text"), return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=pixels, **text, **prompt)


def padded_box() -> dict[str, torch.Tensor]:
    return {"input_boxes": torch.zeros(1, 1, 4), "input_boxes_labels": torch.tensor([[-10]])}


def parts(detector: Detector, frames: Sequence[Frame], prompts: Sequence[Prompt]) -> Iterator[tuple[int, int, Any]]:
    """Every (image, prompt) of one batch with its row of PairScores."""
    from sam3label.model import _Pair

    detector.encode_phrases([prompt.text or "visual" for prompt in prompts])
    with torch.inference_mode():
        state = detector.encode_images(detector.preprocess(frames))
        pairs = [_Pair(i, p, None) for i in range(len(frames)) for p in range(len(prompts))]
        answer = detector._score(state, pairs, detector._texts(prompts)).answer
    for row, pair in enumerate(pairs):
        yield pair.image, pair.prompt, (answer.logits[row], answer.boxes_xyxy[row], answer.presence_logits[row])


@pytest.mark.parametrize("style", ["transformers", "official"])
def test_scores_and_boxes_are_the_librarys(
    style: str, official: Detector, plain: Detector, library: tuple[Any, Any], frames: list[Frame]
) -> None:
    detector = official if style == "official" else plain
    for image, prompt, (logits, boxes, presence) in parts(detector, frames, PROMPTS):
        extra = padded_box() if style == "official" else {}
        expected = ask_library(library, detector.preprocess([frames[image]]), text=PHRASES[prompt], **extra)
        assert (logits - expected.pred_logits[0]).abs().max() < TOLERANCE
        assert (boxes - expected.pred_boxes[0]).abs().max() < TOLERANCE
        assert (presence - expected.presence_logits[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("style", ["transformers", "official"])
def test_kept_set_and_masks_are_the_librarys(
    style: str, official: Detector, plain: Detector, library: tuple[Any, Any], frames: list[Frame]
) -> None:
    detector = official if style == "official" else plain
    detections = detector.detect(frames, PROMPTS, FLOOR)
    assert sum(len(detection.candidates) for detection in detections) > 20
    for one, detection in zip(frames, detections, strict=True):
        for number, prompt in enumerate(PROMPTS):
            extra = padded_box() if style == "official" else {}
            expected = ask_library(library, detector.preprocess([one]), text=prompt.text, **extra)
            scores = (expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid())[0]
            presence = expected.presence_logits.sigmoid().item()
            assert detection.presence[number] == pytest.approx(presence, abs=TOLERANCE)
            inside = F.interpolate(expected.pred_masks, one.size_hw, mode="bilinear", align_corners=False)[0] > 0
            kept = {
                candidate_id(one.item.id, 0, prompt.key, query): query
                for query in torch.nonzero(scores >= FLOOR).flatten().tolist()
                if inside[query].any()
            }
            own = {candidate.id: candidate for candidate in detection.candidates if candidate.prompt == prompt.key}
            assert own.keys() == kept.keys()
            for name, query in kept.items():
                assert own[name].score == pytest.approx(scores[query].item(), abs=TOLERANCE)
                # logits agree to rounding, so a pixel on the very edge may differ; which ones is tested on equal logits
                different = masks.decode(own[name].rle) != inside[query].numpy()
                assert different.sum() <= 1e-4 * inside[query].numel()


def test_mask_logits_are_the_librarys(official: Detector, library: tuple[Any, Any], frames: list[Frame]) -> None:
    from sam3label.model import _Pair, _Skips

    official.encode_phrases(PHRASES)
    with torch.inference_mode():
        pixels = official.preprocess(frames[:1])
        state = official.encode_images(pixels)
        scored = official._score(state, [_Pair(0, p, None) for p in range(len(PROMPTS))], official._texts(PROMPTS))
        row, query = np.nonzero(scored.scores >= FLOOR)
        logits = official._masks(scored, row, query, _Skips(official.head, state), 0)
    assert len(set(np.bincount(row))) > 1  # rows of different lengths, so that padding is exercised
    for one, r, q in zip(logits, row, query, strict=True):
        expected = ask_library(library, pixels, text=PHRASES[r], **padded_box()).pred_masks[0, q]
        assert (one - expected).abs().max() < TOLERANCE * max(1.0, expected.abs().max().item())

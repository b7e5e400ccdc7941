"""Floating-point operations of SAM 3 by its parts, counted without computing anything: the floor under any speed.

    .venv/bin/python scripts/bench/count_operations.py [--size full|small|tiny] [--tflops 750]

The library's way and ours run on torch's fake tensors, which know shapes only, under its operation counter (matrix
products, convolutions and attention; two operations for a multiply-add). `--tflops` is what a chip sustains on large
matrix products: the times in the last column are bounds from operations alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_checkpoint import SIZES, detector_config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Config, Sam3Model

from sam3label.model.head import Head

TOKENS = 8  # of a prompt: a short phrase, its start and end, the image's own token
PADDED = 32  # the library's
KEPT = 8  # queries of a pair whose masks are made
MIXES = ((1, 1.0), (5, 0.25), (20, 0.25), (80, 0.25), (80, 0.10))  # concepts, share of them present


@dataclass(frozen=True)
class Costs:
    """Operations, by part."""

    image: float  # the library's: encoder and neck
    own_image: float  # ours: with the first self-attention, which all pairs share; without the image's own token
    text: float
    pair: float  # the library's, masks included
    score: float  # ours
    masks: float  # ours, of a pair with anything over the floor
    skips: float  # ours, of an image with any such pair

    def phrase(self, concepts: int) -> float:
        return concepts * (self.image + self.text + self.pair)

    def cached(self, concepts: int) -> float:
        return self.image + concepts * self.pair

    def ours(self, concepts: int, present: float) -> float:
        return self.own_image + concepts * (self.score + present * self.masks) + self.skips


def count(work: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        result = work()
    return float(counter.get_total_flops()), result


def costs(size: str) -> Costs:
    """Count every part of a model of this size."""
    config = Sam3Config() if size == "full" else Sam3Config(**detector_config(SIZES[size], vocabulary=1000))
    with FakeTensorMode():
        model: Any = Sam3Model(config).eval()
        side, width = config.vision_config.image_size, config.vision_config.fpn_hidden_size
        pixels = torch.empty(1, 3, side, side)
        ids = torch.zeros(1, PADDED, dtype=torch.long)
        image, vision = count(lambda: model.get_vision_features(pixel_values=pixels))
        text, _ = count(lambda: model.get_text_features(input_ids=ids).pooler_output)
        return Costs(image=image, text=text, **_pairs(model, vision.fpn_hidden_states, image, width))


def _pairs(model: Any, levels: Sequence[Tensor], image: float, width: int) -> dict[str, float]:
    """What a pair costs: ours, and the library's, which is ours undone (its decoder wants values, not shapes only)."""
    head, queries = Head(model), model.config.detr_decoder_config.num_queries

    def prompt(tokens: int) -> tuple[Tensor, Tensor]:
        return torch.empty(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool)

    attention, state = count(lambda: head.prepare(*levels[:3], with_summary=False))
    score, answer = count(lambda: head.score(state.tokens, *prompt(TOKENS)))
    padded, _ = count(lambda: head.score(state.tokens, *prompt(PADDED)))
    whole, _ = count(lambda: model.mask_decoder(answer.queries, list(levels[:3]), answer.memory, prompt(PADDED)[0]))
    skips, folded = count(lambda: head.skips(state, slice(0, 1)))
    kept = torch.empty(1, min(KEPT, queries), width)
    masks, _ = count(lambda: head.masks(answer.memory, *prompt(TOKENS), kept, folded))
    own_image = image + attention - _unread(model, levels[0])
    return {"own_image": own_image, "pair": padded + attention + whole, "score": score, "masks": masks, "skips": skips}


def _unread(model: Any, fine: Tensor) -> float:
    """The neck's coarsest level, which the library makes and nothing reads."""
    layers = model.vision_encoder.neck.fpn_layers
    if len(layers) == 3:
        return 0.0
    width = model.config.vision_config.backbone_config.hidden_size
    grid = fine.shape[-1] // 4
    return count(lambda: layers[3](torch.empty(1, width, grid, grid)))[0]


def report(size: str, tflops: float) -> str:
    """A table of the parts, then of whole images."""
    own = costs(size)
    lines = [f"{size}: GFLOP per image {own.image / 1e9:.1f} (ours {own.own_image / 1e9:.1f}), "
             f"per phrase {own.text / 1e9:.2f}, per pair {own.pair / 1e9:.2f} (ours {own.score / 1e9:.2f}, "
             f"and {own.masks / 1e9:.2f} where there is anything); skips {own.skips / 1e9:.1f} an image"]  # fmt: skip
    lines += ["", f"{'concepts':>8}{'present':>9}{'phrase':>11}{'cached':>11}{'ours':>11}"
              f"{'x phrase':>10}{'x cached':>10}{f'ms at {tflops:g} TFLOP/s':>24}"]  # fmt: skip
    for concepts, present in MIXES:
        phrase, cached, ours = own.phrase(concepts), own.cached(concepts), own.ours(concepts, present)
        lines.append(
            f"{concepts:>8}{present:>9.0%}{phrase / 1e9:>11.0f}{cached / 1e9:>11.0f}{ours / 1e9:>11.0f}"
            f"{phrase / ours:>10.2f}{cached / ours:>10.2f}{ours / tflops / 1e9:>24.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="full")
    parser.add_argument("--tflops", type=float, default=750.0)
    options = parser.parse_args()
    print(report(options.size, options.tflops))


if __name__ == "__main__":
    main()

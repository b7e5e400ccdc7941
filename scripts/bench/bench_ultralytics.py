"""The same weights asked by Ultralytics' own SAM 3 and by ours: every query's score, box and mask compared.

    python scripts/bench/bench_ultralytics.py sam3.pt                      # what `weights convert` wrote, any weights
    python scripts/bench/bench_ultralytics.py sam3.pt --photo a.jpg --phrases cup "wooden table"

Both get the same pixels; how far Ultralytics' own resizing is from them is said apart. Ours answers with
`--prompt-style transformers`, which leaves out the token that Ultralytics leaves out too for words alone, and as the
official code asks. Each model is loaded, asks and is gone before the next: 6 GB of memory at full size. Ultralytics'
fork of CLIP, of which it takes the tokenizer alone, is not on PyPI: the tokenizer that sam3label ships stands in. It
needs `timm` besides.
"""

from __future__ import annotations

import argparse
import gc
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3label.core.records import Frame, MediaItem, Prompt
from sam3label.media.image import decode_image
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.weight_files import clip_tokenizer

LENGTH = 32  # tokens of a phrase


@dataclass(frozen=True)
class Answers:
    """Of one phrase: presence, and of all queries scores [Q], boxes x1 y1 x2 y2 in [0, 1] [Q, 4], logits [Q, h, w]."""

    presence: float
    scores: Tensor
    boxes: Tensor
    masks: Tensor


def ours(file: Path, frame: Frame, phrases: Sequence[str]) -> tuple[Tensor, dict[str, list[Answers]]]:
    """Return the pixels that the model gets, and by prompt style what it answers of each phrase."""
    detector = Detector.load(resolve(str(file)), device="cpu", dtype="fp32")
    pixels = detector.preprocess([frame])
    prompts = [Prompt(phrase, phrase) for phrase in phrases]
    detector.encode_phrases(phrases)
    state = detector.encode_images(pixels)  # with the token that `transformers` leaves out
    states = {"transformers": replace(state, summary=None), "official": state}
    found = {style: detector.look(one, prompts, -1.0) for style, one in states.items()}
    return pixels, {
        style: [Answers(one.presence, one.scores, one.boxes_xyxy, one.masks) for one in seen]
        for style, seen in found.items()
    }


class Words:
    """Has the one method of the CLIP fork's tokenizer that Ultralytics calls: ids [n, length], zeros behind."""

    def __init__(self) -> None:
        self.tokenizer = clip_tokenizer()

    def __call__(self, texts: Sequence[str], context_length: int = LENGTH) -> Tensor:
        ids = torch.zeros((len(texts), context_length), dtype=torch.long)
        for row, text in enumerate(texts):
            own = self.tokenizer(text)["input_ids"]
            ids[row, : len(own)] = torch.tensor(own)
        return ids


@torch.inference_mode()
def theirs(file: Path, pixels: Tensor, phrases: Sequence[str]) -> tuple[list[Answers], list[str]]:
    """Return what Ultralytics answers, and the weights of its model that the file does not have."""
    clip, tokenizer = types.ModuleType("clip"), types.ModuleType("clip.simple_tokenizer")
    tokenizer.SimpleTokenizer = Words  # type: ignore[attr-defined]
    clip.simple_tokenizer = tokenizer  # type: ignore[attr-defined]
    sys.modules |= {"clip": clip, "clip.simple_tokenizer": tokenizer}
    from ultralytics.models.sam.build_sam3 import build_sam3_image_model

    model: Any = build_sam3_image_model(str(file)).float()
    model.set_imgsz((pixels.shape[-2], pixels.shape[-1]))
    has = {name.removeprefix("detector.") for name in torch.load(file, mmap=True, weights_only=True)["model"]}
    absent = sorted(name for name in model.state_dict() if name not in has)
    features = model.backbone.forward_image(pixels)
    model.set_classes(text=list(phrases))
    out = model.forward_grounding(backbone_out=features, text_ids=torch.arange(len(phrases)), geometric_prompt=None)
    presence = out["presence_logit_dec"].sigmoid()
    scores = (out["pred_logits"].sigmoid() * presence.unsqueeze(1)).squeeze(-1)
    center, half = out["pred_boxes"][..., :2], out["pred_boxes"][..., 2:] / 2
    boxes, masks = torch.cat((center - half, center + half), -1), out["pred_masks"]
    rows = range(len(phrases))
    return [Answers(float(presence[i]), scores[i], boxes[i], masks[i]) for i in rows], absent


def own_resizing(frame: Frame, side: int) -> Tensor:
    """Return the pixels as Ultralytics makes them, in levels of 8 bits: [3, side, side]."""
    from ultralytics.data.augment import LetterBox

    box = LetterBox((side, side), auto=False, center=False, scale_fill=True)
    return torch.from_numpy(np.ascontiguousarray(box(image=frame.pixels))).permute(2, 0, 1).float()


def line(name: str, phrase: str, one: Answers, other: Answers) -> str:
    flipped = ((one.masks > 0) != (other.masks > 0)).float().mean()
    span = one.scores.max() - one.scores.min()
    return (
        f"{name} | {phrase} | {abs(one.presence - other.presence):.1e} | "
        f"{(one.scores - other.scores).abs().max():.1e} of {span:.1e} | {(one.boxes - other.boxes).abs().max():.1e} | "
        f"{(one.masks - other.masks).abs().max():.1e} of {one.masks.std():.2g} | {flipped:.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The same weights asked by Ultralytics' SAM 3 and by ours.")
    parser.add_argument("weights", type=Path, help="a .pt file in Meta's naming, as `weights convert` writes it")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--phrases", nargs="+", default=["cup", "wooden table"])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.photo is None:
        from skimage import data

        photo = np.ascontiguousarray(data.coffee())
    else:
        photo = decode_image(arguments.photo)
    frame = Frame(MediaItem("photo", "photo"), 0, photo)
    pixels, answers = ours(arguments.weights, frame, arguments.phrases)
    print(f"ours has answered for a photo of {frame.size_hw}", flush=True)
    gc.collect()
    found, absent = theirs(arguments.weights, pixels, arguments.phrases)
    print(f"Ultralytics' model has {len(absent)} weights that the file has not: {', '.join(absent[:6])}")
    levels = (own_resizing(frame, pixels.shape[-1]) - (pixels[0] * 127.5 + 127.5)).abs()
    print(f"its own resizing: {(levels > 0.5).float().mean():.1%} of values differ, by up to {levels.max():.0f} levels")
    print("prompt style | phrase | presence | score | box | mask logits, of their spread | mask signs that differ")
    for style, own in answers.items():
        for phrase, one, other in zip(arguments.phrases, own, found, strict=True):
            print(line(style, phrase, one, other), flush=True)


if __name__ == "__main__":
    main()

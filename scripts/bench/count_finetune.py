"""What fine-tuning takes at SAM 3's full size, by method: random weights, one photo with a few questions, on the CPU.

    python scripts/bench/count_finetune.py                      # all methods at 336 pixels, a few minutes and 12 GB
    python scripts/bench/count_finetune.py --side 1008 --method lora

Counts the bytes that are kept for the way back, at a reduced image side; what depends on the side grows with its square
(attention keeps no square of its tokens). Says where gradients are, and where they must not be.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_checkpoint import word_tokenizer

from sam3label.core import masks
from sam3label.core.records import MediaItem
from sam3label.train import costs
from sam3label.train.methods import METHODS, Method
from sam3label.train.samples import Teacher, tokenizing
from sam3label.train.taught import PhraseAnswer, TaughtPhoto, TruthObject
from sam3label.train.tuning import Tuner, Tuning

FULL = 1008


def model_of(side: int, seed: int = 0) -> Any:
    """Return a Sam3Model of the published size with random weights, for another image side."""
    from transformers import Sam3Config, Sam3Model

    config = Sam3Config()
    config.image_size = side
    torch.manual_seed(seed)
    return Sam3Model(config).eval()


def photo(folder: Path, questions: int) -> TaughtPhoto:
    """Write a photo with two objects, of which half of the questions are about."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(folder / "a.png")
    objects = []
    for x, y in ((50, 60), (300, 200)):
        mask = np.zeros((480, 640), np.bool_)
        mask[y : y + 120, x : x + 150] = True
        objects.append(TruthObject((x / 640, y / 480, (x + 150) / 640, (y + 120) / 480), masks.encode(mask)))
    words = ("helmet", "person", "truck", "dog", "cup", "bag", "chair", "tree")
    asked = [PhraseAnswer(word, (0, 1) if n % 2 == 0 else ()) for n, word in enumerate(words[:questions])]
    return TaughtPhoto(MediaItem("a.png", str(folder / "a.png")), (480, 640), tuple(objects), tuple(asked))


def count(method: Method, side: int, questions: int, recompute: bool, work: Path) -> dict[str, Any]:
    """Run one step and return what it took, scaled to the full side."""
    model = model_of(side)
    teacher = Teacher(
        [photo(work, questions)], tokenizing(word_tokenizer()), side, images=1, pairs_an_image=questions,
        cells=8 * (side // 14), varied=False,
    )  # fmt: skip
    tuner = Tuner(model, teacher, Tuning(method=method, rank=16, steps=10, precision="fp32", recompute=recompute))
    begun = time.monotonic()
    spent = costs.measure(tuner)
    measured = time.monotonic() - begun
    told = tuner.step()
    told = tuner.step()
    parts: dict[str, int] = {}
    for name, value in tuner.model.named_parameters():
        if value.grad is not None and bool(value.grad.abs().sum() > 0):
            part = name.split(".")[0]
            parts[part] = parts.get(part, 0) + value.numel()
    wrong = [n for n, value in tuner.model.named_parameters() if value.grad is not None and n not in tuner.trained]
    grown = (FULL / side) ** 2
    return {
        "method": method,
        "side": side,
        "questions": questions,
        "recompute": recompute,
        "trained": spent.trained,
        "of": spent.of_all,
        "model_GB": spent.model_bytes / 1e9,
        "training_GB": spent.training_bytes / 1e9,
        "photo_GB": spent.image_bytes / 1e9,
        f"photo_GB_at_{FULL}": spent.image_bytes * grown / 1e9,
        f"whole_GB_at_{FULL}": (spent.model_bytes + spent.training_bytes + spent.image_bytes * grown) / 1e9,
        "seconds": measured,
        "loss": told["total"],
        "gradients_in": parts,
        "gradients_where_they_do_not_belong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--side", type=int, default=336, help="a multiple of 336")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="keep inner values instead of computing them again")
    parser.add_argument("--work", type=Path, default=Path("build/count_finetune"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for method in args.method or METHODS:
        print(json.dumps(count(method, args.side, args.questions, not args.keep, args.work)), flush=True)


if __name__ == "__main__":
    main()

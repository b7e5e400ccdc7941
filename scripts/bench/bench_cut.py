"""Masks read off one by one and all together: the same instances, and what each way takes.

    .venv/bin/python scripts/bench/bench_cut.py [--masks 1,10,40,200] [--megapixels 2,12] [--device cpu] [--whole]

Masks are ellipses of 0.1 to 15 % of the photo with a rough edge, 288 x 288 logits each. `--whole` compares with
`F.interpolate` of every mask, pixel by pixel, too. Seconds are of the process's own CPU time, or the wall's on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from bench import object_shapes

from sam3label.core import masks
from sam3label.model import mask_runs
from sam3label.model.mask_runs import Instance, Size, Upsampling

SIDE = 288


def rough_ellipses(count: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    rough = F.interpolate(torch.randn(1, count, 40, 40, generator=noise), (SIDE, SIDE), mode="bicubic")[0]
    return object_shapes(count, SIDE) + rough


UPSAMPLING = Upsampling()


def read_off(logits: torch.Tensor, size_hw: Size, together: bool) -> list[Instance | None]:
    found: dict[int, Instance | None] = {}
    for start in range(0, len(logits), 64):
        some = logits[start : start + 64]
        for cuts in mask_runs.cut(some, [size_hw] * len(some), UPSAMPLING, together):
            made = cuts.instances() | cuts.settled()
            found |= {start + number: one for number, one in made.items()}
    return [found.get(number) for number in range(len(logits))]


def timed(logits: torch.Tensor, size_hw: Size, together: bool) -> tuple[float, list[Instance | None]]:
    clock = time.perf_counter if logits.is_cuda else time.process_time
    best, found = float("inf"), list[Instance | None]()
    for _ in range(3):
        start = clock()
        found = read_off(logits, size_hw, together)
        best = min(best, clock() - start)
    return best, found


def is_whole(one: torch.Tensor, size_hw: Size, instance: Instance | None) -> bool:
    """Whether an instance is the mask upsampled whole."""
    inside = (F.interpolate(one[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0] > 0).cpu().numpy()
    return not inside.any() if instance is None else instance.rle == masks.encode(inside)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", default="1,10,40,200")
    parser.add_argument("--megapixels", default="2,12")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole", action="store_true", help="compare with every mask upsampled whole")
    options = parser.parse_args(words)
    print(f"{'masks':>6}{'MP':>5}{'one by one':>12}{'together':>10}   equal")
    for megapixels in map(float, options.megapixels.split(",")):
        height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
        size_hw = (height, height * 4 // 3)
        for count in map(int, options.masks.split(",")):
            logits = rough_ellipses(count).to(options.device)
            apart, found = timed(logits, size_hw, together=False)
            at_once, same = timed(logits, size_hw, together=True)
            equal = found == same
            if options.whole:
                equal &= all(is_whole(one, size_hw, instance) for one, instance in zip(logits, found, strict=True))
            print(f"{count:>6}{megapixels:>5g}{apart * 1e3:>9.1f} ms{at_once * 1e3:>7.1f} ms   {equal}", flush=True)


if __name__ == "__main__":
    main()

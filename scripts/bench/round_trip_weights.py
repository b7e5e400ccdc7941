"""Weights to Meta's naming and back at full size: hub's layout -> .pt -> hub's layout, compared tensor by tensor.

    python scripts/bench/round_trip_weights.py WORK              # full size, 14 GB of disk, 8 GB of memory
    python scripts/bench/round_trip_weights.py WORK --size tiny

For SAM 3's detector, its tracker and the tracker's neck, and for the detector of a file in the form of SAM 3.1. The
weights are random, each drawn by its own name. What is written stays in WORK for other checks, but for the copies.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
import random_checkpoint

from sam3label.model.inventory import convert
from sam3label.model.official import LEVEL_THAT_NOBODY_READS

FILE = "model.safetensors"


def compare(made: Path, wanted: Path) -> Counter[str]:
    """Count tensors of `made` by part: equal to the bit, different, zeros that nobody reads, absent."""
    counts = Counter[str]()
    with safe_open(made / FILE, "pt") as ours, safe_open(wanted / FILE, "pt") as theirs:
        for name in theirs.keys():  # noqa: SIM118 (no mapping)
            part = name.split(".")[0]
            if name not in ours.keys():  # noqa: SIM118
                counts[f"{part} absent"] += 1
            elif torch.equal(ours.get_tensor(name), theirs.get_tensor(name)):
                counts[f"{part} bit-equal"] += 1
            elif LEVEL_THAT_NOBODY_READS.fullmatch(name) and not ours.get_tensor(name).any():
                counts[f"{part} zeros, of the level that nobody reads"] += 1
            else:
                counts[f"{part} different"] += 1
        counts["unknown"] += len(set(ours.keys()) - set(theirs.keys()))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Weights to Meta's naming and back, compared.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="full")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: Path = arguments.work
    hub, again = work / "hub", work / "again"
    if not (hub / FILE).is_file():
        random_checkpoint.make_checkpoint(hub, arguments.size, 21, drawn=True)
    files = {"3": work / "sam3.pt", "3.1": work / "three-one" / "sam3.1_multiplex.pt"}
    for release, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        since = time.perf_counter()
        if release == "3":
            convert(str(hub), file)
        else:
            random_checkpoint.make_official_file(hub, file, release)
        there = time.perf_counter()
        if arguments.size != "full":
            shutil.copy(hub / "config.json", file.with_name("config.json"))
        shutil.rmtree(again, ignore_errors=True)
        convert(str(file), again)
        back = time.perf_counter()
        counts = ", ".join(f"{number} {what}" for what, number in sorted(compare(again, hub).items()) if number)
        print(f"SAM {release}: {file.stat().st_size / 1e9:.2f} GB, there in {there - since:.0f} s, back in ", end="")
        print(f"{back - there:.0f} s: {counts}", flush=True)
        shutil.rmtree(again)
        if release == "3.1":
            file.unlink()


if __name__ == "__main__":
    main()

"""What this machine's CPU makes of the model: fp32, bf16 and channels-last, seconds an image, and do answers agree?

    python scripts/bench/bench_cpu.py --size small --images 3 --rounds 3
    python scripts/bench/bench_cpu.py --size demo --images 12         # trained weights: how far do the labels agree

Each way encodes and asks the same images in turn; seconds are the process's own, whatever else the machine does. bf16
pays where the CPU has instructions for it (AMX, AVX-512 BF16), which is said first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import CACHE, checkpoint_folder

from sam3label.core import masks
from sam3label.core.records import Candidate, Frame, MediaItem, Prompt
from sam3label.demo.shapes import make_scene
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detection, Detector
from sam3label.model.device import cpu_computes_bf16

PROMPTS = tuple(Prompt(phrase, phrase) for phrase in ("circle", "red square", "triangle", "star", "ring"))
FLOOR = 0.1


def load(model: str, way: str) -> Detector:
    detector = Detector.load(resolve(model), device="cpu", dtype="bf16" if way == "bf16" else "fp32")
    if way == "channels-last":  # the convolutions of neck and mask head
        for part in (detector.model.vision_encoder.neck, detector.model.mask_decoder):
            part.to(memory_format=torch.channels_last)
        detector.head.upsample = [w.to(memory_format=torch.channels_last) for w in detector.head.upsample]
    return detector


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def by_id(found: Sequence[Detection], least: float) -> dict[str, Candidate]:
    return {one.id: one for detection in found for one in detection.candidates if one.score >= least}


def agreement(one: dict[str, Candidate], other: dict[str, Candidate]) -> str:
    shared = one.keys() & other.keys()
    if not shared:
        return "nothing in common"
    ious = [float(masks.iou_matrix([one[name].rle], [other[name].rle])[0, 0]) for name in shared]
    apart = max(abs(one[name].score - other[name].score) for name in shared)
    return (
        f"{len(shared)} of {len(one.keys() | other.keys())} objects in both, mask IoU {np.median(ious):.4f} in the "
        f"middle and {min(ious):.3f} at worst, scores {apart:.2g} apart at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "full", "demo"), default="small")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="fp32,bf16,channels-last")
    parser.add_argument("--least", type=float, default=0.4, help="score of the labels that are compared")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    options = parser.parse_args()
    model = "demo" if options.size == "demo" else str(checkpoint_folder(options.size, options.cache))
    able = "has" if cpu_computes_bf16() else "has no"
    print(f"this CPU {able} instructions for bf16; torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    scenes = [make_scene(9_000_000 + n, (480, 640)) for n in range(options.images)]
    frames = [Frame(MediaItem(str(n), str(n)), 0, scene.image) for n, scene in enumerate(scenes)]
    detectors = {way: load(model, way) for way in options.ways.split(",")}
    encodes: dict[str, list[float]] = {way: [] for way in detectors}
    wholes: dict[str, list[float]] = {way: [] for way in detectors}
    found: dict[str, list[Detection]] = {way: [] for way in detectors}
    for turn in range(options.rounds):
        for frame in frames:
            for way, detector in detectors.items():
                encodes[way].append(timed(lambda: _encode(detector, frame)))  # noqa: B023
                wholes[way].append(timed(lambda: found[way].extend(detector.detect([frame], PROMPTS, FLOOR))))  # noqa: B023
        if turn == 0:
            answers = {way: by_id(own, options.least) for way, own in found.items()}
    reference = next(iter(detectors))
    for way in detectors:
        beside = "" if way == reference else f"; beside {reference}: {agreement(answers[reference], answers[way])}"
        encode, whole = statistics.median(encodes[way]), statistics.median(wholes[way])
        print(f"{way:13} {encode:.3f} s to encode an image, {whole:.3f} s with {len(PROMPTS)} concepts{beside}")


@torch.inference_mode()
def _encode(detector: Detector, frame: Frame) -> None:
    detector.encode_images(detector.preprocess([frame]))


if __name__ == "__main__":
    main()

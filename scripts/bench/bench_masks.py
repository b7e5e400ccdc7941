"""Boxes to masks beside transformers' own way: the same weights, photos and boxes, one process, outputs compared.

    python scripts/bench/bench_masks.py --model demo --photos 8 --boxes 1 10 50
    python scripts/bench/bench_masks.py --model WEIGHTS --device cuda --photos 32 --size 1080 1920

The library's way is its documentation's: processor, model, `post_process_masks`, a call a photo with all its boxes;
then pycocotools for the run-length code that labels are stored as. Ours is `Clicker.masks`, which ends in the same.
On a CPU the processor resizes up to a grey level otherwise; compared are answers to the same pixels. Times are of all
that either way does, the median of --repeat rounds that take turns; calls of the image encoder are counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from sam3label.core import masks
from sam3label.core.records import Box, Frame, Hint, MediaItem, Rle
from sam3label.demo.shapes import make_scene
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.interactive import Clicker
from sam3label.model.weights import load_video_model

FIRST_SEED = 12_000_000


class Library:
    """transformers' Sam3TrackerModel and its processor, with nothing of ours."""

    def __init__(self, folder: str, device: torch.device) -> None:
        from transformers import Sam3TrackerModel, Sam3TrackerProcessor
        from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

        self.processor = Sam3TrackerProcessor(Sam3ImageProcessor.from_pretrained(folder))
        self.model = Sam3TrackerModel.from_pretrained(folder).to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, frame: Frame, boxes: Sequence[Box], pixels: torch.Tensor | None = None) -> list[Rle]:
        """Masks of the boxes; with `pixels` [1, 3, X, X] instead of what the processor makes of the photo."""
        inputs = self.processor(images=frame.pixels, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        if pixels is not None:
            inputs["pixel_values"] = pixels
        sizes = inputs["original_sizes"]
        outputs = self.model(**inputs.to(self.device), multimask_output=False)
        whole = self.processor.post_process_masks(outputs.pred_masks.cpu(), sizes)[0][:, 0].numpy()
        codes = (coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in whole)
        return [Rle(frame.size_hw, code["counts"]) for code in codes]


def photos(count: int, size_hw: tuple[int, int], boxes: int) -> list[tuple[Frame, list[Box]]]:
    """Drawn scenes with the boxes of their objects, and random ones as far as these do not suffice."""
    made = []
    for n in range(count):
        rng = np.random.default_rng(n)
        scene = make_scene(FIRST_SEED + n, size_hw)
        own = [masks.box_xywh(masks.encode(scene.mask(k))) for k in range(1, len(scene.things) + 1)]
        corners = [(x, y, x + w, y + h) for x, y, w, h in own][:boxes]
        while len(corners) < boxes:
            x, y = rng.uniform(0, 0.8, 2) * (size_hw[1], size_hw[0])
            w, h = rng.uniform(0.05, 0.2, 2) * (size_hw[1], size_hw[0])
            corners.append((x, y, x + w, y + h))
        made.append((Frame(MediaItem(str(n), str(n)), 0, scene.image), corners))
    return made


def ours(clicker: Clicker, made: Sequence[tuple[Frame, list[Box]]]) -> list[list[Rle]]:
    found = clicker.masks([frame for frame, _ in made], [[Hint(box) for box in boxes] for _, boxes in made])
    empty = [masks.encode(np.zeros(frame.size_hw, np.bool_)) for frame, _ in made]
    return [[c.instance.rle if c.instance else empty[n] for c in own] for n, own in enumerate(found)]


def the_librarys(library: Library, made: Sequence[tuple[Frame, list[Box]]]) -> list[list[Rle]]:
    return [library(frame, boxes) for frame, boxes in made]


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Boxes to masks, beside transformers' own way.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    checkpoint = resolve(arguments.model)
    video = load_video_model(checkpoint)  # its own weights: of a head beside them the library knows nothing
    clicker = Clicker(video, Detector.load(checkpoint, device=arguments.device, dtype="fp32"))
    for part in (clicker.neck, clicker.model):
        part.to(clicker.detector.device)
    library = Library(str(checkpoint.folder), clicker.detector.device)
    encodes: list[int] = []
    clicker.detector.model.vision_encoder.backbone.register_forward_hook(lambda _m, x, _y: encodes.append(len(x[0])))
    print("boxes a photo | mask IoU mean, least | encodes | ms a photo: ours, library | times as fast")
    for boxes in arguments.boxes:
        made = photos(arguments.photos, tuple(arguments.size), boxes)
        encodes.clear()
        own = ours(clicker, made)
        theirs = [library(f, given, clicker.detector.preprocess([f])) for f, given in made]
        counted = sum(encodes)
        overlap = [
            1.0 if a == b else float(masks.iou_matrix([a], [b])[0, 0])
            for one, other in zip(own, theirs, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        times: dict[str, list[float]] = {"ours": [], "library": []}
        for _ in range(arguments.repeat):
            times["ours"].append(timed(partial(ours, clicker, made)))
            times["library"].append(timed(partial(the_librarys, library, made)))
        a, b = (1000 * statistics.median(times[key]) / len(made) for key in ("ours", "library"))
        print(
            f"{boxes} | {np.mean(overlap):.5f}, {min(overlap):.5f} | {counted} for {len(made)} photos | "
            f"{a:.1f}, {b:.1f} | {b / a:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How fast is labelling, beside the library it stands on? All variants in one process, on the same weights and photos.

    .venv/bin/python scripts/bench/bench.py --size small --concepts 1,5,20 --images 2
    python scripts/bench/bench.py --size full --device cuda --images 64 --concepts 1,20 --variants ours,run --compile

  phrase   transformers' processor and model, called for each image and phrase, with its post-processing: as documented
  cached   transformers with what can be kept kept: images' features, all texts; pairs in batches; its post-processing
  pixels   the same, left where the library's post-processing leaves it: masks of the photo's size, not yet labels
  ours     Detector.detect on decoded frames
  run      the whole run, from JPEG files to the committed store; its rate is of whole batches in its middle
  official, ultralytics   the authors' code and Ultralytics', where they are installed, at full size (`others.py`)

But for `pixels`, all end with the same labels: box, area and run-length code of each object at the photo's size; the
library's masks are encoded by pycocotools. `--style official`, the default on a GPU, has ours ask as a run does; with
`transformers`, the default on a CPU, it asks as the library does, and the answers can be compared. First that is done,
counting operations; then each round times every variant once, in turn, and medians are reported: what else the machine
does hits all alike. `--clock cpu` counts the process's own seconds: for a busy machine.

Weights are random (`random_checkpoint.py`), their heads livened so that scores and masks differ; `--present` sets the
floor over which that share of (image, phrase) pairs has anything, the same for all variants. Random masks cover the
photo, as no trained model's do: in all variants each query's mask logits are lowered outside an ellipse of its own,
from 0.1 to 15 % of the photo (`object_shapes`). `--sprawl` leaves them as they come.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import others
from library import PAIRS_ON_CPU, Library, labels
from random_checkpoint import SIZES, make_checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import Frame, Prompt
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.media.discovery import discover
from sam3label.media.image import decode_image
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detection, Detector
from sam3label.model.device import pick_device
from sam3label.model.read_off import MaskReader

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "small", "large"]
THINGS = ["person", "helmet", "forklift", "truck", "car", "bicycle", "dog", "bottle", "chair", "sign"]
BESIDE = ("phrase", "cached", "pixels", "official", "ultralytics", "ours")  # variants that the others are set against
WHOLE = 12  # batches on a GPU, the first three and the last of which are not counted
# dense, FLOP/s
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
CACHE = Path(tempfile.gettempdir()) / "sam3label-bench"
LIVENED = re.compile(r"detector_model\.(?!vision_encoder|text_encoder).*")

Found = dict[tuple[int, int], tuple[np.ndarray, list[Any]]]  # (image, phrase) -> scores, run-length codes


@dataclass
class Row:
    """One variant at one number of concepts. Seconds, bytes and operations are per image."""

    variant: str
    concepts: int
    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    operations: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# ---- what is labelled


def checkpoint_folder(size: str, cache: Path) -> Path:
    """A random checkpoint whose heads tell images, phrases and queries apart. Made once."""
    from safetensors.torch import load_file, save_file

    folder = cache / f"sam3-{size}"
    if (folder / "livened").exists():
        return folder
    make_checkpoint(folder, size, seed=0)
    if size in SIZES and SIZES[size].lively:
        return folder
    weights = load_file(folder / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name in sorted(filter(LIVENED.fullmatch, weights)):
        if weights[name].is_floating_point():
            weights[name] += 0.045 * torch.randn(weights[name].shape, generator=noise)
    head = "detector_model."
    weights[head + "detr_decoder.query_embed.weight"].normal_(0.0, 3.0, generator=noise)
    weights[head + "detr_decoder.reference_points.weight"].normal_(0.0, 1.5, generator=noise)
    weights[head + "dot_product_scoring.query_proj.weight"].mul_(6.0)
    last = max(n for n in weights if re.fullmatch(head + r"mask_decoder\.mask_embedder\.layers\.\d\.weight", n))
    weights[last].mul_(4.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "livened").touch()
    return folder


def synthetic_photos(folder: Path, count: int, megapixels: float) -> Path:
    """JPEG files with coarse colour and fine grain, 4:3, no two alike."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (height * 4 // 3, height)
    for number in range(count):
        coarse = cv2.resize(random.integers(0, 255, (12, 16, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        grain = cv2.resize(random.integers(0, 40, (height // 3, size[0] // 3, 3), dtype=np.uint8), size)
        cv2.imwrite(str(folder / f"{number}-photo.jpg"), cv2.add(coarse, grain))
    return folder


def object_shapes(queries: int, side: int) -> torch.Tensor:
    """To add to mask logits: [Q, h, w], 0 on the edge of each query's ellipse, 8 in its middle, below 0 outside."""
    noise = torch.Generator().manual_seed(0)
    x, y, size, turn = torch.rand(4, queries, 1, 1, generator=noise)
    area = 0.001 * 150**size
    radius, longer = (area / torch.pi).sqrt(), 2 ** (2 * turn - 1)  # half as wide as high to twice
    place = (torch.arange(side) + 0.5) / side
    distance = ((place - x) / (radius * longer)).square() + ((place[:, None] - y) * longer / radius).square()
    return 8 * (1 - distance.sqrt())


@contextmanager
def shaped_masks(shapes: torch.Tensor | None) -> Iterator[None]:
    """The same in our detectors, those that a run loads too."""
    made = MaskReader.logits

    def masks_of(self: MaskReader, scored: Any, row: Any, query: Any, *rest: Any) -> torch.Tensor:
        assert shapes is not None
        return made(self, scored, row, query, *rest) + shapes[torch.from_numpy(query).to(shapes.device)]

    if shapes is None:
        yield
        return
    MaskReader.logits = masks_of  # type: ignore[method-assign]
    try:
        yield
    finally:
        MaskReader.logits = made  # type: ignore[method-assign]


def phrases(count: int) -> list[str]:
    pairs = [f"{colour} {thing}" for thing in THINGS for colour in COLOURS]
    if count > len(pairs):
        raise SystemExit(f"at most {len(pairs)} concepts, got {count}")
    return pairs[:count]


def floor_for(detector: Detector, frames: Sequence[Frame], prompts: Sequence[Prompt], present: float) -> float:
    """A floor that the best query of this share of (image, phrase) pairs passes, halfway between two pairs' scores."""
    best = sorted((one for f in frames for one in detector.scores([f], prompts).scores.amax(1).tolist()), reverse=True)
    kept = max(round(present * len(best)), 1)
    below = best[kept] if kept < len(best) else 0.98 * best[-1]
    return (best[kept - 1] + below) / 2


# ---- the variants: each labels all frames and returns what it found


class Bench:
    """What all variants share at one number of concepts."""

    def __init__(
        self,
        options: argparse.Namespace,
        folder: Path,
        photos: Path,
        library: Library,
        ours: Detector,
        beside: Mapping[str, others.Other],
    ) -> None:
        self.options, self.folder, self.photos, self.library, self.ours = options, folder, photos, library, ours
        self.beside = beside
        items = list(discover([photos]))[: options.images]
        self.frames = [Frame(item, 0, decode_image(item.path)) for item in items]

    def ask(self, count: int) -> None:
        """Choose the phrases and the floor, and encode the phrases."""
        self.words = phrases(count)
        self.prompts = [Prompt(word, word) for word in self.words]
        self.floor = floor_for(self.ours, self.frames[:4], self.prompts, self.options.present)
        self.library.read(self.prompts)

    def phrase(self) -> int:
        results = self.library.phrase(self.frames, self.prompts, self.floor)
        return sum(len(labels(result)) for _, result in results)

    def cached(self) -> int:
        results = self.library.cached(self.frames, self.prompts, self.floor, self.batch)
        return sum(len(labels(result)) for _, result in results)

    def pixels(self) -> int:
        results = self.library.cached(self.frames, self.prompts, self.floor, self.batch)
        return sum(len(result["masks"]) for _, result in results)

    def other(self, name: str) -> int:
        return self.beside[name].count(self.frames, self.prompts, self.floor)

    def detect(self) -> int:
        step = self.ours.image_batch
        batches = [self.frames[i : i + step] for i in range(0, len(self.frames), step)]
        found = [one for batch in batches for one in self.ours.detect(batch, self.prompts, self.floor)]
        return sum(len(detection.candidates) for detection in found)

    @property
    def batch(self) -> tuple[int, int]:
        """Images and pairs together in the cached variant: as in ours, on a CPU as suits the library."""
        on_cpu = self.ours.device.type == "cpu"
        return self.ours.image_batch, PAIRS_ON_CPU if on_cpu else self.ours.batches["pairs"]

    def run(self) -> tuple[float, int]:
        """Seconds per photo, and objects stored. On a GPU of batches both of whose ends lie in the run's middle.

        There each batch is encoded before the one before it is answered: the first and the last are no measure.
        """
        seen: list[tuple[float, Progress]] = []
        now = clock(self.options.clock)
        options = self.options
        with tempfile.TemporaryDirectory() as out:
            concepts = parse_concepts(json.dumps({"names": self.words, "defaults": {"conf": self.floor}}), "bench")
            label(
                [self.photos], concepts, out,
                LabelOptions(model=str(self.folder), device=options.device, dtype=options.dtype, floor=self.floor,
                           prompt_style=self.ours.prompt_style, workers=options.workers, compile=options.compile,
                           limit=options.images, batch_size=max(1, min(self.ours.image_batch, options.images // 2))),
                on_progress=lambda progress: seen.append((now(), progress)),
            )  # fmt: skip
        ahead = self.ours.device.type == "cuda" and len(seen) > 6
        (start, first), *_, (stop, last) = seen[3:-1] if ahead else seen[1 if len(seen) > 2 else 0 :]
        return (stop - start) / (last.done - first.done), sum(seen[-1][1].objects.values())


# ---- measuring


def clock(name: str) -> Callable[[], float]:
    return time.process_time if name == "cpu" else time.perf_counter


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Bytes above what was in use at the start: of the GPU, or of this process (Linux; 0 elsewhere)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    except OSError:
        yield lambda: 0
        return
    yield lambda: max(0, resident("VmHWM") - before)


def resident(field_name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field_name}:\s+(\d+) kB", text)[0]) * 1024


def time_once(bench: Bench, row: Row) -> None:
    """One more measurement of a variant."""
    device = bench.ours.device
    if row.variant == "run":
        row.seconds.append(bench.run()[0])
        return
    ways = {"phrase": bench.phrase, "cached": bench.cached, "pixels": bench.pixels, "ours": bench.detect}
    work = ways.get(row.variant) or partial(bench.other, row.variant)
    now = clock(bench.options.clock)
    with peak_memory(device) as peak:
        start = now()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        row.seconds.append((now() - start) / len(bench.frames))
        row.memory = max(row.memory, peak())


def compare(bench: Bench, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How far the variants agree with transformers per phrase on the first photo. Counts operations on the way."""
    frame, answers = bench.frames[:1], dict[str, Found]()
    for row in rows:
        with FlopCounterMode(display=False) as counter:
            if row.variant == "phrase":
                answers["phrase"] = _of_library(bench.library.phrase(frame, bench.prompts, bench.floor))
            elif row.variant == "cached":
                batch = (1, bench.batch[1])
                answers["cached"] = _of_library(bench.library.cached(frame, bench.prompts, bench.floor, batch))
            elif row.variant == "ours":
                answers["ours"] = _of_ours(bench.ours.detect(frame, bench.prompts, bench.floor), bench.prompts)
        row.operations = counter.get_total_flops()
    if bench.ours.prompt_style != "transformers":  # another question has other answers
        return {}
    reference = answers.get("phrase") or answers.get("cached") or answers["ours"]
    return {name: agreement(reference, found) for name, found in answers.items() if found is not reference}


def _of_library(results: Iterator[Any]) -> Found:
    found = ((pair, labels(result)) for pair, result in results)
    return {pair: (np.array([s for s, *_ in own], np.float32), [code for _, code, *_ in own]) for pair, own in found}


def _of_ours(detections: Sequence[Detection], prompts: Sequence[Prompt]) -> Found:
    found: Found = {}
    for image, detection in enumerate(detections):
        for number, prompt in enumerate(prompts):
            own = [c for c in detection.candidates if c.prompt == prompt.key]
            found[image, number] = (np.array([c.score for c in own], np.float32), [c.rle for c in own])
    return found


def agreement(one: Found, other: Found) -> dict[str, float]:
    """Objects of both, the share of pairs with equally many, and there the largest score difference and mask IoUs."""
    same = [pair for pair in one if len(one[pair][0]) == len(other[pair][0])]
    apart = [float(np.abs(one[pair][0] - other[pair][0]).max()) for pair in same if len(one[pair][0])]
    shared = [codes for pair in same for codes in zip(one[pair][1], other[pair][1], strict=True)]
    ious = [masks.iou_matrix([a], [b])[0, 0] for a, b in shared]
    return {
        "objects": sum(len(scores) for scores, _ in one.values()),
        "objects of the other": sum(len(scores) for scores, _ in other.values()),
        "pairs with equally many": len(same) / len(one),
        "largest score difference": max(apart, default=0.0),
        "median mask IoU": float(np.median(ious)) if ious else 1.0,
        "lowest mask IoU": float(min(ious, default=1.0)),
    }


# ---- the report


def bf16_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in BF16_PEAK.items() if part in name), None)


def print_table(rows: Sequence[Row], device: torch.device) -> None:
    peak = bf16_peak(device)
    last = "of bf16 peak" if peak else "GFLOP/s"
    measured = [name for name in BESIDE if any(row.variant == name for row in rows)]
    ratios = "".join(f"{f'x {name}':>15}" for name in measured)
    print(
        f"{'concepts':>8}  {'variant':12}{'s/image':>10}{'images/s':>10}{ratios}{'peak MiB':>10}{'GFLOP':>9}{last:>13}"
    )
    for row in rows:
        beside = {other.variant: other.median for other in rows if other.concepts == row.concepts}
        ratios = "".join(f"{beside[name] / row.median:>15.2f}" if name in beside else f"{'':>15}" for name in measured)
        speed = row.operations / row.median
        share = f"{speed / peak:>13.1%}" if peak else f"{speed / 1e9:>13.1f}"
        work = f"{row.operations / 1e9:>9.0f}{share}" if row.operations else ""
        memory = f"{row.memory / 2**20:>10.0f}" if row.memory else f"{'':>10}"
        print(f"{row.concepts:>8}  {row.variant:12}{row.median:>10.3f}{1 / row.median:>10.2f}{ratios}{memory}{work}")


def print_slope(rows: Sequence[Row]) -> None:
    """Is ours linear in the number of concepts? The least-squares line, and how far the worst point lies from it."""
    own = [(row.concepts, row.median) for row in rows if row.variant == "ours"]
    if len(own) < 3:
        return
    count, seconds = np.array(own).T
    slope, start = np.polyfit(count, seconds, 1)
    off = np.abs(start + slope * count - seconds) / seconds
    print(f"ours: {start:.3f} s an image + {slope:.4f} s a concept; the worst point is {off.max():.1%} off this line")


def measure(bench: Bench, count: int, variants: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    bench.ask(count)
    rows = [Row(variant, count) for variant in variants]
    agreed = compare(bench, rows)
    for name, figures in agreed.items():
        shown = ", ".join(f"{key} {value:.6g}" for key, value in figures.items())
        print(f"{count} concepts, floor {bench.floor:.4f}, {name} against the first variant: {shown}", flush=True)
    for _ in range(bench.options.rounds):
        for row in rows:
            time_once(bench, row)
    return rows, {"floor": bench.floor, "agreement": agreed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small")
    parser.add_argument("--concepts", default="1,5,20", help="numbers of phrases, e.g. 1,5,20,80")
    parser.add_argument("--present", type=float, default=0.25, help="share of pairs with anything over the floor")
    parser.add_argument("--sprawl", action="store_true", help="leave the masks of random weights as they come")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--megapixels", type=float, default=2.0, help="of the synthetic photos")
    parser.add_argument("--photos", type=Path, help="a folder of photos instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default="phrase,cached,pixels,official,ultralytics,ours,run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--style", choices=("official", "transformers"), help="what ours and run ask")
    parser.add_argument("--compile", action="store_true", help="torch.compile in ours and run")
    parser.add_argument("--workers", type=int, help="of the run")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    parser.add_argument("--json", type=Path, help="write everything here, too")
    return parser.parse_args()


def main() -> None:
    options = parse()
    variants = []
    for name in options.variants.split(","):
        reason = others.why_not(name, options.size) if name in others.NEEDS else None
        if reason is None:
            variants.append(name)
        else:
            print(reason)
    folder = checkpoint_folder(options.size, options.cache)
    style = options.style or ("official" if pick_device(options.device).type == "cuda" else "transformers")
    ours = Detector.load(
        resolve(str(folder)), options.device, options.dtype, prompt_style=style, compiled=options.compile
    )
    side = 4 * ours.head.grid
    shapes = None if options.sprawl else object_shapes(ours.model.config.detr_decoder_config.num_queries, side)
    shapes = None if shapes is None else shapes.to(ours.device)
    library = Library(folder, ours.device, ours.dtype, shapes)
    report: dict[str, Any] = {"size": options.size, "device": _device_name(ours.device), "dtype": str(ours.dtype),
                              "torch": torch.__version__, "threads": torch.get_num_threads(), "clock": options.clock,
                              "compile": options.compile, "style": style, "present": options.present,
                              "sprawl": options.sprawl, "tables": []}  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in report.items() if key != "tables"), flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, shaped_masks(shapes):
        photos = options.photos or synthetic_photos(Path(scratch) / "photos", options.images, options.megapixels)
        beside = {name: others.load(name, folder, ours.device) for name in variants if name in others.NEEDS}
        bench = Bench(options, folder, photos, library, ours, beside)
        if "run" in variants and ours.device.type == "cuda" and len(bench.frames) < WHOLE * ours.image_batch:
            print(f"run: fewer than {WHOLE} batches say little; --images {WHOLE * ours.image_batch} or more")
        for count in map(int, options.concepts.split(",")):
            measured, figures = measure(bench, count, variants)
            print_table(measured, ours.device)
            rows += measured
            report["tables"].append({"concepts": count, **figures, "rows": [asdict(row) for row in measured]})
    print_slope(rows)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()

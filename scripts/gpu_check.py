"""Does everything work on this machine's GPU, and how fast? Pass, fail or skip, line by line, in under ten minutes.

    python scripts/gpu_check.py --json gpu.json [--device cuda:0] [--without-speed]

No network and no weights are needed: the demo model and a tiny random one for what must be right, a full-size random
one, made on the card, for speed. Answers are compared with this machine's CPU. The exit code is 1 if any line fails.
Goals (an H100's) are noted beside what is measured, and fail nothing: a smaller card is not a broken one.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "bench"))
from bench import floor_for, object_shapes, phrases, shaped_masks, synthetic_photos
from random_checkpoint import make_checkpoint, word_tokenizer

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import BoxPrompt, Candidate, Frame, MediaItem, Prompt
from sam3label.demo.shapes import make_clip, make_scene
from sam3label.errors import ConfigError
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.media.image import decode_image
from sam3label.model import mask_runs
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detection, Detector
from sam3label.model.device import Compute, nvidia_driver, pick_device, pick_dtype
from sam3label.model.tracker import Tracker

GOALS = {1: 60, 20: 30}  # images a second on an H100, by concepts
CONCEPTS = (1, 5, 20, 80)
BATCHES, LEFT_OUT = 14, 2  # of images that are timed at each number of concepts; the first ones are not counted
FRAMES, CLIP = 8, 12  # photos and frames of a video that are compared with the CPU
ROUNDS = 40  # batches after which memory must be what it was
PROMPTS = tuple(Prompt(phrase, phrase) for phrase in ("circle", "red square", "triangle"))
FLOOR = 0.1
ATTENTION = {  # of 4 images, and of 16 pairs: [images or pairs, heads, tokens, width]
    "windows of the image encoder": (36, 16, 576, 64),
    "whole images in the image encoder": (4, 16, 5184, 64),
    "images in the head": (16, 8, 5184, 32),
}


@dataclass
class Line:
    """What a check came to."""

    name: str
    verdict: str  # pass, fail or skip
    detail: str
    seconds: float


class Check:
    """The device, what is asked of it, and the lines so far."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.lines: list[Line] = []
        self.figures: dict[str, Any] = {}
        self.checkpoints = {"demo": resolve("demo"), "tiny": resolve(str(make_checkpoint(folder / "tiny", "tiny")))}
        scenes = [make_scene(9_000_000 + n, (240 + 40 * (n % 2), 320)) for n in range(FRAMES)]
        self.frames = [Frame(MediaItem(str(n), str(n)), 0, scene.image) for n, scene in enumerate(scenes)]

    def load(self, name: str = "demo", dtype: str = "auto", **options: Any) -> Detector:
        return Detector.load(self.checkpoints[name], device=self.device, dtype=dtype, **options)

    def line(self, name: str, work: Callable[[], str]) -> None:
        """Do one check, and print what came of it."""
        start = time.perf_counter()
        try:
            verdict, detail = "pass", work()
        except Exception as error:  # whatever a GPU and its libraries find to say
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = str(error).strip().partition("\n")[0] or f"line {where.lineno} of {Path(where.filename).name}"
            verdict, detail = "fail", f"{type(error).__name__}: {reason}"
        self.add(Line(name, verdict, detail, round(time.perf_counter() - start, 1)))
        gc.collect()
        torch.cuda.empty_cache()

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(f"{line.verdict:5} {line.seconds:6.1f} s  {line.name}: {line.detail}", flush=True)


# ---- what there is


def machine(check: Check) -> str:
    device = pick_device(check.device)
    free, total = torch.cuda.mem_get_info(device)
    found = {
        "card": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": nvidia_driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": os.cpu_count(),
        "memory_gb": round(total / 1e9, 1),
        "free_gb": round(free / 1e9, 1),
    }
    check.figures["machine"] = found
    assert float((torch.ones(8, device=device) * 2).sum()) == 16.0
    return ", ".join(f"{name} {value}" for name, value in found.items())


# ---- is it right?


def by_id(detections: Sequence[Detection], least: float = 0.0) -> dict[str, Candidate]:
    return {one.id: one for detection in detections for one in detection.candidates if one.score >= least}


def compared(one: dict[str, Candidate], other: dict[str, Candidate]) -> tuple[float, float, float]:
    """Return the share of both that are in both, their median mask IoU and the largest difference of scores."""
    shared = one.keys() & other.keys()
    assert shared, "nothing in common"
    ious = [float(masks.iou_matrix([one[name].rle], [other[name].rle])[0, 0]) for name in shared]
    apart = max(abs(one[name].score - other[name].score) for name in shared)
    return len(shared) / len(one.keys() | other.keys()), float(np.median(ious)), apart


def as_on_the_cpu(check: Check, name: str, dtype: str, least: float) -> str:
    box = BoxPrompt(np.array([[0.1, 0.1, 0.5, 0.6]], np.float32), (True,))
    boxes = [{PROMPTS[0].key: box} if number % 2 else {} for number in range(len(check.frames))]
    here = Detector.load(check.checkpoints[name], device="cpu").detect(check.frames, PROMPTS, FLOOR, boxes)
    there = check.load(name, dtype).detect(check.frames, PROMPTS, FLOOR, boxes)
    share, iou, apart = compared(by_id(here, least), by_id(there, least))
    exact = dtype == "fp32"
    assert share >= (0.98 if exact else 0.9) and iou >= (0.999 if exact else 0.97), f"{share:.1%} alike, IoU {iou:.4f}"
    return f"{share:.1%} of the objects in both, median mask IoU {iou:.4f}, scores {apart:.2g} apart at most"


def whatever_the_company(check: Check) -> str:
    detector = check.load()
    together = by_id(detector.detect(check.frames, PROMPTS, FLOOR))
    alone = by_id([one for frame in check.frames for one in detector.detect([frame], PROMPTS, FLOOR)])
    assert {name: one.score for name, one in together.items()} == {name: one.score for name, one in alone.items()}
    return f"{len(together)} scores are the same to the last bit, alone and together"


def masks_to_the_pixel(check: Check, megapixels: float) -> str:
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size_hw, noise = (height, height * 4 // 3), torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(1, 12, 9, 9, generator=noise), (288, 288), mode="bicubic")[0] - 0.5
    logits = smooth.to(pick_device(check.device))
    found = mask_runs.instances(logits, size_hw, mask_runs.Upsampling())
    for one, instance in zip(logits, found, strict=True):
        inside = F.interpolate(one[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0] > 0
        expected = masks.encode(inside.cpu().numpy())
        assert instance is not None and instance.rle == expected, "a pixel differs from F.interpolate"
    return f"{len(found)} masks of {size_hw[1]} x {size_hw[0]} equal F.interpolate's"


def videos(check: Check) -> str:
    shown = [scene.image for scene in make_clip(7, CLIP, (180, 240))]
    numbers = []
    for device in ("cpu", check.device):
        detector = Detector.load(check.checkpoints["demo"], device=device, dtype="fp32")
        tracker = Tracker.load(check.checkpoints["demo"], detector)
        frames = [Frame(MediaItem("video", "video", "video"), number, one) for number, one in enumerate(shown)]
        numbers.append([[o.number for o in one.objects] for one in tracker.track(frames, PROMPTS)])
    assert numbers[0] == numbers[1], "other tracks than on the CPU"
    return f"{sum(map(len, numbers[0]))} objects in {len(shown)} frames, the same tracks as on the CPU"


# ---- does it wait, does it fit, does it leak?


def encodes_without_waiting(check: Check) -> str:
    detector = check.load()
    detector.encode_phrases([prompt.text or "" for prompt in PROMPTS])
    frames = [Frame(f.item, 0, torch.from_numpy(f.pixels).pin_memory().numpy()) for f in check.frames[:4]]
    detector.detect(frames, PROMPTS, FLOOR)
    torch.cuda.set_sync_debug_mode("error")
    try:
        detector.encode_ahead(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "the host waited for nothing while images were encoded ahead"


def little_memory(check: Check) -> str:
    device = pick_device(check.device)
    detector = check.load("tiny", "fp32")
    expected = by_id(detector.detect(check.frames, PROMPTS, FLOOR))
    total, used = torch.cuda.mem_get_info(device)[1], torch.cuda.memory_allocated(device)
    sizes = []
    for extra in (256e6, 64e6, 32e6, 16e6):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (used + extra) / total), device)
        try:
            found = by_id(detector.detect(check.frames, PROMPTS, FLOOR))
        except ConfigError:
            break
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        share, iou, _ = compared(expected, found)
        assert share > 0.97 and iou > 0.999
        sizes.append(detector.image_batch)
    return f"the same labels with ever less memory (images together: {sizes}), then one sentence"


def nothing_is_kept(check: Check) -> str:
    detector, device = check.load("tiny", "fp32"), pick_device(check.device)
    held = []
    for _ in range(ROUNDS):
        detector.encode_ahead(check.frames[:4])
        detector.detect(check.frames[:4], PROMPTS, FLOOR)
        held.append(torch.cuda.memory_allocated(device))
    torch.cuda.synchronize()
    detector.clock.seconds()
    assert detector.clock.open_blocks == 0, f"{detector.clock.open_blocks} events are kept"
    assert held[-1] <= max(held[2:6]), f"memory grew from {held[2]} to {held[-1]} bytes"
    return f"{ROUNDS} batches: {held[-1] / 1e6:.0f} MB at the end as at the start, no event left"


# ---- how fast is it?


def full_size(check: Check) -> Detector:
    """A full-size detector with random weights, made on the card; its heads livened so that answers differ."""
    from transformers import Sam3Config, Sam3Model

    where = pick_device(check.device)
    noise = torch.Generator(device=where).manual_seed(0)
    with torch.device(where), torch.inference_mode():
        model: Any = Sam3Model(Sam3Config()).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if not name.startswith(("vision_encoder", "text_encoder")):
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=0.045)
        model.detr_decoder.query_embed.weight.normal_(0.0, 3.0, generator=noise)
        model.detr_decoder.reference_points.weight.normal_(0.0, 1.5, generator=noise)
        model.dot_product_scoring.query_proj.weight.mul_(6.0)
        model.mask_decoder.mask_embedder.layers[-1].weight.mul_(4.0)
    compute = Compute(where, pick_dtype("auto", where))
    return Detector.of_model(model, word_tokenizer(), "random", compute)


@contextmanager
def ready(check: Check, detector: Detector) -> Iterator[None]:
    """Let a run use this detector, and let its masks be objects' rather than random weights'."""
    shapes = object_shapes(detector.queries, 4 * detector.head.grid).to(detector.device)
    with mock.patch.object(Detector, "load", lambda *_, **__: detector), shaped_masks(shapes):
        yield


def speed(check: Check, detector: Detector, frames: Sequence[Frame], concepts: int, title: str) -> str:
    """The detector alone on decoded photos, as a run drives it: each batch is begun before the one before is asked."""
    prompts = [Prompt(word, word) for word in phrases(concepts)]
    floor = floor_for(detector, frames[:4], prompts, 1.0 if concepts == 1 else 0.25)
    size = detector.image_batch
    batches = [[frames[(n + number * size) % len(frames)] for n in range(size)] for number in range(BATCHES)]
    torch.cuda.reset_peak_memory_stats()
    start, objects, first = 0.0, 0, detector.clock.seconds()
    detector.encode_ahead(batches[0])
    for number, batch in enumerate(batches[:-1]):
        if number == LEFT_OUT:
            torch.cuda.synchronize()
            start, objects, first = time.perf_counter(), 0, detector.clock.seconds()
        detector.encode_ahead(batches[number + 1])
        objects += sum(len(one.candidates) for one in detector.detect(batch, prompts, floor))
    torch.cuda.synchronize()
    images = size * (BATCHES - 1 - LEFT_OUT)
    rate = images / (time.perf_counter() - start)
    stages = {name: (value - first.get(name, 0.0)) / images * 1e3 for name, value in detector.clock.seconds().items()}
    figures = {
        "images_per_s": round(rate, 2),
        "objects_per_image": round(objects / images, 1),
        "stage_ms": {name: round(value, 2) for name, value in stages.items()},
        "peak_allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        **kernels(partial(_one_batch, detector, batches, prompts, floor)),
    }
    check.figures[f"{title}, {concepts} concepts"] = figures
    goal = f" (goal on an H100: {GOALS[concepts]})" if concepts in GOALS else ""
    return f"{rate:.1f} images/s{goal}, " + ", ".join(f"{name} {value}" for name, value in list(figures.items())[1:])


def _one_batch(detector: Detector, batches: Sequence[Sequence[Frame]], prompts: Sequence[Prompt], floor: float) -> None:
    detector.encode_ahead(batches[0])
    for number in range(3):
        detector.encode_ahead(batches[number + 1])
        detector.detect(batches[number], prompts, floor)
    torch.cuda.synchronize()


def kernels(work: Callable[[], None]) -> dict[str, Any]:
    """Return what share of the time any kernel runs, how many are launched, and which ones attend."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        work()
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in trace.events() if e.time_range.elapsed_us())
    if not spans:
        return {"busy": None}
    busy, end = 0.0, spans[0][0]
    for start, stop, _ in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    attention = sorted(
        {name[:60] for *_, name in spans if any(w in name.lower() for w in ("flash", "fmha", "attention"))}
    )
    return {"busy": round(busy / (end - spans[0][0]), 3), "kernels": len(spans), "attention": attention}


def attention_kernels(check: Check) -> str:
    """How long each of torch's kernels takes for the attentions that matter, whichever it takes by itself."""
    device = pick_device(check.device)
    compute, found = Compute(device, pick_dtype("auto", device)), dict[str, dict[str, float | None]]()
    for name, shape in ATTENTION.items():
        query, key, value = torch.randn((3, *shape), device=device, dtype=compute.dtype)
        attend = partial(F.scaled_dot_product_attention, query, key, value)
        found[name] = {"torch's choice": round(_milliseconds(attend), 3)}
        for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            try:
                with sdpa_kernel(kernel):
                    found[name][kernel.name] = round(_milliseconds(attend), 3)
            except RuntimeError:  # it has none for this card, or this shape
                found[name][kernel.name] = None
    check.figures["attention_ms"] = found
    return "; ".join(f"{name}: {times}" for name, times in found.items())


def _milliseconds(work: Callable[[], object], times: int = 10) -> float:
    work()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / times


def whole_run(check: Check, photos: Path, concepts: int, floor: float) -> str:
    """From JPEG files to the committed store."""
    seen: list[tuple[float, Progress]] = []
    listed = parse_concepts(json.dumps({"names": phrases(concepts), "defaults": {"conf": floor}}), "gpu_check")
    options = LabelOptions(model="demo", device=check.device, floor=floor)
    with tempfile.TemporaryDirectory() as out:
        label([photos], listed, out, options, on_progress=lambda p: seen.append((time.perf_counter(), p)))
    (start, first), (stop, last) = seen[LEFT_OUT], seen[-2]  # as many encodes as answers lie between them
    rate = (last.done - first.done) / (stop - start)
    check.figures[f"run, {concepts} concepts"] = {"images_per_s": round(rate, 2), "stages_s": dict(seen[-1][1].stages)}
    return f"{rate:.1f} images/s from 12-megapixel JPEGs to the store"


def measure(check: Check) -> None:
    """The lines about speed."""
    made: list[Detector] = []

    def make() -> str:
        made.append(full_size(check))
        return f"{sum(p.numel() for p in made[0].model.parameters()) / 1e6:.0f} million weights, made on the card"

    check.line("a full-size model", make)
    if not made:
        return
    check.line("attention, milliseconds", partial(attention_kernels, check))
    photos = synthetic_photos(check.folder / "photos", 32, 12.0)
    frames = []
    for path in sorted(photos.iterdir())[:16]:
        pixels = torch.from_numpy(decode_image(path)).pin_memory().numpy()
        frames.append(Frame(MediaItem(path.name, str(path)), 0, pixels))
    with ready(check, made[0]):
        for concepts in CONCEPTS:
            check.line(f"eager, {concepts} concepts", partial(speed, check, made[0], frames, concepts, "eager"))
        prompts = [Prompt(word, word) for word in phrases(20)]
        floor = floor_for(made[0], frames[:4], prompts, 0.25)
        check.line("a whole run, 20 concepts", partial(whole_run, check, photos, 20, floor))

        def compiles() -> str:
            made[0].compile()
            return "done"

        check.line("torch.compile", compiles)
        if check.lines[-1].verdict == "pass":
            for concepts in CONCEPTS:
                check.line(
                    f"compiled, {concepts} concepts", partial(speed, check, made[0], frames, concepts, "compiled")
                )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything here, too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--without-speed", action="store_true", help="only what must be right")
    options = parser.parse_args(words)
    pick_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(options.device, Path(folder))
        check.line("the machine", partial(machine, check))
        for name in check.checkpoints:
            check.line(f"{name}, fp32, as on the CPU", partial(as_on_the_cpu, check, name, "fp32", FLOOR))
            check.line(f"{name}, mixed, as on the CPU", partial(as_on_the_cpu, check, name, "auto", 0.4))
        check.line("company", partial(whatever_the_company, check))
        for megapixels in (2.0, 12.0):
            check.line(f"masks, {megapixels:g} megapixels", partial(masks_to_the_pixel, check, megapixels))
        check.line("videos", partial(videos, check))
        check.line("encoding ahead", partial(encodes_without_waiting, check))
        check.line("little memory", partial(little_memory, check))
        check.line("nothing is kept", partial(nothing_is_kept, check))
        if options.without_speed:
            check.add(Line("speed", "skip", "--without-speed", 0.0))
        else:
            measure(check)
    if options.json:
        lines = [asdict(line) for line in check.lines]
        options.json.write_text(json.dumps({"lines": lines, "figures": check.figures}, indent=2) + "\n")
    return int(any(line.verdict == "fail" for line in check.lines))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"gpu_check: {error}")

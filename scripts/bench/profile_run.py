"""Where the time of labelling goes: a torch.profiler trace and a one-page summary, stage by stage.

    .venv/bin/python scripts/bench/profile_run.py OUT --size small --concepts 20 --images 4
    python scripts/bench/profile_run.py OUT --model facebook/sam3 --photos DIR --device cuda --concepts 20 --images 64

OUT/trace.json opens in chrome://tracing or ui.perfetto.dev; OUT/summary.txt has for each stage (decode, encode, heads,
post, write) its seconds, its share, the operations it is made of, and its operations a second. The stages are run one
after the other, so that their times add up; a run overlaps them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import CACHE, checkpoint_folder, floor_for, phrases, synthetic_photos
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from sam3label.core.records import Frame, MediaItem, Prompt, UnitResult
from sam3label.media.discovery import discover
from sam3label.media.image import decode_image
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detection, Detector
from sam3label.run.store import Store

STAGES = ("decode", "encode", "heads", "post", "write")
SHOWN = 8  # operations of a stage


@dataclass
class Measured:
    """Seconds and operations by stage, of `images` images."""

    images: int
    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    candidates: int = 0


class Stages:
    """The detector's own stages, marked in the trace."""

    def __init__(self, detector: Detector) -> None:
        self.clock = detector.clock
        detector.clock = self  # type: ignore[assignment]
        self.counter: FlopCounterMode | None = None
        self.operations: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        before = self.counter.get_total_flops() if self.counter else 0
        with record_function(f"stage {stage}"), self.clock(stage):
            yield
        if self.counter:
            self.operations[stage] = self.operations.get(stage, 0) + self.counter.get_total_flops() - before

    def seconds(self) -> dict[str, float]:
        return self.clock.seconds()


def label(
    detector: Detector, items: Sequence[MediaItem], prompts: Sequence[Prompt], floor: float, store: Store
) -> Measured:
    """Decode, detect and store, one after the other."""
    measured, size = Measured(len(items)), detector.image_batch
    before = detector.clock.seconds()
    for start in range(0, len(items), size):
        with record_function("stage decode"), _added(measured.seconds, "decode"):
            frames = [Frame(item, 0, decode_image(item.path)) for item in items[start : start + size]]
        found = detector.detect(frames, prompts, floor)
        measured.candidates += sum(len(detection.candidates) for detection in found)
        with record_function("stage write"), _added(measured.seconds, "write"):
            store.write([_unit(*pair) for pair in zip(frames, found, strict=True)])
    if detector.device.type == "cuda":
        torch.cuda.synchronize()
    measured.seconds |= {name: value - before.get(name, 0.0) for name, value in detector.clock.seconds().items()}
    return measured


@contextmanager
def _added(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def _unit(frame: Frame, detection: Detection) -> UnitResult:
    presence = np.asarray(detection.presence, np.float32)[None]
    return UnitResult(frame.item, 0, 1, frame.size_hw, detection.candidates, presence)


def count_operations(
    detector: Detector, frames: list[Frame], prompts: Sequence[Prompt], floor: float
) -> dict[str, int]:
    """Floating-point operations of these frames, by stage."""
    stages = detector.clock
    assert isinstance(stages, Stages)
    with FlopCounterMode(display=False) as stages.counter:
        detector.detect(frames, prompts, floor)
    stages.counter = None
    return stages.operations


def summary(measured: Measured, trace: Any, on_gpu: bool, title: str) -> str:
    """The page: a table of the stages, then what each stage's time is made of."""
    whole = sum(measured.seconds.values())
    lines = [
        title,
        f"{measured.images} images, {measured.candidates} candidates, {whole / measured.images:.3f} s an image",
    ]
    lines += ["", f"{'stage':8}{'s/image':>10}{'share':>8}{'GFLOP/image':>13}{'GFLOP/s':>10}"]
    for stage in STAGES:
        seconds = measured.seconds.get(stage, 0.0)
        work = measured.operations.get(stage, 0) / 1e9
        rate = f"{work / seconds:>10.0f}" if work and seconds else f"{'':>10}"
        lines.append(
            f"{stage:8}{seconds / measured.images:>10.4f}{seconds / whole:>8.1%}{work / measured.images:>13.2f}{rate}"
        )
    for stage in ("encode", "heads", "post"):
        lines += ["", f"{stage}: what its time is made of"]
        lines += [f"  {share:>6.1%}  {calls:>6} calls  {name}" for name, share, calls in parts(trace, stage, on_gpu)]
    return "\n".join(lines) + "\n"


def parts(trace: Any, stage: str, on_gpu: bool) -> list[tuple[str, float, int]]:
    """(operation, share of the stage's operations' own time, calls), largest first."""
    spent: dict[str, tuple[float, int]] = {}
    for event in trace.events():
        if event.name.startswith("stage ") or _stage_of(event) != stage:
            continue
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds, calls = spent.get(event.name, (0.0, 0))
        spent[event.name] = seconds + own, calls + 1
    whole = sum(seconds for seconds, _ in spent.values()) or 1.0
    largest = sorted(spent.items(), key=lambda entry: -entry[1][0])[:SHOWN]
    return [(name, seconds / whole, calls) for name, (seconds, calls) in largest]


def _stage_of(event: Any) -> str:
    while event is not None and not event.name.startswith("stage "):
        event = event.cpu_parent
    return "" if event is None else event.name.removeprefix("stage ")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small", help="of random weights")
    parser.add_argument("--model", help="a checkpoint instead: hub id, folder or demo")
    parser.add_argument("--photos", type=Path, help="a folder of photos instead of synthetic ones")
    parser.add_argument("--megapixels", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--concepts", type=int, default=20)
    parser.add_argument("--present", type=float, default=0.25)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where random checkpoints are kept")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.model or str(checkpoint_folder(options.size, options.cache))
    detector = Detector.load(resolve(model), options.device, options.dtype)
    prompts = [Prompt(phrase, phrase) for phrase in phrases(options.concepts)]
    on_gpu = detector.device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or synthetic_photos(Path(scratch) / "photos", options.images, options.megapixels)
        items = list(discover([photos]))[: options.images]
        first = [Frame(items[0], 0, decode_image(items[0].path))]
        floor = floor_for(detector, first, prompts, options.present)
        Stages(detector)
        operations = count_operations(detector, first, prompts, floor)  # warms up, too
        if options.compile:
            detector.compile()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with Store.writer(Path(scratch) / "run", prompts, {}) as store, profile(activities=activities) as trace:
            measured = label(detector, items, prompts, floor, store)
    measured.operations = {stage: count * len(items) for stage, count in operations.items()}
    trace.export_chrome_trace(str(options.out / "trace.json"))
    where = f"{detector.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    title = f"{model} on {where}, {len(prompts)} concepts, floor {floor:.4f}"
    page = summary(measured, trace, on_gpu, title)
    (options.out / "summary.txt").write_text(page)
    print(page)


if __name__ == "__main__":
    main()

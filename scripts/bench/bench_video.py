"""Memory and time of tracking, ours beside the library's own way, on the same video with the same weights.

    python scripts/bench/bench_video.py [--frames 600] [--model demo]

Ours runs by each of its two sets of rules, each way in a process of its own. Three phrases are tracked in a video whose
three objects stay in view; the thresholds are set so that what is found in the first frame (at most four) lives on.
"The library's own way" is what its manual shows: the whole video given to `init_video_session`,
`propagate_in_video_iterator`, `postprocess_outputs`; without its optional kernels, so duplicates and holes stay. It
asks the detector once per phrase, as ours does with `prompt_style="transformers"`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from sam3label.model.track_rules import TrackerForm

PHRASES = ("shape", "star", "circle")
SIZE_HW = (240, 320)
MARKS = (100, 600)
LASTING = {
    "score_threshold_detection": 0.01,
    "new_det_thresh": 0.01,
    "max_num_objects": 4,
    "assoc_iou_thresh": 0.0,
    "trk_assoc_iou_thresh": 0.0,
    "hotstart_dup_thresh": 10**6,
    "recondition_on_trk_masks": True,  # these four as by default: the demo checkpoint has detections correct each frame
    "recondition_every_nth_frame": 16,
    "high_conf_thresh": 0.8,
    "high_iou_thresh": 0.8,
}


def write_video(path: Path, frames: int) -> None:
    import av

    from sam3label.demo.shapes import make_clip

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
        there = make_clip(2, 60, SIZE_HW, 3, range(15, 45))  # the middle of their ways: to and fro
        for scene in islice(cycle(chain(there, reversed(there))), frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.image, format="rgb24")))
        container.mux(stream.encode(None))


def ours(form: TrackerForm, model: str, video: Path, encodes: list[int]) -> Iterator[tuple[int, int]]:
    """(frame, objects alive) as a run tracks: decoded ahead, one clip."""
    from sam3label.core.records import Frame, MediaItem, Prompt
    from sam3label.labelling import videos as video_units
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector
    from sam3label.model.track_rules import Rules
    from sam3label.model.tracker import TrackedFrame, Tracker

    found = resolve(model)
    detector = Detector.load(found, prompt_style="transformers")
    tracker = Tracker.load(found, detector, Rules.of(form))
    tracker.settings = replace(tracker.settings, **LASTING)
    count(detector.model, encodes)
    alive: list[int] = []

    def track(frames: Iterator[Frame], prompts: tuple[Prompt, ...], _begin: Any) -> Iterator[TrackedFrame]:
        for one in tracker.track(frames, prompts):
            alive.append(len(one.objects))
            yield one

    item = MediaItem("video", str(video), "video")
    for step in video_units.tracked(track, item, [Prompt(p, p) for p in PHRASES], clip_frames=10**6):  # type: ignore[arg-type]
        if not step:
            yield len(alive), alive[-1]


def library(model: str, video: Path, encodes: list[int]) -> Iterator[tuple[int, int]]:
    """(frame, objects alive) as the library's manual has it."""
    import torch
    from transformers import AutoTokenizer, Sam3ImageProcessor, Sam3VideoModel, Sam3VideoProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    from sam3label.core.records import MediaItem
    from sam3label.media import video as media_video
    from sam3label.model.checkpoint import resolve
    from sam3label.model.weights import widen_pointers

    checkpoint = resolve(model).folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = Sam3VideoModel.from_pretrained(checkpoint).eval().to(device)
    widen_pointers(loaded)  # as it is, it runs no tracker that is 64 wide
    for name, value in LASTING.items():
        setattr(loaded, name, value)
    count(loaded.detector_model, encodes)
    side = {"height": loaded.config.image_size, "width": loaded.config.image_size}
    half = [0.5] * 3
    processor = Sam3VideoProcessor(
        Sam3ImageProcessor(size=side),
        Sam2VideoVideoProcessor(size=side, image_mean=half, image_std=half),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    pixels = [frame.pixels for frame in media_video.frames(MediaItem("video", str(video), "video"))]
    session = processor.init_video_session(video=pixels, inference_device=device)
    del pixels
    processor.add_text_prompt(session, list(PHRASES))
    for number, output in enumerate(loaded.propagate_in_video_iterator(session), start=1):
        yield number, len(processor.postprocess_outputs(session, output)["object_ids"])


WAYS = {"official": partial(ours, "official"), "transformers": partial(ours, "transformers"), "library": library}


def count(detector: Any, encodes: list[int]) -> None:
    """Note each image that the encoder sees."""
    encoder = detector.vision_encoder.backbone
    encoder.register_forward_hook(lambda _module, _inputs, output: encodes.append(len(output.last_hidden_state)))


def measure(way: str, model: str, video: Path) -> dict[str, Any]:
    import os

    import psutil
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    process, memory, objects, start, started = psutil.Process(), {}, list[int](), 0.0, 0
    encodes: list[int] = []
    for frame, alive in WAYS[way](model, video, encodes):
        objects.append(alive)
        if not start:
            start, spent, started = time.perf_counter(), time.process_time(), frame
        if frame in MARKS:
            memory[frame] = process.memory_info().rss
    rest = max(frame - started, 1)
    return {
        "memory": memory,
        "seconds": (time.perf_counter() - start) / rest,
        "processor": (time.process_time() - spent) / rest,
        "objects": sum(objects) / len(objects),
        "fewest": min(objects),
        "frames": frame,
        "encodes": sum(encodes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of tracking, ours beside the library's own way.")
    parser.add_argument("--frames", type=int, default=max(MARKS))
    parser.add_argument("--model", default="demo", help="a checkpoint with a tracker")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.model, arguments.video)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.frames, arguments.model, Path(folder))


def compare(frames: int, model: str, folder: Path) -> None:
    write_video(folder / "video.mp4", frames)
    print(f"{frames} frames of {SIZE_HW[1]}x{SIZE_HW[0]}, {len(PHRASES)} phrases")
    for way in WAYS:
        command = [sys.executable, "-W", "ignore", __file__, "--way", way, "--model", model]
        done = subprocess.run([*command, "--video", str(folder / "video.mp4")], stdout=subprocess.PIPE, check=True)
        print_result(way, json.loads(done.stdout.splitlines()[-1]))


def print_result(way: str, result: dict[str, Any]) -> None:
    memory = {int(frame): value / 2**20 for frame, value in result["memory"].items()}
    at = ", ".join(f"{value:.0f} MB at frame {frame}" for frame, value in memory.items())
    grown = f"{memory[MARKS[1]] / memory[MARKS[0]] - 1:+.1%}" if len(memory) == len(MARKS) else "too short to compare"
    print(
        f"{way:12s} resident {at} ({grown}); {1000 * result['seconds']:.0f} ms a frame "
        f"({1000 * result['processor']:.0f} of the processor);\n         {result['encodes']} images encoded in "
        f"{result['frames']} frames; {result['objects']:.1f} objects seen a frame, at least {result['fewest']}"
    )


if __name__ == "__main__":
    main()

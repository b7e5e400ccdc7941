"""Memory and time of tracking, ours beside the library's own way, on the same video with the same random weights.

    python scripts/bench_video.py [--frames 600] [--checkpoint FOLDER]

Each way runs in a process of its own. Three phrases are tracked; the thresholds are set so that objects found in the
first frame (at most four) live on, which random weights would not grant them. "The library's own way" is what its
manual shows: the whole video given to `init_video_session`, `propagate_in_video_iterator`, `postprocess_outputs`;
without its optional kernels, so duplicates and holes stay. It asks the detector once per phrase, as ours does with
`prompt_style="transformers"`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PHRASES = ("car", "star", "circle")
SIZE_HW = (240, 320)
MARKS = (100, 600)
LASTING = {
    "score_threshold_detection": 0.01,
    "new_det_thresh": 0.01,
    "max_num_objects": 4,
    "assoc_iou_thresh": 0.0,
    "trk_assoc_iou_thresh": 0.0,
    "hotstart_dup_thresh": 10**6,
}


def write_video(path: Path, frames: int) -> None:
    import av

    from sam3label.demo.shapes import make_clip

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
        made = 0
        while made < frames:  # short pieces: a long clip would not fit beside what is measured
            for scene in make_clip(made, min(100, frames - made), SIZE_HW):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.image, format="rgb24")))
            made += 100
        container.mux(stream.encode(None))


def ours(checkpoint: Path, video: Path) -> Iterator[tuple[int, int]]:
    """(frame, objects alive) as a run tracks: decoded ahead, one clip."""
    from sam3label import footage
    from sam3label.checkpoint import resolve
    from sam3label.model import Detector
    from sam3label.records import Frame, MediaItem, Prompt
    from sam3label.video import TrackedFrame, Tracker

    found = resolve(str(checkpoint))
    detector = Detector.load(found, prompt_style="transformers")
    tracker = Tracker.load(found, detector)
    lasting(tracker._video)
    alive: list[int] = []

    def track(frames: Iterator[Frame], prompts: tuple[Prompt, ...]) -> Iterator[TrackedFrame]:
        for one in tracker.track(frames, prompts):
            alive.append(len(one.objects))
            yield one

    item = MediaItem("video", str(video), "video")
    for step in footage.tracked(track, item, [Prompt(p, p) for p in PHRASES], clip_frames=10**6):  # type: ignore[arg-type]
        if not step:
            yield len(alive), alive[-1]


def library(checkpoint: Path, video: Path) -> Iterator[tuple[int, int]]:
    """(frame, objects alive) as the library's manual has it."""
    import torch
    from transformers import AutoTokenizer, Sam3ImageProcessor, Sam3VideoModel, Sam3VideoProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    from sam3label import clips
    from sam3label.records import MediaItem

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Sam3VideoModel.from_pretrained(checkpoint).eval().to(device)
    lasting(model)
    side = {"height": model.config.image_size, "width": model.config.image_size}
    half = [0.5] * 3
    processor = Sam3VideoProcessor(
        Sam3ImageProcessor(size=side),
        Sam2VideoVideoProcessor(size=side, image_mean=half, image_std=half),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    pixels = [frame.pixels for frame in clips.frames(MediaItem("video", str(video), "video"))]
    session = processor.init_video_session(video=pixels, inference_device=device)
    del pixels
    processor.add_text_prompt(session, list(PHRASES))
    for number, output in enumerate(model.propagate_in_video_iterator(session), start=1):
        yield number, len(processor.postprocess_outputs(session, output)["object_ids"])


def lasting(model: Any) -> None:
    import torch

    for name, value in LASTING.items():
        setattr(model, name, value)
    with torch.no_grad():
        model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(5.0)


def measure(way: str, checkpoint: Path, video: Path) -> dict[str, Any]:
    import os

    import psutil
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    process, memory, objects, start, started = psutil.Process(), {}, [], 0.0, 0
    for frame, alive in {"ours": ours, "library": library}[way](checkpoint, video):
        objects.append(alive)
        if not start:
            start, started = time.perf_counter(), frame
        if frame in MARKS:
            memory[frame] = process.memory_info().rss
    seconds = (time.perf_counter() - start) / max(frame - started, 1)
    return {"memory": memory, "seconds": seconds, "objects": sum(objects) / len(objects), "frames": frame}


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of tracking, ours beside the library's own way.")
    parser.add_argument("--frames", type=int, default=max(MARKS))
    parser.add_argument("--checkpoint", type=Path, help="default: a tiny random one, made here")
    parser.add_argument("--way", choices=("ours", "library"), help=argparse.SUPPRESS)
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.checkpoint, arguments.video)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.frames, arguments.checkpoint, Path(folder))


def compare(frames: int, checkpoint: Path | None, folder: Path) -> None:
    if checkpoint is None:
        from make_checkpoint import make_checkpoint

        checkpoint = make_checkpoint(folder / "checkpoint")
    write_video(folder / "video.mp4", frames)
    print(f"{frames} frames of {SIZE_HW[1]}x{SIZE_HW[0]}, {len(PHRASES)} phrases")
    for way in ("ours", "library"):
        command = [sys.executable, "-W", "ignore", __file__, "--way", way, "--checkpoint", str(checkpoint)]
        done = subprocess.run([*command, "--video", str(folder / "video.mp4")], stdout=subprocess.PIPE, check=True)
        print_result(way, json.loads(done.stdout.splitlines()[-1]))


def print_result(way: str, result: dict[str, Any]) -> None:
    memory = {int(frame): value / 2**20 for frame, value in result["memory"].items()}
    at = ", ".join(f"{value:.0f} MB at frame {frame}" for frame, value in memory.items())
    first, *_, last = memory.values() if memory else (1.0, 1.0)
    print(
        f"{way:8s} resident {at} ({last / first - 1:+.1%}); {1000 * result['seconds']:.0f} ms a frame; "
        f"{result['objects']:.1f} objects seen a frame; {result['frames']} frames"
    )


if __name__ == "__main__":
    main()

"""How well a checkpoint tracks: HOTA, identity switches and broken clip borders on synthetic videos it never saw.

    python scripts/demo_weights/score_video.py                                      # the demo checkpoint
    python scripts/demo_weights/score_video.py --model FOLDER --videos 12 --frames 60 --clip-frames 24 600 [--card]

The videos are made with their truth, labelled by `sam3label`'s own run, first in clips so short that objects must pass
borders between them, then each as one clip, and judged as `sam3label evaluate` judges. `--card` writes the figures into
the checkpoint's README.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from sam3label.concepts.concept_list import parse_concepts
from sam3label.demo.videos import CONCEPTS, VideoDemoMetrics, score, write_videos
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.model.checkpoint import resolve
from sam3label.model.track_rules import TrackerForm
from sam3label.run.reader import open_run

HELD_OUT = 20_000_000  # videos of these seeds are for this script alone
MARKS = "<!-- video scores -->\n", "<!-- end of video scores -->\n"


def measure(
    model: str, videos: int, frames: int, clip_frames: int, seed: int, tracker: TrackerForm
) -> VideoDemoMetrics:
    """Make videos, track every class of shape in them, and judge."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        concepts = parse_concepts(CONCEPTS.format(videos=folder / "videos", here="this list", runs=folder / "run"))
        truth = write_videos(folder / "videos", videos, seed, frames)
        options = LabelOptions(model=model, video="track", clip_frames=clip_frames, tracker=tracker)
        start = time.perf_counter()
        label([folder / "videos"], concepts, folder / "run", options)
        seconds = time.perf_counter() - start
        with open_run(folder / "run") as labelled:
            return score(labelled, truth, clip_frames, seconds)


def row(metrics: VideoDemoMetrics, clip_frames: int) -> str:
    """A row of the card's table."""
    figures = (metrics.hota, metrics.det_a, metrics.ass_a, metrics.loc_a)
    counts = (
        metrics.id_switches,
        f"{metrics.borders_broken} of {metrics.borders_passed}",
        metrics.objects,
        f"{metrics.videos} x {metrics.frames // metrics.videos}",
        clip_frames,
    )
    return "| " + " | ".join([*(f"{value:.3f}" for value in figures), *map(str, counts)]) + " |\n"


HEAD = (
    "| HOTA | DetA | AssA | LocA | identity switches | borders broken | objects | videos x frames | frames a clip |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


def write_card(card: Path, rows: str) -> None:
    before, _, rest = card.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    card.write_text(before + MARKS[0] + HEAD + rows + MARKS[1] + after)


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a checkpoint tracks synthetic videos it never saw.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--videos", type=int, default=36)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--clip-frames", type=int, nargs="+", default=[24, 600], help="once with each")
    parser.add_argument("--tracker", default="official", choices=get_args(TrackerForm), help="whose rules")
    parser.add_argument("--seed", type=int, default=HELD_OUT)
    parser.add_argument("--card", action="store_true", help="write the figures into the checkpoint's README.md")
    arguments = parser.parse_args()
    rows = ""
    for clip_frames in arguments.clip_frames:
        metrics = measure(
            arguments.model, arguments.videos, arguments.frames, clip_frames, arguments.seed, arguments.tracker
        )
        rows += row(metrics, clip_frames)
        for name, value in {"clip_frames": clip_frames, **asdict(metrics)}.items():
            print(f"{name:15} {value}", flush=True)
    if arguments.card:
        write_card(resolve(arguments.model).folder / "README.md", rows)


if __name__ == "__main__":
    main()

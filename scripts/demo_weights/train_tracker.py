"""Give the demo checkpoint a tracker, trained on synthetic clips with the detector as it is.

    python scripts/demo_weights/train_tracker.py --minutes 20                       # into sam3label/demo/checkpoint
    python scripts/demo_weights/train_tracker.py --checkpoint FOLDER --out OTHER --minutes 5

The detector's weights come out as they went in. Each update sees a few clips of two to eight frames, in which some
objects are followed from the first frame through crossings. A checkpoint that has a tracker is trained on. Every few
minutes and when the time is up, the weights are written whole; then the mean mask IoU on clips that were not trained on
is printed, with "stay where you were" beside it. `--minutes 0 --start OTHER` puts the tracker of another checkpoint
beside this detector.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam3VideoConfig, Sam3VideoModel

from sam3label.demo.shapes import Scene, make_clip
from sam3label.model.weights import widen_pointers
from sam3label.train.tracker import Clip, TrackerTrainer, begin, follow

CHECKPOINT = Path(__file__).parents[2] / "sam3label" / "demo" / "checkpoint"
FRAMES = 8  # of the longest lesson
SPAN = 24  # a lesson takes every k-th frame of a clip and spans no more than these: short ones have large steps
LENGTH = (24, 96)  # frames of the clip, in which objects cross the picture
LEAST = 40 / 128**2  # of the picture, that an object shows in the first frame
LESSONS = ((2, 8), (FRAMES, 3), (4, 5), (FRAMES, 3))  # in turn: an update sees so many frames of so many clips
BEGIN = 0.25  # a fresh tracker has the first kind alone up to this share of the time
TRACKS = 3  # objects of a lesson: those whose visible part changes most, for objects that cross are what is hard
CORRECTED = (0.0, 0.3, 0.7)  # share of frames that a detection corrects, in turn
FOLLOWING = {
    # where the detector is better at masks than the tracker: what it finds corrects each frame
    "new_det_thresh": 0.5,
    "recondition_on_trk_masks": False,
    "recondition_every_nth_frame": 1,
    "high_conf_thresh": 0.5,
    "high_iou_thresh": 0.2,
    # and it is better at kinds: what it has not found again for eight frames more than it has is hidden until it is
    "suppress_unmatched_only_within_hotstart": False,
    "init_trk_keep_alive": 8,
    "max_trk_keep_alive": 8,
}
HELD_OUT = 10**7  # seeds from here on are for tests
KEEP = 4  # minutes of training that a kill may lose


def tracker_config(detector: dict[str, Any]) -> dict[str, Any]:
    """A tracker as wide as the detector's neck, with two layers of memory attention and one mask a frame."""
    vision = detector["vision_config"]
    backbone, width = vision["backbone_config"], vision["fpn_hidden_size"]
    side, patch = backbone["image_size"], backbone["patch_size"]
    return {
        "model_type": "sam3_tracker_video",
        "image_size": side,
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": width, "image_size": side, "patch_size": patch},
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": 2 * width,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": width,
            "dynamic_multimask_via_stability": False,
        },
        "multimask_output_in_sam": False,
        "multimask_output_for_tracking": False,
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 2 * width,
        "memory_attention_rope_feat_sizes": [side // patch, side // patch],
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 2 * width,
    }


def load(folder: Path, start: Path, seed: int) -> tuple[Any, bool]:
    """The detector of `folder` with the tracker of `start`, and whether it has one: else a fresh one begins."""
    detector = Sam3VideoConfig.from_pretrained(folder).detector_config.to_dict()
    backbone = detector["vision_config"]["backbone_config"]
    grid = backbone["image_size"] // backbone["patch_size"]
    parts = {"detector_config": detector, "tracker_config": tracker_config(detector)}
    config = Sam3VideoConfig(**parts, low_res_mask_size=4 * grid, dtype="float32", **FOLLOWING)
    torch.manual_seed(seed)
    video = Sam3VideoModel(config).eval()
    widen_pointers(video)
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    tracker = {k: v.float() for k, v in load_file(start / "model.safetensors").items() if k.startswith("tracker_")}
    video.load_state_dict({k: v for k, v in weights.items() if k.startswith("detector_model.")} | tracker, strict=False)
    if not tracker:
        begin(video, lesson(seed, detector["vision_config"]["backbone_config"]["image_size"]).pixels)
    return video, bool(tracker)


def save(video: Any, folder: Path, out: Path) -> None:
    """The checkpoint with its tracker, in float16. The detector's weights are taken from the file, not from memory."""
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("detector_model.")}
    for name, value in video.state_dict().items():
        if not name.startswith("detector_model."):
            weights[name] = value.half().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if out != folder and file.name not in ("model.safetensors", "config.json"):
            (out / file.name).write_bytes(file.read_bytes())
    video.config.save_pretrained(out)
    save_file(weights, out / "model.safetensors.tmp", metadata={"format": "pt"})
    beside = out / "model.safetensors.tmp"
    beside.chmod(0o644)
    beside.replace(out / "model.safetensors")


def lesson(seed: int, side: int, frames: int = FRAMES) -> Clip:
    """Some objects of a synthetic clip, all seen in the first frame of the lesson."""
    rng = np.random.default_rng(seed)
    while True:
        bounds = LENGTH, (1, SPAN // frames + 1), (3, 7), (2**31,)
        length, step, objects, drawn = (int(rng.integers(*each)) for each in bounds)
        start = int(rng.integers(length - (frames - 1) * step))
        scenes = make_clip(drawn, length, (120, 160), objects, range(start, length, step)[:frames])
        shown = {thing.track: [visible(scene, thing.track) for scene in scenes] for thing in scenes[0].things}
        tracks = [track for track, shares in shown.items() if shares[0] > LEAST]
        if tracks:
            rng.shuffle(tracks)
            tracks.sort(key=lambda track: min(shown[track]) / max(shown[track]))
            return to_clip(scenes, tracks[:TRACKS], side, torch.Generator().manual_seed(drawn))


def visible(scene: Scene, track: int) -> float:
    """The share of the picture in which the object is seen."""
    return float(track_mask(scene, track).mean())


def to_clip(scenes: tuple[Scene, ...], tracks: list[int], side: int, chance: torch.Generator) -> Clip:
    pixels = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1).float() for scene in scenes])
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    masks = torch.stack([torch.stack([track_mask(scene, track) for track in tracks]) for scene in scenes])
    masks = (F.interpolate(masks, (side, side), mode="bilinear", align_corners=False) >= 0.5).float()
    drawn = torch.stack([rough(shown, chance) * (shown.mean((1, 2), keepdim=True) > LEAST) for shown in masks])
    return Clip(pixels.round().sub(127.5).mul(1 / 127.5), masks, drawn)


def rough(masks: Tensor, chance: torch.Generator) -> Tensor:
    """Masks [N, X, X] as a detector draws them: in coarse cells, here and there too large or too small."""
    side = masks.shape[-1]
    cells = F.interpolate(masks[None], (side // 2, side // 2), mode="area")[0]
    wide = F.avg_pool2d(cells, 3, stride=1, padding=1)
    doubt = torch.randn(len(masks), 1, 12, 12, generator=chance) * 0.2
    drawn = wide + F.interpolate(doubt, cells.shape[-2:], mode="bilinear")[:, 0] > 0.5
    drawn = drawn & (wide > 0)
    return F.interpolate(drawn[None].float(), (side, side), mode="bilinear")[0].round()


def track_mask(scene: Scene, track: int) -> Tensor:
    number = next((k for k, thing in enumerate(scene.things, start=1) if thing.track == track), 0)
    return torch.from_numpy((scene.index == number) & (number > 0)).float()


def train(video: Any, minutes: float, rate: float, seed: int, further: bool, keep: Callable[[], None]) -> None:
    """`keep` is called every few minutes, and at the end. `further`: the tracker has been trained before."""
    trainer, side = TrackerTrainer(video, rate, seed), video.config.image_size
    start, step, kept, drawn, shown = time.monotonic(), 0, 0, seed, list[float]()
    while minutes and (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        kinds = LESSONS if further or done > BEGIN else LESSONS[:1]
        frames, count = kinds[step % len(kinds)]
        clips = [lesson(drawn + k, side, frames) for k in range(count)]
        now = rate * min(1.0, (step + 1) / 30) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        own, corrected = 0.8 if further else min(0.8, 2 * done), CORRECTED[step % len(CORRECTED)]
        shown.append(trainer.step(clips, now, own, corrected))
        step, drawn = step + 1, drawn + count
        if step % 30 == 0:
            print(f"{step} updates, {done:.0%} of the time, loss {np.mean(shown[-30:]):.3f}", flush=True)
        if done * minutes > (kept + 1) * KEEP:
            kept += 1
            keep()
    keep()


@torch.no_grad()
def examine(video: Any, count: int) -> tuple[float, float]:
    """Mean mask IoU of held-out clips' later frames: tracked on its own memory, and of the first mask left in place."""
    ours, still = [], []
    for k in range(count):
        clip = lesson(HELD_OUT + k, video.config.image_size)
        own = torch.ones(clip.masks.shape[:2], dtype=torch.bool)
        for frame, one in enumerate(follow(video, [clip], own), start=1):
            size = clip.masks.shape[-2:]
            masks = F.interpolate(one.masks[None], size, mode="bilinear", align_corners=False)[0] > 0
            masks &= one.seen[:, None, None] > 0
            truth = clip.masks[frame] > 0
            seen = truth.flatten(1).any(1)
            ours += overlap(masks[seen], truth[seen]).tolist()
            still += overlap(clip.masks[0][seen] > 0, truth[seen]).tolist()
    return float(np.mean(ours)), float(np.mean(still))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(min=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Give the demo checkpoint a tracker.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--out", type=Path, help="default: the checkpoint itself")
    parser.add_argument("--start", type=Path, help="a checkpoint whose tracker is trained on; default: the checkpoint")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    video, further = load(arguments.checkpoint, arguments.start or arguments.checkpoint, arguments.seed)
    out = arguments.out or arguments.checkpoint
    rest = (arguments.minutes, arguments.rate, arguments.seed, further)
    train(video, *rest, lambda: save(video, arguments.checkpoint, out))
    ours, still = examine(video, 40)
    print(f"held-out mask IoU {ours:.3f} (left where it was: {still:.3f})")


if __name__ == "__main__":
    main()

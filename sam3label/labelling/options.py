"""What a user may choose of a labelling job, checked as a whole. Light: the command line reads its choices here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sam3label.core import checks
from sam3label.core.problems import Problem
from sam3label.model.track_rules import TrackerForm, TrackingExtra

DType = Literal["auto", "fp32", "bf16", "fp16"]
PromptStyle = Literal["official", "transformers"]
VideoMode = Literal["auto", "track", "frames", "off"]
SHORTEST_CLIP = 16


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How to label. In the fingerprint is only what changes the numbers: model, dtype, prompt_style, image_size, floor,
    tracker.

    Raises `ConfigError` with every problem at once:

    >>> LabelOptions(video="trak", every=0)
    Traceback (most recent call last):
    sam3label.errors.ConfigError: video: 'trak' is not one of auto, track, frames, off. Did you mean track?
    every: 0 is not a whole number from 1 on
    """

    model: str = "facebook/sam3"
    revision: str | None = None
    device: str = "auto"
    dtype: DType = "auto"
    prompt_style: PromptStyle = "official"
    image_size: int | None = None  # side of the model's input in pixels; None: the checkpoint's own
    floor: float = 0.1  # candidates under this score are not kept; no class may have a lower threshold
    batch_size: int | None = None  # images per batch; None: from free memory
    vram: float | None = None  # GB of a GPU's memory to take at most
    ray: str | None = None  # label by Ray: local, this machine alone; auto, the cluster that it is in; or HOST:PORT
    replicas: int | None = None  # with Ray: copies of the model; None: one a GPU
    compile: bool = False  # torch.compile: a slow start, then faster; the same labels, to rounding
    workers: int | None = None  # decoding processes; None: the cores less one, at most 8
    max_megapixels: float | None = None  # larger photos are refused; None: by the memory that is free, at least 64
    accept_exemplars: bool = False  # label by references whatever they are worth
    # leave out near-copies among photos and sampled frames: what is nearer to one labelled before, see docs
    skip_similar: float | None = None
    limit: int | None = None  # label at most this many images and videos now
    shard: str | None = None  # "3/64": of 64 parts of the images and videos, by a hash of their ids, the third
    # auto: video files are tracked, and folders of numbered images are photos; else they are videos like any other
    video: VideoMode = "auto"
    tracker: TrackerForm = "official"  # whose rules objects are tracked by
    tracking_extra: tuple[TrackingExtra, ...] = ()  # rules of SAM 3.1's tracker on top
    both_ways: bool = False  # follow objects to the frames before their first sure one too
    clip_frames: int = 600  # of a video that are tracked, and committed, as one
    every: int = 30  # with video "frames": label every so many frames,
    fps: float | None = None  # or so many a second
    fresh: bool = False
    retry_failed: bool = False  # try again what failed for what is in it, and has not changed since
    follow_links: bool = True  # links that lead out of the folders given

    def __post_init__(self) -> None:
        checks.refuse(_problems(self))

    @property
    def tracks(self) -> bool:
        """Whether objects are followed through videos."""
        return self.video in ("auto", "track")

    @property
    def tracker_settings(self) -> str:
        """By whose rules objects are tracked, in words: a field of the fingerprint."""
        both = ["both ways"] if self.both_ways else []
        return ", ".join((self.tracker, *sorted(self.tracking_extra), *both)) if self.tracks else "none"

    @property
    def settings(self) -> dict[str, str | float | None]:
        """Return the choices labels depend on: a job that chose the same and has nothing to ask needs no model."""
        return {
            "model": self.model,
            "revision": self.revision,
            "dtype": self.dtype,
            "prompt_style": self.prompt_style,
            "image_size": self.image_size,
            "floor": self.floor,
            "video": self.video_settings,
            "tracker": self.tracker_settings,
            **self.shard_settings,
        }

    @property
    def shard_settings(self) -> dict[str, str]:
        """The shard as a field of the fingerprint; none where the whole is labelled."""
        return {} if self.shard is None else {"shard": self.shard}

    def takes(self, item_id: str) -> bool:
        """Return whether an image or video is in the shard: the same one however many others come or go."""
        if self.shard is None:
            return True
        number, parts = map(int, self.shard.split("/"))
        digest = hashlib.blake2b(item_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % parts == number - 1

    @property
    def video_settings(self) -> str:
        """How videos are labelled, in words: a field of the fingerprint."""
        if self.tracks:
            return f"track, clips of {self.clip_frames} frames"
        rate = f"{self.fps:g} a second" if self.fps else f"every {self.every}"
        return f"frames, {rate}" if self.video == "frames" else "off"


def _problems(options: LabelOptions) -> Iterator[Problem | None]:
    if not (options.model and isinstance(options.model, str)):
        yield Problem("model", f"{options.model!r} names no checkpoint")
    if not _is_device(options.device):
        yield Problem("device", f"{options.device!r} is not auto, cpu, cuda, cuda:N or mps")
    yield checks.one_of("dtype", options.dtype, DType)
    yield checks.one_of("prompt_style", options.prompt_style, PromptStyle)
    yield checks.whole("image_size", options.image_size, 1)
    yield checks.within("floor", options.floor, 0, 1)
    yield checks.whole("batch_size", options.batch_size, 1)
    yield checks.above_zero("vram", options.vram)
    if not _is_cluster(options.ray):
        text = f"{options.ray!r} is not local, auto or the HOST:PORT of a cluster that this machine has joined"
        yield Problem("ray", text)
    yield checks.whole("replicas", options.replicas, 1)
    if options.replicas and options.ray is None:
        yield Problem("replicas", "goes with ray (local, auto or HOST:PORT)")
    yield checks.whole("workers", options.workers, 0)
    yield checks.above_zero("max_megapixels", options.max_megapixels)
    yield checks.above_zero("skip_similar", options.skip_similar)
    yield checks.whole("limit", options.limit, 1)
    yield _shard_problem(options.shard)
    yield checks.one_of("video", options.video, VideoMode)
    yield checks.one_of("tracker", options.tracker, TrackerForm)
    for extra in options.tracking_extra:
        yield checks.one_of("tracking_extra", extra, TrackingExtra)
    yield checks.whole("clip_frames", options.clip_frames, SHORTEST_CLIP)
    yield checks.whole("every", options.every, 1)
    yield checks.above_zero("fps", options.fps)


def _shard_problem(shard: object) -> Problem | None:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard) if isinstance(shard, str) else None
    if shard is None or (found is not None and int(found[1]) <= int(found[2])):
        return None
    return Problem("shard", f"{shard!r} is not a part of several, such as 3/64: the third of 64")


def _is_device(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text) is not None


def _is_cluster(text: object) -> bool:
    return text is None or (isinstance(text, str) and re.fullmatch(r"local|auto|[\w.-]+:\d+", text) is not None)


DEFAULTS = LabelOptions()

"""What a user may choose of a labelling job, and what follows from it for the media and the fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sam3label.media import discovery


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How to label. Only what changes the numbers (model, dtype, prompt_style, floor) goes into the fingerprint."""

    model: str = "facebook/sam3"
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    prompt_style: Literal["official", "transformers"] = "official"
    floor: float = 0.1  # candidates under this score are not kept; no class may have a lower threshold
    batch_size: int | None = None  # images per batch; None: from free memory
    vram_gb: float | None = None
    compiled: bool = False  # torch.compile: a slow start, then faster; the same labels, to rounding
    workers: int | None = None  # decoding processes; None: the cores less one, at most 8
    accept_exemplars: bool = False  # label by references whatever they are worth
    limit: int | None = None  # label at most this many images and videos now
    # auto: video files are tracked, and folders of numbered images are photos; else they are videos like any other
    video: Literal["auto", "track", "frames", "off"] = "auto"
    clip_frames: int = 600  # of a video that are tracked, and committed, as one
    every: int = 30  # with video "frames": label every so many frames,
    fps: float | None = None  # or so many a second
    fresh: bool = False

    @property
    def tracks(self) -> bool:
        """Whether objects are followed through videos."""
        return self.video in ("auto", "track")

    @property
    def video_settings(self) -> str:
        """How videos are labelled, in words: a field of the fingerprint."""
        if self.tracks:
            return f"track, clips of {self.clip_frames} frames"
        rate = f"{self.fps:g} a second" if self.fps else f"every {self.every}"
        return f"frames, {rate}" if self.video == "frames" else "off"


DEFAULTS = LabelOptions()


def find_media(sources: Sequence[str | Path], options: LabelOptions) -> discovery.Found:
    """What a job with these options labels. Numbered photos are a video only for those who ask for videos."""
    return discovery.find_media(sources, options.video != "off", numbered_folders=options.video != "auto")

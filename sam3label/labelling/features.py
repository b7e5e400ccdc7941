"""What the image encoder makes of photos, for those who ask how different they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sam3label.core.records import Frame, MediaItem
from sam3label.errors import UndecodableError
from sam3label.labelling.options import LabelOptions
from sam3label.media.image import decode_image

if TYPE_CHECKING:
    from sam3label.model.detector import Detector


class EncoderFeatures:
    """Encodes photos with a checkpoint, which is loaded at the first one."""

    def __init__(
        self, options: LabelOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.options, self._tell = options, on_progress
        self._detector: Detector | None = None

    def __call__(self, items: Sequence[MediaItem]) -> dict[str, npt.NDArray[np.float32]]:
        """Return one vector [cells * D] of length 1 for each photo by its id; those that cannot be read have none."""
        found: dict[str, npt.NDArray[np.float32]] = {}
        detector = self._loaded()
        for start in range(0, len(items), detector.image_batch):
            frames = []
            for item in items[start : start + detector.image_batch]:
                try:
                    frames.append(Frame(item, 0, decode_image(item.path)))
                except UndecodableError:
                    continue
            for frame, look in zip(frames, detector.looks(frames), strict=True):
                vector = look.astype(np.float32).ravel()
                found[frame.item.id] = vector / max(float(np.linalg.norm(vector)), 1e-6)
            self._tell(min(start + detector.image_batch, len(items)), len(items))
        return found

    def _loaded(self) -> Detector:
        if self._detector is None:
            from sam3label.model.checkpoint import resolve
            from sam3label.model.detector import Detector

            chosen = self.options
            checkpoint = resolve(chosen.model, chosen.revision, chosen.image_size)
            self._detector = Detector.load(checkpoint, device=chosen.device, dtype=chosen.dtype)
        return self._detector

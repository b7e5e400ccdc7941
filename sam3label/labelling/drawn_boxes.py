"""Masks of single boxes that a person drew on a run's images, for the review: the model is loaded at the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sam3label.core.records import Frame, Hint, MediaItem, Rle
from sam3label.errors import CheckpointError, InputError, UndecodableError
from sam3label.labelling.options import LabelOptions
from sam3label.media import video
from sam3label.media.image import decode_image
from sam3label.run.decide import doubt
from sam3label.run.reader import Run

if TYPE_CHECKING:
    from torch import Tensor

    from sam3label.model.interactive import Clicker

LEAST_IOU = 0.5  # that the model must expect of a mask


class DrawnBoxes:
    """Makes masks of boxes on a run's photos and frames. Boxes of an image, one after another, share an encode."""

    def __init__(self, run: Run, options: LabelOptions, identity: str | None) -> None:
        """`identity` is that of the only checkpoint that will do; None where any does."""
        self.run, self.options, self.identity = run, options, identity
        self.encodes = 0
        self._clicker: Clicker | None = None
        self._last: tuple[tuple[str, int], Frame, Tensor] | None = None

    def __call__(self, item_id: str, frame: int, hint: Hint) -> Rle | None:
        """Return the mask of a box, None where it is not to be believed. Raises InputError where the photo is gone."""
        import torch

        clicker = self._loaded()
        with torch.inference_mode():
            picture, grid = self._encoded(clicker, item_id, frame)
            ((clicked,),) = clicker.masks_of_grid(grid, [picture.size_hw], [[hint]])
        if clicked.instance is None:
            return None
        one = clicked.instance
        return None if doubt(hint, one.area, one.box_xywh, clicked.iou, LEAST_IOU) else one.rle

    def _loaded(self) -> Clicker:
        if self._clicker is None:
            from sam3label.model.checkpoint import resolve
            from sam3label.model.detector import Detector
            from sam3label.model.interactive import Clicker

            chosen = self.options
            checkpoint = resolve(chosen.model, chosen.revision, chosen.image_size)
            if self.identity not in (None, checkpoint.identity):
                raise CheckpointError(
                    f"{chosen.model} is not the checkpoint that the run was made with any more "
                    f"({checkpoint.identity[:19]}..., and that was {str(self.identity)[:19]}...): "
                    "put the old one back, or name one with --model."
                )
            self._clicker = Clicker.load(
                checkpoint, Detector.load(checkpoint, device=chosen.device, dtype=chosen.dtype)
            )
        return self._clicker

    def _encoded(self, clicker: Clicker, item_id: str, frame: int) -> tuple[Frame, Any]:
        if self._last is None or self._last[0] != (item_id, frame):
            picture = self._picture(item_id, frame)
            self._last = (item_id, frame), picture, clicker.detector.encode_grid(clicker.detector.preprocess([picture]))
            self.encodes += 1
        return self._last[1], self._last[2]

    def _picture(self, item_id: str, frame: int) -> Frame:
        unit = self.run.unit(item_id, frame)
        if unit is None:
            raise InputError(f"{item_id} is not in the run any more: pull without --masks.")
        item: MediaItem = unit.item
        try:
            pixels = decode_image(item.path) if item.kind == "image" else video.VideoFrames(item.path).pixels(frame)
        except UndecodableError as error:
            raise InputError(
                f"{item.path} cannot be read ({error}), and its boxes want masks: name its folder with --photos."
            ) from error
        return Frame(item, frame, pixels)

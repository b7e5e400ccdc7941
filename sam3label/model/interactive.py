"""Boxes and points to masks: SAM 3's tracker half, asked as a person clicks, without a video.

The tracker's prompt encoder turns a box or points into tokens, its mask decoder finds what they mean in the image.
Called with the same weights the answers are those of `transformers`' Sam3TrackerModel; the image encoder's answer is
the one that phrases are asked of too, so an image is encoded once whatever is asked.

Shape legend: B images, V channels of the image encoder, D width, g x g cells, N objects given on all B images together,
T tokens of a prompt, h x w = 4g x 4g mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3label.core.records import Frame, Hint
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.detector import Detector
from sam3label.model.device import bring, send
from sam3label.model.mask_runs import Instance
from sam3label.model.weights import load_own_head, load_video_model

STABLE = 1.0  # stability: the mask at this logit, in the mask at its negative
PER_MASK = 4  # objects that take the memory of one pair's masks, in the detector's head


@dataclass(frozen=True, slots=True)
class Clicked:
    """The mask of one hint. `instance` is None where it has no pixel.

    `iou` is the decoder's own guess of the mask's IoU with the object, `stability` the IoU of the mask with itself cut
    a little higher and a little lower, as SAM's authors have it: both in [0, 1].
    """

    instance: Instance | None
    iou: float
    stability: float


@dataclass(frozen=True, slots=True)
class ClickFeatures:
    """What the mask decoder reads of B images: [B, D/8, 4g, 4g], [B, D/4, 2g, 2g], [B, D, g, g]."""

    fine: Tensor
    middle: Tensor
    coarse: Tensor


@dataclass(frozen=True, slots=True)
class ClickAnswer:
    """What the mask decoder says of N hints: logits [N, h, w], IoU [N] as it guesses it. All float32."""

    masks: Tensor
    ious: Tensor

    @property
    def stability(self) -> Tensor:
        """[N], in [0, 1]; 0 where the mask is empty at both cuts."""
        high, low = ((self.masks > cut).flatten(1).sum(1).float() for cut in (STABLE, -STABLE))
        return high / low.clamp(min=1.0)


class Clicker:
    """A loaded tracker half that answers boxes and points, sharing the image encoder with its detector."""

    def __init__(self, video: Any, detector: Detector) -> None:
        self.detector, self.neck, self.model = detector, video.tracker_neck, video.tracker_model

    @classmethod
    def load(cls, checkpoint: Checkpoint, detector: Detector) -> Clicker:
        """Load the tracker half beside a detector of the same checkpoint. Raises CheckpointError if it has none."""
        video = load_video_model(checkpoint, "It cannot answer boxes and points: use --model facebook/sam3, or demo.")
        load_own_head(checkpoint, video)
        video.detector_model = detector.model
        for part in (video.tracker_neck, video.tracker_model):
            part.to(detector.device)
        return cls(video, detector)

    @property
    def mask_side(self) -> int:
        """The side of mask logits, h = w."""
        side: int = self.model.prompt_encoder.mask_input_size[0]
        return side

    @torch.inference_mode()
    def masks(
        self,
        frames: Sequence[Frame],
        hints: Sequence[Sequence[Hint]],
        grids: Sequence[Tensor | None] | None = None,
    ) -> list[list[Clicked]]:
        """Return the mask of every hint on every frame, in order. Each frame with hints is encoded once.

        Or not at all, where `grids` has what the detector kept of it. Raises ConfigError when even one image does not
        fit into memory.
        """
        found: list[list[Clicked]] = [[] for _ in frames]
        asked = [number for number, own in enumerate(hints) if own]
        known = {n: grid for n, grid in enumerate(grids or ()) if grid is not None}

        def join(numbers: Sequence[int]) -> Tensor:
            return torch.cat([known[n] for n in numbers])

        def encode(numbers: Sequence[int]) -> Tensor:
            with self.detector.clock("encode"):
                return self.detector.encode_grid(self.detector.preprocess([frames[n] for n in numbers]))

        for some, grid_of in (([n for n in asked if n in known], join), ([n for n in asked if n not in known], encode)):
            for numbers, grid in self._grids(some, grid_of):
                answers = self.masks_of_grid(grid, [frames[n].size_hw for n in numbers], [hints[n] for n in numbers])
                for number, answer in zip(numbers, answers, strict=True):
                    found[number] = answer
        return found

    def _grids(
        self, numbers: Sequence[int], grid_of: Callable[[Sequence[int]], Tensor]
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield numbers of frames with their grid, as many together as memory holds."""
        return self.detector.batches.each(len(numbers), "images", lambda part: (numbers[part], grid_of(numbers[part])))

    @torch.inference_mode()
    def masks_of_grid(
        self, grid: Tensor, sizes_hw: Sequence[tuple[int, int]], hints: Sequence[Sequence[Hint]]
    ) -> list[list[Clicked]]:
        """Return the masks of hints on images that are encoded: `grid` [B, V, g, g] of `Detector.encode_grid`."""
        clock, reader = self.detector.clock, self.detector.reader
        with clock("heads"):
            answer = self.ask(self.features(grid), sizes_hw, hints)
            judged = bring(torch.stack((answer.ious.clamp(0, 1), answer.stability), 1))
        with clock("post"):
            sizes = [size_hw for size_hw, own in zip(sizes_hw, hints, strict=True) for _ in own]
            instances = reader.instances(reader.cut(answer.masks, sizes))
            rows = enumerate(judged.numpy().tolist())
            clicked = iter([Clicked(instances.get(row), iou, stability) for row, (iou, stability) in rows])
        return [list(islice(clicked, len(own))) for own in hints]

    def features(self, grid: Tensor) -> ClickFeatures:
        """Return what the decoder reads of B images, from the image encoder's answer [B, V, g, g]."""
        decoder = self.model.mask_decoder
        with self.detector.precision():
            levels, _ = self.neck(grid.float())
            fine, middle = decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])
            return ClickFeatures(fine, middle, levels[2] + self.model.no_memory_embedding.reshape(1, -1, 1, 1))

    def ask(
        self, features: ClickFeatures, sizes_hw: Sequence[tuple[int, int]], hints: Sequence[Sequence[Hint]]
    ) -> ClickAnswer:
        """Ask all hints of all images, image by image: those of one form together, as many as memory holds.

        Of a single point, which may mean a thing or a part of it, the best of three masks is taken by its IoU.
        """
        given = [(image, hint) for image, own in enumerate(hints) for hint in own]
        side, device = self.mask_side, self.detector.device
        masks = torch.empty((len(given), side, side), device=device)
        ious = torch.empty(len(given), device=device)
        for places in _by_form([hint for _, hint in given]):

            def answer(part: slice, places: Sequence[int] = places) -> tuple[list[int], ClickAnswer]:
                chosen = list(places[PER_MASK * part.start : PER_MASK * part.stop])
                images = [given[place][0] for place in chosen]
                own = [given[place][1] for place in chosen]
                return chosen, self._answer(features, images, [sizes_hw[image] for image in images], own)

            for chosen, one in self.detector.batches.each(-(-len(places) // PER_MASK), "masks", answer):
                rows = send(np.array(chosen), device)
                masks[rows], ious[rows] = one.masks, one.ious
        return ClickAnswer(masks, ious)

    def _answer(
        self, features: ClickFeatures, images: Sequence[int], sizes_hw: Sequence[tuple[int, int]], hints: Sequence[Hint]
    ) -> ClickAnswer:
        """Ask hints of one form, hint k of image `images[k]`, which has size `sizes_hw[k]`."""
        model, n, device = self.model, len(hints), self.detector.device
        single = hints[0].is_single_point
        of = send(np.array(images), device)
        with self.detector.precision():
            sparse, dense = model.prompt_encoder(**self._prompts(hints, sizes_hw), input_masks=None)
            masks, ious, _, _ = model.mask_decoder(
                image_embeddings=features.coarse[of],
                image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(n, -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=single,
                high_resolution_features=[features.fine[of], features.middle[of]],
            )  # [N, 1, 1 or 3, h, w], [N, 1, 1 or 3]
        rows = torch.arange(n, device=device)
        best = ious[:, 0].argmax(1)
        return ClickAnswer(masks[rows, 0, best].float(), ious[rows, 0, best].float())

    def _prompts(self, hints: Sequence[Hint], sizes_hw: Sequence[tuple[int, int]]) -> dict[str, Tensor | None]:
        """Points [N, 1, n, 2] with labels [N, 1, n], and boxes [N, 1, 4], in pixels of the model's input."""
        side, device = self.detector.image_size, self.detector.device
        scale = torch.tensor([(side / width, side / height) for height, width in sizes_hw])[:, None, None]
        points = labels = boxes = None
        if hints[0].points:
            at = torch.tensor([[(x, y) for x, y, _ in hint.points] for hint in hints])  # [N, n, 2]
            points = send((at[:, None] * scale).numpy(), device)
            labels = send(np.array([[[int(inside) for _, _, inside in hint.points]] for hint in hints]), device)
        if hints[0].box_xyxy is not None:
            corners = torch.tensor([hint.box_xyxy for hint in hints]).view(len(hints), 2, 2)
            boxes = send((corners * scale[:, 0]).view(len(hints), 1, 4).numpy(), device)
        return {"input_points": points, "input_labels": labels, "input_boxes": boxes}


def _by_form(hints: Sequence[Hint]) -> Iterator[list[int]]:
    """Yield places of hints with a box or none, and as many points: they are asked together, without padding."""
    forms: dict[tuple[bool, int], list[int]] = {}
    for place, hint in enumerate(hints):
        forms.setdefault((hint.box_xyxy is not None, len(hint.points)), []).append(place)
    yield from forms.values()

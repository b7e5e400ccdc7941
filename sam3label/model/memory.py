"""Decides how much is computed together: what free memory holds, and half of it once that was too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch

from sam3label.errors import ConfigError

Stage = Literal["images", "pairs", "masks", "cuts"]
T = TypeVar("T")

# Computed together where shapes are fixed: what a card of 8 GB holds, and already work enough for a large one. Every
# card computes the same shapes then, so that none of its sums is ordered by how much memory was free.
TOGETHER: dict[Stage, int] = {"images": 4, "pairs": 16, "masks": 4}
FEW_PAIRS = 4  # what is left of a batch's pairs goes by so many, the last ones filled up
CUT_TOGETHER = 64  # masks, cut down to their edges in chunks that bound their memory themselves
ON_CPU: Mapping[Stage, int] = {"images": 4, "pairs": 4, "masks": 4}

_TOO_SMALL = (
    "the memory of {} does not hold the model's work on even one image: free some, use --dtype bf16, "
    "or another --device."
)


class Batches:
    """Says how many images, pairs and pairs' masks a device computes together.

    `fixed`: images are computed by one number and pairs by two, short batches filled up. Then no answer depends on how
    much memory was free, nor on the other images of its batch, and a compiled model is compiled once a number.
    `release` gives back what memory can be had before anything is halved.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Mapping[Stage, int],
        fixed: bool = False,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.fixed = device, fixed
        self._sizes, self._release = {"cuts": 2 * CUT_TOGETHER, **sizes}, release

    def __getitem__(self, stage: Stage) -> int:
        return self._sizes[stage]

    def filled(self, stage: Stage, count: int) -> int:
        """Return as how many images or pairs `count` of them are computed."""
        if not self.fixed:
            return count
        return self._sizes[stage] if stage == "images" else self._next(stage, count)

    def _next(self, stage: Stage, left: int) -> int:
        size = self._sizes[stage]
        return min(size, FEW_PAIRS) if self.fixed and stage == "pairs" and left < size else size

    def each(self, count: int, stage: Stage, work: Callable[[slice], T]) -> Iterator[T]:
        """Do `work` over 0..count in slices of the stage's size, which is halved for good when memory runs out.

        On CUDA only when it runs out again after all was given back that can be. Raises ConfigError when not even one
        fits.
        """
        start, again = 0, False
        while start < count:
            stop = min(start + self._next(stage, count - start), count)
            try:
                result = work(slice(start, stop))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                again = not again and self.device.type == "cuda"
                if not again:
                    self._halve(stage, stop - start, error)
            else:
                yield result
                start, again = stop, False
                continue
            if self.device.type == "cuda":  # outside the handler, whose traceback keeps the tensors alive
                self._release()
                torch.cuda.empty_cache()

    def _halve(self, stage: Stage, failed: int, error: RuntimeError) -> None:
        computed = self.filled(stage, failed)
        if computed == 1:
            raise ConfigError(_TOO_SMALL.format(self.device)) from error
        self._sizes[stage] = computed // 2


def batch_sizes(config: Any, device: torch.device, dtype: torch.dtype, vram_gb: float | None) -> dict[Stage, int]:
    """Return how many images, pairs and pairs' masks to compute together: fewer where free memory is short."""
    if device.type != "cuda":
        return dict(ON_CPU)
    torch.cuda.empty_cache()  # what loading has left counts as used
    free, total = torch.cuda.mem_get_info(device)
    if vram_gb is not None:
        free = min(free, int(vram_gb * 1e9) - torch.cuda.memory_allocated(device))
        torch.cuda.set_per_process_memory_fraction(min(vram_gb * 1e9 / total, 1.0), device)
    return sizes_for(footprint(config, dtype), max(free, 0))


def sizes_for(bytes_each: Mapping[Stage, int], free: int) -> dict[Stage, int]:
    """Return what is computed together in four fifths of the free bytes."""
    needed = sum(count * bytes_each[stage] for stage, count in TOGETHER.items())
    share = min(1.0, free * 0.8 / needed)
    return {stage: max(1, int(share * count)) for stage, count in TOGETHER.items()}


def footprint(config: Any, dtype: torch.dtype) -> dict[Stage, int]:
    """Return the bytes that one image, one pair and one pair's masks take at their peak.

    One and a half times what was counted at full size in bf16 (187, 53 and 265 MB), by the largest tensors.
    """
    vit, width = config.vision_config.backbone_config, config.vision_config.fpn_hidden_size
    decoder, encoder = config.detr_decoder_config, config.detr_encoder_config
    tokens = (vit.image_size // vit.patch_size) ** 2
    pixels = 16 * tokens  # of the mask logits
    image = dtype.itemsize * (6 * pixels * width + tokens * vit.intermediate_size)
    bias = 4 * decoder.num_attention_heads * (decoder.num_queries + 1) * tokens
    pair = bias + 2 * dtype.itemsize * tokens * encoder.intermediate_size
    return {"images": image, "pairs": pair, "masks": 4 * pixels * (4 * width + decoder.num_queries // 2)}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out. CUDA's allocator has a class for it; the others say it in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)

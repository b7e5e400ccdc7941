"""Decides how much is computed together: what free memory holds, and half of it once that was too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch

from sam3label.errors import ConfigError

Stage = Literal["images", "pairs", "masks"]
T = TypeVar("T")

_TOO_SMALL = (
    "the memory of {} does not hold the model's work on even one image: free some, use --dtype bf16, "
    "or another --device."
)


class Batches:
    """Says how many images, pairs and pairs' masks a device computes together."""

    def __init__(self, device: torch.device, sizes: Mapping[Stage, int]) -> None:
        self.device = device
        self._sizes = dict(sizes)

    def __getitem__(self, stage: Stage) -> int:
        return self._sizes[stage]

    def each(self, count: int, stage: Stage, work: Callable[[slice], T]) -> Iterator[T]:
        """Do `work` over 0..count in slices of the stage's size, which is halved for good when memory runs out.

        Raises ConfigError when not even one fits.
        """
        start = 0
        while start < count:
            stop = min(start + self._sizes[stage], count)
            try:
                result = work(slice(start, stop))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1:
                    raise ConfigError(_TOO_SMALL.format(self.device)) from error
                self._sizes[stage] = (stop - start) // 2
            else:
                yield result
                start = stop
                continue
            if self.device.type == "cuda":  # outside the handler, whose traceback keeps the tensors alive
                torch.cuda.empty_cache()


def batch_sizes(config: Any, device: torch.device, dtype: torch.dtype, vram_gb: float | None) -> dict[Stage, int]:
    """Return how many images, pairs and pairs' masks to compute together: what free memory holds, modest on the CPU."""
    if device.type != "cuda":
        return {"images": 4, "pairs": 4, "masks": 4}
    torch.cuda.empty_cache()  # what loading has left counts as used
    free, total = torch.cuda.mem_get_info(device)
    if vram_gb is not None:
        free = min(free, int(vram_gb * 1e9) - torch.cuda.memory_allocated(device))
        torch.cuda.set_per_process_memory_fraction(min(vram_gb * 1e9 / total, 1.0), device)
    return sizes_for(footprint(config, dtype), max(free, 0))


def sizes_for(bytes_each: Mapping[Stage, int], free: int) -> dict[Stage, int]:
    """Return the sizes for so many free bytes: four fifteenths a stage, within bounds where more brings nothing."""
    share, most = free * 4 // 15, {"images": 16, "pairs": 64, "masks": 16}
    return {stage: min(max(share // each, 1), most[stage]) for stage, each in bytes_each.items()}


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

"""Which device and precision to compute on, and how much fits into its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from sam3label.errors import ConfigError

Stage = Literal["images", "pairs", "masks"]


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU. Raises ConfigError for a device that this machine does not have."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present.get(name.partition(":")[0], False):
        usable = ", ".join(kind for kind, there in present.items() if there)
        raise ConfigError(f"device {name!r} is not available here: use auto or one of {usable}.")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 on a CUDA device that computes in it, else fp32. Raises ConfigError."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name not in known:
        raise ConfigError(f"dtype must be auto, fp32 or bf16, got {name!r}.")
    return known[name]


def batch_sizes(config: Any, device: torch.device, dtype: torch.dtype, vram_gb: float | None) -> dict[Stage, int]:
    """How many images, pairs and pairs' masks to compute together: what free memory holds, modest on the CPU."""
    if device.type != "cuda":
        return {"images": 4, "pairs": 4, "masks": 4}
    free = torch.cuda.mem_get_info(device)[0]
    if vram_gb is not None:
        free = min(free, int(vram_gb * 1e9) - torch.cuda.memory_allocated(device))
    return sizes_for(footprint(config, dtype), max(free, 0))


def sizes_for(bytes_each: Mapping[Stage, int], free: int) -> dict[Stage, int]:
    """Four fifths of the free bytes, a third of them for each stage, within bounds where more brings nothing."""
    share, most = free * 4 // 15, {"images": 16, "pairs": 64, "masks": 16}
    return {stage: min(max(share // each, 1), most[stage]) for stage, each in bytes_each.items()}


def footprint(config: Any, dtype: torch.dtype) -> dict[Stage, int]:
    """Bytes that one image, one pair and one pair's masks take at their peak, from the sizes of the largest tensors."""
    vit, width = config.vision_config.backbone_config, config.vision_config.fpn_hidden_size
    decoder, encoder = config.detr_decoder_config, config.detr_encoder_config
    tokens = (vit.image_size // vit.patch_size) ** 2
    pixels = 16 * tokens  # of the mask logits
    image = tokens * (3 * vit.intermediate_size + 10 * vit.hidden_size) * dtype.itemsize + 16 * pixels * width
    attention = decoder.num_attention_heads * (decoder.num_queries + 1) * tokens
    pair = 4 * (6 * tokens * encoder.intermediate_size + 5 * attention)
    return {"images": image, "pairs": pair, "masks": 4 * pixels * (4 * width + 2 * decoder.num_queries)}


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it; the CPU's and MPS's allocators say it in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)

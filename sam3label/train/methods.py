"""What of a model is trained: low-rank adapters beside its attention, its small heads, or all but the text encoder.

    lora    q, k, v and o of the image encoder, the DETR encoder and decoder get adapters; the small heads are trained
    heads   the small heads alone: nothing before them needs a gradient
    full    everything but the text encoder, whose phrases that nobody trained would drift

The text encoder stays as it is in all of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam3label.errors import ExtraMissingError
from sam3label.model.adapter import Learned

Method = Literal["lora", "heads", "full"]
METHODS: tuple[Method, ...] = get_args(Method)

ADAPTED = r"(vision_encoder\.backbone|detr_encoder|detr_decoder)\..*\.(q_proj|k_proj|v_proj|o_proj)"
HEADS = (
    "detr_decoder.presence_head",
    "detr_decoder.presence_layer_norm",
    "detr_decoder.box_head",
    "dot_product_scoring",
    "mask_decoder.mask_embedder",
    "mask_decoder.instance_projection",
)
_FROZEN = "text_encoder"
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def prepare(model: Any, method: Method, rank: int = 16, *, recompute: bool = False, seed: int = 0) -> None:
    """Freeze what is not trained and put adapters beside what is. Raises ExtraMissingError without peft.

    `recompute`: layers compute their inner values again on the way back instead of keeping them, a third more work for
    a fraction of the memory.
    """
    model.requires_grad_(False)
    if method == "lora":
        _add_adapters(model, rank, seed)
    for name, parameter in model.named_parameters():
        if method == "full":
            parameter.requires_grad_(not name.startswith(_FROZEN))
        elif name.startswith(HEADS):
            parameter.requires_grad_(True)
    if recompute and method != "heads":
        for layer in (
            *model.vision_encoder.backbone.layers,
            *model.detr_encoder.layers,
            *model.detr_decoder.layers,
        ):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _add_adapters(model: Any, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ExtraMissingError("finetune", "training adapters") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), model)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learned(values: dict[str, Tensor]) -> Learned:
    """Sort trained values by what they are: `values` by the names of `trained`."""
    low_rank = {
        name.removesuffix(_A) + ".weight": (value, values[name.removesuffix(_A) + _B])
        for name, value in values.items()
        if name.endswith(_A)
    }
    whole = {name: value for name, value in values.items() if not name.endswith((_A, _B))}
    return Learned(low_rank, whole)

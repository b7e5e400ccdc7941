"""Fine-tuned checkpoints: a few megabytes beside the checkpoint that they were trained from, its base.

The folder holds `finetuned.json` (the base by name and identity, and what the training came to), the weights in the
layout of `peft`, and a model card. Loading adds the low-rank part to the base's weights and puts those that were
trained whole in their place, in float32: there is no other way of running them, and no package but ours is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.core.files import share
from sam3label.errors import CheckpointError
from sam3label.model.identity import weights_digest

if TYPE_CHECKING:
    from torch import Tensor

MARKER, WEIGHTS, PEFT_CONFIG = "finetuned.json", "adapter_model.safetensors", "adapter_config.json"
_PEFT = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Learned:
    """What a training came to, by the names of the detector's weights.

    A weight [out, in] of `low_rank` becomes itself plus B A, of A [R, in] and B [out, R]. Those of `whole` were
    trained whole.
    """

    low_rank: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]

    def upon(self, earlier: Learned) -> Learned:
        """Return both as one: what was learned first, and this upon it."""
        import torch

        low_rank = dict(earlier.low_rank)
        for name, (a, b) in self.low_rank.items():
            first = low_rank.get(name)
            low_rank[name] = (a, b) if first is None else (torch.cat((first[0], a)), torch.cat((first[1], b), 1))
        added = {name: value for name, value in low_rank.items() if name not in self.whole}
        return Learned(added, {**earlier.whole, **self.whole})


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with what was learned, and the base that it was learned upon."""

    folder: Path
    base: str  # a hub id, a local path or "demo"
    revision: str | None
    base_identity: str
    about: Mapping[str, Any]  # what else `finetuned.json` says

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def identity(self) -> str:
        """Return what tells it, upon its base, from every other checkpoint."""
        text = f"{self.base_identity} {weights_digest([self.weights])}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def learned(self) -> Learned:
        """Read the weights. Raises CheckpointError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.weights} is not a whole safetensors file ({error}): train again.") from error
        plain = {name.removeprefix(_PEFT): value.float() for name, value in tensors.items()}
        low_rank = {
            name.removesuffix(_A) + ".weight": (value, plain[name.removesuffix(_A) + _B])
            for name, value in plain.items()
            if name.endswith(_A)
        }
        return Learned(low_rank, {name: value for name, value in plain.items() if not name.endswith((_A, _B))})


def find_adapter(folder: Path) -> Adapter | None:
    """Return the fine-tuned checkpoint in a folder, None where it is none. Raises CheckpointError for half of one."""
    path = folder / MARKER
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        base, identity = str(about["base"]["model"]), str(about["base"]["identity"])
        revision = about["base"].get("revision")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not name the checkpoint it was trained from: train again.") from error
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}: copy the whole folder, or train again.")
    return Adapter(folder, base, revision, identity, about)


def add_to(tensors: dict[str, Tensor], learned: Learned, where: Path, prefix: str = "") -> list[str]:
    """Put what was learned into a model's weights by name, in float32, and return which. Raises CheckpointError.

    `prefix` is what the names there begin with.
    """
    names = [*learned.low_rank, *learned.whole]
    shapes: dict[str, tuple[int, ...]] = {n: (b.shape[0], a.shape[1]) for n, (a, b) in learned.low_rank.items()}
    shapes |= {name: tuple(value.shape) for name, value in learned.whole.items()}
    wrong = [n for n in names if prefix + n not in tensors or tuple(tensors[prefix + n].shape) != shapes[n]]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit its base: {len(wrong)} weights are missing there or of another shape "
            f"({', '.join(wrong[:3])}). Train again."
        )
    for name, (a, b) in learned.low_rank.items():
        tensors[prefix + name] = tensors[prefix + name].float() + b @ a
    for name, value in learned.whole.items():
        tensors[prefix + name] = value
    return [prefix + name for name in names]


def write_adapter(folder: Path, learned: Learned, base: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a fine-tuned checkpoint's files into `folder`. `base` has model, revision and identity."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (a, b) in learned.low_rank.items():
        tensors[_PEFT + name.removesuffix(".weight") + _A] = a.contiguous()
        tensors[_PEFT + name.removesuffix(".weight") + _B] = b.contiguous()
    tensors |= {_PEFT + name: value.contiguous() for name, value in learned.whole.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    share(folder / WEIGHTS)
    if learned.low_rank:
        config = json.dumps(_peft_config(learned, str(base["model"])), indent=1)
        (folder / PEFT_CONFIG).write_text(config + "\n", encoding="utf-8")
    text = json.dumps({"tool": "sam3label", "base": base, **about}, indent=1, ensure_ascii=False)
    (folder / MARKER).write_text(text + "\n", encoding="utf-8")


def _peft_config(learned: Learned, base: str) -> dict[str, Any]:
    """Return how `peft` is to read it. Weights with another rank than most have it in `rank_pattern`."""
    ranks = {name.removesuffix(".weight"): len(a) for name, (a, _) in learned.low_rank.items()}
    most = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(_modules(list(learned.whole))) or None,
        "bias": "none",
        "inference_mode": True,
    }


def _modules(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}

"""Meta's own checkpoint files, `sam3.pt` and `sam3.1_multiplex.pt`: their weights as ours and back, all or none.

`source_of` says for one of our names where its tensor lies in an official file; everything else follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sam3label.errors import CheckpointError
from sam3label.model.official_names import SECTIONS, Part

_FIELD = {"n": r"\d+", "k": r"\d+", "p": "weight|bias", "qkv": "[qkv]", "rest": ".+", "which": r"\w+", "head": r"\w+"}
_UNUSED = re.compile(  # buffers that are computed, and weights that nothing of ours reads
    r"detector\..*\.freqs_cis(?:_real|_imag)?"
    r"|detector\.geometry_encoder\.points_\w+_project\..*"
    r"|tracker\..*\.freqs_cis(?:_real|_imag)?"
)
_UNUSED_31 = re.compile(r"tracker\..*|detector\.backbone\.vision_backbone\.(?:interactive|propagation|sam2)_convs\..*")
LEVEL_THAT_NOBODY_READS = re.compile(r"detector_model\.vision_encoder\.neck\.fpn_layers\.3\..*")  # absent from 3.1


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where one of our tensors lies in an official file: under `name`, and which part of it."""

    name: str  # with "#" for the number of the row, where `part` is "rows"
    part: Part
    third: int = 0


@lru_cache(maxsize=4096)
def source_of(name: str) -> TensorSource:
    """Say where the weight that `Sam3VideoModel` calls `name` lies in an official file. Raises KeyError."""
    for ours, theirs, rows in SECTIONS:
        if name.startswith(ours):
            for pattern, template, part in _compiled(rows):
                if found := pattern.fullmatch(name.removeprefix(ours)):
                    fields = found.groupdict()
                    third = "qkv".index(fields["qkv"]) if part == "third" else 0
                    return TensorSource(theirs + _filled(template, fields), part, third)
    raise KeyError(name)


@lru_cache(maxsize=8)
def _compiled(rows: tuple[tuple[str, str, Part], ...]) -> tuple[tuple[re.Pattern[str], str, Part], ...]:
    def pattern(template: str) -> re.Pattern[str]:
        pieces = re.split(r"\{(\w+)\}", template)
        return re.compile("".join(f"(?P<{p}>{_FIELD[p]})" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))

    return tuple((pattern(ours), theirs, part) for ours, theirs, part in rows)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    k = int(fields.get("k") or 0)
    counted = {"k-1": k - 1, "k+1": k + 1, "3k": 3 * k, "3k+1": 3 * k + 1}
    return re.sub(r"\{([^}]+)\}", lambda hole: str(counted.get(hole[1], fields.get(hole[1]))), template)


def normalized(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return tensors by official names without what trainers and older releases put before them, such as `module.`.

    Raises `CheckpointError` as `renamed` does.
    """
    return renamed(tensors, _official_name, where)


def _official_name(name: str) -> str:
    name = name.removeprefix("module.").removeprefix("model.")
    name = re.sub(r"^sam3_model\.", "detector.", re.sub(r"^sam2_predictor\.", "tracker.", name))
    return name if name.startswith(("detector.", "tracker.")) else f"detector.{name}"


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str], where: str) -> dict[str, Tensor]:
    """Return tensors by other names. Raises `CheckpointError` where two that differ would get the same one."""
    before: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = before.setdefault(rename(name), name)
        if first != name and not _is_same(tensors[first], tensor):
            raise CheckpointError(
                f"{where} holds {first} and {name}, which are the same weight under two names and differ: "
                "save the one that is meant without the other."
            )
    return {name: tensors[first] for name, first in before.items()}


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def is_multiplex(names: Iterable[str]) -> bool:
    """Return whether a file of these names is SAM 3.1: three necks, and a tracker of many objects at once."""
    return any("propagation_convs." in name or name.startswith("tracker.model.") for name in names)


def from_official(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], where: str) -> dict[str, Tensor]:
    """Return our tensors, by our names and with the shapes of `wanted`, from `normalized` official ones.

    Raises `CheckpointError` naming what is missing, of another shape, or unknown: nothing is loaded in part.
    """
    problems: dict[str, list[str]] = {"missing": [], "of another shape": [], "unknown": []}
    used, ours = set[str](), {}
    for name, shape in wanted.items():
        source = source_of(name)
        parts = [source.name.replace("#", str(i)) for i in range(shape[0])] if source.part == "rows" else [source.name]
        if absent := [part for part in parts if part not in tensors]:
            if LEVEL_THAT_NOBODY_READS.fullmatch(name) and is_multiplex(tensors):
                ours[name] = torch.zeros(shape)
            else:
                problems["missing"] += absent
            continue
        used.update(parts)
        tensor = _taken(source, [tensors[part] for part in parts])
        if tensor is None or tensor.shape != shape:
            problems["of another shape"].append(f"{parts[0]} {tuple(tensors[parts[0]].shape)} for {tuple(shape)}")
        else:
            ours[name] = tensor
    problems["unknown"] = sorted(name for name in tensors.keys() - used if not _may_be_left(name, tensors))
    if any(problems.values()):
        raise CheckpointError(f"{where} does not hold SAM 3 as the official code names it: {_listed(problems)}.")
    return ours


def _may_be_left(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return bool(_UNUSED.fullmatch(name) or (is_multiplex(tensors) and _UNUSED_31.fullmatch(name)))


def _listed(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{len(names)} weights {kind} ({', '.join(sorted(set(names))[:3])}{', ...' if len(set(names)) > 3 else ''})"
        for kind, names in problems.items()
        if names
    )


def _taken(source: TensorSource, parts: list[Tensor]) -> Tensor | None:
    """Return our tensor from its official parts; None where their shape does not allow it."""
    whole = parts[0]
    match source.part:
        case "third":
            return whole.chunk(3)[source.third].contiguous() if whole.shape[0] % 3 == 0 else None
        case "transposed":
            return whole.T.contiguous() if whole.ndim == 2 else None
        case "without class row":
            return whole[:, 1:].contiguous() if whole.ndim == 3 else None
        case "rows":
            return torch.cat(parts)
        case _:
            return whole.clone(memory_format=torch.contiguous_format)  # two of ours come from one of theirs


def to_official(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official tensors from ours by official names. Raises `CheckpointError` for a weight they have no name for.

    The row of the position embeddings that belongs to a class token, which nothing reads, is zeros.
    """
    official: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in ours.items():
        try:
            source = source_of(name)
        except KeyError as error:
            raise CheckpointError(f"the official code has no name for the weight {name}.") from error
        match source.part:
            case "third":
                thirds.setdefault(source.name, {})[source.third] = tensor
            case "rows":
                official |= {source.name.replace("#", str(i)): row[None].contiguous() for i, row in enumerate(tensor)}
            case "transposed":
                official[source.name] = tensor.T.contiguous()
            case "without class row":
                official[source.name] = torch.cat((torch.zeros_like(tensor[:, :1]), tensor), 1)
            case _:
                twin = official.setdefault(source.name, tensor.contiguous())
                if not torch.equal(twin, tensor):
                    raise CheckpointError(f"the official code has one weight, {source.name}, for two that differ here.")
    return official | {name: torch.cat([of[i] for i in range(3)]) for name, of in thirds.items()}

"""How a checkpoint is fine-tuned, as a user says it: every problem at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sam3label.core import checks
from sam3label.core.problems import Problem
from sam3label.export.splits import Splits, parse_splits
from sam3label.labelling.options import DType

Method = Literal["lora", "heads", "full"]

_VIEWS = 200  # of each photo, where the number of steps is not given
_FEWEST, _MOST = 300, 2000


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Options of `finetune`. Raises `ConfigError` with every problem.

    >>> FinetuneOptions(method="lorra")
    Traceback (most recent call last):
    sam3label.errors.ConfigError: method: 'lorra' is not one of lora, heads, full. Did you mean lora?
    """

    model: str | None = None  # the base; None: the one that the last run was made with
    revision: str | None = None
    method: Method = "lora"
    rank: int = 16  # of the adapters
    steps: int | None = None  # None: by the number of photos
    rate: float | None = None  # None: 2e-3 for adapters, a tenth of it for what exists already
    photos_a_step: int = 4
    questions: int = 8  # about each of them
    image_size: int | None = None
    device: str = "auto"
    dtype: DType = "auto"  # auto: bf16 where the device multiplies it fast
    recompute: bool | None = None  # None: on a GPU
    seed: int = 0
    held_out: float = 0.25  # share of the reviewed photos that judges
    group: str | None = None
    group_regex: str | None = None
    guard: tuple[str, ...] = ()  # further phrases whose answers must stay
    guard_photos: int = 100  # unreviewed photos that show what was forgotten
    keep_anyway: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        checks.refuse(_problems(self))
        _ = self.groups

    @property
    def groups(self) -> Splits:
        """Return what keeps photos on one side."""
        return parse_splits(None, 0, self.group, self.group_regex)

    def steps_for(self, photos: int) -> int:
        """Return the number of steps for so many photos."""
        return self.steps or min(max(_VIEWS * photos // self.photos_a_step, _FEWEST), _MOST)


def _problems(options: FinetuneOptions) -> Iterator[Problem | None]:
    yield checks.one_of("method", options.method, Method)
    yield checks.one_of("dtype", options.dtype, DType)
    if options.dtype == "fp16":
        yield Problem("dtype", "fp16 is too coarse for gradients: use auto, bf16 or fp32")
    for name in ("rank", "steps", "photos_a_step", "questions", "image_size"):
        yield checks.whole(name, getattr(options, name), 1)
    yield checks.above_zero("rate", options.rate)
    yield checks.within("held_out", options.held_out, 0.05, 0.8)

"""What a full-size model does on a GPU, counted by shapes alone: launches, bytes and peaks beside recorded numbers.

.venv/bin/python -m pytest -q -s tests/model/test_counts.py     # prints them
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.pretend_cuda import VIEWS, pretend_cuda
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Sam3Config, Sam3Model

from sam3label.core.records import Prompt
from sam3label.model.ask import Scored, pairs_of
from sam3label.model.detector import Detector
from sam3label.model.device import Compute
from sam3label.model.encode import Texts
from sam3label.model.memory import TOGETHER, footprint

IMAGES, PAIRS, MASKS = TOGETHER["images"], TOGETHER["pairs"], TOGETHER["masks"]
KEPT = 8  # queries of a pair whose masks are made

# launches and gigabytes of a batch, and its peak of megabytes above what was there: recorded when last changed
RECORDED = {
    "encode 4 images": (1016, 173.4, 1001),
    "score 16 pairs": (959, 46.2, 850),
    "masks of 4 pairs": (46, 4.6, 977),
}


@dataclass
class Counts(TorchDispatchMode):
    """Launches, bytes read and written, and the most bytes held at once. Attention is one launch."""

    launches: int = 0
    moved: int = 0
    held: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if "empty" in name:
            self._note([], tree_leaves(made))
        elif name not in VIEWS and name != "prim::device":
            self.launch(tree_leaves((args, kwargs)), tree_leaves(made))
        return made

    def launch(self, read: list[Any], written: list[Any]) -> None:
        self.launches += 1
        self.moved += sum(_bytes(value) for value in (*read, *written) if isinstance(value, Tensor) and value.is_cuda)
        self._note(read, written)

    def _note(self, read: list[Any], written: list[Any]) -> None:
        for value in written:
            if isinstance(value, Tensor) and value.is_cuda and not any(value is one for one in read):
                self._hold(value)

    def _hold(self, value: Tensor) -> None:
        storage = value.held.untyped_storage()  # type: ignore[attr-defined]
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def _bytes(value: Tensor) -> int:
    """What is read of it: what is repeated without a copy is read once."""
    own = [side for side, step in zip(value.shape, value.stride(), strict=True) if step]
    return int(np.prod(own, dtype=np.int64)) * value.element_size()


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, Counts]]:
    found: dict[str, Counts] = {}

    def count(name: str, work: Callable[[], Any]) -> Any:
        found[name] = Counts()

        def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
            kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
            query, key, value = (one.to(kind) for one in (query, key, value))
            made = torch.empty_like(query)
            found[name].launch([query, key, value, *([] if attn_mask is None else [attn_mask])], [made])
            return made

        with found[name], mock.patch.object(F, "scaled_dot_product_attention", attention):
            return work()

    with pretend_cuda(shapes_only=True), torch.inference_mode():
        with torch.device("meta"):
            model = Sam3Model(Sam3Config()).eval().requires_grad_(False)
        model.text_encoder = torch.nn.Identity()  # it would be kept on the CPU, where shapes have no numbers
        detector = Detector.of_model(model, None, "random", Compute(torch.device("cuda", 0), torch.bfloat16))
        side, width = detector.image_size, detector.head.no_boxes.shape[-1]
        pixels = torch.empty(IMAGES, 3, side, side, device="cuda")
        state = count("encode 4 images", lambda: detector.encode_images(pixels))
        prompts = [Prompt(str(number), str(number)) for number in range(PAIRS // IMAGES)]
        texts = Texts(
            torch.empty(len(prompts), 32, width, device="cuda"),
            torch.ones(len(prompts), 32, dtype=torch.bool, device="cuda"),
        )
        pairs = pairs_of(prompts, [{}] * IMAGES)
        scored: Scored = count("score 16 pairs", lambda: detector.asker.score(state, pairs, texts))
        rows = np.repeat(np.arange(MASKS), KEPT)
        queries = np.tile(np.arange(KEPT), MASKS)
        with detector.precision():
            skips = detector.head.skips(state, slice(0, 1))
        count("masks of 4 pairs", lambda: detector.reader.logits(scored, rows, queries, skips))
    yield found


def test_work_on_a_gpu_is_what_it_was(counted: dict[str, Counts]) -> None:
    for name, counts in counted.items():
        print(f"{name}: {counts.launches} launches, {counts.moved / 1e9:.1f} GB, {counts.peak / 1e6:.0f} MB at most")
    for name, (launches, gigabytes, megabytes) in RECORDED.items():
        counts = counted[name]
        assert counts.launches == pytest.approx(launches, rel=0.05), name
        assert counts.moved / 1e9 == pytest.approx(gigabytes, rel=0.05), name
        assert counts.peak / 1e6 == pytest.approx(megabytes, rel=0.05), name


def test_batches_are_sized_by_what_was_counted(counted: dict[str, Counts]) -> None:
    each = footprint(Sam3Config(), torch.bfloat16)
    peaks = {
        "images": counted["encode 4 images"].peak / IMAGES,
        "pairs": counted["score 16 pairs"].peak / PAIRS,
        "masks": counted["masks of 4 pairs"].peak / MASKS,
    }
    for stage, peak in peaks.items():
        assert 1 < each[stage] / peak < 2.5, stage  # type: ignore[index]

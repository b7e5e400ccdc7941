"""The device that is asked for computes, and a GPU that cannot be used is never passed over in silence."""

from __future__ import annotations

import pytest
import torch
from support.pretend_cuda import Device, pretend_cuda

from sam3label.errors import ConfigError
from sam3label.model import device as devices
from sam3label.model.device import Compute, has_code_for, pick_device, pick_dtype
from sam3label.model.memory import is_out_of_memory, sizes_for

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_not_a_run_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "nvidia_driver", lambda: "470.1")
    with pytest.raises(
        ConfigError, match=r"has an NVIDIA GPU \(driver 470\.1\) that torch .* cannot use.*--device cpu"
    ):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((9, 0), True),
        ((8, 9), True),
        ((7, 5), True),
        ((7, 0), False),
        ((6, 0), False),
        ((12, 1), True),
        ((11, 0), False),
    ],
)
def test_a_card_needs_code_of_its_own(capability: tuple[int, int], runs: bool) -> None:
    assert has_code_for(capability, WHEEL) is runs
    assert has_code_for((13, 0), [*WHEEL, "compute_120"])  # portable code runs on what comes later
    assert not has_code_for((7, 0), ["compute_120"])


def test_a_card_without_code_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
        with pytest.raises(ConfigError, match=r"has no code for Tesla V100: install a torch built for it"):
            pick_device("cuda")


def test_the_device_asked_for_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    with pretend_cuda():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert pick_device("cuda:1") == torch.device("cuda", 1) == chosen[-1]
        assert pick_device("auto") == torch.device("cuda", 0) == chosen[-1]
        with pytest.raises(ConfigError, match=r"device 'cuda:7' is not available here: there are 2, from cuda:0 on"):
            pick_device("cuda:7")
        with pytest.raises(ConfigError, match="device 'cuda:x' is not available here"):
            pick_device("cuda:x")


def test_fp16_where_a_card_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda():
        there = pick_device("cuda")
        assert pick_dtype("auto", there) == torch.bfloat16
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert pick_dtype("auto", there) == torch.float16
    with pytest.raises(ConfigError, match="dtype fp16 is for CUDA devices that have no bf16"):
        pick_dtype("fp16", torch.device("cpu"))


def test_float32_is_float32_whatever_torch_was_told() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision
    try:
        matmul.fp32_precision = convolution.fp32_precision = "tf32"
        with pretend_cuda() as device:
            assert isinstance(device, Device)
            with Compute(torch.device("cuda", 0), torch.float32).precision():
                assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


@pytest.mark.parametrize("words", ["CUBLAS_STATUS_ALLOC_FAILED when calling", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_libraries_that_find_no_memory_are_understood(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))


def test_sizes_on_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is free after 2.6 GB of weights: what docs/performance.md shows."""
    from transformers import Sam3Config

    from sam3label.model.memory import footprint

    each = footprint(Sam3Config(), torch.bfloat16)
    counted = {"images": 187e6, "pairs": 53e6, "masks": 265e6}  # at full size
    assert all(1 < each[stage] / counted[stage] < 2 for stage in each)
    sizes = [tuple(sizes_for(each, int(free * 1e9)).values()) for free in (76, 21, 13, 5.5, 2)]
    assert sizes == [(4, 16, 4)] * 4 + [(1, 6, 1)]  # all cards from 8 GB on compute the same shapes

"""The command that says whether a GPU works, run to its end where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_check
import pytest
from support.pretend_cuda import pretend_cuda

from sam3label.errors import ConfigError


def test_every_line_passes_on_a_pretend_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("FRAMES", 2), ("CLIP", 2), ("ROUNDS", 7)):
        monkeypatch.setattr(gpu_check, name, few)
    with pretend_cuda():
        code = gpu_check.main(["--json", str(tmp_path / "gpu.json"), "--without-speed"])
    report = json.loads((tmp_path / "gpu.json").read_text())
    verdicts = {line["name"]: line["verdict"] for line in report["lines"]}
    assert [name for name, verdict in verdicts.items() if verdict != "pass"] == ["speed"], report["lines"]
    assert verdicts["speed"] == "skip" and code == 0 and len(verdicts) > 8
    assert report["figures"]["machine"]["card"] == "Pretend"


def test_a_line_that_fails_is_said_and_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu_check.Check) -> str:
        raise RuntimeError("CUDA error: no kernel image is available\nmore of it")

    monkeypatch.setattr(gpu_check, "machine", broken)
    for name in ("as_on_the_cpu", "whatever_the_company", "masks_to_the_pixel", "videos", "encodes_without_waiting"):
        monkeypatch.setattr(gpu_check, name, lambda *_: "")
    for name in ("little_memory", "nothing_is_kept"):
        monkeypatch.setattr(gpu_check, name, lambda *_: "")
    with pretend_cuda():
        assert gpu_check.main(["--without-speed", "--json", str(tmp_path / "gpu.json")]) == 1
    first = json.loads((tmp_path / "gpu.json").read_text())["lines"][0]
    assert (first["verdict"], first["detail"]) == ("fail", "RuntimeError: CUDA error: no kernel image is available")


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match="device 'cuda' is not available here"):
        gpu_check.main(["--without-speed"])


def test_each_attention_kernel_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "ATTENTION", {"small": (1, 2, 9, 8)})
    with pretend_cuda():
        check = gpu_check.Check("cuda", tmp_path)
        assert "small" in gpu_check.attention_kernels(check)
    times = check.figures["attention_ms"]["small"]
    assert times["torch's choice"] is not None
    assert times.keys() == {"torch's choice", "FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"}

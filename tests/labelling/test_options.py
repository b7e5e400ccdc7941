"""Options check themselves: the library accepts nothing that the command line refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sam3label.errors import ConfigError
from sam3label.labelling.options import SHORTEST_CLIP, LabelOptions
from sam3label.labelling.videos import OVERLAP

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"video": "trak"}, r"video: 'trak' is not one of auto, track, frames, off\. Did you mean track\?"),
    ({"dtype": "fp8"}, r"dtype: 'fp8' is not one of auto, fp32, bf16, fp16"),
    ({"prompt_style": "mine"}, r"prompt_style: 'mine' is not one of official, transformers"),
    ({"device": "gpu"}, r"device: 'gpu' is not auto, cpu, cuda, cuda:N or mps"),
    ({"model": ""}, r"model: '' names no checkpoint"),
    ({"floor": 7}, r"floor: 7 is not a number from 0 to 1"),
    ({"floor": float("nan")}, r"floor: nan is not a number from 0 to 1"),
    ({"batch_size": -3}, r"batch_size: -3 is not a whole number from 1 on"),
    ({"vram": 0}, r"vram: 0 is not a number over 0"),
    ({"workers": -1}, r"workers: -1 is not a whole number from 0 on"),
    ({"limit": 0}, r"limit: 0 is not a whole number from 1 on"),
    ({"clip_frames": 15}, r"clip_frames: 15 is not a whole number from 16 on"),
    ({"every": 0}, r"every: 0 is not a whole number from 1 on"),
    ({"fps": 0}, r"fps: 0 is not a number over 0"),
]


@pytest.mark.parametrize(("chosen", "sentence"), WRONG, ids=[str(chosen) for chosen, _ in WRONG])
def test_a_wrong_option_is_refused_when_it_is_made(chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        LabelOptions(**chosen)


def test_every_problem_is_told_at_once() -> None:
    wrong = {"video": "trak", "floor": 7, "every": 0, "batch_size": -3}
    with pytest.raises(ConfigError) as refused:
        LabelOptions(**wrong)  # type: ignore[arg-type]
    assert {line.partition(":")[0] for line in str(refused.value).splitlines()} == set(wrong)


def test_devices_with_a_number_are_devices() -> None:
    assert LabelOptions(device="cuda:1").device == "cuda:1"


def test_the_shortest_clip_shares_no_frame_with_two_others() -> None:
    assert SHORTEST_CLIP == 2 * OVERLAP


def test_options_are_read_without_the_model_or_numpy() -> None:
    code = "import sys, sam3label.labelling.options; assert not {'numpy', 'torch', 'cv2'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""Other programs that run SAM 3's weights, for `bench.py`: the authors' code, and Ultralytics. Each installed by hand.

They build the model at full size only, and read the authors' own file, which is written from the same weights. Their
own words for a phrase are other numbers than ours (the random checkpoint has a vocabulary of its own), so what they
find is not compared: only how long they take up to labels, box, area and run-length code of each object.

    official     pip install git+https://github.com/facebookresearch/sam3
    ultralytics  pip install ultralytics timm git+https://github.com/ultralytics/CLIP (no other CLIP will do)

On a CPU the authors' code wants its devices and one product in bf16 replaced, from outside (and `setuptools<81`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from library import labels
from torch.overrides import TorchFunctionMode

from sam3label.core.records import Frame, Prompt
from sam3label.model.inventory import convert

NEEDS = {"official": ("sam3", "iopath"), "ultralytics": ("ultralytics", "clip", "timm")}  # packages, by column


class Other(Protocol):
    """Labels photos its own way."""

    def count(self, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float) -> int:
        """Label the frames, and return how many objects it found."""


def why_not(name: str, size: str) -> str | None:
    """Say why there is no column of this name, or None where there is one."""
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if missing:
        return f"no column for {name}: {' and '.join(missing)} not installed (others.py says how)."
    return None if size == "full" else f"no column for {name}: it builds SAM 3 at full size only (--size full)."


def load(name: str, checkpoint: Path, device: torch.device) -> Other:
    """Load another program's model with the weights of a checkpoint."""
    file = checkpoint / "sam3.pt"
    if not file.exists():
        convert(str(checkpoint), file)
    return (_Official if name == "official" else _Ultralytics)(file, device)


class _Official:
    """The authors' code as its manual has it: an image is encoded once, then each phrase asked, in bf16 on CUDA."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.on_gpu, name = device.type == "cuda", device.type
        with self._where():
            from sam3.model import vitdet
            from sam3.model.sam3_image_processor import Sam3Processor
            from sam3.model_builder import build_sam3_image_model

            if not self.on_gpu:
                vitdet.addmm_act = _in_its_own_precision
            model = build_sam3_image_model(checkpoint_path=str(file), load_from_HF=False, device=name)
        self.make: Any = lambda floor: Sam3Processor(model, device=name, confidence_threshold=floor)

    def _where(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.on_gpu else _EverythingHere()

    @torch.inference_mode()
    def count(self, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float) -> int:
        from PIL import Image

        processor, found = self.make(floor), 0
        with self._where():
            for frame in frames:
                state = processor.set_image(Image.fromarray(frame.pixels))
                for prompt in prompts:
                    answer = processor.set_text_prompt(state=state, prompt=prompt.text)
                    found += len(labels({"scores": answer["scores"], "masks": answer["masks"].flatten(0, -3)}))
        return found


class _EverythingHere(TorchFunctionMode):
    """Takes every device that is called cuda for the CPU: the authors' code names it here and there."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if str(named.get("device")).startswith("cuda"):
            named["device"] = "cpu"
        if function is torch.Tensor.to:
            args = (args[0], *("cpu" if str(one).startswith("cuda") else one for one in args[1:]))
        return function(*args, **named)


def _in_its_own_precision(activation: Any, linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Compute what the authors' `addmm_act` does, which casts to bf16 whatever it gets."""
    y = linear(x)
    is_gelu = activation in (torch.nn.GELU, F.gelu)
    return F.gelu(y) if is_gelu else F.relu(y)


class _Ultralytics:
    """Ultralytics as its manual has it: an image is encoded once, then all phrases asked at once; fp16 on CUDA."""

    def __init__(self, file: Path, device: torch.device) -> None:
        from ultralytics.models.sam import SAM3SemanticPredictor

        settings = {"task": "segment", "mode": "predict", "model": str(file), "device": str(device), "imgsz": 1008}
        precision = {"quantize": 16} if device.type == "cuda" else {}
        self.predictor: Any = SAM3SemanticPredictor(
            overrides={**settings, **precision, "save": False, "verbose": False}
        )
        self.predictor.setup_model(verbose=False)

    @torch.inference_mode()
    def count(self, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float) -> int:
        self.predictor.args.conf, found = floor, 0
        for frame in frames:
            self.predictor.set_image(frame.pixels[..., ::-1].copy())  # blue first, as OpenCV reads
            for result in self.predictor(text=[prompt.text for prompt in prompts]):
                if result.masks is not None:
                    found += len(labels({"scores": result.boxes.conf, "masks": result.masks.data}))
        return found

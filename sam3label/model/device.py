"""Which device to compute on, and how precisely."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sam3label.core.records import Processor
from sam3label.errors import ConfigError


class Coming:
    """Holds values on their way to the host."""

    def __init__(self, buffer: torch.Tensor, arrival: Any) -> None:
        self._buffer, self._arrival = buffer, arrival

    def numpy(self) -> npt.NDArray[Any]:
        """Return the values; wait for them the first time."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return self._buffer.numpy()


def send(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return the values on a device. To CUDA they go by way of page-locked memory: nobody waits for them."""
    here = torch.from_numpy(values)
    if device.type != "cuda":
        return here.to(device)
    return here.pin_memory().to(device, non_blocking=True)


def bring(values: torch.Tensor) -> Coming:
    """Return values that are brought to the host, which goes on meanwhile."""
    if values.device.type != "cuda":
        return Coming(values.to("cpu"), None)
    buffer = torch.empty(values.shape, dtype=values.dtype).pin_memory()
    buffer.copy_(values, non_blocking=True)
    return Coming(buffer, torch.cuda.current_stream(values.device).record_event())


def rows_of(values: torch.Tensor, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> torch.Tensor:
    """Return some rows of values on a device, by numbers that the host knows: it does not wait for them to arrive."""
    return values.index_select(0, send(np.asarray(rows, np.int64), values.device)) if len(rows) else values[:0]


@dataclass(frozen=True, slots=True)
class Compute:
    """Says on which device, and in which type there, the image encoder computes."""

    device: torch.device
    dtype: torch.dtype

    @property
    def mixed(self) -> bool:
        """Return whether the head computes in mixed precision."""
        return self.dtype != torch.float32 and self.device.type == "cuda"

    def send(self, values: npt.NDArray[np.generic]) -> torch.Tensor:
        """Return the values on this device, as `send` does."""
        return send(values, self.device)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Return the head's precision: mixed where images are encoded in bf16 or fp16 on CUDA, else float32."""
        if self.device.type != "cuda":
            yield
            return
        with _no_tf32(), torch.autocast("cuda", self.dtype, enabled=self.mixed):
            yield


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Keep float32 float32: torch's settings, a user's or a container's, could leave 10 of its 23 bits."""
    places: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def pick_device(name: str) -> torch.device:
    """Choose the device: "auto" is CUDA, then MPS, then the CPU. A CUDA device becomes this process's current one.

    Raises ConfigError for a device that this machine does not have, and where it has a GPU that torch cannot use: a run
    on the CPU would take a hundred times as long, and nobody asked for it.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "cpu" and not name.startswith("mps") and not present["cuda"] and (driver := nvidia_driver()):
        raise ConfigError(
            f"this machine has an NVIDIA GPU (driver {driver}) that torch {torch.__version__} cannot use{_why_not()}. "
            "Update the driver, or install torch for it (https://pytorch.org/get-started/locally, --index-url); "
            "--device cpu labels without the GPU."
        )
    kind = next(kind for kind, there in present.items() if there) if name == "auto" else name.partition(":")[0]
    if not present.get(kind, False) or not (device := _device(name if name != "auto" else kind)):
        usable = ", ".join(kind for kind, there in present.items() if there)
        raise ConfigError(f"device {name!r} is not available here: use auto or one of {usable}.")
    return _current_cuda(device) if kind == "cuda" else device


def _device(name: str) -> torch.device | None:
    try:
        return torch.device(name)
    except RuntimeError:  # cuda:x
        return None


def _current_cuda(device: torch.device) -> torch.device:
    """Return the device with its number, made the current one: streams, events and page-locked memory go by that."""
    count, number = torch.cuda.device_count(), device.index or 0
    if number >= count:
        raise ConfigError(f"device 'cuda:{number}' is not available here: there are {count}, from cuda:0 on.")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    if not has_code_for(torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()):
        raise ConfigError(
            f"torch {torch.__version__} has no code for {torch.cuda.get_device_name(device)}: install a torch built "
            "for it (https://pytorch.org/get-started/previous-versions), or use --device cpu."
        )
    return device


def has_code_for(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Return whether a card of this capability runs code built for these architectures.

    Machine code (sm_80) runs on cards of the same major version and no smaller minor one; portable code (compute_90)
    on that version and every later one.
    """
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        built = int(digits[:-1]), int(digits[-1])
        same = built[0] == capability[0] and built <= capability
        if same or (kind == "compute" and built <= capability):
            return True
    return not built_for


def nvidia_driver() -> str | None:
    """Return the version of this machine's NVIDIA driver, if it has one (Linux, and Windows' Linux)."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("Module")[1].split()[0]
    except (OSError, IndexError):
        return "of Windows" if Path("/usr/lib/wsl/lib/libcuda.so.1").exists() else None


def _why_not() -> str:
    return "" if torch.version.cuda is None else f", which needs one for CUDA {torch.version.cuda}"


def cpu_computes_bf16() -> bool:
    """Return whether this CPU has instructions for products of bf16 (AMX, AVX-512): without them it is slower."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose the precision: "auto" is bf16 on CUDA (before Ampere fp16), else fp32. Raises ConfigError."""
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in known:
        raise ConfigError(f"dtype must be auto, fp32, bf16 or fp16, got {name!r}.")
    if known[name] == torch.float16 and device.type != "cuda":
        raise ConfigError("dtype fp16 is for CUDA devices that have no bf16: use auto, fp32 or bf16.")
    return known[name]


NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def processor_of(device: torch.device) -> Processor:
    """Return this machine's name, and the device with the model it is of."""
    return Processor(platform.node(), str(device), _kind(device))


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        named = ""
    return named or platform.processor() or platform.machine()

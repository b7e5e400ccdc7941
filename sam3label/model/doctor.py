"""What `sam3label doctor` looks at: one line per thing that can stand between a user and a labelled folder."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sam3label.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Check:
    """`advice` is empty when all is well; `needed` says whether labelling works without it."""

    what: str
    found: str
    advice: str = ""
    needed: bool = False


def examine(model: str) -> list[Check]:
    """Return all checks, in the order in which a user would fix them. Never raises."""
    return [
        Check("Python", platform.python_version()),
        Check("sam3label", version("sam3label")),
        Check("torch", version("torch")),
        Check("transformers", version("transformers")),
        _device(),
        Check("memory", f"{_memory_gb():.0f} GB, {os.cpu_count()} cores"),
        Check("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here"),
        _opencv(),
        _checkpoint("demo", "demo checkpoint"),
        _checkpoint(model, "checkpoint"),
        _extra("fiftyone", "review", "review in FiftyOne"),
        _extra("ray", "ray", "several GPUs or machines"),
        _extra("s3fs", "s3", "photos in s3://"),
        _extra("gcsfs", "gs", "photos in gs://"),
        _extra("adlfs", "az", "photos in az://"),
        _extra("aiohttp", "https", "photos at https://"),
    ]


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        cards = torch.cuda.device_count()
        more = f"; {cards} GPUs in all: run --gpus all uses them" if cards > 1 else ""
        return Check("device", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free{more}")
    if torch.backends.mps.is_available():
        return Check("device", "Apple GPU (mps)")
    return Check("device", "CPU only", "the full model takes several seconds per image without a GPU")


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _opencv() -> Check:
    try:
        version("opencv-python")
    except PackageNotFoundError:
        return Check("OpenCV", f"opencv-python-headless {version('opencv-python-headless')}")
    advice = "pip uninstall -y opencv-python; pip install --force-reinstall --no-deps 'opencv-python-headless<5'"
    return Check("OpenCV", "opencv-python beside opencv-python-headless", advice, needed=True)


def _checkpoint(model: str, what: str) -> Check:
    from sam3label.model.checkpoint import check_access

    try:
        return Check(what, check_access(model))
    except CheckpointError as error:
        return Check(what, f"{model}: unavailable", str(error), needed=model == "demo")


def _extra(module: str, extra: str, purpose: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(purpose, "not installed", f"optional: pip install 'sam3label[{extra}]'")
    return Check(purpose, f"{module} {version(module)}")

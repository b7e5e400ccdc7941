"""Small labelled photo collections for exporters: real files on disk, hard masks, awkward names."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.hardshapes import KINDS, shape

from sam3label.core import masks
from sam3label.core.records import Concept, ConceptList, Label, LabeledImage, MediaItem, Rle

SIZE_HW = (60, 80)
NAMES = ("cat", "dog", "object", "traffic light")
AWKWARD_IDS = (
    "1.jpg",
    "1.png",
    "a/1.jpg",
    "b/1.jpg",
    "b/images/1.jpg",
    "b/images_/1.jpg",
    "b/1_png.jpg",
    "b/1.PNG",
    "c d/ü ñ 漢字.jpg",
    "c d/it's & <co>.png",
    "x.y/z.tar.jpeg",
)


def concept_list(names: Sequence[str] = NAMES) -> ConceptList:
    return ConceptList(tuple(Concept(i, name, (name,)) for i, name in enumerate(names)))


def label(rle: Rle, class_id: int = 0, score: float = 0.9, label_id: str = "l") -> Label:
    return Label(label_id, class_id, score, 0.9, masks.box_xywh(rle), masks.area(rle), rle, "p")


def photo(folder: Path, item_id: str, size_hw: tuple[int, int] = SIZE_HW) -> str:
    """Write a noisy photo; its suffix decides the format."""
    path = folder / item_id
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(item_id.encode()))  # no two photos alike
    pixels = noise.integers(0, 255, (*size_hw, 3), np.uint8)
    done, data = cv2.imencode(path.suffix.lower(), pixels)
    assert done
    path.write_bytes(data.tobytes())
    return str(path)


def image(folder: Path, item_id: str, labels: Iterable[Label] = (), size_hw: tuple[int, int] = SIZE_HW) -> LabeledImage:
    return LabeledImage(MediaItem(item_id, photo(folder, item_id, size_hw)), size_hw, tuple(labels))


def hard_collection(folder: Path, ids: Sequence[str] = AWKWARD_IDS) -> list[LabeledImage]:
    """Every hard shape somewhere, some photos without labels, ids in order.

    Not the scattered pixels: in a format of one ring per instance their bridges are larger than they are.
    """
    kinds_used = [k for k in KINDS if k != "three pixels in a row, apart"]
    images = []
    for k, item_id in enumerate(sorted(ids)):
        kinds = [kinds_used[(3 * k + j) % len(kinds_used)] for j in range(k % 4)]
        labels = [label(masks.encode(shape(kind)), j, 0.5 + 0.1 * j, f"{k}-{j}") for j, kind in enumerate(kinds)]
        images.append(image(folder, item_id, labels))
    return images


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example of a property test (`tmp_path` is one per test)."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


MASKS = hnp.arrays(np.bool_, (14, 17), elements=st.booleans(), fill=st.just(False)).filter(np.any)
LABELS = st.lists(st.tuples(MASKS, st.integers(0, len(NAMES) - 1)), max_size=4)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {
        str((Path(where) / name).relative_to(folder)): (Path(where) / name).read_bytes()
        for where, _, names in os.walk(folder)
        for name in names
    }

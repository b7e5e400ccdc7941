"""Contact sheets: every image in a grid under its title, in a file that appears whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.builders import rectangle

from sam3label.core import files, masks
from sam3label.core.records import Label, Rle
from sam3label.errors import OutputError
from sam3label.show.contact_sheet import BACKGROUND, CELL_PX, contact_sheet

NAMES = ["cup", "coffee"]


def label(rle: Rle, class_id: int = 0, score: float = 0.9) -> Label:
    return Label(f"{class_id}", class_id, score, 0.9, masks.box_xywh(rle), masks.area(rle), rle, NAMES[class_id % 2])


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def test_sheet_holds_every_image_in_a_grid(tmp_path: Path) -> None:
    images = [(data.astronaut(), [], "a/very/long/path" * 9), (data.coffee(), [], "b"), (grey(50, 40), [], "c")]
    contact_sheet(images, NAMES, tmp_path / "made" / "sheet.png", columns=2)
    with Image.open(tmp_path / "made" / "sheet.png") as opened:
        sheet = np.asarray(opened)
    assert sheet.shape[1] == 2 * CELL_PX + 30
    assert list((tmp_path / "made").iterdir()) == [tmp_path / "made" / "sheet.png"]
    background = tuple(int(BACKGROUND[i : i + 2], 16) for i in (1, 3, 5))
    empty = (sheet == background).all(axis=2)
    assert not empty[20:400, 20:400].any()  # the first photo, square, fills its cell
    assert empty[-400:, 2 * CELL_PX - 200 :].all()  # there is no fourth


def test_one_image_and_none(tmp_path: Path) -> None:
    contact_sheet([(grey(40, 40), [label(rectangle(1, 1, 1, 1, (40, 40)))], "one pixel")], NAMES, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.width == CELL_PX + 20
    with pytest.raises(OutputError, match="there is no image to show"):
        contact_sheet([], NAMES, tmp_path / "none.png")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sheet.png"
    target.write_bytes(b"old")

    def refuse(self: Path, other: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"sheet.png cannot be written: No space left on device. Give another place."):
        contact_sheet([(grey(40, 40), [], "a")], NAMES, target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    monkeypatch.undo()
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_whole(target / "below" / "a file.txt", "text")

"""Contact sheets: what is drawn is where the mask is, in the class's colour, at any scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from support.builders import rectangle

from sam3label.core import files, masks
from sam3label.core.records import Label, Rle
from sam3label.errors import OutputError
from sam3label.show.contact_sheet import BACKGROUND, CELL_PX, class_color, contact_sheet, draw_labels

NAMES = ["cup", "coffee"]


def label(rle: Rle, class_id: int = 0, score: float = 0.9) -> Label:
    return Label(f"{class_id}", class_id, score, 0.9, masks.box_xywh(rle), masks.area(rle), rle, NAMES[class_id % 2])


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def close(pixel: np.ndarray, color: tuple[float, ...], tolerance: float = 12) -> bool:
    return bool(np.abs(np.asarray(pixel, dtype=float) - color).max() <= tolerance)


@pytest.mark.parametrize("size_hw", [(60, 80), (1200, 1600)])
def test_mask_is_tinted_and_the_rest_is_left_alone(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    rle = rectangle(width // 4, height // 4, width // 2, height // 2, size_hw)
    drawn = np.asarray(draw_labels(grey(height, width), [label(rle)], NAMES, 400)).astype(float)
    assert drawn.shape == (300, 400, 3)
    tinted = 0.58 * 128 + 0.42 * np.array(class_color(0))
    assert close(drawn[170, 250], tuple(tinted))
    assert close(drawn[20, 20], (128, 128, 128), 2)
    assert close(drawn[280, 380], (128, 128, 128), 2)
    outline = drawn[150, 97:104]  # across the left border, at x = 100
    assert any(close(pixel, class_color(0), 40) for pixel in outline)


def test_a_hole_stays_open_and_small_objects_lie_on_top() -> None:
    ring = np.zeros((400, 400), dtype=bool)
    ring[100:300, 100:300] = True
    ring[150:250, 150:250] = False
    inner = rectangle(170, 170, 60, 60, (400, 400))
    drawn = np.asarray(draw_labels(grey(400, 400), [label(inner, 1), label(masks.encode(ring))], NAMES, 400))
    assert close(drawn[240, 240], (128, 128, 128), 2)
    assert close(drawn[200, 220], tuple(0.58 * 128 + 0.42 * np.array(class_color(1))))


def test_a_persons_label_has_no_score() -> None:
    model = label(rectangle(100, 100, 200, 200, (400, 400)))
    drawn = [
        np.asarray(draw_labels(grey(400, 400), [one], NAMES, 400)) for one in (model, replace(model, source="human"))
    ]
    with_score, without = ((np.abs(d.astype(int) - class_color(0)).max(axis=2) < 3)[:98].sum() for d in drawn)  # chips
    assert 0 < without < 0.8 * with_score


def test_name_chips_do_not_cover_each_other() -> None:
    rle = rectangle(100, 100, 200, 200, (400, 400))
    drawn = np.asarray(draw_labels(grey(400, 400), [label(rle, 0), label(rle, 1, 0.5)], NAMES, 400))
    chips = [(np.abs(drawn.astype(int) - class_color(c)).max(axis=2) < 3).sum() for c in (0, 1)]
    assert min(chips) > 500


def test_class_colours_are_far_apart() -> None:
    colors = np.array([class_color(i) for i in range(12)], dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e3 * np.eye(12)
    assert distance.min() > 40
    assert class_color(3) == class_color(3)


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


def test_a_label_outside_the_names_still_has_a_name() -> None:
    drawn = draw_labels(grey(80, 80), [label(rectangle(5, 5, 40, 40, (80, 80)), 7)], NAMES, 200)
    assert drawn.size == (200, 200)


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

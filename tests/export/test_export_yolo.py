"""YOLO datasets, read back by Ultralytics' own code."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from support.hardshapes import KINDS, shape
from support.labelled import AWKWARD_IDS, LABELS, NAMES, SIZE_HW, concept_list, hard_collection, image, label, scratch
from support.ultra import (
    DEFAULT_CFG,
    YOLODataset,
    check_det_dataset,
    read_back,
    resample_segments,
    segments_as_masks,
)

from sam3label.core import masks, outlines
from sam3label.core.records import LabeledImage
from sam3label.errors import ConfigError, OutputError
from sam3label.export.options import Options
from sam3label.export.photos import image_name, label_stem
from sam3label.export.splits import parse_splits
from sam3label.export.write import write_dataset


def written(images: list[LabeledImage], out: Path, kind: str = "yolo", options: Options | None = None) -> Path:
    write_dataset(concept_list(), images, kind, out, options)
    return out


def placed(out: Path, item: LabeledImage, split: str = "train") -> Path:
    return out / "images" / split / image_name(item.item.id)


def test_hard_masks_come_back_through_ultralytics(tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    out = written(images, tmp_path / "set")
    ious, extra = [], 0
    for item in images:
        rows, segments, message = read_back(placed(out, item), len(NAMES))
        assert message == ""
        assert rows[:, 0].tolist() == [x.class_id for x in item.labels]
        drawn = [masks.encode(m) for m in segments_as_masks(segments, item.size_hw)]
        extra += len(drawn) - len(item.labels)
        ious += np.diag(masks.iou_matrix([x.rle for x in item.labels], drawn)).tolist()
    assert extra == 0 and len(ious) == sum(len(i.labels) for i in images) > 14
    assert np.mean(ious) >= 0.97
    assert np.sum(np.array(ious) > 0.999) >= len(ious) * 0.7  # all but those of several parts


@settings(max_examples=40)
@given(LABELS)
def test_any_labels_come_back_through_ultralytics(drawn: list[tuple[np.ndarray, int]]) -> None:
    unique = {(m.tobytes(), c): (m, c) for m, c in drawn}.values()
    with scratch() as folder:
        item = image(folder / "photos", "a.jpg", [label(masks.encode(m), c) for m, c in unique], (14, 17))
        out = written([item], folder / "set")
        lines = (out / "labels/train/a.txt").read_text().splitlines()
        assume(len({*lines}) == len(lines))  # Ultralytics drops equal rows: two masks with the same largest part
        rows, segments, message = read_back(placed(out, item), len(NAMES))
        assert len(rows) == len(item.labels) and message == ""
        for given_label, back in zip(item.labels, segments_as_masks(segments, item.size_hw), strict=True):
            _, _, stats, _ = cv2.connectedComponentsWithStats(masks.decode(given_label.rle).astype(np.uint8))
            largest = stats[1:, cv2.CC_STAT_AREA].max()
            assert masks.iou_matrix([given_label.rle], [masks.encode(back)])[0, 0] >= largest / given_label.area - 1e-9


@pytest.mark.parametrize(("length", "step"), [(10, 1), (30, -1), (55, 1)])
def test_diagonal_hairlines_survive_the_points_ultralytics_puts_between(length: int, step: int) -> None:
    line = np.zeros(SIZE_HW, np.bool_)
    places = np.arange(length)
    line[places + 2, (3 if step > 0 else 70) + step * places] = True
    ring = outlines.contour(masks.encode(line)) / np.array(SIZE_HW[::-1])
    (denser,) = resample_segments([ring.astype(np.float32)], 1000)
    assert len(denser) == 1000
    assert np.array_equal(segments_as_masks([denser], SIZE_HW)[0], line)  # was IoU 0.34


@pytest.mark.parametrize("kind", ["yolo-detect", "yolo-obb"])
def test_boxes_hold_their_masks_in_ultralytics(tmp_path: Path, kind: str) -> None:
    images = hard_collection(tmp_path / "photos")
    out = written(images, tmp_path / "set", kind)
    height, width = SIZE_HW
    for item in images:
        rows, segments, _ = read_back(placed(out, item), len(NAMES))
        assert len(rows) == len(item.labels)
        for x, row in zip(item.labels, rows, strict=True):
            cx, cy, w, h = (row[1:] * [width, height, width, height]).tolist()
            bx, by, bw, bh = x.box_xywh
            if kind == "yolo-detect":
                assert np.allclose((cx - w / 2, cy - h / 2, w, h), x.box_xywh, atol=1e-3)
            else:
                assert cx - w / 2 <= bx + 1e-3 and cx + w / 2 >= bx + bw - 1e-3
                assert cy - h / 2 <= by + 1e-3 and cy + h / 2 >= by + bh - 1e-3
        if kind == "yolo-obb":
            assert all(len(s) == 4 and s.min() >= 0 and s.max() <= 1 for s in segments)
            for x, s in zip(item.labels, segments, strict=True):
                box = outlines.from_contour(s * np.array([width, height]), SIZE_HW)
                assert masks.cover_matrix([x.rle], [box])[0, 0] == 1.0


def test_dataset_class_sees_every_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = hard_collection(tmp_path / "photos")
    out = written(images, tmp_path / "set", options=Options(splits=parse_splits("train=0.5,val=0.5")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # data.yaml must not depend on where the trainer is started
    data = check_det_dataset(str(out / "data.yaml"))
    assert data["names"] == dict(enumerate(NAMES))
    seen = 0
    for split in ("train", "val"):
        loaded = YOLODataset(img_path=data[split], data=data, task="segment", hyp=DEFAULT_CFG, augment=False)
        seen += sum(len(x["cls"]) for x in loaded.labels)
        assert Path(data[split]) == out / "images" / split
    assert seen == sum(len(i.labels) for i in images)


def test_data_yaml_moves_with_its_folder(tmp_path: Path) -> None:
    out = written(hard_collection(tmp_path / "photos"), tmp_path / "set")
    moved = out.rename(tmp_path / "moved set")
    assert check_det_dataset(str(moved / "data.yaml"))["train"] == str(moved / "images/train")


def test_without_split_val_is_train_and_a_note_says_so(tmp_path: Path) -> None:
    summary = write_dataset(concept_list(), hard_collection(tmp_path / "photos"), "yolo", tmp_path / "set")
    data = yaml.safe_load((tmp_path / "set" / "data.yaml").read_text())
    assert data["train"] == data["val"] == "images/train" and "path" not in data
    assert any("No --split was given" in note for note in summary.notes)


def test_names_never_collide_and_depend_on_the_path_alone() -> None:
    stems = [label_stem(i) for i in AWKWARD_IDS]
    assert len(set(stems)) == len(AWKWARD_IDS)
    assert label_stem("a/1.jpg") == "a/1" and label_stem("a/1.png") == "a/1_png"
    assert not any("images" in stem.split("/")[:-1] for stem in stems)
    assert {Path(image_name(i)).suffix for i in AWKWARD_IDS} == {".jpg", ".png", ".PNG", ".jpeg"}


def test_empty_photo_has_an_empty_file_and_absent_means_not_labelled(tmp_path: Path) -> None:
    images = [image(tmp_path / "photos", "a.jpg")]
    out = written(images, tmp_path / "set")
    assert (out / "labels/train/a.txt").read_bytes() == b""
    images.append(image(tmp_path / "photos", "b.jpg", [label(masks.encode(shape("donut")))]))
    summary = write_dataset(concept_list(), images, "yolo", tmp_path / "none", Options(empty=False))
    assert summary.images == 1 and not (tmp_path / "none/labels/train/a.txt").exists()


def test_names_keep_the_order_of_the_concepts_and_odd_spellings(tmp_path: Path) -> None:
    names = ("zebra", "no", "1", "apple: red", "Ünï", "'quoted'", "# comment")
    write_dataset(concept_list(names), [image(tmp_path / "photos", "a.jpg")], "yolo", tmp_path / "set")
    assert yaml.safe_load((tmp_path / "set/data.yaml").read_text(encoding="utf-8"))["names"] == dict(enumerate(names))


def test_a_thousand_classes(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(1000)]
    item = image(tmp_path / "photos", "a.jpg", [label(masks.encode(shape("donut")), 999)])
    write_dataset(concept_list(names), [item], "yolo", tmp_path / "set")
    rows, _, _ = read_back(placed(tmp_path / "set", item), 1000)
    assert rows[:, 0].tolist() == [999]


def test_classes_filter_renumbers_without_gaps(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "a.jpg", [label(masks.encode(shape(k)), c) for c, k in enumerate(KINDS[:4])])
    options = Options(classes=("traffic light", "dog"))
    summary = write_dataset(concept_list(), [item], "yolo", tmp_path / "set", options)
    assert dict(summary.classes) == {0: "dog", 1: "traffic light"}
    rows, _, _ = read_back(placed(tmp_path / "set", item), 2)
    assert rows[:, 0].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="'cta' not in cat, dog.* Did you mean 'cat'"):
        write_dataset(concept_list(), [item], "yolo", tmp_path / "set", Options(classes=("cta",)))


def test_append_keeps_class_ids_and_refuses_what_is_there(tmp_path: Path) -> None:
    donut = masks.encode(shape("donut"))
    old = image(tmp_path / "one", "a.jpg", [label(donut, 1)])
    out = written([old], tmp_path / "set")
    before = (out / "data.yaml").stat().st_ino, (out / "labels/train/a.txt").read_bytes()
    new = image(tmp_path / "two", "b.jpg", [label(donut, 0), label(donut, 1), label(donut, 2)])
    options = Options(append=True, splits=parse_splits("val=1"))
    summary = write_dataset(concept_list(("fork", "dog", "cat")), [new], "yolo", out, options)
    assert dict(summary.classes) == {0: "cat", 1: "dog", 2: "object", 3: "traffic light", 4: "fork"}
    assert read_back(placed(out, new, "val"), 5)[0][:, 0].tolist() == [4, 1, 0]
    assert (out / "labels/train/a.txt").read_bytes() == before[1]
    data = yaml.safe_load((out / "data.yaml").read_text())
    assert (data["train"], data["val"]) == ("images/train", "images/val")
    with pytest.raises(OutputError, match=r"already holds b.jpg\. .*leave out --append"):
        write_dataset(concept_list(), [new], "yolo", out, options)
    assert len(list((out / "labels").rglob("*.txt"))) == 2


def test_append_refuses_conflicting_classes(tmp_path: Path) -> None:
    out = written([image(tmp_path / "photos", "a.jpg")], tmp_path / "set")
    data = out / "data.yaml"
    with pytest.raises(OutputError, match="'cat' and 'Cat' of this run differ only in spelling"):
        write_dataset(concept_list(("Cat",)), [], "yolo", out, Options(append=True))
    data.write_text("train: images/train\nval: images/train\nnames: {0: cat, 5: dog}\n")
    with pytest.raises(OutputError, match=r"class ids are \[0, 5\], where this format wants them from 0 without gaps"):
        write_dataset(concept_list(("cat",)), [], "yolo", out, Options(append=True))
    data.write_text("train: train/images\nval: valid/images\nnames: [cat]\n")
    with pytest.raises(OutputError, match=r"keeps its photos elsewhere \(train: train/images"):
        write_dataset(concept_list(("cat",)), [], "yolo", out, Options(append=True))
    with pytest.raises(OutputError, match="is a yolo dataset; append to it with --format yolo"):
        write_dataset(concept_list(("cat",)), [], "yolo-detect", out, Options(append=True))


def test_simplify_reports_what_it_costs(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "a.jpg", [label(masks.encode(shape("donut")))])
    exact = write_dataset(concept_list(), [item], "yolo", tmp_path / "exact")
    rough = write_dataset(concept_list(), [item], "yolo", tmp_path / "rough", Options(simplify=2.0))
    assert exact.polygon_iou == (1.0, 1.0) and rough.polygon_iou is not None
    mean, lowest = rough.polygon_iou
    _, segments, _ = read_back(placed(tmp_path / "rough", item), len(NAMES))
    back = masks.encode(segments_as_masks(segments, SIZE_HW)[0])
    assert mean == lowest == pytest.approx(masks.iou_matrix([item.labels[0].rle], [back])[0, 0])
    assert 0.8 < mean < 1
    assert len((tmp_path / "rough/labels/train/a.txt").read_text()) < len(
        (tmp_path / "exact/labels/train/a.txt").read_text()
    )

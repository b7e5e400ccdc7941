"""YOLO datasets as truth: what Ultralytics reads, and one sentence for what cannot be read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sam3label.annotations.coco import Truth
from sam3label.annotations.label_files import read_dataset, read_label_file
from sam3label.annotations.marks import LabelledDataset
from sam3label.annotations.truth import read_truth
from sam3label.annotations.yolo_results import read_yolo_results
from sam3label.cli import app
from sam3label.core import masks, outlines
from sam3label.errors import InputError
from sam3label.media.image import decode_image, upright_size

POLYGON = "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
BOX = "0 0.5 0.5 0.2 0.4"


def photo(path: Path, size: tuple[int, int] = (80, 60), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (90, 120, 30))
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)
    return path


def dataset(folder: Path, rows: dict[str, str | None], data: str = "") -> Path:
    """Images with their rows (None: no label file) and a data.yaml."""
    for name, text in rows.items():
        photo(folder / name)
        label = folder / name.replace("images/", "labels/").replace(".jpg", ".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            label.write_text(text)
    (folder / "data.yaml").write_text(data or "train: images/train\nval: images/val\nnames: [person, helmet]\n")
    return folder


def objects_of(truth: Truth) -> dict[tuple[str, str], int]:
    return {
        (truth.images[image].file_name, truth.categories[category]): len(found)
        for (image, category), found in truth.objects.items()
    }


def test_a_data_yaml_a_folder_and_one_split(tmp_path: Path) -> None:
    rows = {"images/train/a/1.jpg": f"{POLYGON}\n{POLYGON}\n", "images/val/2.jpg": POLYGON, "images/val/3.jpg": ""}
    folder = dataset(tmp_path, rows)
    whole = read_truth(folder / "data.yaml")
    assert read_truth(folder).objects == whole.objects
    assert whole.categories == {0: "person", 1: "helmet"}
    assert [image.file_name for image in whole.images.values()] == ["a/1.jpg", "2.jpg", "3.jpg"]
    assert objects_of(whole) == {("a/1.jpg", "helmet"): 2, ("2.jpg", "helmet"): 1}
    assert len(whole.pairs) == 6 and not whole.notes
    assert objects_of(read_truth(folder, "val")) == {("2.jpg", "helmet"): 1}


def test_a_polygon_is_the_mask_that_ultralytics_fills_and_a_box_is_a_box(tmp_path: Path) -> None:
    truth = read_truth(dataset(tmp_path, {"images/train/1.jpg": f"{POLYGON}\n{BOX}"}, "train: images\nnames: [p, h]"))
    (mask,), (box,) = truth.objects[0, 1], truth.objects[0, 0]
    assert mask.rle is not None and box.rle is None
    seen = masks.decode(mask.rle).astype(bool)
    assert seen[15:46, 20:61].all() and seen.sum() == 31 * 41  # cv2.fillPoly takes its edge in
    assert mask.area == mask.box_area == 31 * 41
    assert box.box_xywh == pytest.approx((32, 18, 16, 24)) and box.area == pytest.approx(16 * 24)


def test_of_rows_with_keypoints_the_box_is_read(tmp_path: Path) -> None:
    """Two points of two numbers make a row as long as a polygon of four corners."""
    data = "train: images\nnames: [p, h]\nkpt_shape: {}\n"
    folder = dataset(tmp_path, {"images/1.jpg": f"{BOX} 0.5 0.5 0.6 0.6"}, data.format("[2, 2]"))
    (box,) = read_truth(folder).objects[0, 0]
    assert box.rle is None and box.box_xywh == pytest.approx((32, 18, 16, 24))
    for read in (read_dataset, lambda path: LabelledDataset(path, "", (), tuple(read_label_file(path)), ())):
        ((mark,),) = (image.marks for image in read(folder / "data.yaml").images)
        assert mark.corners == pytest.approx((0.4, 0.3, 0.6, 0.7)) and not mark.points
    for shape, said in (("[17, 3]", r"9 numbers; allowed: .* \(56\)"), ("17", r"such as \[17, 3\]")):
        (folder / "data.yaml").write_text(data.format(shape))
        with pytest.raises(InputError, match=said):
            read_truth(folder)


def test_an_image_without_a_label_file_shows_nothing_and_that_is_said(tmp_path: Path) -> None:
    rows: dict[str, str | None] = {"images/train/1.jpg": POLYGON, "images/val/2.jpg": None}
    truth = read_truth(dataset(tmp_path, rows))
    assert objects_of(truth) == {("1.jpg", "helmet"): 1} and len(truth.pairs) == 4
    assert truth.notes == (f"1 image of {tmp_path} without a label file: taken to show nothing.",)


@pytest.mark.parametrize(
    "data",
    [
        "train: ../train/images\nval: ../valid/images\nnames: {0: person, 1: helmet}",  # Roboflow
        "path: .\ntrain: [train/images]\nval: valid/images\nnames: {0: person, 1: helmet}",
        "path: /data/of/somebody/else\ntrain: train/images\nval: valid/images\nnames: [person, helmet]",
        "train: train.txt\nval: valid.txt\nnames: [person, helmet]",
    ],
)
def test_layouts_of_other_tools(data: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", {"train/images/1.jpg": POLYGON, "valid/images/2.jpg": BOX}, data)
    (folder / "train.txt").write_text("./train/images/1.jpg\n")
    (folder / "valid.txt").write_text(f"{folder}/valid/images/2.jpg\n")
    truth = read_truth(folder)
    assert objects_of(truth) == {("1.jpg", "helmet"): 1, ("2.jpg", "person"): 1}


def test_labels_beside_images_with_a_classes_txt(tmp_path: Path) -> None:
    photo(tmp_path / "1.jpg")
    (tmp_path / "1.txt").write_text(BOX)
    (tmp_path / "classes.txt").write_text("person\nhelmet\n")
    assert objects_of(read_truth(tmp_path)) == {("1.jpg", "person"): 1}


def test_the_same_name_in_two_splits_keeps_its_folder(tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"images/train/1.jpg": POLYGON, "images/val/1.jpg": BOX})
    names = [image.file_name for image in read_truth(folder).images.values()]
    assert names == [f"{tmp_path}/images/train/1.jpg", f"{tmp_path}/images/val/1.jpg"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_shapes_lie_on_the_upright_image(orientation: int, tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"images/train/1.jpg": POLYGON}, "train: images\nnames: [p, h]")
    path = photo(folder / "images/train/1.jpg", orientation=orientation)
    assert upright_size(path) == decode_image(path).shape[:2]
    assert read_truth(folder).images[0].size_hw == decode_image(path).shape[:2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2", "1.txt, line 2: 4 numbers; allowed: class and box (5), or class and polygon"),
        ("0 a b c d", "1.txt, line 2: '0 a b c d' is not a row of numbers"),
        ("7 0.5 0.5 0.2 0.2", "1.txt, line 2: class 7 has no name: the classes are person, helmet"),
        ("0 0.5 0.5 0 0.2", "1.txt, line 2: the shape has no area: draw it again or remove it."),
        ("0 0.5 nan 0.1 0.2", "1.txt, line 2: the shape has no area: draw it again or remove it."),
        ("0 0.9 0.5 0.4 0.2", "1.txt, line 2: the shape is not inside the image: coordinates are fractions from 0 to"),
        ("0 40 30 16 24", "1.txt, line 2: the shape is not inside the image: coordinates are fractions from 0 to 1."),
    ],
)
def test_a_row_that_is_wrong_is_named(row: str, message: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path, {"images/train/1.jpg": f"{BOX}\n{row}"}, "train: images\nnames: [person, helmet]")
    with pytest.raises(InputError) as caught:
        read_truth(folder)
    assert message in str(caught.value)


def test_what_is_no_dataset_is_said_in_a_sentence(tmp_path: Path) -> None:
    def problem(*arguments: str | Path) -> str:
        with pytest.raises(InputError) as caught:
            read_truth(*arguments)  # type: ignore[arg-type]
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert problem(empty) == f"{empty} has no data.yaml and no classes.txt to name the classes of its labels."
    (empty / "data.yaml").write_text("train: .\n")
    assert problem(empty).startswith(f"{empty}/data.yaml has no `names:`")
    (empty / "data.yaml").write_text("train: .\nnames: [a]\n")
    assert problem(empty) == f"{empty}/data.yaml: there is not one image in it to take for truth."
    (empty / "data.yaml").write_text("names: [a]\ntrain: nowhere\n")
    assert problem(empty) == (
        f"{empty}/data.yaml:2: {empty}/nowhere does not exist: there are no images to take for truth."
    )
    unlabelled = dataset(tmp_path / "unlabelled", {"images/train/1.jpg": None}, "train: images\nnames: [a]")
    assert problem(unlabelled) == f"{unlabelled}: there is no label file for its 1 image, beside or in labels/."
    full = dataset(tmp_path / "full", {"images/train/1.jpg": BOX, "images/val/2.jpg": BOX})
    assert problem(full, "test") == f"{full}/data.yaml has no split 'test': it has train, val."
    (full / "images/val/2.jpg").write_bytes(b"no picture")
    assert problem(full).startswith(f"{full}/images/val/2.jpg cannot be read: not an image")
    (tmp_path / "t.json").write_text("{}")
    assert problem(tmp_path / "t.json", "val") == (
        f"{tmp_path}/t.json has no splits: 'val' chooses among those of a YOLO dataset."
    )


def test_every_row_kind_that_our_export_writes_is_read(tmp_path: Path) -> None:
    """Masks of all sorts through `outlines.contour`, as the YOLO export writes them, come back as they are filled."""
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:60, :80]
    for number in range(20):
        center = rng.uniform(15, 45, 2)
        mask = ((yy - center[0]) / rng.uniform(4, 14)) ** 2 + ((xx - center[1]) / rng.uniform(4, 14)) ** 2 <= 1
        rle = masks.encode(mask)
        ring = outlines.contour(rle) / (80, 60)
        row = " ".join(["1", *(f"{value:.6f}" for value in itertools.chain.from_iterable(ring.tolist()))])
        folder = dataset(tmp_path / str(number), {"images/1.jpg": row}, "train: images\nnames: [p, h]")
        (instance,) = read_truth(folder).objects[0, 1]
        assert instance.rle is not None and masks.iou_matrix([instance.rle], [rle])[0, 0] == 1.0


# ---- results


def predicted(folder: Path, rows: dict[str, str]) -> Path:
    """What `yolo predict save_txt=True save_conf=True` leaves."""
    for name, text in rows.items():
        (folder / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "labels" / name).write_text(text)
    return folder


def test_yolo_results_belong_to_images_by_name_and_to_classes_by_the_truths_numbers(tmp_path: Path) -> None:
    truth = read_truth(dataset(tmp_path / "set", {"images/train/a/1.jpg": POLYGON, "images/val/2.jpg": BOX}))
    folder = predicted(
        tmp_path / "predict",
        {"1.txt": f"{POLYGON} 0.875\n{BOX} 0.25\n1 0.5 0.5 0 0.1 0.9\n1 0.5\n", "2.txt": "", "9.txt": f"{BOX} 0.5"},
    )
    found, left_out = read_yolo_results(folder, truth)
    ids = {image.file_name: number for number, image in truth.images.items()}
    assert found.keys() == {(ids["a/1.jpg"], 1), (ids["a/1.jpg"], 0)}
    (polygon,), (box,) = found[ids["a/1.jpg"], 1], found[ids["a/1.jpg"], 0]
    assert polygon.score == 0.875 and polygon == replace(truth.objects[ids["a/1.jpg"], 1][0], score=0.875)
    assert box.score == 0.25 and box.rle is None and box.box_xywh == pytest.approx((32, 18, 16, 24))
    assert left_out == 3, "no area, no shape, no such image"


def test_yolo_results_take_class_names_from_the_models_own_list(tmp_path: Path) -> None:
    truth = read_truth(dataset(tmp_path / "set", {"images/train/1.jpg": POLYGON, "images/val/2.jpg": BOX}))
    folder = predicted(tmp_path / "predict", {"1.txt": f"{POLYGON} 0.5"})
    (folder / "classes.txt").write_text("tree\nPerson\n")
    found, _ = read_yolo_results(folder, truth)
    assert [truth.categories[category] for _, category in found] == ["person"]
    with pytest.raises(InputError, match="put the data.yaml of the model that made them beside them"):
        read_yolo_results(predicted(tmp_path / "other", {"1.txt": f"{BOX} 0.5"}), replace(truth, numbered=True))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"1.txt": BOX}, "line 1: the row has no score: predict again with save_conf=True"),
        ({"1.txt": POLYGON}, "line 1: the row has no score"),
        ({"1.txt": "a b c"}, "line 1: 'a b c' is not a row of numbers"),
        ({"1.txt": "7 0.5 0.5 0.2 0.4 0.9"}, "line 1: class 7 has no name: the classes are person, helmet"),
        ({"x.txt": f"{BOX} 0.9"}, "no label file of .* is of an image of .*, which has 1.jpg, 2.jpg"),
        ({}, "holds no label file: give the folder that yolo predict"),
    ],
)
def test_yolo_results_that_cannot_be_read_are_one_sentence(rows: dict[str, str], text: str, tmp_path: Path) -> None:
    truth = read_truth(dataset(tmp_path / "set", {"images/train/1.jpg": POLYGON, "images/val/2.jpg": BOX}))
    (tmp_path / "predict").mkdir()
    with pytest.raises(InputError, match=text):
        read_yolo_results(predicted(tmp_path / "predict", rows), truth)


def test_yolo_results_are_judged_and_coco_results_refused_where_there_are_no_ids(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", {"images/train/1.jpg": POLYGON, "images/val/2.jpg": f"{POLYGON}\n"})
    results = predicted(tmp_path / "predict", {"1.txt": f"{POLYGON} 0.9"})
    done = CliRunner().invoke(app, ["evaluate", "--gt", str(folder), "--pred", str(results)])
    assert done.exit_code == 0, done.output
    assert "4 pairs" in done.output and "Mistakes at mask IoU 0.5: 1 miss, 0 false alarms" in done.output
    (tmp_path / "results.json").write_text("[]")
    done = CliRunner().invoke(app, ["evaluate", "--gt", str(folder), "--pred", str(tmp_path / "results.json")])
    assert done.exit_code == 1
    assert "names images and classes by the ids of a COCO file" in done.output

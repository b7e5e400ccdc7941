"""Datasets of boxes become runs with masks: every object there, none of another class, whatever the form."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from skimage import data
from support.nursery import Nursery

from sam3label.annotations.coco import read_coco
from sam3label.annotations.label_files import read_dataset
from sam3label.core import masks
from sam3label.core.records import Label
from sam3label.demo.shapes import make_scene
from sam3label.errors import CheckpointError, InputError, StoreError
from sam3label.export.options import Options
from sam3label.export.write import export
from sam3label.labelling.boxes_to_masks import MaskJob, mask_boxes
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.run_log import LOG
from sam3label.run.reader import open_run

Boxes = dict[str, list[tuple[str, tuple[float, float, float, float]]]]  # x1, y1, x2, y2 in pixels
BOXES: Boxes = {
    "animals/chelsea.png": [("cat's eye", (170.0, 90.0, 210.0, 130.0)), ("cat's eye", (270.0, 95.0, 310.0, 125.0))],
    "coffee.png": [("cup", (150.0, 60.0, 450.0, 330.0))],
    "rocket.jpg": [("rocket", (310.0, 70.0, 360.0, 350.0))],
    "empty.png": [],
}
ATTRIBUTES = {"occluded": "no", "by": "anna"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-image's photos of different sizes, one of them without an object."""
    folder = tmp_path_factory.mktemp("dataset") / "images"
    pictures = {
        "animals/chelsea.png": data.chelsea(),
        "coffee.png": data.coffee(),
        "rocket.jpg": data.rocket(),
        "empty.png": np.full((40, 60, 3), 99, np.uint8),
    }
    for name, pixels in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Boxes]:
    """Scenes of the demo with the boxes of all their objects, one of them without any."""
    folder, boxes = tmp_path_factory.mktemp("drawn") / "images", Boxes()
    folder.mkdir()
    for number, objects in enumerate((5, 0, 8)):
        scene = make_scene(32_000_000 + number, (240, 320), objects)
        cv2.imwrite(str(folder / f"{number}.png"), scene.image[..., ::-1])
        own = [masks.box_xywh(masks.encode(scene.mask(k))) for k in range(1, len(scene.things) + 1)]
        corners = ((x, y, x + w, y + h) for x, y, w, h in own)
        boxes[f"{number}.png"] = list(zip((thing.shape for thing in scene.things), corners, strict=True))
    return folder, boxes


def classes_of(boxes: Boxes) -> list[str]:
    return sorted({name for own in boxes.values() for name, _ in own})


def size_of(photos: Path, name: str) -> tuple[int, int]:
    height, width = cv2.imread(str(photos / name)).shape[:2]
    return width, height


# ---- the same dataset in every form, written as each tool writes it


def write_coco(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    images, annotations = [], []
    for number, (name, objects) in enumerate(boxes.items(), start=1):
        width, height = size_of(photos, name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for class_name, (x1, y1, x2, y2) in objects:
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": number,
                    "category_id": classes_of(boxes).index(class_name) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "attributes": ATTRIBUTES,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes_of(boxes), start=1)]
    path = out / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_yolo(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    for name, objects in boxes.items():
        width, height = size_of(photos, name)
        place = out / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((photos / name).read_bytes())
        rows = [
            f"{classes_of(boxes).index(c)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
            f" {(x2 - x1) / width} {(y2 - y1) / height}"
            for c, (x1, y1, x2, y2) in objects
        ]
        labels = (out / "labels" / name).with_suffix(".txt")
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(rows))
    path = out / "data.yaml"
    path.write_text(f"train: images\nval: images\nnames: {json.dumps(list(classes_of(boxes)))}\n")
    return path


def write_voc(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    for name, objects in boxes.items():
        width, height = size_of(photos, name)
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(name).name
        size = ElementTree.SubElement(root, "size")
        ElementTree.SubElement(size, "width").text = str(width)
        ElementTree.SubElement(size, "height").text = str(height)
        for class_name, (x1, y1, x2, y2) in objects:
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = class_name
            ElementTree.SubElement(thing, "occluded").text = "no"
            box = ElementTree.SubElement(thing, "bndbox")
            for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                ElementTree.SubElement(box, tag).text = f"{value:g}"
        path = (out / "Annotations" / name).with_suffix(".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path)
    return out


def write_cvat(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    root = ElementTree.Element("annotations")
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for class_name in classes_of(boxes):
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = class_name
    for number, (name, objects) in enumerate(boxes.items()):
        width, height = size_of(photos, name)
        image = ElementTree.SubElement(root, "image", id=str(number), name=name, width=str(width), height=str(height))
        for class_name, box in objects:
            corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, box), strict=True))
            element = ElementTree.SubElement(image, "box", label=class_name, occluded="0", **corners)
            ElementTree.SubElement(element, "attribute", name="occluded").text = "no"
    path = out / "annotations.xml"
    ElementTree.ElementTree(root).write(path)
    return path


def write_labelstudio(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    tasks = []
    for number, (name, objects) in enumerate(boxes.items()):
        width, height = size_of(photos, name)
        result = []
        for class_name, (x1, y1, x2, y2) in objects:
            own = f"r{number}{len(result)}"
            size = {"original_width": width, "original_height": height}
            value = {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
            }
            result.append(
                {"id": own, "type": "rectanglelabels", **size, "value": {**value, "rectanglelabels": [class_name]}}
            )
            choice = {"choices": ["no"]}
            result.append({"id": own, "type": "choices", "from_name": "occluded", **size, "value": choice})
        task = {"id": number, "data": {"image": f"/data/local-files/?d={name}"}, "annotations": [{"result": result}]}
        tasks.append(task)
    path = out / "project.json"
    path.write_text(json.dumps(tasks))
    return path


def write_csv(photos: Path, out: Path, boxes: Boxes = BOXES) -> Path:
    path = out / "boxes.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "class", "x1", "y1", "x2", "y2", "occluded"])
        for name, objects in boxes.items():
            table.writerows([name, class_name, *box, "no"] for class_name, box in objects)
            if not objects:
                table.writerow([name, "", "", "", "", "", ""])
    return path


FORMS: dict[str, Callable[[Path, Path, Boxes], Path]] = {
    "COCO": write_coco,
    "YOLO": write_yolo,
    "VOC": write_voc,
    "CVAT": write_cvat,
    "Label Studio": write_labelstudio,
    "CSV": write_csv,
}


def make(job: MaskJob, out: Path, checkpoint: Path, **options: Any) -> Any:
    return mask_boxes(job, out, LabelOptions(**{"model": str(checkpoint), "workers": 0, **options}))


def labels_of(out: Path) -> dict[str, list[Label]]:
    with open_run(out) as run:
        return {image.item.id: list(image.labels) for image in run.images()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_masks_and_yolo_rows_that_ultralytics_reads(
    form: str, photos: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    source = FORMS[form](photos, tmp_path, BOXES)
    job = MaskJob.of(source, None if form == "YOLO" else photos)
    assert job.dataset.form == form
    summary = make(job, tmp_path / "run", least_checkpoint)
    assert (summary.progress.done, summary.failures) == (4, ())
    found = labels_of(tmp_path / "run")
    assert {name: sorted(label.class_name for label in own) for name, own in found.items()} == {
        name: sorted(class_name for class_name, _ in own) for name, own in BOXES.items()
    }
    for name, own in found.items():
        wanted = sorted(box for _, box in BOXES[name])
        assert np.allclose(sorted(label.box_xyxy for label in own), wanted, atol=1e-2) or not own
        for label in own:
            assert label.given is not None and label.source == "given" and label.area > 0
            if form != "YOLO":
                assert ("occluded", "no") in label.given.attributes
            assert label.given.id or form == "CSV"
    assert yolo_rows(tmp_path, BOXES) == {name: Counter(c for c, _ in own) for name, own in BOXES.items()}


def test_the_image_size_that_was_chosen_is_the_models(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    job = MaskJob.of(write_coco(photos, tmp_path, BOXES), photos)
    for side, expected in ((None, 112), (224, 224)):
        out = tmp_path / f"run-{side}"
        assert make(job, out, least_checkpoint, image_size=side).progress.done == 4
        with open_run(out) as run:
            assert run.info["image_size"] == expected and run.note("fingerprint")["image_size"] == expected
    with pytest.raises(StoreError, match="image_size"):
        make(job, tmp_path / "run-None", least_checkpoint, image_size=224)


def test_keypoints_of_coco_are_points_where_there_is_no_box(photos: Path, tmp_path: Path) -> None:
    path = write_coco(photos, tmp_path, BOXES)
    content = json.loads(path.read_text())
    boxed, lone, hidden, _ = content["annotations"]
    shown = {"keypoints": [180, 100, 2, 0, 0, 0, 190, 110, 2, 150, 80, 1]}
    boxed |= shown
    for annotation, points in ((lone, shown), (hidden, {"keypoints": [150, 80, 1]})):
        del annotation["bbox"], annotation["area"]
        annotation |= points
    path.write_text(json.dumps(content))
    marks = [mark for image in read_dataset(path).images for mark in image.marks]
    assert [(mark.has_box, mark.points) for mark in marks[:3]] == [
        (True, ()),
        (False, ((180, 100, True), (190, 110, True))),
        (False, ((150, 80, True),)),
    ]
    assert [mark.id for mark in marks[:3]] == ["100", "101", "102"] and marks[1].attributes
    with pytest.raises(InputError, match="it has neither a mask nor a box"):
        read_coco(path)
    for bad, said in (([1, 2], "cannot be read"), ([0, 0, 0], "neither a mask nor a box")):
        lone["keypoints"] = bad
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            read_dataset(path)


def yolo_rows(folder: Path, boxes: Boxes) -> dict[str, Counter[str]]:
    """Export the run in a folder to YOLO, and return the classes that Ultralytics reads of each image."""
    from support.ultra import read_back

    with open_run(folder / "run") as run:
        written = export(run, "yolo", folder / "yolo", Options())
        names = [concept.name for concept in run.concepts.concepts]
    assert written.instances == sum(map(len, boxes.values()))
    found = {}
    for name in boxes:
        (picture,) = (folder / "yolo" / "images").rglob(f"{Path(name).stem}*")  # coffee_png.png keeps stems apart
        rows, segments, _ = read_back(picture, len(names))
        assert len(segments) == len(rows)
        found[name] = Counter(names[int(row[0])] for row in rows)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_drawn_scenes_go_through_every_form_and_back(form: str, drawn: tuple[Path, Boxes], tmp_path: Path) -> None:
    folder, boxes = drawn
    source = FORMS[form](folder, tmp_path, boxes)
    job = MaskJob.of(source, None if form == "YOLO" else folder)
    summary = make(job, tmp_path / "run", Path("demo"))
    assert (summary.progress.done, summary.failures) == (3, ())
    assert yolo_rows(tmp_path, boxes) == {name: Counter(c for c, _ in own) for name, own in boxes.items()}
    found = labels_of(tmp_path / "run")
    for name, own in boxes.items():
        wanted = sorted((class_name, box) for class_name, box in own)
        given = sorted((label.class_name, label.box_xyxy) for label in found[name])
        assert [one for one, _ in given] == [one for one, _ in wanted]
        assert np.allclose([box for _, box in given], [box for _, box in wanted], atol=1e-2) or not own


def test_ids_and_attributes_stay(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    job = MaskJob.of(write_coco(photos, tmp_path), photos)
    make(job, tmp_path / "run", least_checkpoint)
    given = [label.given for own in labels_of(tmp_path / "run").values() for label in own]
    assert sorted(one.id for one in given if one) == ["100", "101", "102", "103"]
    assert all(dict(one.attributes) == ATTRIBUTES and 0 <= one.stability <= 1 for one in given if one)
    with open_run(tmp_path / "run") as run:
        export(run, "coco", tmp_path / "coco", Options())
    annotations = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())["annotations"]
    assert sorted(one["given_id"] for one in annotations) == ["100", "101", "102", "103"]
    assert all(one["attributes"] == ATTRIBUTES for one in annotations)


def test_points_become_masks(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("filename,label,x,y\ncoffee.png,cup,300,200\nrocket.jpg,rocket,335,200\n")
    make(MaskJob.of(tmp_path / "points.csv", photos), tmp_path / "run", least_checkpoint)
    found = labels_of(tmp_path / "run")
    assert {name: [label.class_name for label in own] for name, own in found.items()} == {
        "coffee.png": ["cup"],
        "rocket.jpg": ["rocket"],
    }
    for own in found.values():
        assert own[0].given is not None and own[0].given.hint.is_single_point and own[0].area > 0


def test_what_does_not_fit_is_a_failure_and_no_empty_label(
    photos: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(
        "image,class,x1,y1,x2,y2\ncoffee.png,cup,150,60,450,330\ngone.png,cup,1,1,5,5\nrocket.jpg,cup,600,1,700,20\n"
        "empty.png,cup,5,5,5,9\n"
    )
    summary = make(MaskJob.of(path, photos), tmp_path / "run", least_checkpoint)
    assert summary.progress.done == 1
    reasons = dict(summary.failures)
    assert "there is no such photo" in reasons["gone.png"]
    assert "is not inside the image of 640 x 427 pixels" in reasons["rocket.jpg"]
    assert "has no area" in reasons["empty.png"]
    (photos / "gone.png").write_bytes((photos / "empty.png").read_bytes())
    try:
        again = make(MaskJob.of(path, photos), tmp_path / "run", least_checkpoint)
    finally:
        (photos / "gone.png").unlink()
    assert again.progress.done == 1 and "gone.png" not in dict(again.failures)
    assert set(labels_of(tmp_path / "run")) == {"coffee.png", "gone.png"}
    log = (tmp_path / "run" / LOG).read_text()
    assert log.count("\n") == len(log.splitlines()) and log.count("command: ") == 2
    assert f"photos: {path}" in log and "failed: gone.png: there is no such photo" in log
    assert "done: 1 of 4 images labelled, 3 failed" in log


def test_changed_boxes_are_asked_anew_and_nothing_else_is(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    source = write_csv(photos, tmp_path)
    make(MaskJob.of(source, photos), tmp_path / "run", least_checkpoint)
    assert make(MaskJob.of(source, photos), tmp_path / "run", least_checkpoint).progress.done == 0
    source.write_text(source.read_text().replace("150.0,60.0", "160.0,60.0"))
    assert make(MaskJob.of(source, photos), tmp_path / "run", least_checkpoint).progress.done == 4
    (cup,) = labels_of(tmp_path / "run")["coffee.png"]
    assert cup.box_xyxy[0] == 160.0


def test_a_run_of_phrases_is_no_place_for_masks(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    from sam3label.concepts.concept_list import from_phrases
    from sam3label.labelling.job import label

    options = LabelOptions(model=str(least_checkpoint), workers=0)
    label([photos / "coffee.png"], from_phrases(["cup"]), tmp_path / "run", options)
    with pytest.raises(StoreError, match="masks of"):
        make(MaskJob.of(write_csv(photos, tmp_path), photos), tmp_path / "run", least_checkpoint)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "image,kind\na.jpg,cup\n", "is no table of boxes: its columns are image, kind"),
        ("a.csv", "image,class,x,y\na.jpg,cup,1,two\n", "line 2: got '1, two'"),
        ("a.json", "[1, 2]", "no list of Label Studio tasks"),
        ("a.xml", "<annotations><image/></annotations>", "an <image> has no name"),
        ("a.xml", "<annotations><image name='a'><box label='c' xtl='1'/></image></annotations>", "no whole coordin"),
        ("a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "declares entities"),
        ("a.xml", "<annotation><object/></annotation>", "has no <name>"),
        ("a.xml", "<", "is not XML"),
        ("a.docx", "", "is no dataset of boxes: COCO or Label Studio JSON"),
    ],
)
def test_bad_datasets_are_refused_in_a_sentence(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        MaskJob.of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_photos_that_are_nowhere_are_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,class,x,y\na.jpg,cup,1,2\n")
    with pytest.raises(InputError, match="say where they are with --photos"):
        MaskJob.of(tmp_path / "a.csv")


def test_frames_of_videos_are_for_tracking(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,class,x,y\nwalk.mp4/000012.jpg,cup,1,2\n")
    with pytest.raises(InputError, match="frames of videos .walk.mp4/000012.jpg.: sam3label run --video track"):
        MaskJob.of(tmp_path / "a.csv")


def test_a_checkpoint_without_a_tracker_says_so(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        make(MaskJob.of(write_csv(photos, tmp_path), photos), tmp_path / "run", tmp_path / "nothing")


def test_a_killed_job_goes_on_where_it_was(nursery: Nursery, least_checkpoint: Path, tmp_path: Path) -> None:
    """kill -9 after something was committed: the same command ends with what an undisturbed one has."""
    rng = np.random.default_rng(0)
    rows = ["image,class,x1,y1,x2,y2"]
    for n in range(40):
        cv2.imwrite(str(tmp_path / f"{n:02d}.png"), rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        rows.append(f"{n:02d}.png,thing,{n / 4},5,{30 + n / 2},50")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    arguments = ["masks", tmp_path / "boxes.csv", "-o", tmp_path / "killed", "--workers", 0, "--batch-size", 1]
    command = nursery.command(tmp_path / "said", least_checkpoint, *arguments, "--quiet")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and command.lives():
        if (tmp_path / "killed" / "run.sqlite").is_file():
            with open_run(tmp_path / "killed") as run:
                if run.totals().done:
                    break
        time.sleep(0.05)
    command.send(signal.SIGKILL)
    assert command.ended()[0] == -signal.SIGKILL
    job = MaskJob.of(tmp_path / "boxes.csv")
    with open_run(tmp_path / "killed") as run:
        before = run.totals().done
    assert before > 0
    summary = make(job, tmp_path / "killed", least_checkpoint, batch_size=1)
    assert summary.progress.done == 40 - before and summary.already_done == before
    make(job, tmp_path / "whole", least_checkpoint, batch_size=1)
    assert labels_of(tmp_path / "killed") == labels_of(tmp_path / "whole")

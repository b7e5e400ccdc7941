"""`validate` reads back every other format that `export` writes, and names what is broken in each."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.builders import candidate, concepts, phrase_prompts, rectangle
from support.hardshapes import shape
from support.labelled import concept_list, hard_collection, image, label, photo, tree

from sam3label.concepts import concept_list as concept_lists
from sam3label.core import masks
from sam3label.core.records import MediaItem, UnitResult
from sam3label.errors import InputError
from sam3label.export.dataset import Options
from sam3label.export.splits import parse_splits
from sam3label.export.write import export, write_dataset
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Store
from sam3label.validate import Report, validate

SPLIT = Options(splits=parse_splits("train=0.6,val=0.4", 1))
OF_PHOTOS = {
    "voc": "Pascal VOC",
    "cvat": "CVAT for images 1.1",
    "labelstudio": "Label Studio",
    "masks": "PNG maps",
}
OF_VIDEOS = {"ytvis": "YouTube-VIS", "mot": "MOTChallenge", "mots": "MOTS"}
SHAPES = ("donut", "two holes", "island in a hole", "diagonal line", "frame", "touching corners")


def drops(report: Report) -> dict[str, int]:
    return {f.what: f.count for f in report.findings if f.effect != "note"}


def write_run(folder: Path) -> Path:
    """Four photos (one without labels) and two videos of three frames, masks that overlap, two classes."""
    results = []
    for k, name in enumerate(("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/2.jpg")):
        found = [candidate("cat", 0.9, masks.encode(shape(SHAPES[k])), item_id=name)] if k else []
        found += [candidate("dog", 0.8, rectangle(20 + k, 10, 30, 30), item_id=name, query=1)] if k else []
        item = MediaItem(name, photo(folder / "photos", name))
        results.append(UnitResult(item, 0, 1, (60, 80), tuple(found), np.full((1, 2), 0.5, np.float32)))
    for name in ("walks/one", "two"):
        for frame in range(3):
            photo(folder / "videos", f"{name}/{frame:05d}.jpg")
        item = MediaItem(name, str(folder / "videos" / name), "video")
        found = [
            replace(candidate(c, s, rectangle(x + frame, 10, 20, 20), item_id=name, frame=frame), track_id=t)
            for frame in range(3)
            for t, (c, s, x) in enumerate((("cat", 0.9, 5), ("cat", 0.7, 40), ("dog", 0.6, 15)), 1)
            if not (frame == 1 and t == 2)
        ]
        found = [replace(one, id=f"{one.id}-{one.track_id}") for one in found]
        results.append(UnitResult(item, 0, 3, (60, 80), tuple(found), np.full((3, 2), 0.5, np.float32)))
    with Store.writer(folder / "run", phrase_prompts("cat", "dog"), {"phrases": ["cat", "dog"]}) as store:
        store.write(results)
        store.set_meta("concepts", concept_lists.dump_concepts(concepts("cat", "dog")))
        store.set_meta("info", {"checkpoint": "demo@1"})
    return folder / "run"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("seen"))


def exported(run_folder: Path, kind: str, out: Path) -> Run:
    run = open_run(run_folder)
    export(run, kind, out, SPLIT)
    return run


@pytest.mark.parametrize("kind", [*OF_PHOTOS, *OF_VIDEOS])
def test_each_format_comes_back_as_it_went(kind: str, run_folder: Path, tmp_path: Path) -> None:
    with exported(run_folder, kind, tmp_path / "set") as run:
        before = tree(tmp_path / "set")
        report = validate(tmp_path / "set", run)
        assert not drops(report), report.findings
        assert report.kind == (OF_PHOTOS | OF_VIDEOS)[kind] and set(report.classes.values()) == {"cat", "dog"}
        trip = report.round_trip
        assert trip is not None and trip.minimum is not None
        labels = 2 * 8 if kind in OF_VIDEOS else 3 * 2 + 2 * 8
        assert (trip.labels, trip.lost, trip.extra, trip.images_missing) == (labels, 0, 0, 0)
        assert trip.minimum == pytest.approx(1.0, abs=1e-6) and trip.worst == ()
        assert sum(s.images for s in report.splits) == (6 if kind in OF_VIDEOS else 10)
        assert sum(s.instances.total() for s in report.splits) == labels
        assert [s.name for s in report.splits] == ["train", "val"]
        assert tree(tmp_path / "set") == before


@pytest.mark.parametrize("kind", OF_PHOTOS)
def test_hard_masks_and_names_are_clean(kind: str, tmp_path: Path) -> None:
    images = hard_collection(tmp_path / "photos")
    write_dataset(concept_list(), images, kind, tmp_path / "set", SPLIT)
    report = validate(tmp_path / "set")
    assert sum(s.images for s in report.splits) == len(images)
    assert sum(s.instances.total() for s in report.splits) == sum(len(i.labels) for i in images)
    if kind == "voc":  # its readers take every photo for a .jpg
        assert set(drops(report)) == {"the photo is not called as its XML, with .jpg: it is not found"}
    else:
        assert drops(report) == {}


@pytest.mark.parametrize("kind", [*OF_PHOTOS, *OF_VIDEOS, "coco", "yolo"])
def test_a_replaced_photo_is_caught(kind: str, run_folder: Path, tmp_path: Path) -> None:
    with exported(run_folder, kind, tmp_path / "set") as run:
        unpack(tmp_path / "set")
        path = sorted(p for p in (tmp_path / "set").rglob("*.jpg"))[0]
        path.unlink()  # else the hard link would reach the original
        photo(path.parent, path.name, (50, 70))
        assert (
            drops(validate(tmp_path / "set", run))[
                "the photo is not the one that was labelled: its size differs (label it again)"
            ]
            == 1
        )


def unpack(folder: Path) -> None:
    """Make folders of a dataset's zips."""
    for path in sorted(folder.glob("*.zip")):
        shutil.unpack_archive(path, path.with_suffix(""))
        path.unlink()


def edited(pattern: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """Replace text by a regular expression in the first file that a glob finds and that holds it."""

    def change(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            text, done = re.subn(old, new, path.read_text(), count=count)
            if done:
                path.unlink()
                path.write_text(text)
                return
        raise AssertionError(f"no {pattern} holds {old}")

    return change


def removed(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        sorted(folder.glob(pattern))[0].unlink()

    return change


def blank_map(folder: Path) -> None:
    path = next(p for p in sorted((folder / "instance").rglob("*.png")) if np.asarray(Image.open(p)).any())
    pixels = np.asarray(Image.open(path))
    path.unlink()
    Image.fromarray(np.zeros_like(pixels)).save(path)


BROKEN = {
    "voc": {
        "a box is not four numbers": edited("Annotations/**/*.xml", "<xmin>.*</xmin>", "<xmin>left</xmin>"),
        "the box is empty": edited("Annotations/**/*.xml", "<xmax>.*</xmax>", "<xmax>0</xmax>"),
        "the box sticks out": edited("Annotations/**/*.xml", "<xmax>.*</xmax>", "<xmax>900</xmax>"),
        "a listed photo has no XML": removed("Annotations/**/*.xml"),
        "one that cannot be read": edited("Annotations/**/*.xml", "</annotation>", ""),
        "is in no list": edited("ImageSets/Main/train.txt", r"\A.*\n", ""),
        "the photo is missing": removed("JPEGImages/**/*.jpg"),
        "another size than its record": edited("Annotations/**/*.xml", "<width>80", "<width>81"),
        "width and height are missing": edited("Annotations/**/*.xml", "<width>80", "<width>-1"),
    },
    "cvat": {
        "a mask cannot be read": edited("**/annotations.xml", 'rle="', 'rle="99999, '),
        "is not among the dataset's": edited("**/annotations.xml", 'label="dog"', 'label="cow"'),
        "the photo is missing": removed("**/*.jpg"),
        "another size than its record": edited("**/annotations.xml", 'width="80"', 'width="81"'),
    },
    "labelstudio": {
        "a brush mask cannot be decoded": edited("tasks.json", r'"rle":\[0,', '"rle":[1,'),
        "is not among the dataset's": edited("tasks.json", '"brushlabels":."dog".', '"brushlabels":["cow"]'),
        "the photo is missing": removed("**/*.jpg"),
        "the regions of a photo state different": edited("tasks.json", '"original_width":80', '"original_width":81'),
    },
    "masks": {
        "an instance has no pixel in its map": blank_map,
        "has no line in instances.jsonl": edited("instances.jsonl", r"\A.*\n", ""),
        "a line of instances.jsonl cannot be read": edited("instances.jsonl", r"\A.", ""),
        "the class map contradicts": edited("instances.jsonl", '"class": "dog"', '"class": "cat"'),
        "a line of instances.jsonl names a map": removed("instance/**/2.png"),
        "a map cannot be read": removed("semantic/**/*.png"),
        "the photo is missing": removed("**/*.jpg"),
    },
    "ytvis": {
        "a mask cannot be read": edited("*/instances.json", r'"size": \[60, 80\]', '"size": [80, 60]'),
        "video_id is unknown": edited("*/instances.json", '"video_id": 1', '"video_id": 9'),
        "as many segmentations": edited("*/instances.json", r'"segmentations": \[', '"segmentations": [null, '),
        "is not among the dataset's": edited("*/instances.json", '"category_id": 2', '"category_id": 7'),
        "the photo is missing": removed("**/*.jpg"),
        "iscrowd is 1": edited("*/instances.json", '"iscrowd": 0', '"iscrowd": 1'),
    },
    "mot": {
        "a line of gt.txt cannot be read": edited("**/gt.txt", r"\A1,", "one,"),
        "frame is not in the video": edited("**/gt.txt", r"\A1,", "9,"),
        "an object is twice in one frame": edited("**/gt.txt", r"\A1,(.*),1,1,1\n", r"1,\1,1,1,1\n1,\1,1,1,1\n"),
        "the box is empty": edited("**/gt.txt", r"\A(1,\d,\d+,\d+),\d+", r"\1,0"),
        "is not among the dataset's": edited("**/gt.txt", r",1,1\n", ",7,1\n"),
        "seqinfo.ini is missing": removed("**/seqinfo.ini"),
        "a split has no seqmap.txt": removed("*/seqmap.txt"),
        "is not in its split's seqmap.txt": edited("*/seqmap.txt", r"\n.*\n\Z", "\n"),
        "the photo is missing": removed("**/*.jpg"),
    },
    "mots": {
        "a line of gt.txt cannot be read": edited("**/gt.txt", r" 60 80 ", " 80 60 "),
        "masks of one frame overlap": edited("**/gt.txt", r"\A1 (\d+)( .*\n)", r"1 \g<1>\g<2>1 999\g<2>"),
        "the photo is missing": removed("**/*.jpg"),
    },
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, found in BROKEN.items() for text in found])
def test_each_break_is_named(kind: str, text: str, run_folder: Path, tmp_path: Path) -> None:
    with exported(run_folder, kind, tmp_path / "set"):
        unpack(tmp_path / "set")
    BROKEN[kind][text](tmp_path / "set")
    report = validate(tmp_path / "set")
    assert not report.clean and any(text in what for what in drops(report)), report.findings


def test_masks_that_others_cover_are_lost_in_maps(tmp_path: Path) -> None:
    rle = masks.encode(shape("donut"))
    item = image(tmp_path / "photos", "a.jpg", [label(rle, 0, label_id="below"), label(rle, 1, label_id="above")])
    write_dataset(concept_list(), [item], "masks", tmp_path / "set")
    what = "an instance has no pixel in its map: it lies under others"
    assert drops(validate(tmp_path / "set")) == {what: 1}


def test_polygons_and_boxes_of_cvat_are_read(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "a.jpg", [label(rectangle(10, 10, 20, 20))])
    write_dataset(concept_list(), [item], "cvat", tmp_path / "set")
    unpack(tmp_path / "set")
    (path,) = (tmp_path / "set").rglob("annotations.xml")
    ring = 'points="10,10;30,10;30,30;10,30"'
    shapes = (
        f'<polygon label="cat" {ring} group_id="1"/><polygon label="cat" points="40,10;50,10;50,20" group_id="1"/>'
        '<box label="dog" xtl="5" ytl="5" xbr="9" ybr="9"/><polyline label="cat" points="1,1;2,2"/>'
    )
    path.write_text(re.sub(r"<mask.*?/>", shapes, path.read_text(), flags=re.DOTALL))
    report = validate(tmp_path / "set")
    assert report.clean and report.splits[0].instances == {"cat": 1, "dog": 1}
    assert [f.what for f in report.findings] == ["a polyline is no mask: not compared"]


def test_a_zip_of_cvat_is_read_alone_and_a_damaged_one_is_one_clear_error(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "a.jpg", [label(rectangle(10, 10, 20, 20))])
    write_dataset(concept_list(), [item], "cvat", tmp_path / "set")
    archive = tmp_path / "set/train.zip"
    assert validate(archive).clean and validate(archive).splits[0].instances == {"cat": 1}
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"\xff\xd9", b"\xff\xd8", 1), b""):
        archive.unlink()
        archive.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train\.zip cannot be (opened|unpacked): "):
            validate(archive)
        with pytest.raises(InputError, match=r"train\.zip cannot be (opened|unpacked): "):
            validate(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "body", "text"),
    [
        ("tasks.json", '[{"no": "data"}]', "is no list of Label Studio's tasks"),
        ("annotations.xml", "<annotations><image", "is not CVAT's XML, or was cut off"),
        ("legend.json", "[]", "is no legend"),
        ("train/instances.json", '{"videos": [], "categories": [{}]}', "is no YouTube-VIS file"),
        (
            "train/instances.json",
            '{"videos": [], "categories": [{"id": 1e999, "name": "a"}]}',
            "is no YouTube-VIS file",
        ),
    ],
)
def test_what_cannot_be_read_at_all_is_one_clear_error(name: str, body: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(body)
    with pytest.raises(InputError, match=re.escape(text)):
        for finding in validate(tmp_path).findings:
            raise AssertionError(finding)


def test_a_label_of_the_run_that_is_gone_is_counted(run_folder: Path, tmp_path: Path) -> None:
    with exported(run_folder, "labelstudio", tmp_path / "set") as run:
        path = tmp_path / "set/tasks.json"
        tasks = json.loads(path.read_text())
        (full, *_) = [task for task in tasks if task["predictions"][0]["result"]]
        full["predictions"][0]["result"].pop()
        path.write_text(json.dumps(tasks[1:] if tasks[0] is not full else tasks[:-1]))
        trip = validate(tmp_path / "set", run).round_trip
        assert trip is not None and trip.images_missing == 1 and trip.lost >= 1

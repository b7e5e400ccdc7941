"""What a user chooses about an export: frames, classes, names, folders, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from support.builders import candidate, concepts, phrase_prompts, rectangle
from support.labelled import concept_list, image, label
from support.videofiles import write_video
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Concept, ConceptList, LabeledImage, MediaItem, UnitResult
from sam3label.core.whole_folder import read_marker
from sam3label.errors import ConfigError, OutputError
from sam3label.export import card
from sam3label.export.dataset import Summary
from sam3label.export.options import Options, parse_classes, parse_map
from sam3label.export.photos import Placer, flat_name, image_name
from sam3label.export.splits import parse_splits
from sam3label.export.write import refuse_senseless, write_dataset
from sam3label.run.store import Store

BOX = rectangle(10, 10, 30, 30)
OTHER = rectangle(50, 20, 20, 20)


# ---- options, all problems at once


def test_every_problem_of_the_options_is_said_at_once() -> None:
    odd: dict[str, Any] = {"images": "links", "segmentation": "png"}
    with pytest.raises(ConfigError) as caught:
        Options(**odd, min_score=2, simplify=-1, every=0, fps=math.inf, append=True, overwrite=True, map={"cat": " "})
    assert str(caught.value).splitlines() == [
        "--images: 'links' is not one of hardlink, upright, copy, symlink, none. Did you mean symlink?",
        "--segmentation: 'png' is not one of rle, polygon, uncompressed",
        "--min-score: 2 is not a number from 0 to 1",
        "--simplify: -1 is not a number from 0 on",
        "--every: 0 is not a whole number from 1 on",
        "--fps: inf is not a number over 0",
        "--every: goes without --fps: give one",
        "--append: goes without --overwrite: one adds to a dataset, the other replaces it",
        "--map: 'cat' would have no name",
    ]


def test_a_value_of_another_type_is_a_problem_too() -> None:
    with pytest.raises(ConfigError, match=r"--simplify: None is not .*\n--every: '2' is not a whole number from 1 on"):
        Options(every="2", simplify=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.inf, math.nan, -0.5])
def test_simplify_is_a_finite_number_of_pixels(value: float) -> None:
    with pytest.raises(ConfigError, match=f"--simplify: {value!r} is not a number from 0 on"):
        Options(simplify=value)


@pytest.mark.parametrize("field", ["min_score", "fps"])
def test_no_number_is_no_number_of_anything(field: str) -> None:
    with pytest.raises(ConfigError, match="nan is not a number"):
        Options(**{field: math.nan})  # type: ignore[arg-type]


def test_simplify_is_refused_where_there_are_no_polygons() -> None:
    options = Options(simplify=1)
    with pytest.raises(ConfigError) as caught:
        refuse_senseless(["coco", "yolo", "yolo-detect", "coco-zero", "cvat"], options)
    assert str(caught.value).splitlines() == [
        "--simplify is for polygons, and coco would have none; add --segmentation polygon.",
        "--simplify is for polygons, and yolo-detect would have none.",
        "--simplify is for polygons, and cvat would have none; add --segmentation polygon.",
    ]
    refuse_senseless(["coco", "cvat"], Options(simplify=1, segmentation="polygon"))


def test_classes_with_commas_in_their_names() -> None:
    known = ("a,b", "c", "d")
    assert parse_classes(["a,b"], known) == ("a,b",)
    assert parse_classes(["c, d", "a,b", "c"], known) == ("c", "d", "a,b")
    assert parse_classes([" , "], known) == ()


def test_a_class_with_a_comma_is_exported_alone(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "1.jpg", [label(BOX, 0), label(OTHER, 1)])
    names = ("a,b", "c")
    options = Options(classes=parse_classes(["a,b"], names))
    summary = write_dataset(concept_list(names), [item], "yolo", tmp_path / "set", options)
    assert summary.classes == {0: "a,b"} and summary.instances == 1


def test_maps_are_read_with_equals_signs_in_names_and_every_mistake_is_said() -> None:
    assert parse_map(["truck=vehicle", "x=y=z", " van = vehicle "], ("truck", "x=y", "van")) == {
        "truck": "vehicle",
        "x=y": "z",
        "van": "vehicle",
    }
    with pytest.raises(ConfigError) as caught:
        parse_map(["truck", "van=", "bus=car", "bus=van"], ("truck", "van", "bus"))
    assert str(caught.value).splitlines() == [
        "--map: 'truck' is not OLD=NEW, for example truck=vehicle",
        "--map: 'van=' is not OLD=NEW, for example truck=vehicle",
        "--map: 'bus' is given twice, as 'car' and 'van'",
    ]


def test_classes_and_maps_of_unknown_names_are_said_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_dataset(concept_list(), [], "yolo", tmp_path / "s", Options(classes=("kat",), map={"dogg": "x"}))
    assert str(caught.value).splitlines() == [
        "--classes: 'kat' not in cat, dog, object, traffic light. Did you mean 'cat'?",
        "--map: 'dogg' not in cat, dog, object, traffic light. Did you mean 'dog'?",
    ]


# ---- classes that become one


def test_classes_that_become_one_keep_the_best_label_of_each_object(tmp_path: Path) -> None:
    """Two labels of one object: a person's stays, else the better score. Two objects stay two."""
    by_hand = replace(label(BOX, 0, 0.3), source="human")
    photos = [
        image(tmp_path / "photos", "1.jpg", [label(BOX, 0, 0.6, "worse"), label(BOX, 1, 0.8, "better")]),
        image(tmp_path / "photos", "2.jpg", [by_hand, label(BOX, 1, 0.9), label(OTHER, 1, 0.7)]),
        image(tmp_path / "photos", "3.jpg", [label(BOX, 0), label(BOX, 2)]),
    ]
    options = Options(map={"cat": "animal", "dog": "animal"})
    summary = write_dataset(concept_list(), photos, "yolo", tmp_path / "set", options)
    assert summary.classes == {0: "animal", 1: "object", 2: "traffic light"}
    assert summary.splits["train"].instances == {0: 4, 1: 1} and summary.splits["train"].by_people == 1
    assert "2 labels left out: with --map an object had two of the same class." in summary.notes
    text = (tmp_path / "set" / card.FILE).read_text(encoding="utf-8")
    assert "cat → animal" in text and "dog → animal" in text


def test_a_map_onto_a_name_that_the_run_has(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "1.jpg", [label(BOX, 1)])
    summary = write_dataset(concept_list(), [item], "coco", tmp_path / "set", Options(map={"dog": "cat"}))
    assert list(summary.classes.values()) == ["cat", "object", "traffic light"]
    assert summary.splits["train"].instances == {1: 1}


def test_twins_in_spelling_are_refused_on_append_with_the_map_that_helps(tmp_path: Path) -> None:
    first = image(tmp_path / "photos", "1.jpg", [label(BOX, 0)])
    write_dataset(concept_list(("Square",)), [first], "yolo", tmp_path / "set")
    second = image(tmp_path / "photos", "2.jpg", [label(BOX, 0)])
    with pytest.raises(OutputError, match="differ only in spelling .if they are one: --map square=Square"):
        write_dataset(concept_list(("square",)), [second], "yolo", tmp_path / "set", Options(append=True))
    options = Options(append=True, map={"square": "Square"})
    summary = write_dataset(concept_list(("square",)), [second], "yolo", tmp_path / "set", options)
    assert summary.classes == {0: "Square"} and len([*(tmp_path / "set/labels/train").iterdir()]) == 2


@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_a_run_with_twins_is_added_to_its_own_dataset(tmp_path: Path, kind: str) -> None:
    both = concept_list(("person", "Person"))
    write_dataset(both, [image(tmp_path / "photos", "1.jpg", [label(BOX, 0)])], kind, tmp_path / "set")
    second = image(tmp_path / "photos", "2.jpg", [label(BOX, 1)])
    summary = write_dataset(both, [second], kind, tmp_path / "set", Options(append=True))
    assert list(summary.classes.values()) == ["person", "Person"]


# ---- names of files


def test_flat_names_never_collide() -> None:
    ids = ["a/1.jpg", "a__1.jpg", "a/b/1.jpg", "a/b__1.jpg", "a__b/1.jpg", "1.jpg", "a_/1.jpg", "a/_1.jpg", "a/1.png"]
    names = [flat_name(item_id) for item_id in ids]
    assert len({*names}) == len(ids) and names[0] == "a__1.jpg" and names[5] == "1.jpg"
    assert not any("/" in name for name in names)


@pytest.mark.parametrize("kind", ["yolo", "coco", "voc", "masks"])
def test_flat_datasets_hold_every_photo(tmp_path: Path, kind: str) -> None:
    ids = ("a/1.jpg", "a__1.jpg", "a/1.png", f"{'d' * 200}/{'e' * 200}.jpg", f"{'d' * 200}/{'e' * 201}.jpg")
    photos = [image(tmp_path / "photos", item_id, [label(BOX)]) for item_id in sorted(ids)]
    write_dataset(concept_list(), photos, kind, tmp_path / "set", Options(flat=True))
    folder = tmp_path / "set" / ("JPEGImages" if kind == "voc" else "images" if kind == "coco" else "images/train")
    assert len([p for p in folder.iterdir() if p.is_file()]) == len(ids)


@pytest.mark.parametrize("kind", ["yolo", "voc", "masks", "coco"])
def test_a_name_as_long_as_a_disk_allows_is_exported(tmp_path: Path, kind: str) -> None:
    item_id = f"{'n' * 251}.png"
    item = image(tmp_path / "photos", item_id, [label(BOX)])
    assert write_dataset(concept_list(), [item], kind, tmp_path / "set").images == 1
    other = image_name(f"{'n' * 250}m.png")
    assert image_name(item_id) != other and len(other.encode()) <= 255


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    item = image(tmp_path / "photos", "1.jpg")
    with pytest.raises(OutputError, match=r"the name of 1.jpg is too long for a dataset in .*choose a shorter -o"):
        Placer("hardlink").place(item, tmp_path / "images" / f"{'n' * 300}.jpg")


# ---- frames of videos


@pytest.fixture
def walk(tmp_path: Path) -> list[LabeledImage]:
    """Ten frames at ten a second, one object in each."""
    path = write_video(tmp_path / "clip.mp4", [np.full((64, 80, 3), 9 * n, np.uint8) for n in range(10)], fps=10)
    tracked = replace(label(rectangle(4, 4, 20, 20, (64, 80)), 1), track_id=0)
    item = MediaItem("clip.mp4", str(path), "video")
    return [LabeledImage(item, (64, 80), (replace(tracked, frame=n),), False, n) for n in range(10)]


def frames_in(out: Path) -> list[int]:
    return sorted(int(path.stem) for path in (out / "labels/train/clip.mp4").iterdir())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (Options(every=3), [0, 3, 6, 9]),
        (Options(every=100), [0]),
        (Options(fps=2), [0, 5]),
        (Options(fps=4), [0, 3, 5, 8]),
        (Options(fps=500), [*range(10)]),
    ],
)
def test_videos_are_thinned_and_photos_stay(
    tmp_path: Path, walk: list[LabeledImage], options: Options, kept: list[int]
) -> None:
    photo = image(tmp_path / "photos", "still.jpg", [label(BOX)])
    summary = write_dataset(concept_list(), [*walk, photo], "yolo", tmp_path / "set", options)
    assert frames_in(tmp_path / "set") == kept and summary.images == len(kept) + 1
    left = 10 - len(kept)
    assert not left or f"{left} frames of videos left out, as chosen." in summary.notes


def test_every_counts_frames_of_the_video_not_of_what_was_labelled(tmp_path: Path, walk: list[LabeledImage]) -> None:
    write_dataset(concept_list(), walk[1::2], "yolo", tmp_path / "set", Options(every=3))  # 1, 3, 5, 7, 9
    assert frames_in(tmp_path / "set") == [3, 9]


def test_thinned_videos_say_how_fast_they_play(tmp_path: Path, walk: list[LabeledImage]) -> None:
    for options, rate in ((Options(every=2), 5), (Options(fps=2), 2), (Options(), 10)):
        write_dataset(concept_list(), walk, "mot", tmp_path / "set", options)
        assert f"frameRate={rate}\n" in (tmp_path / "set/train/clip.mp4/seqinfo.ini").read_text()


def test_a_thinning_that_leaves_nothing_says_why(tmp_path: Path, walk: list[LabeledImage]) -> None:
    with pytest.raises(OutputError, match=r"no image passes what was chosen .*--every, --fps"):
        write_dataset(concept_list(), walk[1:3], "yolo", tmp_path / "set", Options(every=7))


def test_fps_of_a_video_that_is_gone_and_of_a_folder(tmp_path: Path, walk: list[LabeledImage]) -> None:
    folder = tmp_path / "frames"
    photo = image(folder, "000000.jpg", [label(BOX)])
    still = replace(photo, item=MediaItem("frames", str(folder), "video"))
    with pytest.raises(OutputError, match="frames is a folder of frames and has no frame rate: .*--every N, not --fps"):
        write_dataset(concept_list(), [still], "yolo", tmp_path / "set", Options(fps=1))
    Path(walk[0].item.path).unlink()
    with pytest.raises(OutputError, match=r"the frame rate of .*clip.mp4 cannot be read .*or use --every N"):
        write_dataset(concept_list(), walk, "yolo", tmp_path / "set", Options(fps=1, images="none"))


@pytest.mark.parametrize("kind", ["mot", "mots", "ytvis"])
def test_formats_of_videos_go_without_the_video(tmp_path: Path, walk: list[LabeledImage], kind: str) -> None:
    Path(walk[0].item.path).unlink()
    summary = write_dataset(concept_list(), walk, kind, tmp_path / "set", Options(images="none"))
    assert summary.instances == 10
    if kind != "ytvis":
        assert "The frame rate of clip.mp4 could not be read and is taken for 25." in summary.notes
        assert "frameRate=25\n" in (tmp_path / "set/train/clip.mp4/seqinfo.ini").read_text()


def test_a_frame_that_cannot_be_encoded_is_named(
    tmp_path: Path, walk: list[LabeledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OutputError, match=r"frame 0 of .*clip.mp4 cannot be written as a JPEG\."):
        write_dataset(concept_list(), walk, "yolo", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def run_over(folder: Path, walk: list[LabeledImage]) -> str:
    """A run over the walk: a cat and a dog in one place, in every frame."""
    found = [
        candidate(name, score, one.labels[0].rle, item_id="clip.mp4", frame=one.frame, query=query)
        for one in walk
        for query, (name, score) in enumerate((("cat", 0.8), ("dog", 0.9)))
    ]
    presence = np.full((len(walk), 2), 0.9, np.float32)
    with Store.writer(folder, phrase_prompts("cat", "dog"), {"phrases": ["cat", "dog"]}) as store:
        store.write([UnitResult(walk[0].item, 0, len(walk), (64, 80), tuple(found), presence)])
        store.set_meta("concepts", dump_concepts(concepts("cat", "dog")))
        store.set_meta("info", {"checkpoint": "demo@1"})
    return str(folder)


@pytest.mark.parametrize(("thinner", "kept"), [(["--every", "4"], [0, 4, 8]), (["--fps", "2"], [0, 5])])
def test_the_command_line_thins_renames_and_flattens(
    tmp_path: Path, walk: list[LabeledImage], thinner: list[str], kept: list[int]
) -> None:
    run, out = run_over(tmp_path / "run", walk), tmp_path / "set"
    command = ["export", run, "-f", "yolo", "-o", str(out), "--flat", "--map", "cat=animal", "--map", "dog=animal"]
    done = CliRunner().invoke(app, [*command, *thinner])
    assert done.exit_code == 0, done.output
    assert f"yolo: {len(kept)} images, {len(kept)} instances" in done.output and "animal" in done.output
    assert f"{len(kept)} labels left out: with --map an object had two of the same class." in done.output
    names = sorted(path.name for path in (out / "labels/train").iterdir())
    assert names == [f"clip.mp4__{n:06}.txt" for n in kept]
    (out / "NOTES.md").write_text("mine")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "NOTES.md" in again.output and (out / "NOTES.md").exists()
    insisted = CliRunner().invoke(app, [*command, "--overwrite"])
    assert insisted.exit_code == 0 and not (out / "NOTES.md").exists()


def test_the_command_line_says_what_excludes_each_other(tmp_path: Path, walk: list[LabeledImage]) -> None:
    run = run_over(tmp_path / "run", walk)
    both = CliRunner().invoke(
        app, ["export", run, "-f", "yolo", "--every", "2", "--fps", "2", "--append", "--overwrite"]
    )
    assert both.exit_code == 1 and "Traceback" not in both.output
    assert "--every: goes without --fps" in both.output
    assert "--append: goes without --overwrite" in both.output


# ---- adding to what others made


def other_yolo(folder: Path, row: str, data: str) -> Path:
    (folder / "labels/train").mkdir(parents=True)
    (folder / "images/train").mkdir(parents=True)
    (folder / "labels/train/old.txt").write_text(row)
    (folder / "data.yaml").write_text(data)
    return folder


@pytest.mark.parametrize(
    ("kind", "row", "found"),
    [
        ("yolo", "0 0.5 0.5 0.2 0.2", "labels for detect (labels/train/old.txt: 5 numbers a row), and segment"),
        ("yolo-obb", "0 0.5 0.5 0.2 0.2", "labels for detect"),
        ("yolo-detect", "0 0.1 0.1 0.5 0.1 0.5 0.5", "labels for segment (labels/train/old.txt: 7 numbers a row)"),
        ("yolo-obb", "0 0.1 0.1 0.5 0.1 0.5 0.5", "labels for segment"),
        ("yolo-detect", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "labels for obb or segment"),
    ],
)
def test_rows_of_another_task_are_refused(tmp_path: Path, kind: str, row: str, found: str) -> None:
    out = other_yolo(tmp_path / "theirs", row + "\n", "train: images/train\nval: images/train\nnames: [cat]\n")
    before = (out / "data.yaml").read_text()
    with pytest.raises(OutputError) as caught:
        write_dataset(
            concept_list(("cat",)), [image(tmp_path / "p", "1.jpg", [label(BOX)])], kind, out, Options(append=True)
        )
    assert found in str(caught.value) and "would spoil it" in str(caught.value)
    assert (out / "data.yaml").read_text() == before and not (out / "labels/train/1.txt").exists()


def test_other_keys_and_comments_of_a_data_file_stay(tmp_path: Path) -> None:
    text = (
        "# bought from Acme\npath: .  # here\ntrain: images/train\nval: images/train\nnc: 1\n"
        "names: [cat]  # one\nroboflow:\n  license: CC BY 4.0\n"
    )
    out = other_yolo(tmp_path / "theirs", "0 0.1 0.1 0.5 0.1 0.5 0.5\n", text)
    new = image(tmp_path / "p", "1.jpg", [label(BOX, 0)])
    options = Options(append=True, splits=parse_splits("val=1"))
    write_dataset(concept_list(("dog",)), [new], "yolo", out, options)
    after = (out / "data.yaml").read_text()
    data = yaml.safe_load(after)
    assert data["names"] == ["cat", "dog"] and data["nc"] == 2 and data["val"] == "images/val"
    assert data["path"] == "." and data["roboflow"] == {"license": "CC BY 4.0"}
    assert after.startswith("# bought from Acme\n") and "# here" in after and "Labelled by" not in after
    assert read_marker(out) is None  # it stays theirs


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ({"images": [{"id": "x", "file_name": "a.jpg"}]}, r"images\[0\] has the id 'x', where appending needs a whole"),
        ({"images": [{"id": 1, "file_name": None}]}, r"images\[0\] has the file_name None.* needs a text"),
        ({"annotations": [{"image_id": 1, "category_id": 1}]}, r"annotations\[0\] has the id None"),
        ({"annotations": [7]}, r"annotations\[0\] has the id None"),
        ({"categories": [{"id": True, "name": "cat"}]}, r"categories\[0\] has the id True"),
    ],
)
def test_coco_with_odd_ids_is_refused_by_name(tmp_path: Path, records: dict[str, Any], text: str) -> None:
    whole = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}], **records}
    path = tmp_path / "theirs/annotations/instances_train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(whole))
    new = image(tmp_path / "p", "1.jpg", [label(BOX)])
    with pytest.raises(OutputError, match=f"instances_train.json: {text}"):
        write_dataset(concept_list(("cat",)), [new], "coco", tmp_path / "theirs", Options(append=True))
    assert json.loads(path.read_text()) == whole


# ---- the card


def carded(tmp_path: Path, **options: Any) -> tuple[str, Summary]:
    rules = (
        Concept(0, "a | b", ("phrase one", "two"), negatives=("not this",), conf=0.4),
        Concept(1, "dog", ("dog",)),
    )
    photos = [
        replace(image(tmp_path / "photos", "1.jpg", [label(BOX, 0), label(OTHER, 1, 0.9)]), reviewed=True),
        image(tmp_path / "photos", "2.jpg", [replace(label(BOX, 1), source="human")]),
        image(tmp_path / "photos", "3.jpg"),
    ]
    info = {"model": "facebook/sam3", "checkpoint": "sam3@abc", "created": "2026-01-02"}
    summary = write_dataset(
        ConceptList(rules), photos, "yolo", tmp_path / "set", Options(**options), run_info=info, failed=[("x", "y")]
    )
    return (tmp_path / "set" / card.FILE).read_text(encoding="utf-8"), summary


def test_the_card_says_what_is_in_a_dataset_and_where_it_comes_from(tmp_path: Path) -> None:
    text, _ = carded(tmp_path, min_score=0.45)
    for line in (
        "# yolo dataset, 3 images, 3 labels",
        "| class | train |",
        "| a \\| b | 1 |",
        "| dog | 2 |",
        "| *images* | 3 |",
        "| *of these without a label* | 1 |",
        "People have gone through 1 of 3 images, and drew or changed 1 label.",
        "Not in it: 1 file that could not be labelled.",
        "Model facebook/sam3 (checkpoint sam3@abc), run of 2026-01-02.",
        "Polygons against the masks they were drawn from: IoU 1.0000 on average, 1.0000 at worst.",
    ):
        assert line in text.splitlines()
    assert "the SAM License (https://huggingface.co/facebook/sam3)" in text
    assert "| a \\| b | phrase one, two | not this | 0.45 |" in text  # --min-score over conf


def test_the_card_grows_with_what_is_added(tmp_path: Path) -> None:
    carded(tmp_path)
    more = image(tmp_path / "more", "4.jpg", [label(BOX, 0)])
    write_dataset(concept_list(("dog", "fox")), [more], "yolo", tmp_path / "set", Options(append=True))
    text = (tmp_path / "set" / card.FILE).read_text(encoding="utf-8")
    assert text.startswith("# yolo dataset, 4 images, 4 labels\n")
    assert "| dog | 3 |" in text and "| fox | 0 |" in text
    assert "## Where the labels 1 come from" in text and "## Where the labels 2 come from" in text
    assert "Model an unknown model (checkpoint unknown), run of an unknown day." in text

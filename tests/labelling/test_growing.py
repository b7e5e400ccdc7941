"""A run whose list grows: only what is new is asked, and the end is as if all had been asked at once."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.nursery import Nursery

from sam3label.concepts.changes import changes
from sam3label.concepts.concept_list import load_concepts, parse_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate, Correction
from sam3label.errors import InputError
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.run.reader import open_run
from sam3label.run.store import Store

PHOTOS, BATCH = 22, 4
STEPS = (
    "names: [cat, dog]\ndefaults: {conf: 0.2}\nconcepts: {dog: {prompts: [dog, puppy]}}\n",
    "names: [cat, dog, hat]\ndefaults: {conf: 0.2}\nconcepts: {dog: {prompts: [puppy, hound, dog]}}\n",
    "names: [hat, cat, dog, bolt]\ndefaults: {conf: 0.2}\n"
    "concepts: {dog: {prompts: [dog, puppy, hound]}, bolt: {prompts: [], exemplars: refs}}\n",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a folder of references with boxes, and the lists of three days."""
    folder, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(3)
    for name in (*(f"photos/{n:02d}.png" for n in range(PHOTOS)), "refs/a.png", "refs/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))
    images = [{"id": i, "file_name": f"{name}.png", "width": 80, "height": 60} for i, name in enumerate("ab")]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 5, 20, 30]} for i in range(2)]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bolt"}]}
    (folder / "refs" / "labels.json").write_text(json.dumps(truth))
    for number, text in enumerate(STEPS):
        (folder / f"{number}.yaml").write_text(text)
    return folder


def asked(checkpoint: Path, **options: Any) -> dict[str, Any]:
    chosen = {"model": str(checkpoint), "workers": 0, "batch_size": BATCH, "floor": 0.1, "device": "cpu"}
    return {**chosen, "accept_exemplars": True, **options}


def label(place: Path, list_: str, out: Path, checkpoint: Path, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    summary = job.label(
        [place / "photos"], load_concepts(place / list_), out,
        LabelOptions(**asked(checkpoint, **options)), on_message=said.append,
    )  # fmt: skip
    return summary, said


@pytest.fixture(scope="module")
def at_once(place: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "once"
    label(place, "2.yaml", out, least_checkpoint)
    return out


def candidates(out: Path) -> dict[str, Candidate]:
    with open_run(out) as run:
        return {c.id: c for unit in run.done_units() for c in run.candidates(unit)}


def equal(one: Path, other: Path) -> None:
    """Row for row up to their order, and to the rounding of batches that ask more or fewer prompts together.

    That moves scores in the sixth decimal, and here and there a pixel whose logit is next to nothing: 2 of 1134 masks
    by one pixel each, where all is asked in one go or in three.
    """
    a, b = candidates(one), candidates(other)
    assert a.keys() == b.keys()
    turned = [int((masks.decode(a[id_].rle) ^ masks.decode(b[id_].rle)).sum()) for id_ in a if a[id_].rle != b[id_].rle]
    assert max(turned, default=0) <= 1 and len(turned) <= len(a) / 200, turned
    for id_, candidate in a.items():
        assert candidate.prompt == b[id_].prompt
        assert abs(candidate.score - b[id_].score) < 1e-5
    with open_run(one) as x, open_run(other) as y:
        for left, right in zip(x.done_units(), y.done_units(), strict=True):
            np.testing.assert_allclose(x.presence(left), y.presence(right), atol=1e-5)
        assert [[label.id for label in image.labels] for image in x.images()] == [
            [label.id for label in image.labels] for image in y.images()
        ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many pictures are encoded, and how many (picture, prompt) pairs are asked."""
    from sam3label.model.detector import Detector

    counted: Counter[str] = Counter()
    encode, detect = Detector.encode_images, Detector.detect

    def counting_encode(self: Any, pixels: Any, *rest: Any) -> Any:
        counted["encodes"] += len(pixels)
        return encode(self, pixels, *rest)

    def counting_detect(
        self: Any, frames: Any, prompts: Any, floor: float = 0.1, exemplars: Any = None, keep_grids: bool = False
    ) -> Any:
        given = exemplars or [{}] * len(frames)
        counted["pairs"] += sum(one.get(p.key, p) is not None for one in given for p in prompts)
        return detect(self, frames, prompts, floor, exemplars, keep_grids)

    monkeypatch.setattr(Detector, "encode_images", counting_encode)
    monkeypatch.setattr(Detector, "detect", counting_detect)
    return counted


def test_three_steps_each_killed_are_as_one(
    place: Path, at_once: Path, nursery: Nursery, least_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for step, list_ in enumerate(("0.yaml", "1.yaml", "2.yaml")):
        given = place / "photos", place / list_, out
        assert nursery.killed("a transaction is committed", 3, *given, **asked(least_checkpoint))
        with open_run(out) as run:
            done = len(run)
            assert 0 < done < PHOTOS or step == 0, done
        summary, said = label(place, list_, out, least_checkpoint)
        assert summary.already_done == done and summary.progress.done == PHOTOS - done
        if step:
            assert any("kept as answered" in line for line in said), said
        if step == 0:
            with open_run(out) as run:
                image = next(image for image in run.images() if image.labels)
                run.record([Correction(image.item.id, 0, "deleted", image.labels[0].id, who="ann")])
            deleted = image.item.id, image.labels[0].id
    with open_run(out) as run:
        assert [c.label_id for c in run.corrections()] == [deleted[1]]
        assert deleted[1] not in [label.id for label in run.image(deleted[0]).labels]
    with open_run(at_once) as run:
        run.record([Correction(deleted[0], 0, "deleted", deleted[1], who="ann")])
    equal(out, at_once)
    with Store.open(out) as store:
        assert store.totals().done == PHOTOS


def test_only_what_is_new_is_asked_and_said(
    place: Path, least_checkpoint: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    out = tmp_path / "run"
    label(place, "0.yaml", out, least_checkpoint)
    assert calls == {"encodes": PHOTOS, "pairs": 3 * PHOTOS}
    calls.clear()
    summary, said = label(place, "1.yaml", out, least_checkpoint)
    assert calls == {"encodes": PHOTOS, "pairs": 2 * PHOTOS}  # hat, hound
    assert summary.progress.done == PHOTOS
    assert "class 1 dog, phrases +'hound'" in said
    assert "class 2 hat is new" in said
    (plan,) = (line for line in said if "kept" in line)
    assert plan.startswith("2 new phrases ('hound', 'hat') on")
    assert f"on {PHOTOS} images: about " in plan and " instead of " in plan
    assert plan.endswith("3 prompts kept as answered.")


def test_what_asks_nothing_new_needs_no_model(
    place: Path, least_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    label(place, "0.yaml", out, least_checkpoint)
    before = candidates(out)
    monkeypatch.setattr("sam3label.model.detector.Detector.load", lambda *_, **__: pytest.fail("a model was loaded"))
    (place / "renamed.yaml").write_text(
        "names: [hund, katze]\ndefaults: {conf: 0.7}\n"
        "concepts: {hund: {prompts: [puppy]}, katze: {prompts: [dog, cat]}}\n"
    )
    summary, said = label(place, "renamed.yaml", out, least_checkpoint)
    assert (summary.progress.total, summary.already_done) == (0, PHOTOS)
    assert said == [
        "class 0 cat -> hund, phrases +'puppy' -'cat', conf 0.2 -> 0.7",
        "class 1 dog -> katze, phrases +'cat' -'puppy', conf 0.2 -> 0.7",
        "Nothing new is asked: what was seen is decided anew.",
    ]
    with open_run(out) as run:
        assert run.concepts.names == ("hund", "katze")
    (place / "fewer.yaml").write_text("names: [katze]\ndefaults: {conf: 0.7}\nconcepts: {katze: {prompts: [cat]}}\n")
    _, said = label(place, "fewer.yaml", out, least_checkpoint)
    assert "class 0 hund is no longer on the list: its answers stay in the run and are not exported" in said
    assert candidates(out).keys() < before.keys()
    with open_run(out) as run:
        assert run.coverage().unlisted == ("dog", "puppy")
    label(place, "0.yaml", out, least_checkpoint)
    assert candidates(out) == before


def test_a_class_with_exemplars_is_renamed_without_a_model(
    place: Path, at_once: Path, least_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its exemplars. A photo that is one of them is not asked again either."""
    out, mine = tmp_path / "run", tmp_path / "place"
    shutil.copytree(at_once, out)
    shutil.copytree(place, mine)
    monkeypatch.setattr("sam3label.model.detector.Detector.load", lambda *_, **__: pytest.fail("a model was loaded"))
    truth = (mine / "refs" / "labels.json").read_text()
    with open_run(out) as run:
        of_bolt = {c.id for unit in run.done_units() for c in run.candidates(unit) if c.prompt == "exemplar:bolt"}
        labels = [[(label.id, label.class_id) for label in image.labels] for image in run.images()]
    for name in ("screw", "bolt"):
        (mine / "2.yaml").write_text(STEPS[2].replace("bolt", name))
        (mine / "refs" / "labels.json").write_text(truth.replace("bolt", name))
        summary, said = label(mine, "2.yaml", out, least_checkpoint)
        assert (summary.progress.total, summary.already_done) == (0, PHOTOS)
        assert said[-1] == "Nothing new is asked: what was seen is decided anew."
        with open_run(out) as run:
            assert run.concepts.names[3] == name and run.coverage().unlisted == () and set(run.note("trust")) == {name}
            now = {c.id for unit in run.done_units() for c in run.candidates(unit) if c.prompt == f"exemplar:{name}"}
            assert now == of_bolt and now
            assert [[(one.id, one.class_id) for one in image.labels] for image in run.images()] == labels


def test_a_photo_that_has_gone_costs_no_answer(place: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(place, mine)
    out = tmp_path / "run"
    label(mine, "0.yaml", out, least_checkpoint)
    (mine / "photos" / "03.png").write_bytes(b"")
    os.utime(mine / "photos" / "03.png")
    summary, said = label(mine, "1.yaml", out, least_checkpoint)
    assert any("1 file was replaced since the last time" in line for line in said)
    assert summary.failures == (("03.png", "empty file (0 bytes)"),)
    with open_run(out, load_concepts(mine / "0.yaml")) as run:
        assert len(run) == PHOTOS - 1


# ---- photos are their content


def test_a_second_folder_with_the_same_names_is_refused_by_name(
    place: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    for camera in ("camA", "camB"):
        (tmp_path / camera / "photos").mkdir(parents=True)
        (tmp_path / camera / "0.yaml").write_text(STEPS[0])
    for n in range(3):
        (tmp_path / f"camA/photos/{n}.png").write_bytes((place / f"photos/{n:02d}.png").read_bytes())
        (tmp_path / f"camB/photos/{n}.png").write_bytes((place / f"photos/{n + 9:02d}.png").read_bytes())
    out = tmp_path / "run"
    label(tmp_path / "camA", "0.yaml", out, least_checkpoint)
    with pytest.raises(InputError) as refusal:
        label(tmp_path / "camB", "0.yaml", out, least_checkpoint)
    text = str(refusal.value)
    assert text.startswith("3 of the files found have the names of others that this run holds, and other content:")
    assert f"\n  0.png: was {tmp_path}/camA/photos/0.png, now {tmp_path}/camB/photos/0.png" in text
    assert f"new={tmp_path}/camB/photos" in text
    job.label(
        [f"new={tmp_path}/camB/photos"], load_concepts(tmp_path / "camB/0.yaml"), out,
        LabelOptions(model=str(least_checkpoint), workers=0, batch_size=BATCH, device="cpu"),
    )  # fmt: skip
    with open_run(out) as run:
        assert [item.id for item in run.items()] == ["0.png", "1.png", "2.png", "new/0.png", "new/1.png", "new/2.png"]


def test_a_replaced_photo_is_labelled_again_and_a_moved_folder_is_found(
    place: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine", tmp_path / "run"
    shutil.copytree(place, mine)
    label(mine, "0.yaml", out, least_checkpoint)
    with open_run(out) as run:
        first = next(i for i in run.images() if i.labels)
        run.record([Correction(first.item.id, 0, "deleted", first.labels[0].id, who="ann"),
                    Correction(first.item.id, 0, "reviewed", who="ann")])  # fmt: skip
    changed = mine / "photos" / first.item.id
    original = changed.read_bytes()
    cv2.imwrite(str(changed), 255 - cv2.imread(str(changed)))
    with open_run(out) as run:
        assert run.changed_photos() == [(first.item.id, "replaced since it was labelled")]
    summary, said = label(mine, "0.yaml", out, least_checkpoint)
    assert summary.progress.done == 1
    assert any("1 file was replaced since the last time, and will be labelled again" in line for line in said)
    with open_run(out) as run:
        assert run.changed_photos() == []
        assert not run.image(first.item.id).reviewed  # what ann said was said of another photo
    changed.write_bytes(original)
    label(mine, "0.yaml", out, least_checkpoint)
    with open_run(out) as run:
        assert run.image(first.item.id).reviewed
    mine.rename(tmp_path / "moved")
    with open_run(out) as run:
        assert len(run.changed_photos()) == PHOTOS
    with open_run(out, photos=tmp_path / "moved" / "photos") as run:
        assert run.changed_photos() == []
        assert next(run.images()).item.path == f"{tmp_path}/moved/photos/00.png"
    summary, _ = label(tmp_path / "moved", "0.yaml", out, least_checkpoint)
    assert (summary.progress.total, summary.already_done) == (0, PHOTOS)
    with open_run(out) as run:
        assert run.changed_photos() == []


# ---- what changed, in words


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("names: [star]", "names: [star]", []),
        ("names: [star]\ndefaults: {conf: 0.4}",
         "names: [stern]\ndefaults: {conf: 0.7}\nconcepts: {stern: {prompts: [star]}}",
         ["class 0 star -> stern, conf 0.4 -> 0.7"]),
        ("names: [a, b]", "names: [b, a]", ["class 1 b, number 1 -> 0", "class 0 a, number 0 -> 1"]),
        ("names: [a, b]", "names: [a]",
         ["class 1 b is no longer on the list: its answers stay in the run and are not exported"]),
        ("names: [a]", "names: [a, b]", ["class 1 b is new"]),
        ("names: [a]", "names: [a]\nconcepts: {a: {prompts: [a, aa], not: [b], max_instances: 3}}",
         ["class 0 a, phrases +'aa', not +'b', max_instances none -> 3"]),
        ("names: [a]", "names: [a]\ndefaults: {tile: auto, refine: true, snap: true}",
         ["class 0 a, tile off -> auto (overlap 0.2), refine false -> true, snap false -> true"]),
        ("names: [a]\ndefaults: {tile: 512}", "names: [a]", ["class 0 a, tile 512 (overlap 0.2) -> off"]),
        ("names: [a, b]", "names: [a, b]\nexclusive: [[a, b]]", ["exclusive groups none -> a, b"]),
    ],
)  # fmt: skip
def test_each_change_of_a_list_is_a_line(before: str, after: str, lines: list[str]) -> None:
    assert changes(parse_concepts(before, "one"), parse_concepts(after, "other")) == lines

"""Objects that a person gave on photos, beside what words find: labels with masks, from the one encode of the photo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import ConceptList, Label
from sam3label.demo.shapes import Scene, make_scene
from sam3label.errors import ConfigError, InputError
from sam3label.export.write import export
from sam3label.labelling import job
from sam3label.labelling.boxes_to_masks import MaskJob, mask_boxes
from sam3label.labelling.options import LabelOptions
from sam3label.model.detector import Detector
from sam3label.run.reader import open_run

SIZE = (240, 320)
FIRST = 34_000_000


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene]]:
    folder = tmp_path_factory.mktemp("scenes") / "photos"
    folder.mkdir()
    made = [make_scene(FIRST + n, SIZE, 5) for n in range(4)]
    for n, scene in enumerate(made):
        cv2.imwrite(str(folder / f"{n}.png"), scene.image[..., ::-1])
    return folder, made


def write_objects(
    path: Path, scenes: Sequence[Scene], on: Sequence[int], masked: Sequence[int] = (), size: tuple[int, int] = SIZE
) -> Path:
    """A COCO file of all objects, as boxes, of scenes `on`; those of scenes `masked` with their masks."""
    annotations: list[dict[str, Any]] = []
    for image in on:
        for k in range(1, len(scenes[image].things) + 1):
            rle = masks.encode(scenes[image].mask(k))
            code = {"segmentation": {"size": list(SIZE), "counts": rle.counts.decode()}} if image in masked else {}
            own = {"id": 100 * image + k, "image_id": image, "category_id": 1, "area": masks.area(rle), "iscrowd": 0}
            annotations.append({**own, "bbox": masks.box_xywh(rle), "attributes": {"by": "anna"}, **code})
    images = [{"id": n, "file_name": f"{n}.png", "height": size[0], "width": size[1]} for n in on]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]})
    )
    return path


def concepts_of(objects: Path, prompts: str = "[shape]", more: str = "", names: str = "thing, circle") -> ConceptList:
    rules = f"{{prompts: {prompts}, exemplars: {{objects: {objects.name}}}{more}}}"
    return parse_concepts(f"names: [{names}]\nconcepts: {{thing: {rules}}}", "c.yaml", (), objects.parent)


def label(folder: Path, concepts: ConceptList, out: Path, **options: Any) -> Any:
    said: list[str] = []
    chosen = LabelOptions(**{"model": "demo", "workers": 0, **options})
    return job.label([folder], concepts, out, chosen, on_message=said.append), "\n".join(said)


def labels_of(out: Path) -> dict[str, list[Label]]:
    with open_run(out) as run:
        return {image.item.id: list(image.labels) for image in run.images()}


def given_in(labels: Sequence[Label]) -> dict[str, Label]:
    return {label.given.id: label for label in labels if label.given is not None}


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the image encoder has."""
    counted: list[int] = []
    encode = Detector.encode_grid

    def counting(self: Any, pixels: Any) -> Any:
        counted.append(len(pixels))
        return encode(self, pixels)

    def counting_images(self: Any, pixels: Any) -> Any:
        return self.state_of_grid(counting(self, pixels))

    monkeypatch.setattr(Detector, "encode_grid", counting)
    monkeypatch.setattr(Detector, "encode_images", counting_images)
    return counted


def test_boxes_get_masks_beside_what_words_find_in_one_encode(
    scenes: tuple[Path, list[Scene]], encodes: list[int], tmp_path: Path
) -> None:
    folder, made = scenes
    objects = write_objects(tmp_path / "boxes.json", made, on=(0, 2), masked=(2,))
    refined = concepts_of(objects, more=", refine: true")
    summary, _ = label(folder, refined, tmp_path / "run")
    assert summary.progress.done == 4 and sum(encodes) == 4  # phrases, refined masks and boxes of each
    found = labels_of(tmp_path / "run")
    assert [bool(given_in(found[f"{n}.png"])) for n in range(4)] == [True, False, True, False]
    for image in (0, 2):
        own = given_in(found[f"{image}.png"])
        assert set(own) == {str(100 * image + k) for k in range(1, len(made[image].things) + 1)}
        for k in range(1, len(made[image].things) + 1):
            one, truth = own[str(100 * image + k)], masks.encode(made[image].mask(k))
            assert one.class_name == "thing" and one.source == "given" and one.doubt is None
            assert one.given is not None and dict(one.given.attributes) == {"by": "anna"}
            assert one.box_xywh == pytest.approx(masks.box_xywh(truth))
            assert one.rle == truth if image == 2 else masks.iou_matrix([one.rle], [truth])[0, 0] > 0.6
    for labels in found.values():  # what words find of the same object gives way
        things = [one for one in labels if one.class_name == "thing"]
        overlap = masks.iou_matrix([one.rle for one in things], [one.rle for one in things])
        pairs = [(a, b) for a in range(len(things)) for b in range(a) if overlap[a, b] > 0.7]
        assert all(things[a].given and things[b].given for a, b in pairs)
    assert any(one.class_name == "thing" for one in found["1.png"])  # where nothing is given words are asked
    assert any(one.class_name == "circle" for labels in found.values() for one in labels)
    with open_run(tmp_path / "run") as run:
        place = [prompt.source for prompt in run.prompts].index("given")
        presence = {unit.item.id: float(run.presence(unit)[0, place]) for unit in run.done_units()}
    assert presence["0.png"] == presence["2.png"] == 1 and np.isnan(presence["1.png"]) and np.isnan(presence["3.png"])


def test_the_masks_are_those_of_the_command_for_boxes_alone(scenes: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    folder, made = scenes
    objects = write_objects(tmp_path / "boxes.json", made, on=(0, 1, 2, 3))
    summary, said = label(folder, concepts_of(objects, "[]", names="thing"), tmp_path / "run", batch_size=1)
    assert summary.progress.done == 4 and "not looked for" not in said
    options = LabelOptions(model="demo", workers=0, batch_size=1)
    mask_boxes(MaskJob.of(objects, folder), tmp_path / "masks", options)
    with open_run(tmp_path / "run") as run, open_run(tmp_path / "masks") as masked:
        pairs = list(zip(run.images(), masked.images(), strict=True))
        assert sum(len(image.labels) for image, _ in pairs) == sum(len(scene.things) for scene in made)
        for image, other in pairs:
            assert {one.given: (one.rle, one.score, one.box_xywh) for one in image.labels} == {
                one.given: (one.rle, one.score, one.box_xywh) for one in other.labels
            }


def test_given_objects_that_come_later_or_change_are_all_that_is_asked(
    scenes: tuple[Path, list[Scene]], tmp_path: Path
) -> None:
    folder, made = scenes
    plain = parse_concepts("names: [thing, circle]\nconcepts: {thing: {prompts: [shape]}}")
    label(folder, plain, tmp_path / "run")
    before = labels_of(tmp_path / "run")
    objects = write_objects(tmp_path / "boxes.json", made, on=(0,))
    summary, said = label(folder, concepts_of(objects), tmp_path / "run")
    assert summary.progress.done == 4 and "new exemplars of thing on 4 images; 2 prompts kept as answered." in said
    found = labels_of(tmp_path / "run")
    assert len(given_in(found["0.png"])) == len(made[0].things)
    assert [found[f"{n}.png"] for n in (1, 2, 3)] == [before[f"{n}.png"] for n in (1, 2, 3)]
    assert label(folder, concepts_of(objects), tmp_path / "run")[0].progress.done == 0
    write_objects(objects, made, on=(3,))
    label(folder, concepts_of(objects), tmp_path / "run")
    found = labels_of(tmp_path / "run")
    assert not given_in(found["0.png"]) and len(given_in(found["3.png"])) == len(made[3].things)
    label(folder, concepts_of(objects), tmp_path / "whole")
    whole = labels_of(tmp_path / "whole")
    assert {key: sorted(map(repr, own)) for key, own in found.items()} == {
        key: sorted(map(repr, own)) for key, own in whole.items()
    }


def test_a_near_copy_with_objects_of_its_own_is_labelled(scenes: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    _, made = scenes
    folder, rng = tmp_path / "burst", np.random.default_rng(0)
    folder.mkdir()
    for n in range(4):
        noisy = np.clip(made[0].image.astype(int) + rng.normal(0, 2, made[0].image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), noisy[..., ::-1])
    objects = write_objects(tmp_path / "boxes.json", [made[0]] * 4, on=(2,))
    label(folder, concepts_of(objects), tmp_path / "run", skip_similar=0.02)
    found = labels_of(tmp_path / "run")
    assert set(found) == {"0.png", "2.png"} and len(given_in(found["2.png"])) == len(made[0].things)


def test_what_does_not_fit_is_said(scenes: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    folder, made = scenes
    wrong = write_objects(tmp_path / "wrong.json", made, on=(1,), size=(600, 800))
    summary, said = label(folder, concepts_of(wrong, "[]"), tmp_path / "run")
    ((name, reason),) = summary.failures
    assert name == "1.png" and "800 x 600" in reason and summary.progress.done == 3
    assert "thing has boxes on 1 of 4 photos and no phrases: on the other 3 it is not looked for" in said
    right = write_objects(tmp_path / "right.json", made, on=(1, 2))
    label(folder, concepts_of(right, "[]"), tmp_path / "part")
    with open_run(tmp_path / "part") as run:
        assert dict(run.coverage().unsought) == {"thing": 2}
        summary = export(run, "coco", tmp_path / "coco")
    assert any(
        line.startswith("thing was not looked for in 2 of 4 images, which have no boxes of it")
        for line in summary.notes
    )
    done = CliRunner().invoke(app, ["status", str(tmp_path / "part")])
    assert "not looked for in 2 of 4 images" in done.output and "each asked of all" not in done.output
    status = CliRunner().invoke(app, ["status", str(tmp_path / "part"), "--json", "-"])
    assert json.loads(status.output)["not_looked_for"] == {"thing": 2}
    elsewhere = write_objects(tmp_path / "elsewhere.json", made, on=(0,))
    elsewhere.write_text(elsewhere.read_text().replace('"0.png"', '"other.png"'))
    with pytest.raises(InputError, match=r"its objects are of other.png, and none of these is a photo here"):
        label(folder, concepts_of(elsewhere), tmp_path / "other")
    with pytest.raises(ConfigError, match="allowed: a folder of references"):
        parse_concepts("names: [thing]\nconcepts: {thing: {exemplars: {objects: 3, labels: x.json}}}")


def test_a_box_whose_mask_is_not_believed_is_said(
    scenes: tuple[Path, list[Scene]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, made = scenes
    concepts_of(write_objects(tmp_path / "boxes.json", made, on=(0,)))
    rules = "{prompts: [], conf: 1, exemplars: {objects: boxes.json}}"  # no mask is expected to be that good
    (tmp_path / "c.yaml").write_text(f"names: [thing]\nconcepts: {{thing: {rules}}}\n")
    command = ["run", str(folder), "-c", str(tmp_path / "c.yaml"), "--model", "demo", "--workers", "0"]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "run")])
    said = " ".join((done.output + capsys.readouterr().out).split())
    objects = len(made[0].things)
    assert done.exit_code == 0 and f"{objects} objects kept as the box" in said and f"(unsure mask: {objects})" in said

"""`refine: true`: masks asked for again from their own boxes, for the classes that say so and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3label.concepts.concept_list import dump_concepts, parse_concepts
from sam3label.core import masks
from sam3label.core.records import Candidate
from sam3label.demo.shapes import write_scenes
from sam3label.errors import ConfigError
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.run.store import Store

PLAIN = "names: [disc, star]\ndefaults: {conf: 0.3}\nconcepts: {disc: {prompts: [circle]}}"
REFINED = PLAIN.replace("[circle]}", "[circle], refine: true}")


def candidates(out: Path) -> dict[str, dict[str, Candidate]]:
    with Store.open(out) as store:
        found = [candidate for unit in store.units() for candidate in store.candidates(unit)]
    return {key: {c.id: c for c in found if c.prompt == key} for key in ("circle", "star")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_scenes(folder, 3, seed=30_000_000, size_hw=(240, 320))
    return folder


def test_the_masks_of_one_class_are_asked_for_again(photos: Path, tmp_path: Path) -> None:
    options = LabelOptions(model="demo", workers=0)
    for name, text in (("plain", PLAIN), ("refined", REFINED)):
        label([photos], parse_concepts(text), tmp_path / name, options)
    plain, refined = candidates(tmp_path / "plain"), candidates(tmp_path / "refined")
    assert refined["star"] == plain["star"]
    pairs = list(zip(refined["circle"].values(), plain["circle"].values(), strict=True))
    shapes = [(one.rle, other.rle) for one, other in pairs]
    assert [one.score for one, _ in pairs] == [other.score for _, other in pairs]
    assert any(a != b for a, b in shapes)
    sure = [(one.rle, other.rle) for one, other in pairs if one.score >= 0.5]
    assert sure and all(masks.iou_matrix([a], [b])[0, 0] > 0.5 for a, b in sure)


def test_switching_it_on_asks_what_it_concerns_anew(photos: Path, tmp_path: Path) -> None:
    options = LabelOptions(model="demo", workers=0)
    label([photos], parse_concepts(PLAIN), tmp_path / "run", options)
    said: list[str] = []
    summary = label([photos], parse_concepts(REFINED), tmp_path / "run", options, on_message=said.append)
    assert summary.progress.done == 3
    assert "class 0 disc, refine false -> true" in said
    assert "1 phrase with another refine ('circle') on 3 images; 1 prompt kept as answered." in said
    assert label([photos], parse_concepts(REFINED), tmp_path / "run", options).progress.done == 0


def test_a_list_says_it_and_a_wrong_value_is_named() -> None:
    concepts = parse_concepts(REFINED)
    assert [c.refine for c in concepts.concepts] == [True, False]
    assert parse_concepts(dump_concepts(concepts)) == concepts
    with pytest.raises(ConfigError, match=r"disc.refine: got 3; allowed: true or false"):
        parse_concepts(REFINED.replace("true", "3"))

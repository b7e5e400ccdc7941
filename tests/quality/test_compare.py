"""Two models on the same photos: their figures are the evaluator's, and the interval is of the difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.annotations.coco import JudgedObject, Truth, TruthImage
from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import ConceptList
from sam3label.quality.compare import agreement, compare
from sam3label.quality.evaluate import evaluate
from sam3label.quality.run_answers import predictions_of_run
from sam3label.run.reader import open_run
from sam3label.run.store import Store

LIST = concepts("cat", "dog")
IMAGES = 12


def run_of(folder: Path, found: dict[int, list[str]], chosen: ConceptList = LIST) -> Path:
    """Write a run in which photo n has a label of each class in `found[n]`, where its object is."""
    notes = {"concepts": dump_concepts(chosen), "info": {}}
    with Store.writer(folder, phrase_prompts("cat", "dog"), {"floor": 0.1}, notes=notes) as store:
        for number in range(IMAGES):
            item = f"{number:02}.jpg"
            own = [candidate(phrase, 0.9, place(phrase), item_id=item) for phrase in found.get(number, [])]
            store.write([unit(item, *own, prompts=2)])
    return folder


def place(phrase: str) -> masks.Rle:
    return rectangle(2, 2, 8, 8) if phrase == "cat" else rectangle(20, 10, 9, 9)


def truth() -> Truth:
    """Cats in even photos, dogs in every third."""
    images = {n: TruthImage(f"{n:02}.jpg", None) for n in range(IMAGES)}
    objects = {}
    for number in range(IMAGES):
        for category, phrase, there in ((0, "cat", number % 2 == 0), (1, "dog", number % 3 == 0)):
            if there:
                rle = place(phrase)
                objects[number, category] = [JudgedObject(masks.box_xywh(rle), masks.area(rle), masks.area(rle), rle)]
    pairs = tuple((n, c) for n in range(IMAGES) for c in (0, 1))
    return Truth("truth", images, {0: "cat", 1: "dog"}, objects, pairs, frozenset(), False)


EVERYTHING = {n: [p for p, step in (("cat", 2), ("dog", 3)) if n % step == 0] for n in range(IMAGES)}
CATS = {n: [p for p in found if p == "cat"] for n, found in EVERYTHING.items()}


def test_figures_are_the_evaluators(tmp_path: Path) -> None:
    with open_run(run_of(tmp_path / "a", CATS)) as one, open_run(run_of(tmp_path / "b", EVERYTHING)) as other:
        found = compare(one, other, truth())
        judged, predictions, _ = predictions_of_run(one, truth())
    figures = evaluate([judged], predictions).figures["segm"]
    assert figures is not None
    assert found.cgf1.before == pytest.approx(figures["cgF1"], abs=1e-9)
    assert found.mcc.before == pytest.approx(figures["IL_MCC"], abs=1e-9)
    assert found.f1.before == pytest.approx(figures["F1@0.5"], abs=1e-3)
    assert found.cgf1.after == pytest.approx(1.0, abs=1e-3)
    assert found.cgf1.interval[0] > 0 and found.has_negatives
    assert found.classes["dog"].f1.before == 0 and found.classes["dog"].f1.after == 1
    assert found.classes["cat"].f1.gain == 0 and found.classes["cat"].f1.interval == (0, 0)


def test_the_same_answers_have_no_gain(tmp_path: Path) -> None:
    with open_run(run_of(tmp_path / "a", CATS)) as one, open_run(run_of(tmp_path / "b", CATS)) as other:
        found = compare(one, other, truth())
        same = agreement(one, other, ["cat"])
    assert found.cgf1.gain == 0 and found.cgf1.interval == (0, 0)
    assert same is not None and same.f1 == 1 and same.answers == 6


def test_a_chance_find_has_an_interval_that_says_so(tmp_path: Path) -> None:
    better = {**CATS, 0: ["cat", "dog"]}
    with open_run(run_of(tmp_path / "a", CATS)) as one, open_run(run_of(tmp_path / "b", better)) as other:
        found = compare(one, other, truth())
    assert found.f1.gain > 0
    assert found.f1.interval[0] == 0  # many draws leave photo 0 out


def test_photos_of_a_group_are_drawn_together(tmp_path: Path) -> None:
    groups = ["left"] * 6 + ["right"] * 6
    with open_run(run_of(tmp_path / "a", CATS)) as one, open_run(run_of(tmp_path / "b", EVERYTHING)) as other:
        apart, together = compare(one, other, truth()), compare(one, other, truth(), groups)
    assert together.f1.gain == apart.f1.gain
    assert together.f1.interval != apart.f1.interval


def test_agreement_is_of_the_classes_named(tmp_path: Path) -> None:
    fewer = {n: found for n, found in EVERYTHING.items() if n > 2}
    with open_run(run_of(tmp_path / "a", EVERYTHING)) as one, open_run(run_of(tmp_path / "b", fewer)) as other:
        found = agreement(one, other, ["cat"])
        assert agreement(one, other, []) is None
    assert found is not None
    assert set(found.classes) == {"cat"}
    assert found.f1 == pytest.approx(8 / 10)  # four of six
    assert found.interval[0] < found.f1 < found.interval[1]

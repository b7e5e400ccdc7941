"""Candidates to labels, rule by rule, and people's corrections on top."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.concepts import concept_list
from sam3label.core import masks
from sam3label.core.records import (
    Box,
    Candidate,
    Concept,
    ConceptList,
    Correction,
    Exemplars,
    Given,
    Hint,
    LabeledImage,
    Prompt,
    Rle,
    exemplar_key,
)
from sam3label.errors import ConfigError
from sam3label.run.corrections import apply_corrections
from sam3label.run.decide import decide, select_labels
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Store

HERE, NEAR, FAR = rectangle(10, 10, 20, 20), rectangle(11, 10, 20, 20), rectangle(50, 30, 20, 20)  # IoU HERE/NEAR 0.905
HALF = rectangle(20, 10, 20, 20)  # IoU with HERE: 200 / 600


def outcomes(found: list[Candidate], wanted: ConceptList) -> list[tuple[str, str]]:
    return [(wanted.names[d.label.class_id], d.outcome) for d in decide(found, wanted)]


def test_thresholds_per_class_and_equal_counts_as_enough() -> None:
    wanted = concepts(Concept(0, "helmet", ("helmet",), conf=0.6, presence=0.4, min_area=400))
    found = [
        candidate("helmet", 0.6, HERE, presence=0.4),
        candidate("helmet", 0.59, FAR, query=1),
        candidate("helmet", 0.9, FAR, query=2, presence=0.39),
        candidate("helmet", 0.8, rectangle(0, 0, 20, 19), query=3),
    ]
    assert [(d.label.score, d.outcome) for d in decide(found, wanted)] == [
        (0.9, "low presence"),
        (0.8, "small"),
        (0.6, "label"),
        (0.59, "low score"),
    ]


def test_synonyms_merge_into_one_class_and_the_best_score_keeps_the_object() -> None:
    wanted = concepts(Concept(0, "helmet", ("hard hat", "safety helmet")))
    best, other = candidate("safety helmet", 0.8, NEAR), candidate("hard hat", 0.7, HERE)
    lone = candidate("hard hat", 0.6, FAR, query=1)
    labels = select_labels([other, lone, best], wanted)
    assert [(label.id, label.class_id, label.prompt) for label in labels] == [
        (best.id, 0, "safety helmet"),
        (lone.id, 0, "hard hat"),
    ]
    assert next(d for d in decide([other, best], wanted) if d.outcome == "duplicate").by == best.id


def test_duplicates_are_masks_over_the_class_iou_not_at_it() -> None:
    found = [candidate("a", 0.9, HERE), candidate("a", 0.8, HALF, query=1)]
    iou = float(masks.iou_matrix([HERE], [HALF])[0, 0])
    assert iou == pytest.approx(1 / 3)
    assert outcomes(found, concepts(Concept(0, "a", ("a",), iou=iou)))[1] == ("a", "label")
    assert outcomes(found, concepts(Concept(0, "a", ("a",), iou=0.33)))[1] == ("a", "duplicate")


def test_a_duplicate_of_a_duplicate_stays() -> None:
    """Greedy: only labels suppress."""
    wanted = concepts(Concept(0, "a", ("a",), iou=0.6))
    chain = [candidate("a", 0.9 - i / 10, rectangle(10 + 4 * i, 10, 20, 20), query=i) for i in range(3)]
    assert [o for _, o in outcomes(chain, wanted)] == ["label", "duplicate", "label"]


PART = rectangle(12, 12, 6, 6)  # lies in HERE


@pytest.mark.parametrize(("whole", "part"), [(0.9, 0.8), (0.8, 0.9)])
def test_of_a_mask_inside_another_of_its_class_the_better_score_stays(whole: float, part: float) -> None:
    found = [candidate("a", whole, HERE), candidate("a", part, PART, query=1)]
    decisions = decide(found, concepts(Concept(0, "a", ("a",))))
    assert [(d.label.score, d.outcome) for d in decisions] == [(0.9, "label"), (0.8, "inside")]
    assert decisions[1].by == decisions[0].label.id
    assert [o for _, o in outcomes(found, concepts(Concept(0, "a", ("a",), inside="keep")))] == ["label", "label"]


def test_a_part_of_another_class_is_never_inside() -> None:
    found = [candidate("car", 0.9, HERE), candidate("wheel", 0.8, PART)]
    wanted = concepts(Concept(0, "car", ("car",)), Concept(1, "wheel", ("wheel",)))
    assert outcomes(found, wanted) == [("car", "label"), ("wheel", "label")]


def test_a_mask_that_sticks_out_by_more_than_a_tenth_is_not_inside() -> None:
    inside, outside = rectangle(10, 10, 10, 10), rectangle(8, 10, 10, 10)  # 10 of 10 columns in HERE, 8 of 10
    wanted = concepts(Concept(0, "a", ("a",)))
    for mask, outcome in ((inside, "inside"), (outside, "label")):
        found = [candidate("a", 0.9, HERE), candidate("a", 0.8, mask, query=1)]
        assert outcomes(found, wanted)[1] == ("a", outcome)


@pytest.mark.parametrize(
    ("negative", "mask", "outcome"),
    [(0.9, NEAR, "hard negative"), (0.7, NEAR, "hard negative"), (0.69, NEAR, "label"), (0.9, HALF, "label")],
)
def test_hard_negatives_suppress_the_same_object_when_at_least_as_sure(
    negative: float, mask: object, outcome: str
) -> None:
    wanted = concepts(Concept(0, "helmet", ("helmet",), negatives=("baseball cap",)))
    against = candidate("baseball cap", negative, mask)  # type: ignore[arg-type]
    decisions = decide([candidate("helmet", 0.7, HERE), against], wanted)
    assert [d.outcome for d in decisions] == [outcome]
    assert decisions[0].by == (against.id if outcome == "hard negative" else None)


def test_a_phrase_may_be_one_class_and_another_ones_hard_negative() -> None:
    wanted = concepts(Concept(0, "helmet", ("helmet",), negatives=("cap",)), Concept(1, "cap", ("cap",)))
    assert wanted.phrases == ("helmet", "cap")
    found = [candidate("helmet", 0.7, HERE), candidate("cap", 0.8, NEAR)]
    assert outcomes(found, wanted) == [("helmet", "hard negative"), ("cap", "label")]


def test_exclusive_groups_give_one_object_one_class() -> None:
    wanted = concepts("forklift", "truck", "person", exclusive=(("forklift", "truck"),))
    found = [candidate("forklift", 0.7, HERE), candidate("truck", 0.8, NEAR), candidate("person", 0.9, HERE)]
    assert outcomes(found, wanted) == [("forklift", "exclusive"), ("truck", "label"), ("person", "label")]
    assert outcomes(found, replace(wanted, exclusive=())) == [
        ("forklift", "label"),
        ("truck", "label"),
        ("person", "label"),
    ]


def test_exclusive_leaves_two_objects_of_one_class_alone() -> None:
    wanted = concepts(Concept(0, "a", ("a",), iou=1.0, inside="keep"), Concept(1, "b", ("b",)), exclusive=(("a", "b"),))
    found = [candidate("a", 0.9, HERE), candidate("a", 0.8, NEAR, query=1), candidate("b", 0.5, FAR)]
    assert {o for _, o in outcomes(found, wanted)} == {"label"}


def test_max_instances_keeps_the_best() -> None:
    wanted = concepts(Concept(0, "a", ("a",), max_instances=1))
    found = [candidate("a", 0.6, HERE), candidate("a", 0.9, FAR, query=1)]
    assert [(d.label.score, d.outcome) for d in decide(found, wanted)] == [(0.9, "label"), (0.6, "max_instances")]


def test_a_phrase_of_two_classes_gives_labels_with_ids_of_their_own() -> None:
    wanted = concepts(Concept(0, "vehicle", ("truck",)), Concept(1, "lorry", ("truck",)))
    first, second = select_labels([candidate("truck", 0.9, HERE)], wanted)
    assert (first.class_id, second.class_id) == (0, 1)
    assert second.id == f"{first.id}-1"


def test_the_order_of_candidates_does_not_matter() -> None:
    wanted = concepts("a", "b", exclusive=(("a", "b"),))
    found = [
        candidate(p, 0.5, r, query=q) for q, (p, r) in enumerate([("a", HERE), ("a", NEAR), ("b", HERE), ("b", FAR)])
    ]
    assert decide(found, wanted) == decide(found[::-1], wanted)


def test_nothing_in_nothing_out() -> None:
    assert decide([], concepts("a", "b", exclusive=(("a", "b"),))) == ()


# ---- corrections


def corrected(found: list[Candidate], *corrections: Correction) -> tuple[list[tuple[str, int, str]], bool]:
    wanted = concepts("a", "b")
    decisions = decide(found, wanted)
    labels, reviewed = apply_corrections(select_labels(found, wanted), decisions, corrections, wanted.names)
    return [(label.id, label.class_id, label.source) for label in labels], reviewed


def test_each_kind_of_correction() -> None:
    one, two = candidate("a", 0.9, HERE), candidate("a", 0.8, FAR, query=1)
    found = [one, two]
    assert corrected(found, Correction("a.jpg", 0, "deleted", one.id)) == ([(two.id, 0, "phrase")], False)
    assert corrected(found, Correction("a.jpg", 0, "relabelled", one.id, class_name="b"))[0] == [
        (two.id, 0, "phrase"),
        (one.id, 1, "human"),
    ]
    added = Correction("a.jpg", 0, "added", "new", class_name="b", rle=HALF)
    assert corrected(found, added)[0] == [(one.id, 0, "phrase"), (two.id, 0, "phrase"), ("new", 1, "human")]
    assert corrected(found, added, Correction("a.jpg", 0, "deleted", "new"))[0] == [
        (one.id, 0, "phrase"),
        (two.id, 0, "phrase"),
    ]


def test_a_new_shape_brings_its_own_box_and_area() -> None:
    one = candidate("a", 0.9, HERE)
    wanted = concepts("a")
    decisions = decide([one], wanted)
    correction = Correction("a.jpg", 0, "reshaped", one.id, rle=HALF)
    ((label,), _) = apply_corrections(select_labels([one], wanted), decisions, [correction], wanted.names)
    assert (label.rle, label.area, label.box_xywh) == (HALF, 400, (20, 10, 20, 20))


def test_a_reviewed_image_holds_exactly_what_a_person_touched() -> None:
    one, two = candidate("a", 0.9, HERE), candidate("a", 0.8, FAR, query=1)
    approved, seen = Correction("a.jpg", 0, "approved", one.id), Correction("a.jpg", 0, "reviewed")
    assert corrected([one, two], approved, seen) == ([(one.id, 0, "phrase")], True)
    assert corrected([one, two], seen) == ([], True)


def test_what_a_person_approved_survives_a_higher_threshold() -> None:
    weak = candidate("a", 0.3, HERE)
    assert corrected([weak]) == ([], False)
    assert corrected([weak], Correction("a.jpg", 0, "approved", weak.id))[0] == [(weak.id, 0, "phrase")]


def test_edits_of_labels_that_are_gone_do_no_harm() -> None:
    assert corrected([], Correction("a.jpg", 0, "relabelled", "gone", class_name="b")) == ([], False)


# ---- a run


def make_run(folder: Path, wanted: ConceptList) -> None:
    with Store.writer(folder, phrase_prompts(*wanted.phrases), {"floor": 0.1}) as store:
        store.set_meta("concepts", concept_list.dump_concepts(wanted))
        store.set_meta("info", {"model": "tiny"})
        found = [candidate("a", 0.9, HERE, item_id="x/1.jpg"), candidate("b", 0.45, FAR, item_id="x/1.jpg")]
        store.write(
            [unit("x/1.jpg", *found, prompts=2), unit("empty.jpg", prompts=2), unit("bad.jpg", error="truncated")]
        )


def test_a_run_streams_done_images_in_order_and_lists_failures(tmp_path: Path) -> None:
    make_run(tmp_path, concepts("a", "b"))
    with open_run(tmp_path) as run:
        assert isinstance(run, Run)
        images = list(run.images())
        assert [(i.item.id, len(i.labels)) for i in images] == [("empty.jpg", 0), ("x/1.jpg", 1)]
        assert run.image("x/1.jpg") == images[1]
        assert run.image("bad.jpg") is None
        assert run.failures() == [("bad.jpg", "truncated")]
        assert len(run) == 2
        assert run.info == {"model": "tiny"}
        assert run.count_objects() == {"a": (1, 1), "b": (0, 0)}
        *_, last = run.done_units()
        (seen,) = run.frames(last)
        assert (seen.candidates, seen.image) == (run.candidates(last), images[1])
        assert (len(seen.candidates), seen.presence) == (2, {"a": 0.5, "b": 0.5})
        assert (run.floor, run.without_thresholds().concepts.concepts[1].conf) == (0.1, 0.0)
        assert run.unit("bad.jpg") is None


def test_thresholds_may_change_after_the_run_but_phrases_may_not(tmp_path: Path) -> None:
    make_run(tmp_path, concepts("a", "b"))
    with open_run(tmp_path, concepts(Concept(0, "b", ("b",), conf=0.4))) as run:
        assert run.count_objects() == {"b": (1, 1)}
    with pytest.raises(ConfigError, match="asks for 'c', which this run never put"):
        open_run(tmp_path, concepts("c"))
    with pytest.raises(ConfigError, match=r"at least 0\.1.*b \(0\.05\).*--floor"):
        open_run(tmp_path, concepts(Concept(0, "b", ("b",), conf=0.05)))


def test_corrections_reach_whoever_reads_the_run(tmp_path: Path) -> None:
    make_run(tmp_path, concepts("a", "b"))
    with Store.open(tmp_path) as store:
        store.add_corrections(
            [Correction("empty.jpg", 0, "added", "n", class_name="b", rle=FAR), Correction("empty.jpg", 0, "reviewed")]
        )
    with open_run(tmp_path) as run:
        image = run.image("empty.jpg")
        assert isinstance(image, LabeledImage)
        assert image.reviewed
        assert [(label.id, label.class_id, label.score) for label in image.labels] == [("n", 1, 1.0)]
        assert not next(i for i in run.images() if i.item.id == "x/1.jpg").reviewed


# ---- objects that were given by hand


def given(mask: Rle, box_xyxy: Box | None, score: float = 0.9, query: int = 0) -> Candidate:
    """An object of class `a` that a dataset gave, and the mask that it got."""
    hint = Hint(box_xyxy, () if box_xyxy else ((15.0, 15.0, True),))
    own = Given(hint, id=f"object {query}", attributes=(("colour", "red"),))
    return replace(candidate(exemplar_key("a"), score, mask, source="given", query=query), given=own)


EMPTY = rectangle(0, 0, 0, 0)
BOX = (9.0, 9.5, 31.0, 30.0)  # a little around HERE


def asked(**rules: Any) -> ConceptList:
    return concepts(Concept(0, "a", ("thing",), exemplars=Exemplars("boxes.json", "objects"), **rules))


def test_a_given_objects_mask_is_its_label_and_its_box_stays_as_drawn() -> None:
    (label,) = select_labels([given(HERE, BOX)], asked())
    assert (label.rle, label.box_xywh, label.doubt) == (HERE, (9.0, 9.5, 22.0, 20.5), None)
    assert label.given is not None and label.given.attributes == (("colour", "red"),)
    (snapped,) = select_labels([given(HERE, BOX)], asked(snap=True))
    assert (snapped.rle, snapped.box_xywh) == (HERE, (10.0, 10.0, 20.0, 20.0))
    (pointed,) = select_labels([given(HERE, None)], asked())
    assert pointed.box_xywh == (10.0, 10.0, 20.0, 20.0)


@pytest.mark.parametrize(
    ("mask", "score", "doubt"),
    [
        (EMPTY, 0.9, "no mask"),
        (FAR, 0.9, "outside its box"),
        (rectangle(0, 0, 60, 60), 0.9, "outside its box"),
        (HERE, 0.49, "unsure mask"),
        (HERE, 0.5, None),
        (rectangle(14, 14, 5, 5), 0.9, None),  # of a loose box: a small mask inside it is no doubt
    ],
)
def test_a_mask_that_is_not_to_be_believed_leaves_the_box(mask: Rle, score: float, doubt: str | None) -> None:
    for snap in (False, True):
        (label,) = select_labels([given(mask, BOX, score)], asked(snap=snap))
        assert label.doubt == doubt
        if doubt:
            assert label.box_xywh == (9.0, 9.5, 22.0, 20.5)
            assert label.rle == rectangle(9, 10, 22, 20)  # the pixels whose centers are in the box


def test_a_point_without_a_mask_is_a_pixel() -> None:
    (label,) = select_labels([given(EMPTY, None)], asked())
    assert (label.rle, label.doubt) == (rectangle(15, 15, 1, 1), "no mask")


def test_what_was_given_is_never_dropped_and_goes_before_what_was_found() -> None:
    wanted = replace(asked(max_instances=1), exclusive=())
    found = candidate("thing", 0.99, NEAR)
    twins = [given(HERE, BOX), given(NEAR, BOX, 0.8, query=1), given(EMPTY, (1.0, 1.0, 3.0, 3.0), 0.1, query=2)]
    decisions = decide([found, *twins], wanted)
    assert [d.outcome for d in decisions if d.label.given] == ["label"] * 3
    assert [(d.outcome, d.by) for d in decisions if not d.label.given] == [("duplicate", twins[0].id)]


def test_given_objects_come_back_from_the_store(tmp_path: Path) -> None:
    own = [given(HERE, BOX), given(EMPTY, None, 0.3, query=1)]
    prompts = [Prompt(exemplar_key("a"), None, "given", "a")]
    with Store.writer(tmp_path, prompts, {}) as store:
        store.write([unit("a.jpg", *own)])
        (one,) = store.units()
        assert store.candidates(one) == tuple(own)

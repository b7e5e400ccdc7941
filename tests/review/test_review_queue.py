"""The review queue: each reason with a case that has it and one that just has not, and the audit sample's fairness."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import SIZE_HW, candidate, concepts, rectangle
from support.reviewing import make_run, three_shapes

from sam3label.core.records import Candidate, Concept, ConceptList, Correction, MediaItem
from sam3label.review.reasons import EXPLAINED, KINDS, Case, Reason, case, gains, reasons, sentence, worst_first
from sam3label.review.survey import (
    SeenImage,
    Survey,
    audit_sample,
    empty_among_similar,
    look,
    survey,
    survey_run,
    usual_size,
)
from sam3label.run.decide import decide
from sam3label.run.reader import open_run

HELMETS = concepts(
    Concept(0, "helmet", ("helmet",), ("cap",), conf=0.6),
    Concept(1, "person", ("person",)),
    exclusive=(("helmet", "person"),),
)
NOTHING = Survey({}, {}, {})
LEFT, RIGHT = rectangle(0, 0, 20, 20), rectangle(40, 0, 20, 20)


def seen(*candidates: Candidate, of: ConceptList = HELMETS, presence: dict[str, float] | None = None) -> SeenImage:
    quiet = {phrase: 0.9 if any(c.prompt == phrase for c in candidates) else 0.1 for phrase in of.phrases}
    return SeenImage("a.jpg", 0, SIZE_HW, decide(candidates, of), quiet | (presence or {}))


def found(image: SeenImage, of: ConceptList = HELMETS, whole: Survey = NOTHING) -> dict[str, Reason]:
    return {r.kind: r for r in reasons(image, of, whole)}


def test_a_sure_image_gives_no_reason() -> None:
    assert reasons(seen(candidate("helmet", 0.9, LEFT)), HELMETS, NOTHING) == ()


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (0.65, "helmet 0.65 is a label, just over the threshold 0.60"),
        (0.55, "helmet 0.55 is left out, just under the threshold 0.60"),
    ],
)
def test_scores_near_the_class_threshold(score: float, words: str) -> None:
    image = seen(candidate("helmet", score, LEFT))
    reason = found(image)["near threshold"]
    assert reason.words == words
    assert reason.gain == pytest.approx(0.5)
    assert reason.label_ids == (image.decisions[0].label.id,)


def test_a_weak_copy_of_a_label_is_not_near_the_threshold() -> None:
    assert "near threshold" not in found(seen(candidate("helmet", 0.9, LEFT), candidate("helmet", 0.55, LEFT, query=1)))


def test_two_weak_candidates_on_one_object_are_one_doubt() -> None:
    weak = (
        candidate("helmet", 0.55, LEFT),
        candidate("helmet", 0.54, LEFT, query=1),
        candidate("helmet", 0.53, RIGHT, query=2),
    )
    near = [r for r in reasons(seen(*weak), HELMETS, NOTHING) if r.kind == "near threshold"]
    assert [r.label_ids for r in near] == [(weak[0].id,), (weak[2].id,)]


def test_presence_says_yes_and_nothing_is_labelled() -> None:
    reason = found(seen(presence={"person": 0.8}))["presence disagrees"]
    assert reason.words == "'person' is said to be there (presence 0.80), but no person is labelled"
    assert reason.gain == pytest.approx(0.8)
    assert "presence disagrees" not in found(seen(presence={"person": 0.49}))
    assert "presence disagrees" not in found(seen(candidate("person", 0.9, LEFT), presence={"person": 0.8}))
    synonyms = concepts(Concept(0, "helmet", ("helmet", "hard hat")))
    other = seen(candidate("helmet", 0.9, LEFT), of=synonyms, presence={"hard hat": 0.9})
    assert "presence disagrees" not in found(other, synonyms), "the class is labelled, by its other phrase"


def test_presence_says_no_and_there_is_a_label() -> None:
    sure = candidate("person", 0.45, LEFT, presence=0.46)
    low = concepts(Concept(0, "person", ("person",), conf=0.3))
    reason = found(seen(sure, of=low, presence={"person": 0.46}), low)["presence disagrees"]
    assert reason.words == "person 0.45 is a label, though 'person' is said to be absent (presence 0.46)"
    assert (reason.gain, reason.label_ids) == (pytest.approx(0.54), (sure.id,))
    weak = candidate("person", 0.18, LEFT, presence=0.2)
    assert found(seen(weak, presence={"person": 0.2})) == {}, "presence is right when nothing was labelled"


def test_two_classes_claim_one_object() -> None:
    free = concepts("helmet", "person")
    image = seen(candidate("helmet", 0.9, LEFT), candidate("person", 0.72, LEFT), of=free)
    reason = found(image, free)["two classes"]
    assert reason.words == "one object is helmet (0.90) and person (0.72)"
    assert reason.gain == pytest.approx(0.8)
    apart = seen(candidate("helmet", 0.9, LEFT), candidate("person", 0.9, RIGHT), of=free)
    assert "two classes" not in found(apart, free)


def test_an_exclusive_group_that_settled_it_is_shown_too() -> None:
    assert found(seen(candidate("helmet", 0.9, LEFT), candidate("person", 0.9 * 0.8, LEFT)))["two classes"].gain == (
        pytest.approx(0.8)
    )


def test_twins_of_one_class_that_its_iou_let_stand() -> None:
    box = rectangle(0, 0, 20, 20)
    near, far = rectangle(4, 0, 20, 20), rectangle(8, 0, 20, 20)  # IoU 0.67, and 0.7 is where the class merges; 0.43
    reason = found(seen(candidate("helmet", 0.9, box), candidate("helmet", 0.8, near, query=1)))["twins"]
    assert reason.words == "helmet: two labels overlap by 67% (IoU), perhaps one object"
    assert reason.gain == pytest.approx(2 / 3)
    assert "twins" not in found(seen(candidate("helmet", 0.9, box), candidate("helmet", 0.8, far, query=1)))


def test_answers_near_the_models_limit_may_not_be_all_objects() -> None:
    grid = [rectangle(2 * (q % 40), 2 * (q // 40), 1, 1) for q in range(24)]
    crowd = [candidate("person", 0.9, rle, query=q) for q, rle in enumerate(grid)]
    full, free = Survey({}, {}, {}, queries=25), Survey({}, {}, {}, queries=200)
    reason = found(seen(*crowd), whole=full)["saturated"]
    assert reason.words == "'person' has 24 answers of 25 that the model can give: there may be more"
    assert (reason.gain, reason.label_ids) == (pytest.approx(24 / 25), ())
    assert "saturated" not in found(seen(*crowd), whole=free)
    assert "saturated" not in found(seen(*crowd[:23]), whole=full)
    one = [candidate("person", 0.9, grid[0], query=q) for q in range(24)]
    assert "saturated" in found(seen(*one), whole=full), "duplicates take up answers too"


def test_a_list_that_ends_at_max_instances_says_how_many_more_there_were() -> None:
    two = concepts(Concept(0, "person", ("person",), max_instances=2))
    three = [candidate("person", 0.9, rectangle(20 * q, 0, 10, 10), query=q) for q in range(3)]
    reason = found(seen(*three, of=two), two)["cut short"]
    assert reason.words == "person: 1 more were left out, max_instances is 2"
    assert reason.gain == pytest.approx(1 / 3)
    assert "cut short" not in found(seen(*three[:2], of=two), two)


def test_synonyms_disagree_unless_each_saw_the_object() -> None:
    synonyms = concepts(Concept(0, "helmet", ("helmet", "hard hat")))
    alone = found(seen(candidate("helmet", 0.9, LEFT), of=synonyms), synonyms)["synonyms disagree"]
    assert alone.words == "helmet found by 'helmet' (0.90) but not by 'hard hat'"
    both = seen(candidate("helmet", 0.9, LEFT), candidate("hard hat", 0.2, LEFT), of=synonyms)
    assert "synonyms disagree" not in found(both, synonyms)


def test_suppressed_by_a_hard_negative() -> None:
    image = seen(candidate("helmet", 0.8, LEFT), candidate("cap", 0.9, LEFT))
    reason = found(image)["hard negative"]
    assert reason.words == "helmet 0.80 was suppressed by its `not:` phrases"
    assert reason.gain == pytest.approx(0.8)


def test_unusual_size_says_what_is_usual() -> None:
    usual = usual_size([0.01 * (1 + 0.1 * math.sin(i)) for i in range(50)])
    whole = Survey({0: usual}, {}, {})
    large = found(seen(candidate("helmet", 0.9, rectangle(0, 0, 60, 60))), whole=whole)["unusual size"]
    assert large.words.startswith("helmet covers 75% of the image; half of them cover 0.9")
    small = found(seen(candidate("helmet", 0.9, rectangle(0, 0, 7, 7))), whole=whole)
    assert "unusual size" not in small


def test_specks_and_whole_images_are_unusual_in_any_class() -> None:
    speck = found(seen(candidate("helmet", 0.9, rectangle(0, 0, 6, 6))))["unusual size"]
    assert speck.words == "helmet is 36 pixels in all"
    whole = found(seen(candidate("helmet", 0.9, rectangle(0, 0, 80, 57))))["unusual size"]
    assert whole.words == "helmet covers 95% of the image"
    assert "unusual size" not in found(seen(candidate("helmet", 0.9, rectangle(0, 0, 7, 6))))


def test_a_class_needs_enough_labels_before_one_is_unusual() -> None:
    few = [seen(candidate("helmet", 0.9, rectangle(0, 0, 5, 5))) for _ in range(19)]
    odd = seen(candidate("helmet", 0.9, rectangle(0, 0, 60, 60)))
    assert survey([*few, odd], 0).sizes.keys() == {0}
    assert survey(few, 0).sizes == {}


def test_empty_where_similar_images_are_not() -> None:
    full, lonely, blank = np.array([0.9, 0.1]), np.array([0.8, 0.1]), np.array([0.1, 0.1])
    ids = [f"{i}" for i in range(20)]
    vectors = [full] * 9 + [lonely] + [blank] * 10
    assert empty_among_similar(ids, [v.astype(np.float32) for v in vectors], [False] * 9 + [True] * 11) == {"9": 1.0}
    image = seen()
    whole = Survey({}, {"a.jpg": 0.8}, {})
    assert found(image, whole=whole)["empty among similar"].words == (
        "empty, though 80% of the 5 images most like it have labels"
    )
    assert "empty among similar" not in found(seen(candidate("helmet", 0.9, LEFT)), whole=whole)


def test_too_few_images_have_no_similar_ones() -> None:
    assert empty_among_similar(["a", "b"], [np.zeros(1, np.float32)] * 2, [True, False]) == {}


def test_gains_add_up_by_kind() -> None:
    image = seen(candidate("helmet", 0.65, LEFT), candidate("helmet", 0.55, RIGHT, query=1))
    total = gains(reasons(image, HELMETS, NOTHING))
    assert total["near threshold"] == pytest.approx(1.0)
    assert set(total) == set(KINDS)
    assert total["audit"] == 0


def test_audit_sample_is_uniform() -> None:
    """Each of 40 ids in 2,000 samples of 10: 500 times each, give or take five standard deviations (19.4)."""
    times: Counter[str] = Counter()
    for draw in range(2000):
        times.update(id_.split("/")[1] for id_ in audit_sample((f"{draw}/{i}" for i in range(40)), 10))
    assert len(times) == 40
    assert max(abs(count - 500) for count in times.values()) < 97


def test_audit_sample_does_not_depend_on_order_and_keeps_most_of_itself_when_media_are_added() -> None:
    ids = [f"{i}.jpg" for i in range(200)]
    first = audit_sample(ids, 20)
    assert audit_sample(reversed(ids), 20) == first
    later = audit_sample([*ids, *(f"new/{i}.jpg" for i in range(50))], 20)
    assert len(set(first) & set(later)) >= 12
    assert [i for i in later if not i.startswith("new/")] == [i for i in first if i in later]


def test_audit_sample_of_everything_is_everything() -> None:
    whole = survey((SeenImage(f"{i}", 0, SIZE_HW, (), {}) for i in range(3)), 50)
    assert sorted(whole.audit.values()) == [0, 1, 2]
    assert found(SeenImage("0", 0, SIZE_HW, (), {}), whole=whole)["audit"].words.endswith("of 3")


def test_what_a_person_has_settled_gives_no_reason() -> None:
    near = candidate("helmet", 0.65, LEFT)
    image = seen(near, candidate("helmet", 0.55, RIGHT, query=1))
    assert len(reasons(image, HELMETS, NOTHING)) == 2
    corrected = replace(image, corrected=frozenset({near.id}))
    assert [r.words for r in reasons(corrected, HELMETS, NOTHING)] == [
        "helmet 0.55 is left out, just under the threshold 0.60"
    ]
    assert reasons(replace(image, reviewed=True), HELMETS, NOTHING) == ()


def test_every_kind_is_explained() -> None:
    assert tuple(EXPLAINED) == KINDS


# ---- the queue


def test_a_video_speaks_once_per_kind_of_its_worst_frame() -> None:
    frames = [Reason("near threshold", f"score {n}", gain, frame=n) for n, gain in enumerate((0.2, 0.9, 0.4))]
    video = case(MediaItem("a.mp4", "/a.mp4", "video"), frames)
    assert [r.words for r in video.reasons] == ["frame 1: score 1"]
    photo_case = case(MediaItem("a.jpg", "/a.jpg"), frames)
    assert [r.gain for r in photo_case.reasons] == [0.9, 0.4, 0.2]
    assert sentence([*photo_case.reasons, Reason("near threshold", "x", 0.1)]) == (
        "near threshold: score 1; score 2; score 0; 1 more"
    )
    assert sentence(()) is None


def test_the_worst_come_first_equal_ones_by_id_and_reviewed_ones_not_at_all() -> None:
    def one(name: str, *gains_: float, reviewed: bool = False) -> Case:
        return Case(MediaItem(name, name), tuple(Reason("twins", "w", g) for g in gains_), reviewed)

    every = [one("a", 0.5), one("b", 0.3, 0.4), one("c", 0.5), one("d"), one("e", 0.9, reviewed=True), one("f", 0.1)]
    assert [c.item.id for c in worst_first(every, 9)["twins"]] == ["b", "a", "c", "f"]
    assert [c.item.id for c in worst_first(every, 2)["twins"]] == ["b", "a"]
    assert list(worst_first(every, 2)) == ["twins"]


def test_a_run_says_how_many_answers_its_model_can_give(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [three_shapes(tmp_path, "a.png")])
    with open_run(folder) as run:
        assert survey_run(run, 0).queries == 200
        run.keep_note("info", {**run.info, "queries": 25})
        assert survey_run(run, 0).queries == 25
        unit = next(run.done_units())
        assert [s.reviewed for s in look(run, unit)] == [False]
        run.record([Correction("a.png", 0, "reviewed")])
        assert [s.reviewed for s in look(run, unit)] == [True]

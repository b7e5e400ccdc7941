"""The review queue: each reason with a case that has it and one that just has not, and the audit sample's fairness."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from support.builders import SIZE_HW, candidate, concepts, rectangle

from sam3label.core.records import Candidate, Concept, ConceptList
from sam3label.review.reasons import (
    KINDS,
    Reason,
    Seen,
    Survey,
    audit_sample,
    empty_among_similar,
    gains,
    reasons,
    survey,
    usual_size,
)
from sam3label.run.decide import decide

HELMETS = concepts(
    Concept(0, "helmet", ("helmet",), ("cap",), conf=0.6),
    Concept(1, "person", ("person",)),
    exclusive=(("helmet", "person"),),
)
NOTHING = Survey({}, {}, {})
LEFT, RIGHT = rectangle(0, 0, 20, 20), rectangle(40, 0, 20, 20)


def seen(*candidates: Candidate, of: ConceptList = HELMETS, presence: dict[str, float] | None = None) -> Seen:
    quiet = {phrase: 0.9 if any(c.prompt == phrase for c in candidates) else 0.1 for phrase in of.phrases}
    return Seen("a.jpg", 0, SIZE_HW, decide(candidates, of), quiet | (presence or {}))


def found(image: Seen, of: ConceptList = HELMETS, whole: Survey = NOTHING) -> dict[str, Reason]:
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


def test_presence_says_yes_and_no_object_convinces() -> None:
    reason = found(seen(presence={"person": 0.8}))["presence disagrees"]
    assert reason.words == "'person' is said to be there (presence 0.80), but no object convinces (best 0.00)"
    assert reason.gain == pytest.approx(0.8)


def test_presence_says_no_and_an_object_convinces() -> None:
    weak = candidate("person", 0.18, LEFT, presence=0.2)
    reason = found(seen(weak, presence={"person": 0.2}))["presence disagrees"]
    assert reason.words == "'person' is said to be absent (presence 0.20), but one object convinces (0.90)"
    assert reason.gain == pytest.approx(0.7)


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
    whole = survey((Seen(f"{i}", 0, SIZE_HW, (), {}) for i in range(3)), 50)
    assert sorted(whole.audit.values()) == [0, 1, 2]
    assert found(Seen("0", 0, SIZE_HW, (), {}), whole=whole)["audit"].words.endswith("of 3")

"""What a list still needs of a unit, whatever it was asked before and in whatever order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builders import candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.core.records import Concept, Exemplars, Prompt
from sam3label.errors import ConfigError
from sam3label.run.asked import Asked, Wanted
from sam3label.run.reader import open_run
from sam3label.run.store import Store

GUIDE = Exemplars("refs", "references")


def wanted(*classes: str | Concept, **guides: str) -> Wanted:
    return Wanted.of(concepts(*classes), guides)


def asked(*keys: str, **guides: str) -> Asked:
    return Asked(frozenset(keys), guides)


def test_what_was_not_asked_is_missing_and_the_rest_is_not() -> None:
    assert wanted("cat", "dog").missing(asked("dog")) == {"cat"}
    assert wanted("dog").missing(asked("dog", "cat")) == set()
    assert wanted("dog", "cat").missing(asked("cat", "dog")) == set()
    with_negative = Concept(0, "cat", ("cat",), negatives=("toy",))
    assert wanted(with_negative).missing(asked("cat")) == {"toy"}


def test_exemplars_are_told_apart_by_what_they_were() -> None:
    guided = Concept(0, "cat", (), exemplars=GUIDE)
    (prompt,) = wanted(guided, cat="d1").prompts
    assert (prompt.key, prompt.identity) == ("exemplar:cat", "exemplar:cat\0d1")
    assert wanted(guided, cat="d1").missing(asked("exemplar:cat\0d1", cat="d1")) == set()
    assert wanted(guided, cat="d2").missing(asked("exemplar:cat\0d1", cat="d1")) == {"exemplar:cat"}


def test_an_image_passed_over_for_its_exemplars_is_not_asked_again_until_these_change() -> None:
    guided = Concept(0, "cat", ("cat",), exemplars=GUIDE)
    key = "exemplar:cat\tcat"
    assert wanted(guided, cat="d1").missing(asked(f"{key}\0d1", cat="d1")) == set()
    assert wanted(guided, cat="d1").missing(asked("cat", cat="d1")) == set()  # one without exemplars of the class
    assert wanted(guided, cat="d2").missing(asked(f"{key}\0d1", cat="d1")) == {key, "cat"}
    assert wanted("cat").missing(asked(f"{key}\0d1", cat="d1")) == {"cat"}
    both = (guided, Concept(1, "pet", ("cat",)))
    assert wanted(*both, cat="d1").missing(asked(f"{key}\0d1", cat="d1")) == {"cat"}


def test_a_phrase_asked_before_the_exemplars_came_does_not_count_beside_them() -> None:
    guided = Concept(0, "cat", ("cat",), exemplars=GUIDE)
    assert wanted(guided, cat="d").superseded({"exemplar:cat\tcat", "cat"}) == {"cat"}
    assert wanted(guided, cat="d").superseded({"cat"}) == set()
    assert wanted(guided, Concept(1, "pet", ("cat",)), cat="d").superseded({"exemplar:cat\tcat"}) == set()


def grow(folder: Path, *phrases: str) -> Store:
    return Store.writer(folder, phrase_prompts(*phrases), {"floor": 0.1})


def test_answers_lie_beside_those_that_were_there_and_images_wait_until_all_are(tmp_path: Path) -> None:
    cat, dog = candidate("cat", 0.75, rectangle(0, 0, 9, 9)), candidate("dog", 0.5, rectangle(20, 0, 9, 9))
    with grow(tmp_path, "cat") as store:
        store.write([unit("a.jpg", cat), unit("b.jpg")])
    with grow(tmp_path, "dog", "cat") as store:
        half = unit("a.jpg", dog, prompts=2)
        store.write([half.__class__(half.item, 0, 1, half.size_hw, (dog,), np.array([[0.25, np.nan]], np.float32))])
        first, _ = store.units()
        assert {c.prompt: c.score for c in store.candidates(first)} == {"cat": 0.75, "dog": 0.5}
        assert store.presence(first).tolist() == [[0.25, 0.5]]
    both = concepts(Concept(0, "cat", ("cat",), conf=0.3), Concept(1, "dog", ("dog",), conf=0.3))
    with open_run(tmp_path, both) as run:
        assert [u.item.id for u in run.done_units()] == ["a.jpg"]
        assert run.count_objects() == {"cat": (1, 1), "dog": (1, 1)}
        coverage = run.coverage()
        assert (coverage.units, dict(coverage.asked), coverage.waiting) == (2, {"cat": 2, "dog": 1}, ("b.jpg",))
        assert run.image("b.jpg") is None
    with open_run(tmp_path, concepts("cat")) as run:
        assert len(run) == 2
        assert run.coverage().unlisted == ("dog",)
        (seen,) = run.frames(next(run.done_units()))
        assert seen.presence == {"cat": 0.5}


def test_what_could_not_be_asked_is_a_failure_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    cat = candidate("cat", 0.75, rectangle(0, 0, 9, 9))
    with grow(tmp_path, "cat") as store:
        store.write([unit("a.jpg", cat)])
    with grow(tmp_path, "cat", "dog") as store:
        store.write([unit("a.jpg", error="no such file")])
    with open_run(tmp_path, concepts("cat", "dog")) as run:
        assert run.failures() == [("a.jpg", "no such file")]
        assert len(run) == 0
    with open_run(tmp_path, concepts("cat")) as run:
        assert run.failures() == []
        assert run.count_objects() == {"cat": (1, 1)}
    with pytest.raises(ConfigError, match="asks for 'bird', which this run never put.*Ask for it now"):
        open_run(tmp_path, concepts("bird"))


def test_prompts_with_other_exemplars_do_not_mix(tmp_path: Path) -> None:
    def prompt(digest: str) -> list[Prompt]:
        return [Prompt("exemplar:cat", None, "exemplar", "cat", digest)]

    old, new = (
        candidate("exemplar:cat", 0.9, rectangle(0, 0, 9, 9)),
        candidate("exemplar:cat", 0.8, rectangle(0, 0, 5, 5)),
    )
    with Store.writer(tmp_path, prompt("1"), {}, notes={"exemplars": {"cat": "1"}}) as store:
        store.write([unit("a.jpg", old), unit("b.jpg", old)])
    with Store.writer(tmp_path, prompt("2"), {}, notes={"exemplars": {"cat": "2"}}) as store:
        store.write([unit("a.jpg", new)])
    guided = concepts(Concept(0, "cat", (), exemplars=GUIDE))
    with open_run(tmp_path, guided) as run:
        (done,) = run.done_units()
        assert [c.score for c in run.candidates(done)] == [0.8]
        assert run.coverage().waiting == ("b.jpg",)
    with Store.writer(tmp_path, prompt("1"), {}, notes={"exemplars": {"cat": "1"}}) as store:
        assert [c.score for u in store.units() for c in store.candidates(u)] == [0.9, 0.9]


def test_a_class_is_known_by_its_exemplars_and_a_phrase_by_no_tiles(tmp_path: Path) -> None:
    tiles = "tiles of\t"
    with Store.writer(tmp_path, [], {}, notes={"exemplars": {"cat": "1", f"{tiles}cat": "t"}}) as store:
        assert store.renamings({"puss": "1", f"{tiles}puss": "t"}) == {"cat": "puss"}
        assert store.renamings({"puss": "2"}) == {}
        assert store.renamings({"puss": "1", "tom": "1"}) == {}  # which of them?
        assert store.renamings({"cat": "1", "puss": "1"}) == {}

"""What is rehearsed: sure answers alone, of photos that neither judge nor guard, to phrases that the base knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Candidate, Correction, Exemplars, LabeledImage, MediaItem, Rle, UnitResult
from sam3label.export.splits import Splits
from sam3label.flywheel.material import Division, Material, gather
from sam3label.flywheel.rehearsal import Rehearsal, Unreviewed, answers_of, rehearse, unreviewed
from sam3label.run.reader import Run, SeenFrame, open_run
from sam3label.run.store import Store
from sam3label.train.taught import PhraseAnswer

LIST = concepts("circle", "plus")
THERE, BESIDE = rectangle(2, 2, 20, 20), rectangle(40, 20, 20, 20)
HALF = Division(0.5, Splits(by_folder=True))
AT = "2026-12-01T10:00:00+00:00"
REVIEWED, REST = 20, 12  # photos, of which two lie in a folder


def photo(item_id: str, *found: Candidate, circle: float = 0.0, plus: float = 0.0) -> UnitResult:
    presence = np.array([[circle, plus]], np.float32)
    return UnitResult(MediaItem(item_id, f"/photos/{item_id}"), 0, 1, SIZE_HW, found, presence)


def circle(item_id: str, *scores: float) -> UnitResult:
    """A photo in which the base sees circles."""
    found = (
        candidate("circle", score, rle, item_id=item_id, query=n)
        for n, (score, rle) in enumerate(zip(scores, (THERE, BESIDE), strict=False))
    )
    return photo(item_id, *found, circle=max(scores))


def make_run(folder: Path, units: Sequence[UnitResult], chosen=LIST, model: str = "base") -> Run:  # type: ignore[no-untyped-def]
    notes = {"concepts": dump_concepts(chosen), "info": {"model": "demo", "checkpoint": model}}
    with Store.writer(folder, phrase_prompts(*chosen.phrases), {"floor": 0.1}, notes=notes) as store:
        store.write(list(units))
    return open_run(folder)


def name(number: int, kind: str) -> str:
    return f"{number // 2:02}/{kind}-{number}.jpg"


def project(folder: Path, rest: Sequence[UnitResult] | None = None) -> Run:
    """A run over photos of which the first were reviewed: the base is right on circles, people added each plus.

    Half of the others lie in the folders of reviewed ones.
    """
    reviewed = [circle(name(n, "reviewed"), 0.9) for n in range(REVIEWED)]
    others = [circle(name(n + REVIEWED - REST // 2, "other"), 0.9) for n in range(REST)] if rest is None else rest
    run = make_run(folder, [*reviewed, *others])
    made = []
    for unit in reviewed:
        how = {"item_id": unit.item.id, "frame": 0, "at": AT}
        made.append(Correction(action="approved", label_id=unit.candidates[0].id, **how))
        made.append(Correction(action="added", label_id=f"{unit.item.id}-plus", class_name="plus", rle=BESIDE, **how))
        made.append(Correction(action="reviewed", **how))
    run.record(made)
    return run


def everything(run: Run, guard: int = 100) -> tuple[Material, Unreviewed]:
    material = gather([run], HALF)
    return material, unreviewed([run], material, HALF.groups, guard)


SMALLER, PART = rectangle(2, 2, 20, 18), rectangle(4, 4, 6, 6)


@pytest.mark.parametrize(
    ("found", "presence", "answer"),
    [
        ({0.9: THERE}, 0.9, (1, 0, False)),
        ({0.9: THERE, 0.81: BESIDE}, 0.9, (2, 0, False)),
        ({0.9: THERE, 0.2: BESIDE}, 0.9, (1, 0, False)),
        ({0.9: THERE, 0.5: BESIDE}, 0.9, (1, 1, False)),  # it may be another
        ({0.9: THERE, 0.5: SMALLER}, 0.9, (1, 0, False)),  # the same again
        ({0.9: THERE, 0.5: PART}, 0.9, (1, 0, False)),
        ({0.5: THERE}, 0.9, (0, 1, False)),
        ({}, 0.05, (0, 0, True)),
        ({}, 0.5, (0, 0, False)),  # there may be one somewhere
    ],
)
def test_an_answer_is_sure_where_its_score_is_high_or_low(
    found: dict[float, Rle], presence: float, answer: tuple[int, int, bool]
) -> None:
    seen = tuple(candidate("circle", score, rle, query=n) for n, (score, rle) in enumerate(found.items()))
    image = LabeledImage(MediaItem("a.jpg", "a.jpg"), SIZE_HW)
    answers = answers_of(SeenFrame(seen, (), {"circle": presence}, image), ["circle", "never asked"])
    assert {phrase: (len(one.objects), len(one.unsure), one.silent) for phrase, one in answers.items()} == {
        "circle": answer
    }


def test_photos_that_judge_or_guard_are_never_rehearsed_nor_others_of_their_groups(tmp_path: Path) -> None:
    with project(tmp_path) as run:
        material, others = everything(run)
        rehearsal = rehearse([run], material, others.free, "base")
    groups = [
        {HALF.groups.group(id_) for id_ in ids}
        for ids in (
            (image.item.id for image in material.held_out),
            (item.id for item in others.guard),
            (taught.item.id for taught in rehearsal.photos),
        )
    ]
    assert others.guard and rehearsal.photos and len(others.guard) <= REST / 3 + 1
    assert not groups[2] & (groups[0] | groups[1])
    assert not {image.item.id for image in material.train} & {taught.item.id for taught in rehearsal.photos}
    with open_run(tmp_path) as run:
        assert everything(run)[1] == others  # the same every time
        few = everything(run, guard=1)[1]
    assert len(few.guard) == 1 and few.free >= others.free


def test_what_the_base_was_silent_about_is_not_rehearsed(tmp_path: Path) -> None:
    with project(tmp_path) as run:
        material, others = everything(run)
        rehearsal = rehearse([run], material, others.free, "base")
        other = rehearse([run], material, others.free, "another checkpoint")
    assert rehearsal.phrases == ("circle",)
    assert all(taught.questions == (PhraseAnswer("circle", (0,)),) for taught in rehearsal.photos)
    assert rehearsal.photos[0].objects[0].rle == THERE
    assert rehearsal.photos[0].objects[0].box_xyxy == pytest.approx((2 / 80, 2 / 60, 22 / 80, 22 / 60))
    assert other == Rehearsal() and "nothing is rehearsed" in other.told


def test_the_surest_photos_come_first_and_of_what_is_unsure_nothing_is_learned(tmp_path: Path) -> None:
    unsure = [circle(f"unsure-{n}/0.jpg", 0.5) for n in range(4)]
    half = [circle(f"half-{n}/0.jpg", 0.9, 0.5) for n in range(4)]
    silent = [photo(f"silent-{n}/0.jpg") for n in range(4)]
    sure = [circle(f"sure-{n}/0.jpg", 0.9, 0.9) for n in range(4)]
    with project(tmp_path, [*unsure, *half, *silent, *sure]) as run:
        material, _ = everything(run)
        chosen = [
            rehearse([run], material, [unit.item.id for unit in free], "base")
            for free in ([*unsure, *silent, *sure, *half], [*silent, *half, *unsure[:2]], unsure)
        ]
    kinds = [{taught.item.id.split("-")[0] for taught in rehearsal.photos} for rehearsal in chosen]
    assert [len(rehearsal.photos) for rehearsal in chosen] == [8, 5, 0]
    assert "sure" in kinds[0] and kinds[1] <= {"half", "silent"} and not any("unsure" in kind for kind in kinds)
    said = "8 photos that nobody reviewed are rehearsed, by what the base is sure of there: 1 phrase"
    assert chosen[0].told == said
    (taught, *_) = (one for one in chosen[1].photos if one.item.id.startswith("half"))
    assert taught.questions == (PhraseAnswer("circle", (0,), unsure=(1,)),)
    assert (taught.objects[0].rle, taught.objects[1].rle) == (THERE, None)


def test_photos_that_people_corrected_in_part_are_not_rehearsed(tmp_path: Path) -> None:
    with project(tmp_path) as run:
        before = everything(run)[1]
        corrected = min(before.free)
        run.record([Correction(corrected, 0, "added", "new", "plus", BESIDE, at=AT)])
        assert everything(run)[1].free == before.free - {corrected}


def test_phrases_with_exemplars_are_not_rehearsed(tmp_path: Path) -> None:
    with project(tmp_path) as run:
        material, others = everything(run)
        shown = replace(material.asked[0], exemplars=Exemplars("labels", "labels"))
        assert rehearse([run], replace(material, asked=(shown,)), others.free, "base").photos == ()


def test_a_run_that_was_reviewed_whole_rehearses_nothing(tmp_path: Path) -> None:
    with project(tmp_path, []) as run:
        material, others = everything(run)
        assert others == Unreviewed((), frozenset())
        assert rehearse([run], material, others.free, "base") == Rehearsal()

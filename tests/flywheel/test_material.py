"""What is learned from: reviewed photos or a truth, the questions about them, and the part that is held out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle, unit

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Concept, Condition, Correction, Exemplars
from sam3label.errors import InputError
from sam3label.export.splits import Splits
from sam3label.flywheel.material import Division, gather
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Store
from sam3label.train.taught import PhraseAnswer

PHOTOS = 16
LIST = concepts(
    Concept(0, "helmet", ("hard hat", "helmet"), ("cap",)),
    Concept(1, "person", ("person",)),
    Concept(2, "bare head", ("head",), where=(Condition("with", "helmet", "top", negated=True),)),
)
HALF = Division(0.5, Splits())
AT = "2026-11-01T10:00:00+00:00"


def make_run(folder: Path, reviewed: int = PHOTOS, chosen=LIST) -> Run:  # type: ignore[no-untyped-def]
    """A run with a helmet in every photo, of which people approved those in even ones and deleted the others."""
    notes = {"concepts": dump_concepts(chosen), "info": {"model": "demo"}}
    prompts = phrase_prompts(*chosen.phrases)
    with Store.writer(folder, prompts, {"floor": 0.1}, notes=notes) as store:
        for number in range(PHOTOS):
            item = f"{number:02}.jpg"
            store.write(
                [unit(item, candidate("hard hat", 0.9, rectangle(2, 2, 8, 8), item_id=item), prompts=len(prompts))]
            )
    run = open_run(folder)
    made = []
    for image in list(run.images())[:reviewed]:
        action = "approved" if int(image.item.id[:2]) % 2 == 0 else "deleted"
        made.append(Correction(image.item.id, 0, action, image.labels[0].id, who="anna", at=AT))
        made.append(Correction(image.item.id, 0, "reviewed", who="anna", at=AT))
    run.record(made)
    return run


def test_reviewed_photos_become_questions_as_labelling_asks_them(tmp_path: Path) -> None:
    with make_run(tmp_path) as run:
        material = gather([run], HALF)
    assert len(material.train) + len(material.held_out) == PHOTOS
    assert len(material.held_out) == PHOTOS // 2
    samples = {s.item.id: s for s in material.samples([*material.train, *material.held_out])}
    assert samples["00.jpg"].questions == (
        PhraseAnswer("hard hat", (0,)), PhraseAnswer("helmet", (0,)), PhraseAnswer("person"),
        PhraseAnswer("cap", (0,), denied=True),
    )  # fmt: skip
    assert samples["01.jpg"].questions == (PhraseAnswer("hard hat"), PhraseAnswer("helmet"), PhraseAnswer("person"))
    assert samples["00.jpg"].objects[0].box_xyxy == pytest.approx((2 / 80, 2 / 60, 10 / 80, 10 / 60))
    assert material.touched == {"helmet"}
    assert material.notes == ("bare head: not trained, its `where:` leaves out objects that its phrases name.",)


def test_a_phrase_of_two_classes_is_asked_once_for_the_objects_of_both(tmp_path: Path) -> None:
    chosen = concepts(Concept(0, "helmet", ("hard hat",)), Concept(1, "hat", ("hard hat", "cap")))
    with make_run(tmp_path, chosen=chosen) as run:
        (sample,) = (s for s in gather([run], HALF).samples(gather([run], HALF).train[:1]))
    assert [q.phrase for q in sample.questions] == ["hard hat", "cap"]


def test_classes_with_exemplars_are_asked_with_boxes(tmp_path: Path) -> None:
    with make_run(tmp_path) as run:
        material = gather([run], HALF)
        shown = replace(material.asked[0], exemplars=Exemplars("labels", "labels"))
        even = [image for image in material.train if image.objects]
        (sample,) = replace(material, asked=(shown,)).samples(even[:1])
    assert [(q.phrase, q.guided) for q in sample.questions] == [("hard hat", True), ("helmet", True), ("cap", False)]


def test_what_an_earlier_turn_learned_from_never_judges(tmp_path: Path) -> None:
    ids = [f"{n:02}.jpg" for n in range(40)]
    first = HALF.held_out(ids[:20])
    assert len(first) == 10
    later = Division(0.5, Splits(), trained=frozenset(ids[:20]) - first, judged=first).held_out(ids)
    assert first < later and len(later) == 20
    assert not later & (set(ids[:20]) - first)


def test_groups_stay_on_one_side() -> None:
    ids = [f"site-{n % 6}/{n:03}.jpg" for n in range(60)]
    held = Division(0.3, Splits(by_folder=True)).held_out(ids)
    assert {id_.split("/")[0] for id_ in held}.isdisjoint({id_.split("/")[0] for id_ in set(ids) - held})
    pattern = Division(0.3, Splits(pattern=re.compile(r"site-\d"))).held_out(ids)
    assert pattern == held or {i[:6] for i in pattern}.isdisjoint({i[:6] for i in set(ids) - pattern})


def test_too_few_say_how_many_more(tmp_path: Path) -> None:
    with (
        make_run(tmp_path, reviewed=6) as run,
        pytest.raises(
            InputError, match=r"6 images with .* of which 6 are held out.* 8 to judge by\. Review some 6 more: "
        ),
    ):
        gather([run], Division(0.25, Splits()))


def test_what_was_reviewed_last_counts_and_classes_must_be_the_same(tmp_path: Path) -> None:
    with make_run(tmp_path / "a") as one, make_run(tmp_path / "b", reviewed=5) as other:
        assert len(gather([one, other], HALF).train) == PHOTOS // 2
    hat = concepts(Concept(0, "hat", ("hard hat",)))
    other, said = make_run(tmp_path / "c", chosen=hat), "do not have the same classes"
    with other as hats, make_run(tmp_path / "d") as run, pytest.raises(InputError, match=said):
        gather([run, hats], HALF)


def test_a_truth_is_learned_from_where_it_says_something(tmp_path: Path) -> None:
    rle = rectangle(4, 4, 10, 10)
    box = {"bbox": list(masks.box_xywh(rle)), "area": 100, "iscrowd": 0}
    images = [
        {"id": n, "file_name": f"{n:02}.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1],
         **({"not_exhaustive_category_ids": [2]} if n == 0 else {})} for n in range(PHOTOS)
    ]  # fmt: skip
    annotations = [{"id": n + 1, "image_id": n, "category_id": 1, **box} for n in range(PHOTOS)]
    annotations += [{"id": 99, "image_id": 1, "category_id": 2, **box, "iscrowd": 1}]
    truth = {"images": images, "annotations": annotations,
             "categories": [{"id": 1, "name": "helmet"}, {"id": 2, "name": "person"}]}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with make_run(tmp_path / "run") as run:
        material = gather([run], HALF, tmp_path / "truth.json")
    samples = {s.item.id: s for s in material.samples([*material.train, *material.held_out])}
    assert samples["02.jpg"].objects[0].rle is None
    asked = {id_: {q.phrase for q in s.questions if not q.denied} for id_, s in samples.items()}
    assert asked["00.jpg"] == asked["01.jpg"] == {"hard hat", "helmet"}  # not looked through, and a crowd
    assert asked["02.jpg"] == {"hard hat", "helmet", "person"}
    assert len(material.truth().pairs) == sum(len(image.known) for image in material.held_out)

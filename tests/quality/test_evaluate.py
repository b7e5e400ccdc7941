"""Evaluation of results files and runs: exactly pycocotools where that defines the figure, words where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle, unit
from typer.testing import CliRunner

from sam3label.annotations.truth import read_truth
from sam3label.concepts.concept_list import dump_concepts
from sam3label.core import masks
from sam3label.core.records import Concept, ConceptList, Correction, Rle, UnitResult, Verdict, Verify
from sam3label.errors import InputError
from sam3label.quality.evaluate import evaluate_results, evaluate_run
from sam3label.quality.run_answers import match_files
from sam3label.run.reader import open_run
from sam3label.run.store import Store

DATA = Path(__file__).parents[1] / "data"
HEIGHT, WIDTH = SIZE_HW


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def rle_json(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size_hw), "counts": rle.counts.decode()}


def annotation(image_id: int, category_id: int, rle: Rle, **fields: Any) -> dict[str, Any]:
    box, area = list(masks.box_xywh(rle)), masks.area(rle)
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle_json(rle), "bbox": box,
            "area": area, "iscrowd": 0, **fields}  # fmt: skip


def result(image_id: int, category_id: int, rle: Rle, score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle_json(rle), "score": score}


def coco_json(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: tuple[str, ...] = ("cat", "dog")
) -> dict[str, Any]:
    for position, image in enumerate(images, start=1):
        image.update({"id": image.get("id", position), "height": HEIGHT, "width": WIDTH})
    for position, entry in enumerate(annotations, start=1):
        entry["id"] = position
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def random_dataset(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth with crowds and polygons and three sizes, results that find, miss, double and invent objects."""
    rng = np.random.default_rng(seed)
    size = (240, 320)
    truth, results = [], []
    for image_id in range(1, 31):
        for _ in range(rng.integers(0, 7)):
            w, h = (int(v) for v in rng.choice([12, 25, 60, 130], 2))
            x, y, category = int(rng.integers(0, 320 - w)), int(rng.integers(0, 240 - h)), int(rng.integers(1, 4))
            entry = annotation(image_id, category, rectangle(x, y, w, h, size))
            if rng.random() < 0.15:
                entry["iscrowd"] = 1
            elif rng.random() < 0.3:
                entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            truth.append(entry)
            for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2])):
                dx, dy = (int(v) for v in rng.integers(-6, 7, 2))
                moved = rectangle(max(x + dx, 0), max(y + dy, 0), w, h, size)
                results.append(result(image_id, category, moved, round(float(rng.random()), 1)))
        if rng.random() < 0.4:
            results.append(
                result(image_id, int(rng.integers(1, 4)), rectangle(0, 0, 40, 40, size), float(rng.random()))
            )
    images = [{"file_name": f"{i}.jpg"} for i in range(1, 32)]
    content = coco_json(images, truth, ("a", "b", "c"))
    for image in images:
        image.update({"height": size[0], "width": size[1]})
    return content, results


def by_pycocotools(truth: Path, results: Any, kind: str) -> list[float]:
    coco = COCO(str(truth))
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(v) for v in evaluation.stats]


NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_is_exactly_that_of_pycocotools(kind: str, seed: int, tmp_path: Path) -> None:
    truth, results = random_dataset(seed)
    truth_file, results_file = write(tmp_path / "gt.json", truth), write(tmp_path / "pred.json", results)
    figures = evaluate_results([truth_file], results_file).to_json()[kind]
    expected = by_pycocotools(truth_file, str(results_file), kind)
    assert 0.1 < expected[0] < 0.9
    assert [figures[name] for name in NAMES] == expected


def test_a_box_in_the_results_does_not_bend_mask_ap_by_size(tmp_path: Path) -> None:
    """pycocotools would sort a mask by the area of its box as soon as one is given."""
    truth, results = random_dataset(3)
    truth_file = write(tmp_path / "gt.json", truth)
    boxed = [{**r, "bbox": [0.0, 0.0, 300.0, 200.0]} for r in results]
    figures = evaluate_results([truth_file], write(tmp_path / "pred.json", boxed)).to_json()
    assert [figures["segm"][name] for name in NAMES] == by_pycocotools(truth_file, results, "segm")
    boxes_only = [{k: v for k, v in r.items() if k != "segmentation"} for r in boxed]
    assert [figures["bbox"][name] for name in NAMES] == by_pycocotools(truth_file, boxes_only, "bbox")


def test_an_annotation_with_id_zero_counts_like_any_other(tmp_path: Path) -> None:
    truth = coco_json([{"file_name": "a.jpg"}], [annotation(1, 1, rectangle(0, 0, 20, 20))])
    truth["annotations"][0]["id"] = 0
    found = [result(1, 1, rectangle(0, 0, 20, 20), 0.9)]
    figures = evaluate_results([write(tmp_path / "gt.json", truth)], write(tmp_path / "p.json", found)).to_json()
    assert figures["segm"]["AP"] == pytest.approx(1.0)


def test_every_image_and_category_is_a_pair_and_crowds_vanish(tmp_path: Path) -> None:
    """Four pairs: a hit, a crowd (a negative now) with an alarm on it, two true negatives."""
    truth = coco_json(
        [{"file_name": "a.jpg"}, {"file_name": "b.jpg"}],
        [annotation(1, 1, rectangle(0, 0, 20, 20)), annotation(2, 2, rectangle(5, 5, 30, 30), iscrowd=1)],
    )
    found = [
        result(1, 1, rectangle(0, 0, 20, 20), 0.5),  # a score of exactly the threshold counts
        result(1, 1, rectangle(40, 40, 9, 9), 0.4999),
        result(2, 2, rectangle(5, 5, 30, 30), 0.9),
    ]
    out = evaluate_results([write(tmp_path / "gt.json", truth)], write(tmp_path / "p.json", found))
    assert (out.pairs, out.images, out.notes) == (4, 2, ())
    figures = out.to_json()["segm"]
    assert [figures[f"IL_{n}"] for n in ("TP", "FP", "TN", "FN")] == [1, 1, 2, 0]
    assert figures["precision"] == pytest.approx(1 / (2 + 1e-4))
    assert figures["by_class"]["cat"]["F1@0.5"] > 0.999
    assert figures["by_class"]["cat"]["AP"] == pytest.approx(1.0)
    assert figures["by_class"]["dog"]["IL_FP"] == 1
    assert figures["by_size"]["small"] == {
        "truth": 1, "recall@0.5": 1.0, "answers": 2, "precision@0.5": 0.5, "AP": pytest.approx(1.0)
    }  # fmt: skip
    assert figures["by_score"] == {
        "0.5-0.6": {"answers": 1, "precision@0.5": 1.0},
        "0.9-1.0": {"answers": 1, "precision@0.5": 0.0},
    }


def test_lvis_says_which_pairs_may_be_judged(tmp_path: Path) -> None:
    """Image 1: cat shown, dog not looked for. Image 2: dog looked for, none. Image 3: cats not labelled to the end."""
    truth = coco_json(
        [
            {"file_name": "a.jpg", "neg_category_ids": [], "not_exhaustive_category_ids": []},
            {"file_name": "b.jpg", "neg_category_ids": [2], "not_exhaustive_category_ids": []},
            {"file_name": "c.jpg", "neg_category_ids": [2], "not_exhaustive_category_ids": [1]},
        ],
        [annotation(1, 1, rectangle(0, 0, 20, 20)), annotation(3, 1, rectangle(0, 0, 20, 20))],
    )
    found = [result(i, c, rectangle(0, 0, 20, 20), 0.9) for i in (1, 2, 3) for c in (1, 2)]
    truth_file = write(tmp_path / "gt.json", truth)
    assert read_truth(truth_file).pairs == ((1, 1), (2, 2), (3, 2))
    figures = evaluate_results([truth_file], write(tmp_path / "p.json", found)).to_json()["segm"]
    assert [figures[f"IL_{n}"] for n in ("TP", "FP", "TN", "FN")] == [1, 2, 0, 0]
    assert figures["by_class"]["cat"]["AP"] == pytest.approx(1.0)


def phrase_truth(*pairs: tuple[str, list[Rle], bool]) -> dict[str, Any]:
    """An SA-Co file of one photo: (phrase, its objects, labelled to the end)."""
    images = [
        {"id": i, "file_name": "a.jpg", "text_input": text, "height": HEIGHT, "width": WIDTH,
         "is_instance_exhaustive": int(done)}
        for i, (text, _, done) in enumerate(pairs, start=1)
    ]  # fmt: skip
    rows = [annotation(i, 1, rle, id=0) for i, (_, rles, _) in enumerate(pairs, start=1) for rle in rles]
    return {"images": images, "annotations": rows}


def test_a_pair_that_one_annotator_left_open_is_not_judged(tmp_path: Path) -> None:
    first = phrase_truth(("cat", [rectangle(0, 0, 9, 9)], True), ("dog", [], True), ("cow", [], False))
    second = phrase_truth(("cat", [rectangle(0, 0, 9, 9)], True), ("dog", [], False), ("cow", [], True))
    files = [write(tmp_path / "1.json", first), write(tmp_path / "2.json", second)]
    out = evaluate_results(files, write(tmp_path / "p.json", [result(9, 1, rectangle(0, 0, 9, 9), 0.9)]))
    assert out.pairs == 1
    assert "1 result of an image or a category that the truth does not have, or of no area: left out." in out.notes


def test_masks_and_boxes_choose_their_annotator_separately(tmp_path: Path) -> None:
    """The first annotator's mask fits and its box is off, the second's the other way round."""
    good, bad = rectangle(10, 10, 20, 20), rectangle(20, 20, 20, 20)
    first, second = phrase_truth(("cat", [good], True)), phrase_truth(("cat", [bad], True))
    first["annotations"][0]["bbox"], second["annotations"][0]["bbox"] = [20, 20, 20, 20], [10, 10, 20, 20]
    files = [write(tmp_path / "1.json", first), write(tmp_path / "2.json", second)]
    answers = write(tmp_path / "p.json", [result(1, 1, good, 0.9)])
    for given in (files, files[::-1]):
        figures = evaluate_results(given, answers).to_json()
        assert figures["segm"]["F1"] == figures["bbox"]["F1"] == pytest.approx(0.99985, abs=1e-6)
    alone = evaluate_results(files[:1], answers).to_json()
    assert (alone["segm"]["F1"] > 0.999, alone["bbox"]["F1"]) == (True, 0.0)


def test_annotators_with_other_ids_are_matched_by_name(tmp_path: Path) -> None:
    one = coco_json([{"file_name": "a.jpg"}, {"file_name": "b.jpg"}], [annotation(1, 1, rectangle(0, 0, 9, 9))])
    two = coco_json(
        [{"file_name": "b.jpg"}, {"file_name": "a.jpg"}], [annotation(2, 2, rectangle(40, 30, 9, 9))], ("dog", "cat")
    )
    files = [write(tmp_path / "1.json", one), write(tmp_path / "2.json", two)]
    out = evaluate_results(files, write(tmp_path / "p.json", [result(1, 1, rectangle(40, 30, 9, 9), 0.9)])).to_json()
    assert (out["segm"]["IL_TP"], out["segm"]["IL_TN"]) == (1, 3)
    assert out["segm"]["F1@0.5"] > 0.999
    stranger = write(tmp_path / "3.json", coco_json([{"file_name": "z.jpg"}], []))
    with pytest.raises(InputError, match="have no image or no category in common: not two annotators"):
        evaluate_results([files[0], stranger], tmp_path / "p.json")


def test_one_sided_truth_is_explained(tmp_path: Path) -> None:
    shown = write(
        tmp_path / "shown.json",
        coco_json([{"file_name": "a.jpg"}], [annotation(1, 1, rectangle(0, 0, 9, 9))], ("cat",)),
    )
    none = write(tmp_path / "none.json", coco_json([{"file_name": "a.jpg"}], [], ("cat",)))
    found, empty = (
        write(tmp_path / "p.json", [result(1, 1, rectangle(0, 0, 9, 9), 0.9)]),
        write(tmp_path / "e.json", []),
    )
    (note,) = evaluate_results([shown], found).notes
    assert note.startswith("The truth has no negatives: every pair shows its concept. IL_MCC and with it cgF1 are 0")
    assert any("only negatives" in n for n in evaluate_results([none], found).notes)
    assert "There is not one prediction above the threshold." in evaluate_results([shown], empty).notes


def test_boxes_alone_are_judged_as_boxes(tmp_path: Path) -> None:
    entry = annotation(1, 1, rectangle(0, 0, 20, 20))
    del entry["segmentation"]
    truth = write(tmp_path / "gt.json", coco_json([{"file_name": "a.jpg"}], [entry]))
    out = evaluate_results([truth], write(tmp_path / "p.json", [result(1, 1, rectangle(0, 0, 20, 20), 0.9)]))
    assert out.figures["segm"] is None
    assert out.to_json()["bbox"]["AP"] == pytest.approx(1.0)
    assert "Some truth objects or predictions have boxes only: masks were not compared." in out.notes


def test_attributes_of_images_break_the_figures_down(tmp_path: Path) -> None:
    truth = coco_json(
        [{"file_name": "in/a.jpg"}, {"file_name": "in/b.jpg"}, {"file_name": "c.jpg"}],
        [annotation(1, 1, rectangle(0, 0, 9, 9)), annotation(2, 1, rectangle(0, 0, 9, 9))],
    )
    (tmp_path / "light.csv").write_text("file,light,camera\na.jpg,day,1\nin/b.jpg,night,1\n")
    out = evaluate_results(
        [write(tmp_path / "gt.json", truth)],
        write(tmp_path / "p.json", [result(1, 1, rectangle(0, 0, 9, 9), 0.9)]),
        tmp_path / "light.csv",
    ).to_json()["segm"]
    assert {name: group["IL_TP"] for name, group in out["by_light"].items()} == {"(no row)": 0, "day": 1, "night": 0}
    assert out["by_light"]["night"]["IL_FN"] == 1
    assert out["by_camera"]["1"]["pairs"] == 4
    with pytest.raises(InputError, match="no file name in its first column is in the truth"):
        (tmp_path / "other.csv").write_text("file,light\nz.jpg,day\n")
        evaluate_results([tmp_path / "gt.json"], tmp_path / "p.json", tmp_path / "other.csv")


# ---- bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is not JSON"),
        ("[]", "is not a truth file: COCO or SA-Co JSON with 'images' and 'annotations' is expected"),
        ('{"videos": [], "annotations": []}', "is a video truth"),
        ('{"images": [{"file_name": "a"}], "annotations": []}', "has no 'id'"),
        ('{"images": [{"id": 1}], "annotations": []}', "lists no 'categories', and its images have no 'text_input'"),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": '
            '[{"id": 7, "image_id": 2, "category_id": 1}]}',
            "annotation 7 belongs to image 2, which is not listed",
        ),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": '
            '[{"id": 7, "image_id": 1, "category_id": 1}]}',
            "annotation 7 cannot be read: it has neither a mask nor a box",
        ),
        (
            '{"images": [{"id": 1, "height": 4, "width": 4}], "categories": [{"id": 1, "name": "a"}], "annotations": '
            '[{"id": 7, "image_id": 1, "category_id": 1, "segmentation": {"size": [2, 2], "counts": [1, 3]}}]}',
            r"a mask of 2 x 2 pixels \(height x width\), its image 1 has 4 x 4",
        ),
        (
            '{"images": [{"id": 1, "height": 4, "width": 4}], "categories": [{"id": 1, "name": "a"}], "annotations": '
            '[{"id": 7, "image_id": 1, "category_id": 1, "segmentation": {"size": [4, 4], "counts": "0Q1"}}]}',
            "its run-length code is of a larger mask than 4 x 4 pixels",
        ),
        ('{"images": [], "annotations": null}', "is not a truth file"),
        ('{"images": [], "annotations": [], "categories": {"1": "a"}}', "'categories' is not a list"),
        ('{"images": [{"id": [1]}], "annotations": []}', "an entry of kind 'image' has a 'id' that is no single value"),
        (
            '{"images": [{"id": 1, "height": "tall", "width": 4}], "annotations": []}',
            "image 1: height: got 'tall'; allowed: a number from 0 to 1e",
        ),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": '
            '[{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "area": "large"}]}',
            "annotation 7: area: got 'large'; allowed: a number from 0",
        ),
    ],
)
def test_a_truth_file_that_cannot_be_used_is_refused_in_words(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_truth(tmp_path / "gt.json")


def test_missing_and_wrong_results_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_truth(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="is not a results file"):
        evaluate_results([DATA / "saco_truth.json"], DATA / "saco_truth.json")
    nothing_sure = write(tmp_path / "gt.json", phrase_truth(("cat", [], False)))
    with pytest.raises(InputError, match="leaves nothing to judge"):
        evaluate_results([nothing_sure], write(tmp_path / "p.json", []))


# ---- runs


CLASSES = concepts(Concept(0, "cat", ("cat", "kitten"), conf=0.6), "dog", "cow")


def make_run(folder: Path, *units: UnitResult, classes: ConceptList = CLASSES) -> Path:
    with Store.writer(folder, phrase_prompts(*classes.phrases), {}) as store:
        store.write(list(units))
        store.set_meta("concepts", dump_concepts(classes))
    return folder


def small_run(folder: Path) -> Path:
    box = rectangle(0, 0, 20, 20)
    return make_run(
        folder,
        unit("in/a.jpg", candidate("kitten", 0.7, box), candidate("cat", 0.4, rectangle(30, 30, 9, 9)), prompts=4),
        unit("in/b.jpg", candidate("dog", 0.55, box, item_id="in/b.jpg"), prompts=4),
        unit("in/c.jpg", candidate("dog", 0.9, box), prompts=4),
        unit("in/d.jpg", error="truncated"),
    )


def small_truth(path: Path) -> Path:
    return write(
        path,
        coco_json(
            [{"file_name": "in/a.jpg"}, {"file_name": "elsewhere/b.jpg"}, {"file_name": "in/d.jpg"}],
            [
                annotation(1, 1, rectangle(0, 0, 20, 20)),
                annotation(1, 1, rectangle(30, 30, 9, 9)),
                annotation(2, 2, rectangle(0, 0, 20, 10)),
                annotation(2, 3, rectangle(0, 0, 20, 10)),
            ],
            ("Cat", "dog", "horse"),
        ),
    )


def test_labels_of_a_run_are_judged_by_class(tmp_path: Path) -> None:
    out = evaluate_run(small_run(tmp_path / "run"), [small_truth(tmp_path / "gt.json")])
    figures = out.to_json()["segm"]
    assert (out.pairs, out.images) == (4, 2)
    assert [figures[f"IL_{n}"] for n in ("TP", "FP", "TN", "FN")] == [2, 0, 2, 0]
    assert figures["by_class"]["Cat"]["precision@0.5"] == pytest.approx(1 / (1 + 1e-4))
    assert figures["by_class"]["Cat"]["recall@0.5"] == pytest.approx(1 / (2 + 1e-4))  # 0.4 is below cat's conf
    assert figures["by_class"]["Cat"]["AP"] == pytest.approx(1.0)  # average precision looks below it
    assert figures["by_class"]["dog"]["F1@0.5"] > 0.999  # IoU exactly a half
    assert figures["by_class"]["dog"]["F1@0.75"] == 0
    assert "Not in the run, or failed, and left out: 1 of 3 images of the truth." in out.notes
    assert "Not in the truth and left out: 1 of 3 images of the run." in out.notes
    assert "The run did not look for 'horse': these categories of the truth were left out." in out.notes
    assert "The truth does not have 'cow': these classes of the run were left out." in out.notes
    assert any("own conf thresholds decide" in note for note in out.notes)


def test_what_verdicts_changed_is_said(tmp_path: Path) -> None:
    heeding = concepts(Concept(0, "cat", ("cat", "kitten"), conf=0.3, verify=Verify("off", 0.5)), "dog", "cow")
    folder, truth = small_run(tmp_path / "run"), small_truth(tmp_path / "gt.json")
    rejected = candidate("kitten", 0.7, rectangle(0, 0, 20, 20)).id
    with open_run(folder, heeding) as run:
        run.record_verdicts([Verdict("in/a.jpg", 0, "cat", rejected, "right", 0.1, "eyes")])
    deaf = evaluate_run(folder, [truth], heeding)
    with open_run(folder, heeding) as run:
        run.rely_on({"masks": "eyes"})
    found = evaluate_run(folder, [truth], heeding)
    assert found.cgf1 < deaf.cgf1
    note = f"Verdicts count: masks by eyes. Without them cgF1 is {deaf.cgf1:.3f} instead of {found.cgf1:.3f}."
    assert note in found.notes and note not in deaf.notes


def test_other_thresholds_and_corrections_change_the_answer(tmp_path: Path) -> None:
    run, truth = small_run(tmp_path / "run"), small_truth(tmp_path / "gt.json")
    lower = concepts(Concept(0, "cat", ("cat", "kitten"), conf=0.3), "dog", "cow")
    assert evaluate_run(run, [truth], lower).to_json()["segm"]["by_class"]["Cat"]["F1@0.5"] > 0.999
    with Store.open(run) as store:
        store.add_corrections(
            [
                Correction(
                    "in/b.jpg", 0, "deleted", candidate("dog", 0.55, rectangle(0, 0, 20, 20), item_id="in/b.jpg").id
                )
            ]
        )
    assert evaluate_run(run, [truth]).to_json()["segm"]["by_class"]["dog"]["IL_FN"] == 1


def test_phrases_of_a_run_are_judged_against_sa_co_truth(tmp_path: Path) -> None:
    truth = phrase_truth(
        ("Kitten", [rectangle(0, 0, 20, 20)], True), ("cat", [rectangle(30, 30, 9, 9)], True), ("zebra", [], True)
    )
    for image in truth["images"]:
        image["file_name"] = "in/a.jpg"
    out = evaluate_run(small_run(tmp_path / "run"), [write(tmp_path / "gt.json", truth)])
    figures = out.to_json()["segm"]
    assert out.pairs == 2
    assert figures["by_class"]["Kitten"]["IL_TP"] == 1
    assert figures["by_class"]["cat"]["IL_FN"] == 1  # the phrase's own candidates, at SA-Co's 0.5
    assert "Left out: 1 pair with a phrase that the run never put to the model." in out.notes


def test_truth_and_run_that_do_not_belong_together(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    other = write(tmp_path / "other.json", coco_json([{"file_name": "x.jpg"}], []))
    with pytest.raises(InputError, match=r"no image of .* is in the run: the truth names files like 'x.jpg'"):
        evaluate_run(run, [other])
    names = write(tmp_path / "names.json", coco_json([{"file_name": "in/a.jpg"}], [], ("horse", "sheep")))
    with pytest.raises(
        InputError, match="have no class in common: the truth has 'horse', 'sheep', the run 'cat', 'dog'"
    ):
        evaluate_run(run, [names])
    turned = coco_json([{"file_name": "in/a.jpg"}], [])
    turned["images"][0].update({"height": WIDTH, "width": HEIGHT})
    with pytest.raises(InputError, match=r"is 60 x 80 pixels, the run saw 80 x 60. The truth was drawn .* EXIF"):
        evaluate_run(run, [write(tmp_path / "turned.json", turned)])


def test_files_are_matched_by_path_then_by_unique_base_name() -> None:
    ids = ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert match_files(["b/1.jpg", "x/2.jpg", "1.jpg"], ids) == {"b/1.jpg": "b/1.jpg", "x/2.jpg": "b/2.jpg"}
    assert match_files(["x/2.jpg", "y/2.jpg"], ids) == {}
    assert match_files([r"b\2.jpg", "./a/1.jpg"], ids) == {r"b\2.jpg": "b/2.jpg", "./a/1.jpg": "a/1.jpg"}


# ---- command line


def invoke(arguments: list[str]) -> Result:
    from sam3label.cli import app

    return CliRunner().invoke(app, arguments)


def test_command_line_prints_and_writes_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "made" / "figures.json"
    given = ["evaluate", "--gt", str(DATA / "saco_truth.json"), "--pred", str(DATA / "saco_results.json")]
    done = invoke([*given, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "cgF1" in done.output and "0.422" in done.output
    assert "Image level: TP 7, FP 1, TN 3, FN 1" in done.output
    written = json.loads(out.read_text())
    assert written["segm"]["cgF1"] == pytest.approx(0.4223799538569466, abs=1e-9)
    assert written["bbox"]["IL_MCC"] == pytest.approx(0.6249999804687506, abs=1e-9)
    assert {"AP", "AP50", "AP75", "IL_TP", "IL_FP", "IL_TN", "IL_FN", "IL_recall"} <= written["segm"].keys()


def test_command_line_wants_a_run_or_results(tmp_path: Path) -> None:
    done = invoke(["evaluate", "--gt", str(DATA / "saco_truth.json")])
    assert done.exit_code == 2
    assert "give either a run folder or --pred" in done.output
    done = invoke(["evaluate", str(tmp_path), "--gt", str(DATA / "saco_truth.json")])
    assert done.exit_code == 1
    assert "is not a run folder" in done.output


def test_a_json_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = ["evaluate", "--gt", str(DATA / "saco_truth.json"), "--pred", str(DATA / "saco_results.json")]
    done = invoke([*given, "--json", str(tmp_path / "file" / "out.json")])
    assert done.exit_code == 1
    assert "cannot be written" in done.output

"""Mistakes object by object: each is listed once, and the confusion matrix adds up to truth, answers and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle, unit
from typer.testing import CliRunner

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import Rle
from sam3label.quality.evaluate import evaluate_results, evaluate_run
from sam3label.quality.mistakes import Mistake
from sam3label.run.store import Store

NAMES = ("cat", "dog", "cow")


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def segmentation(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size_hw), "counts": rle.counts.decode()}


def truth_file(path: Path, images: int, objects: list[tuple[int, int, Rle]], **of_image: Any) -> Path:
    """COCO truth: (image, category, mask) from 1 on; images are 1.jpg, 2.jpg, ..."""
    return write(
        path,
        {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1], **of_image}
                for i in range(1, images + 1)
            ],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "segmentation": segmentation(rle)}
                for n, (i, c, rle) in enumerate(objects, 1)
            ],
            "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)],
        },
    )


def results_file(path: Path, found: list[tuple[int, int, Rle, float]]) -> Path:
    rows = [
        {"image_id": i, "category_id": c, "segmentation": segmentation(rle), "score": score}
        for i, c, rle, score in found
    ]
    return write(path, rows)


def test_a_hit_a_miss_a_false_alarm_and_a_confusion(tmp_path: Path) -> None:
    here, there = rectangle(0, 0, 10, 10), rectangle(20, 20, 10, 10)
    truth = truth_file(
        tmp_path / "t.json", 3, [(1, 1, here), (1, 2, there), (2, 1, here), (2, 1, rectangle(0, 20, 4, 4))]
    )
    found = [(1, 1, here, 0.9), (1, 3, there, 0.8), (3, 2, here, 0.7), (3, 2, there, 0.95)]
    mistakes = evaluate_results([truth], results_file(tmp_path / "p.json", found)).mistakes

    def told(rows: tuple[Mistake, ...]) -> list[tuple[str, str | None, str | None]]:
        return [(m.item_id, m.truth_class, m.answer_class) for m in rows]

    assert told(mistakes.confused) == [("1.jpg", "dog", "cow")]
    assert told(mistakes.missed) == [("2.jpg", "cat", None)] * 2
    assert [m.truth.area for m in mistakes.missed if m.truth] == [100, 16]  # largest first
    assert told(mistakes.false_alarms) == [("3.jpg", None, "dog")] * 2
    assert [m.answer.score for m in mistakes.false_alarms if m.answer] == [0.95, 0.7]  # surest first
    assert mistakes.confusion is not None
    assert mistakes.confusion.classes == NAMES
    assert mistakes.confusion.counts.tolist() == [[1, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert mistakes.confusion.between() == [("dog", "cow", 1)]


@pytest.mark.parametrize("seed", range(8))
def test_the_matrix_adds_up(seed: int, tmp_path: Path) -> None:
    """Rows are the truth, columns the answers, the diagonal the hits of the figures; every mistake is counted once."""
    rng = np.random.default_rng(seed)

    def some(n: int) -> list[tuple[int, int, Rle]]:
        boxes = rng.integers((0, 0, 5, 5), (20, 20, 25, 25), (n, 4)).tolist()
        return [(int(rng.integers(1, 5)), int(rng.integers(1, 4)), rectangle(*box)) for box in boxes]

    objects = some(25)
    found = [(*one, float(rng.uniform(0.5, 1))) for one in (*some(12), *objects[:8])]
    out = evaluate_results([truth_file(tmp_path / "t.json", 4, objects)], results_file(tmp_path / "p.json", found))
    mistakes, figures = out.mistakes, out.figures["segm"]
    assert mistakes.confusion is not None and figures is not None
    counts = mistakes.confusion.counts
    for c in range(3):
        assert counts[c].sum() == sum(category == c + 1 for _, category, _ in objects)
        assert counts[:, c].sum() == sum(category == c + 1 for _, category, _, _ in found)
        there = counts[c].sum()
        assert figures["by_class"][NAMES[c]]["recall@0.5"] == pytest.approx(counts[c, c] / (there + 1e-4))
    assert counts[:3, 3].sum() == len(mistakes.missed) and counts[3, :3].sum() == len(mistakes.false_alarms)
    assert counts[:3, :3].sum() - np.trace(counts[:3, :3]) == len(mistakes.confused)
    assert counts[3, 3] == 0


def test_what_may_not_be_judged_is_no_mistake(tmp_path: Path) -> None:
    truth = truth_file(tmp_path / "t.json", 1, [(1, 1, rectangle(0, 0, 9, 9))], not_exhaustive_category_ids=[1])
    found = [(1, 1, rectangle(20, 20, 9, 9), 0.9), (1, 2, rectangle(0, 0, 9, 9), 0.9)]
    mistakes = evaluate_results([truth], results_file(tmp_path / "p.json", found)).mistakes
    assert not mistakes.missed and not mistakes.confused
    assert [m.answer_class for m in mistakes.false_alarms] == ["dog"]


def small_run(folder: Path) -> Path:
    with Store.writer(folder, phrase_prompts(*NAMES), {}) as store:
        store.write([unit("in/1.jpg", candidate("dog", 0.9, rectangle(0, 0, 9, 9)), prompts=3)])
        store.set_meta("concepts", dump_concepts(concepts(*NAMES)))
    return folder


def test_mistakes_name_the_runs_images_and_the_command_line_shows_them(tmp_path: Path) -> None:
    from sam3label.cli import app

    truth = truth_file(tmp_path / "t.json", 1, [(1, 1, rectangle(0, 0, 9, 9)), (1, 2, rectangle(30, 30, 9, 9))])
    run = small_run(tmp_path / "run")
    mistakes = evaluate_run(run, [truth]).mistakes
    assert [m.item_id for m in (*mistakes.confused, *mistakes.missed)] == ["in/1.jpg"] * 2
    out = tmp_path / "out.json"
    done = CliRunner().invoke(app, ["evaluate", str(run), "--gt", str(truth), "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "Mistakes at mask IoU 0.5: 1 miss, 0 false alarms, 1 under another class" in done.output
    assert "cat taken for dog: 1" in done.output and "(missed)" in done.output
    told = json.loads(out.read_text())["mistakes"]
    assert told["confusion"]["classes"] == [*NAMES, "background"]
    assert told["confusion"]["counts"][0] == [0, 1, 0, 0] and told["confusion"]["counts"][1] == [0, 0, 0, 1]
    assert told["missed"] == [{"image": "in/1.jpg", "truth": "dog", "truth_box_xywh": [30, 30, 9, 9]}]
    assert told["confused"][0]["answer"] == "dog" and told["confused"][0]["score"] == pytest.approx(0.9)


def test_boxes_alone_have_mistakes_by_boxes_and_sa_co_files_no_matrix(tmp_path: Path) -> None:
    truth = json.loads(truth_file(tmp_path / "t.json", 1, [(1, 1, rectangle(0, 0, 9, 9))]).read_text())
    truth["annotations"][0] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    found = results_file(tmp_path / "p.json", [(1, 1, rectangle(0, 0, 9, 9), 0.9)])
    assert evaluate_results([write(tmp_path / "b.json", truth)], found).mistakes.compared == "bbox"
    truth["images"][0] |= {"text_input": "cat", "is_instance_exhaustive": 1}
    mistakes = evaluate_results([write(tmp_path / "s.json", truth)], results_file(tmp_path / "p.json", [])).mistakes
    assert mistakes.confusion is None and [m.truth_class for m in mistakes.missed] == ["cat"]


def test_a_mistake_has_something_to_show() -> None:
    with pytest.raises(ValueError, match="a mistake has a truth, an answer or both, got neither"):
        Mistake("a.jpg", None, None, None, None)


def test_a_yolo_dataset_judges_as_the_same_coco_file_does(tmp_path: Path) -> None:
    """Class names are matched by name, in another order; box rows are judged as boxes; one split alone can be."""
    from PIL import Image

    objects = [(1, 1, rectangle(0, 0, 9, 9)), (1, 2, rectangle(30, 30, 9, 9))]
    run = small_run(tmp_path / "run")
    by_coco = evaluate_run(run, [truth_file(tmp_path / "t.json", 1, objects)])
    folder, (height, width) = tmp_path / "yolo", SIZE_HW
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split / "in").mkdir(parents=True)
    Image.new("RGB", (width, height)).save(folder / "images/val/in/1.jpg")
    Image.new("RGB", (width, height)).save(folder / "images/train/other.jpg")
    polygons = [
        "1 " + " ".join(f"{x / width} {y / height}" for x, y in ((0.5, 0.5), (8.5, 0.5), (8.5, 8.5), (0.5, 8.5))),
        "2 "
        + " ".join(f"{x / width} {y / height}" for x, y in ((30.5, 30.5), (38.5, 30.5), (38.5, 38.5), (30.5, 38.5))),
    ]
    (folder / "labels/val/in/1.txt").write_text("\n".join(polygons))
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [Cow, cat, dog]\n")
    by_yolo = evaluate_run(run, [folder], split="val")
    assert by_yolo.pairs == by_coco.pairs == 3
    for kind in ("segm", "bbox"):
        ours, theirs = by_yolo.figures[kind], by_coco.figures[kind]  # type: ignore[index]
        assert ours is not None and theirs is not None
        assert {k: v for k, v in ours.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in theirs.items() if isinstance(v, float)}
        )
    whole = evaluate_run(run, [folder / "data.yaml"])
    assert "Not in the run, or failed, and left out: 1 of 2 images of the truth." in whole.notes
    assert any("1 image of" in note and "without a label file" in note for note in whole.notes)
    rows = [f"1 {4.5 / width} {4.5 / height} {9 / width} {9 / height}"]
    (folder / "labels/val/in/1.txt").write_text("\n".join(rows))
    boxes = evaluate_run(run, [folder], split="val")
    assert boxes.figures["segm"] is None and boxes.mistakes.compared == "bbox"
    assert [(m.truth_class, m.answer_class) for m in boxes.mistakes.confused] == [("cat", "dog")]
    (tmp_path / "predicted").mkdir()
    (tmp_path / "predicted/1.txt").write_text(f"{rows[0]} 0.9")
    assert not evaluate_results([folder], tmp_path / "predicted", split="val").mistakes.missed

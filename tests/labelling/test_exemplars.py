"""Labels by example: label files in three forms, what each photo is asked, the library's own answers, trust."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import parse_concepts
from sam3label.concepts.exemplars import Examples, pixel_digest, read_examples
from sam3label.core import masks
from sam3label.core.records import BoxPrompt, ConceptList, Frame, MediaItem, exemplar_class, exemplar_key, prompts_of
from sam3label.errors import ConfigError, InputError
from sam3label.labelling import reference_check
from sam3label.labelling.questions import Guide
from sam3label.media.image import decode_image
from sam3label.model.ask import ReferenceTokens
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.head import PairScores
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.show import preview

SIZE_HW = (60, 80)
TOLERANCE = 1e-4
BOXES = {"a.jpg": [("helmet", (10, 5, 20, 30)), ("cap", (40, 10, 16, 20))], "sub/b.jpg": [("helmet", (0, 0, 8, 60))]}


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = cv2.resize(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8), SIZE_HW[::-1])
    cv2.imwrite(str(path), pixels)
    return path


def write_coco(path: Path, boxes: dict[str, Any] = BOXES, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    names = list(dict.fromkeys(name for marks in boxes.values() for name, _ in marks)) or ["helmet"]
    annotations = [
        {"image_id": i, "category_id": names.index(name), "bbox": list(box)}
        for i, marks in enumerate(boxes.values())
        for name, box in marks
    ]
    content = {
        "images": [
            {"id": i, "file_name": name, "height": size_hw[0], "width": size_hw[1]} for i, name in enumerate(boxes)
        ],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_yolo(folder: Path, boxes: dict[str, Any] = BOXES, labels: str = "labels") -> Path:
    names = ["cap", "helmet"]
    for name, marks in boxes.items():
        rows = []
        for kind, (x, y, w, h) in marks:
            left, top, right, bottom = x / 80, y / 60, (x + w) / 80, (y + h) / 60
            if kind == "cap":  # as a polygon
                rows.append(f"0 {left} {top} {right} {top} {right} {bottom} {left} {bottom}")
            else:
                rows.append(f"1 {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}")
        path = (folder / labels / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n\n")
    (folder / "data.yaml").write_text(f"names: {names}\n")
    return folder


def write_yaml(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a.jpg: {helmet: [[10, 5, 20, 30]], cap: [[40, 10, 16, 20]]}\nsub/b.jpg: [[0, 0, 8, 60]]\n")
    return path


def listed(concepts: str, folder: Path) -> ConceptList:
    return parse_concepts(concepts, "c.yaml", (), folder)


def references(folder: Path, labels: str = "coco", boxes: dict[str, Any] = BOXES) -> Path:
    for seed, name in enumerate(boxes):
        photo(folder / ("images" if labels == "yolo" else "") / name, seed)
    if labels == "yolo":
        write_yolo(folder, boxes)
    elif labels == "yaml":
        write_yaml(folder / "boxes.yaml")
    else:
        write_coco(folder / "labels.json", boxes)
    return folder


HELMET = "names: [helmet]\nconcepts: {helmet: {not: [cap], exemplars: %s}}"


# ---- reading


@pytest.mark.parametrize("form", ["coco", "yolo", "yaml"])
def test_references_in_three_forms_say_the_same(form: str, tmp_path: Path) -> None:
    references(tmp_path / "refs", form)
    (examples,) = read_examples(listed(HELMET % "refs", tmp_path), [])
    first, second = examples.references
    assert first.name.endswith("a.jpg") and second.name.endswith("sub/b.jpg")
    assert first.boxes is not None and second.boxes is not None
    assert first.boxes.positive == (True, False) and second.boxes.positive == (True,)
    expected = np.array([(10, 5, 30, 35), (40, 10, 56, 30)]) / (80, 60, 80, 60)
    assert np.allclose(first.boxes.boxes_xyxy, expected, atol=1e-6)
    assert np.array_equal(first.frame().pixels, decode_image(first.path))
    assert examples.references_for(pixel_digest(first.frame().pixels)) == (second,)  # never its own exemplar
    assert examples.references_for("") == (first, second)


@pytest.mark.parametrize("form", ["coco", "yolo", "yaml"])
def test_partial_labels_in_three_forms_say_the_same(form: str, tmp_path: Path) -> None:
    makers = {"coco": lambda: write_coco(tmp_path / "p.json"), "yaml": lambda: write_yaml(tmp_path / "p.yaml")}
    path = write_yolo(tmp_path / "p") if form == "yolo" else makers[form]()
    items = [MediaItem(f"shot/{name}", "") for name in ("a.jpg", "sub/b.jpg", "c.jpg")]
    (examples,) = read_examples(listed(HELMET % f"{{labels: {path.name}}}", tmp_path), items)
    assert set(examples.photos) == {"shot/a.jpg", "shot/sub/b.jpg"}
    frames = [Frame(item, 0, np.zeros((*SIZE_HW, 3), np.uint8)) for item in items]
    prompt = examples.boxes_on(frames[0])
    assert prompt is not None and prompt.positive == (True, False)
    assert np.allclose(prompt.boxes_xyxy[0], np.array((10, 5, 30, 35)) / (80, 60, 80, 60), atol=1e-6)
    assert examples.boxes_on(frames[2]) is None


def test_counter_examples_alone_go_with_words(tmp_path: Path) -> None:
    marks = [("cap", (40, 10, 16, 20))]
    write_coco(tmp_path / "p.json", {"a.jpg": marks})
    item = MediaItem("a.jpg", "")
    photo_at_hand = Frame(item, 0, np.zeros((*SIZE_HW, 3), np.uint8))
    (examples,) = read_examples(listed(HELMET % "{labels: p.json}", tmp_path), [item])
    prompt = examples.boxes_on(photo_at_hand)
    assert prompt is not None and prompt.positive == (False,)
    wordless = "names: [helmet]\nconcepts: {helmet: {prompts: [], not: [cap], exemplars: {labels: p.json}}}"
    with pytest.raises(InputError, match=r"p.json: no box of class 'helmet' in it \(its boxes are of cap\)"):
        read_examples(listed(wordless, tmp_path), [item])
    write_coco(tmp_path / "p.json", {"a.jpg": marks, "b.jpg": [("helmet", (1, 1, 9, 9))]})
    (examples,) = read_examples(listed(wordless, tmp_path), [item, MediaItem("b.jpg", "")])
    assert set(examples.photos) == {"b.jpg"}


def test_a_name_that_ends_alike_is_enough_and_the_whole_name_wins(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", {"a.jpg": [("helmet", (1, 1, 5, 5))], "x/b.jpg": [("helmet", (1, 1, 5, 5))]})
    items = [MediaItem(name, "") for name in ("a.jpg", "y/a.jpg", "b.jpg")]
    (examples,) = read_examples(listed(HELMET % "{labels: p.json}", tmp_path), items)
    assert set(examples.photos) == {"a.jpg", "b.jpg"}


def test_classes_txt_names_the_classes_of_labels_beside_the_images(tmp_path: Path) -> None:
    photo(tmp_path / "refs" / "a.png", 0)
    (tmp_path / "refs" / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (tmp_path / "refs" / "classes.txt").write_text("helmet\n")
    (examples,) = read_examples(listed(HELMET % "refs", tmp_path), [])
    assert examples.references[0].boxes is not None
    assert np.allclose(examples.references[0].boxes.boxes_xyxy, [(0.375, 0.25, 0.625, 0.75)])


def test_a_box_that_leaves_the_image_by_a_rounding_is_cut(tmp_path: Path) -> None:
    references(tmp_path / "refs", "coco", {"a.jpg": [("helmet", (-0.5, 0, 81, 60.9))]})
    (examples,) = read_examples(listed(HELMET % "refs", tmp_path), [])
    assert examples.references[0].boxes is not None
    assert np.array_equal(examples.references[0].boxes.boxes_xyxy, [(0, 0, 1, 1)])


def test_labels_of_photos_that_are_not_there_are_a_note_as_long_as_some_are(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json")
    concepts = listed(HELMET % "{labels: p.json}", tmp_path)
    (examples,) = read_examples(concepts, [MediaItem("a.jpg", "")])
    assert examples.notes == (f"{tmp_path}/p.json has labels of 1 image not among the photos: sub/b.jpg",)
    with pytest.raises(
        InputError, match=r"p.json: its labels are of a.jpg, sub/b.jpg, and none of these is among the photo"
    ):
        read_examples(concepts, [MediaItem("z.jpg", "")])


def test_photos_that_a_class_without_phrases_is_not_looked_for_on_are_said(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", {"a.jpg": [("helmet", (1, 1, 9, 9))]})
    items = [MediaItem(name, "") for name in ("a.jpg", "b.jpg", "c.jpg")]
    alone = listed("names: [helmet]\nconcepts: {helmet: {prompts: [], exemplars: {labels: p.json}}}", tmp_path)
    (examples,) = read_examples(alone, items)
    assert examples.notes == (
        "helmet has boxes on 1 of 3 photos and no phrases: on the other 2 it is not looked for. "
        "Give it a phrase or references, or label only the photos with boxes.",
    )
    assert read_examples(alone, items[:1])[0].notes == ()
    assert read_examples(listed(HELMET % "{labels: p.json}", tmp_path), items)[0].notes == ()


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def boxes(mark: Sequence[float], name: str = "helmet") -> Any:
    return lambda folder: write_coco(folder / "labels.json", {"a.jpg": [(name, mark)], "sub/b.jpg": []})


def rewrite(name: str, text: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "labels.json").unlink()
        (folder / name).write_text(text)

    return change


def another_size(folder: Path) -> None:
    (folder / "sub" / "b.jpg").unlink()
    write_coco(folder / "labels.json", {"a.jpg": [("helmet", (1, 1, 9, 9))]}, (60, 160))


BAD = {
    "no such folder": (shutil.rmtree, r"exemplars of helmet: .*refs: no such file or folder"),
    "image without labels": (
        lambda folder: photo(folder / "new.jpg", 9),
        r"refs/new.jpg: no labels: label every object of the class in it, or take it out",
    ),
    "labels without image": (remove("a.jpg"), r"refs: 'a.jpg' has labels, and there is no such image in .*refs"),
    "outside": (
        boxes((70, 10, 20, 20)),
        r"a.jpg, helmet: the box \[70, 10, 20, 20\] \(x, y, width, height\) is not inside the image of 80 x 60 pixels",
    ),
    "no area": (boxes((10, 10, 0, 20)), r"a.jpg, helmet: the box \[10, 10, 0, 20\] .* has no area: draw it again"),
    "not a number": (boxes((10, 10, float("nan"), 20)), r"\[10, 10, nan, 20\] .* has no area"),
    "negative area": (boxes((30, 10, -5, 20)), r"\[30, 10, -5, 20\] .* has no area"),
    "unknown class": (
        boxes((1, 1, 9, 9), "helmt"),
        r"the class 'helmt' is not in the concept list \(did you mean 'helmet'\?\): rename it there, or add it to",
    ),
    "none of the class": (
        boxes((1, 1, 9, 9), "cap"),
        r"refs: no box of class 'helmet' in it \(its boxes are of cap\)",
    ),
    "another size": (
        another_size,
        r"labels.json: a.jpg: its labels are for an image of 160 x 60 pixels and it has 80 x 60: label the image as",
    ),
    "broken image": (
        lambda folder: (folder / "a.jpg").write_bytes(b"no image"),
        r"refs/a.jpg: cannot be read: ",
    ),
    "no labels at all": (remove("labels.json"), r"refs has no labels: a COCO .json, a .yaml of boxes, or YOLO"),
    "two label files": (
        lambda folder: (folder / "other.yaml").write_text("a.jpg: []"),
        r"refs has several label files \(labels.json, other.yaml\): name one of them",
    ),
    "yolo without names": (rewrite("a.txt", "0 0.5 0.5 0.1 0.1"), r"YOLO labels and neither data.yaml nor classes.txt"),
    "broken JSON": (rewrite("labels.json", "{"), r"labels.json is not JSON"),
    "no COCO": (rewrite("labels.json", "[]"), r"labels.json is not a truth file: COCO"),
    "broken YAML": (rewrite("b.yaml", "a: [1"), r"b.yaml:2: not valid YAML"),
    "no boxes in YAML": (rewrite("b.yaml", "- 1"), r"b.yaml holds no boxes: write for each image a line such"),
    "three numbers": (
        rewrite("b.yaml", "a.jpg: [[1, 2, 3]]"),
        r"b.yaml:1: a.jpg, box 1: got '\[1, 2, 3\]'; allowed: a list of boxes such as \[\[40, 30, 120, 90\]\], each",
    ),
    "one box, not a list": (rewrite("b.yaml", "a.jpg: [1, 2, 3, 4]"), r"a.jpg, box 1: got '1'; allowed: a list"),
    "a huge number": (rewrite("b.yaml", f"a.jpg: [[{10**400}, 2, 3, 4]]"), r"b.yaml:1: a.jpg, box 1: got '\[1000"),
    "an image twice": (
        rewrite("b.yaml", "a.jpg: [[1, 2, 3, 4]]\nsub/b.jpg: []\na.jpg: [[5, 6, 7, 8]]"),
        r"b.yaml:3: the key 'a.jpg' is already at .*b.yaml:1; keep one",
    ),
    "an image under two names": (
        lambda folder: write_coco(folder / "labels.json", {**BOXES, "x/a.jpg": [("helmet", (1, 1, 9, 9))]}),
        r"refs: 'a.jpg' and 'x/a.jpg' both label a.jpg: make them one",
    ),
    "names of YOLO classes": (rewrite("data.yaml", "names: helmet"), r"data.yaml:1: `names:` is neither a list nor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_references_are_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    spoil, message = BAD[case]
    spoil(references(tmp_path / "refs"))
    with pytest.raises(InputError, match=message) as caught:
        read_examples(listed(HELMET % "refs", tmp_path), [])
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 0.5 0.5 0.1", r"a.txt, line 1: 4 numbers; allowed: class and box \(5\), or class and polygon"),
        ("7 0.5 0.5 0.1 0.1", r"a.txt, line 1: class 7 has no name: the classes are cap, helmet"),
        ("inf 0.5 0.5 0.1 0.1", r"a.txt, line 1: class inf has no name: the classes are cap, helmet"),
        ("1.5 0.5 0.5 0.1 0.1", r"a.txt, line 1: class 1.5 has no name"),
        ("1 half 0.5 0.1 0.1", r"a.txt, line 1: '1 half 0.5 0.1 0.1' is not a row of numbers"),
        ("1 0.5 0.5 1.2 0.1", r"a.txt, line 1: the box .* is not inside the image"),
        ("1 0.5 0.5 0 0.1", r"a.txt, line 1: the box .* has no area"),
    ],
)
def test_bad_yolo_rows_are_refused_with_their_line(row: str, message: str, tmp_path: Path) -> None:
    references(tmp_path / "refs", "yolo")
    (tmp_path / "refs" / "labels" / "a.txt").write_text(row)
    with pytest.raises(InputError, match=message):
        read_examples(listed(HELMET % "refs", tmp_path), [])


def test_every_problem_of_every_class_is_in_one_message(tmp_path: Path) -> None:
    marks = {"a.jpg": [("helmet", (70, 10, 20, 20)), ("vest", (1, 1, 0, 9)), ("boot", (1, 1, 9, 9))], "sub/b.jpg": []}
    references(tmp_path / "refs", "coco", marks)
    photo(tmp_path / "refs" / "new.jpg", 9)
    concepts = "names: [helmet, vest, glove]\nconcepts: {helmet: {exemplars: refs}, vest: {exemplars: refs}, %s}"
    with pytest.raises(InputError) as caught:
        read_examples(listed(concepts % "glove: {exemplars: none}", tmp_path), [])
    lines = str(caught.value).splitlines()
    assert lines[0] == f"the exemplars have {len(lines) - 1} problems"
    for words in ("not inside", "no area", "'boot' is not in", "new.jpg: no labels", "none: no such file"):
        assert sum(words in line for line in lines) == 1, words


def test_partial_labels_that_may_be_of_two_photos_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", {"a.jpg": [("helmet", (1, 1, 9, 9))]})
    items = [MediaItem("x/a.jpg", ""), MediaItem("y/a.jpg", "")]
    with pytest.raises(InputError, match=r"'a.jpg' may be x/a.jpg, y/a.jpg: write its path as in the folder"):
        read_examples(listed(HELMET % "{labels: p.json}", tmp_path), items)


def test_what_changes_the_numbers_changes_the_digest(tmp_path: Path) -> None:
    def digest() -> str:
        (examples,) = read_examples(listed(HELMET % "refs", tmp_path), [])
        return examples.digest

    references(tmp_path / "refs")
    first = digest()
    (tmp_path / "refs" / "labels.json").write_text((tmp_path / "refs" / "labels.json").read_text() + "\n")
    assert digest() == first
    write_coco(tmp_path / "refs" / "labels.json", {**BOXES, "a.jpg": [("helmet", (11, 5, 20, 30))]})
    moved = digest()
    photo(tmp_path / "refs" / "a.jpg", 77)
    assert len({first, moved, digest()}) == 3


def test_of_partial_labels_only_what_is_about_the_class_changes_the_digest(tmp_path: Path) -> None:
    def digest(*marks: tuple[str, Any]) -> str:
        write_coco(tmp_path / "p.json", {"a.jpg": list(marks)})
        concepts = listed(
            "names: [helmet, vest]\nconcepts: {helmet: {not: [cap], exemplars: {labels: p.json}}}", tmp_path
        )
        return read_examples(concepts, [MediaItem("a.jpg", "")])[0].digest

    helmet, box = ("helmet", (10, 5, 20, 30)), (40, 10, 16, 20)
    first = digest(helmet)
    assert digest(helmet, ("vest", box)) == first
    assert len({first, digest(helmet, ("cap", box)), digest(helmet, ("helmet", box))}) == 3


# ---- prompts


def test_exemplar_prompts_come_after_the_phrases_with_keys_of_their_own() -> None:
    concepts = parse_concepts(
        "names: [helmet, bolt]\nconcepts:\n"
        "  helmet: {prompts: [hat, cap], exemplars: a}\n  bolt: {prompts: [], exemplars: b}\n"
    )
    prompts = prompts_of(concepts)
    assert [(p.text, p.source, p.class_name) for p in prompts] == [
        ("hat", "phrase", None),
        ("cap", "phrase", None),
        ("hat", "both", "helmet"),
        ("cap", "both", "helmet"),
        (None, "exemplar", "bolt"),
    ]
    assert len({p.key for p in prompts}) == len(prompts)
    assert [exemplar_class(p.key) for p in prompts] == [None, None, "helmet", "helmet", "bolt"]


# ---- the model


@pytest.fixture(scope="module")
def detector(least_checkpoint: Path) -> Detector:
    return Detector.load(resolve(str(least_checkpoint)), device="cpu")


@pytest.fixture(scope="module")
def library(least_checkpoint: Path) -> tuple[Any, Any]:
    from transformers import Sam3Model, Sam3Processor

    return Sam3Processor.from_pretrained(least_checkpoint), Sam3Model.from_pretrained(least_checkpoint).eval()


def frame(name: str, seed: int) -> Frame:
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    return Frame(MediaItem(name, name), 0, pixels)


def spied(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[PairScores]:
    """The answers of the real head, as they come."""
    answers: list[PairScores] = []
    score = detector.asker.scorer

    def listened(*args: Any) -> PairScores:
        answers.append(score(*args))
        return answers[-1]

    monkeypatch.setattr(detector.asker, "scorer", listened)
    return answers


def test_same_image_exemplars_are_the_librarys_input_boxes(
    detector: Detector, library: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, boxes, both, positive and negative, on two photos in one batch: logits within 1e-4."""
    processor, model = library
    write_coco(tmp_path / "p.json", {"a.jpg": [("hat", (10, 5, 20, 30)), ("cap", (40, 10, 16, 20)),
                                               ("bolt", (3, 3, 9, 9)), ("bolt", (50, 30, 25, 28))]})  # fmt: skip
    concepts = listed(
        "names: [word, hat, bolt]\nconcepts:\n"
        "  hat: {prompts: [red hat], not: [cap], exemplars: {labels: p.json}}\n"
        "  bolt: {prompts: [], exemplars: {labels: p.json}}\n",
        tmp_path,
    )
    frames = [frame("a.jpg", 1), frame("b.jpg", 2)]
    guide = Guide(detector, concepts, read_examples(concepts, [f.item for f in frames]))
    answers = spied(detector, monkeypatch)
    presence = np.stack([d.presence for d in guide.detect(frames, 0.1)])
    logits = torch.cat([answer.logits for answer in answers])
    hat, bolt = [[10, 5, 30, 35], [40, 10, 56, 30]], [[3, 3, 12, 12], [50, 30, 75, 58]]
    padding: tuple[list[list[int]], list[int]] = ([[0, 0, 0, 0]], [-10])
    asked = [
        (0, "word", "word", padding), (0, "cap", "cap", padding),
        (0, exemplar_key("hat", "red hat"), "red hat", (hat, [1, 0])),
        (0, exemplar_key("bolt"), "visual", (bolt, [1, 1])),
        (1, "word", "word", padding), (1, "red hat", "red hat", padding), (1, "cap", "cap", padding),
    ]  # fmt: skip
    assert len(logits) == len(asked)
    keys = [prompt.key for prompt in guide.prompts]
    for row, (image, key, text, (corners, signs)) in enumerate(asked):
        inputs = processor(
            images=frames[image].pixels, text=text, input_boxes=[corners], input_boxes_labels=[signs],
            return_tensors="pt",
        )  # fmt: skip
        inputs["pixel_values"] = detector.preprocess([frames[image]])  # the processor's resize is a grey level off
        with torch.no_grad():
            expected = model(**{k: v for k, v in inputs.items() if k != "original_sizes"})
        assert (logits[row] - expected.pred_logits[0]).abs().max() < TOLERANCE, key
        assert presence[image, keys.index(key)] == pytest.approx(expected.presence_logits.sigmoid().item(), abs=1e-4)
    left_out = {(i, k) for i in (0, 1) for k in keys} - {(i, k) for i, k, _, _ in asked}
    assert all(np.isnan(presence[i, keys.index(k)]) for i, k in left_out)


def test_tokens_of_references_are_prompt_tokens_to_the_library(
    detector: Detector, library: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model = library[1]
    references(tmp_path / "refs")
    concepts = listed(
        "names: [helmet, cap]\nconcepts: {helmet: {exemplars: {references: refs, mode: tokens}}}", tmp_path
    )
    guide = Guide(detector, concepts, read_examples(concepts, []))
    target = frame("t.jpg", 5)
    answers = spied(detector, monkeypatch)
    guide.detect([target], 0.1)
    with torch.inference_mode():
        state = detector.encode_images(detector.preprocess([target]))
        first, second = (r.frame() for r in guide.examples[0].references)
        own = detector.encode_references([first, second], [r.boxes for r in guide.examples[0].references])
        assert [len(tokens) for tokens in own] == [1, 1]  # a box of `cap` says nothing about helmets here
        detector.encode_phrases(["helmet"])
        tokens = torch.cat((detector.phrases.features["helmet"], state.summary[0], *own))[None]
        expected = model(
            pixel_values=detector.preprocess([target]),
            text_embeds=BaseModelOutputWithPooling(pooler_output=tokens),
            attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
        )
    assert guide.prompts[-1].key == exemplar_key("helmet", "helmet")
    assert (torch.cat([a.logits for a in answers])[-1] - expected.pred_logits[0]).abs().max() < TOLERANCE


def test_tokens_and_boxes_and_words_share_a_batch(detector: Detector, tmp_path: Path) -> None:
    """Whatever stands beside it, a pair gets the answer that it gets alone."""
    references(tmp_path / "refs")
    write_coco(tmp_path / "p.json", {"t.jpg": [("hat", (10, 5, 20, 30)), ("hat", (40, 10, 16, 20))]})
    concepts = listed(
        "names: [helmet, hat, word]\nconcepts:\n"
        "  helmet: {not: [cap], exemplars: {references: refs, mode: tokens}}\n"
        "  hat: {prompts: [], exemplars: {labels: p.json}}\n",
        tmp_path,
    )
    target = frame("t.jpg", 5)
    examples = read_examples(concepts, [target.item])
    (together,) = Guide(detector, concepts, examples).detect([target], 0.1)
    keys = [prompt.key for prompt in prompts_of(concepts)]
    for one in examples:
        guide = Guide(detector, concepts, examples).alone(one)
        (alone,) = guide.detect([target], 0.1)
        position = [p.key for p in guide.prompts].index(guide.prompts[-1].key)
        assert alone.presence[position] == pytest.approx(together.presence[keys.index(guide.prompts[-1].key)], abs=1e-5)


def count_images(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    encode = detector.encode_images
    monkeypatch.setattr(detector, "encode_images", lambda pixels: (sizes.append(len(pixels)), encode(pixels))[1])
    return sizes


@pytest.mark.parametrize(
    ("rules", "planned"),
    [
        ("prompts: [], exemplars: refs", {"photos": 0, "canvases for helmet": 3}),
        ("exemplars: {references: refs, tiles: 2}", {"photos": 0, "canvases for helmet": 15}),
        ("not: [cap], exemplars: refs", {"photos": 3, "canvases for helmet": 3}),
        ("exemplars: {references: refs, mode: tokens}", {"photos": 3, "references of helmet": 2}),
    ],
)
def test_the_plan_says_what_is_encoded_and_masks_are_of_the_photo(
    rules: str, planned: dict[str, int], detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references(tmp_path / "refs")
    concepts = listed(f"names: [helmet, cap]\nconcepts: {{helmet: {{{rules}}}}}", tmp_path)
    concepts = replace(concepts, concepts=concepts.concepts[:1])
    (tmp_path / "refs" / "labels.json").unlink()
    write_coco(tmp_path / "refs" / "labels.json", {name: [("helmet", marks[0][1])] for name, marks in BOXES.items()})
    guide = Guide(detector, concepts, read_examples(concepts, []))
    frames = [frame(f"{n}.jpg", n) for n in range(3)]
    sizes = count_images(detector, monkeypatch)
    detections = guide.detect(frames, 0.05)
    assert guide.encodes(3) == planned
    assert sum(sizes) == sum(planned.values())
    found = [c for detection in detections for c in detection.candidates if c.prompt.startswith("exemplar:")]
    assert found and len({c.id for c in found}) == len(found)
    assert {c.source for c in found} == {"both" if "prompts" not in rules else "exemplar"}
    for candidate in found:
        assert candidate.rle.size_hw == SIZE_HW and candidate.area == masks.area(candidate.rle) > 0
        assert candidate.box_xywh == masks.box_xywh(candidate.rle)
    sizes.clear()
    guide.detect(frames[:1], 0.05)  # the references are not encoded again
    assert sum(sizes) == sum(guide.encodes(1).values()) - planned.get("references of helmet", 0)


def test_classes_by_tokens_share_the_photos_encode_and_references_without_boxes_take_none(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references(tmp_path / "refs", "coco", {**BOXES, "empty.jpg": []})
    rules = "{prompts: [], exemplars: {references: refs, mode: tokens}}"
    concepts = listed(f"names: [helmet, cap]\nconcepts: {{helmet: {rules}, cap: {rules}}}", tmp_path)
    guide = Guide(detector, concepts, read_examples(concepts, []))
    sizes = count_images(detector, monkeypatch)
    detections = guide.detect([frame(f"{n}.jpg", n) for n in range(3)], 0.05)
    assert guide.encodes(3) == {"photos": 3, "references of helmet": 2, "references of cap": 1}
    assert sum(sizes) == 6
    assert guide.encodes(0) == {}
    asked = {candidate.prompt for detection in detections for candidate in detection.candidates}
    assert asked == {exemplar_key("helmet"), exemplar_key("cap")}


def test_a_photo_that_is_a_reference_is_labelled_from_the_others_or_by_words(
    detector: Detector, tmp_path: Path
) -> None:
    references(tmp_path / "refs", "coco", {"a.jpg": [("helmet", (1, 1, 9, 9))], "b.jpg": []})
    concepts = listed("names: [helmet]\nconcepts: {helmet: {exemplars: refs}}", tmp_path)
    guide = Guide(detector, concepts, read_examples(concepts, []))
    own, other = (r.frame() for r in guide.examples[0].references)
    first, second = guide.detect([own, other], 0.1)
    assert np.isfinite(first.presence).tolist() == [True, False]  # the one reference that shows helmets is itself
    assert np.isfinite(second.presence).tolist() == [False, True]


# ---- trust


def trusted(found: int, wrong: int, missed: int, references: int = 3) -> reference_check.Trust:
    return reference_check.Trust("helmet", references, found, wrong, missed, 0.5)


def test_poor_references_are_refused_with_the_figures_and_advice() -> None:
    reference_check.refuse_poor([trusted(3, 7, 7)])  # F1 0.3 is enough
    with pytest.raises(ConfigError) as caught:
        reference_check.refuse_poor([trusted(9, 1, 1), trusted(1, 4, 3)])
    message = str(caught.value)
    assert "helmet: 3 references, each labelled from the others: precision 0.20, recall 0.25, F1 0.22" in message
    assert "0.90" not in message and "--accept-exemplars" in message and "sam3label preview" in message
    with pytest.raises(ConfigError, match="helmet: one reference cannot be measured against another"):
        reference_check.refuse_poor([trusted(0, 0, 0, references=1)])


def test_labels_are_compared_with_a_references_boxes_one_to_one(tmp_path: Path) -> None:
    from support.builders import candidate, rectangle

    from sam3label.run.decide import select_labels

    marks = [("helmet", (10, 5, 20, 30)), ("helmet", (50, 20, 10, 10))]
    references(tmp_path / "refs", "coco", {"a.jpg": marks, "b.jpg": []})
    concepts = listed("names: [helmet]\nconcepts: {helmet: {exemplars: refs}}", tmp_path)
    (examples,) = read_examples(concepts, [])
    key = exemplar_key("helmet", "helmet")
    found = [
        candidate(key, 0.9, rectangle(11, 5, 20, 30), source="both", query=1),
        candidate(key, 0.8, rectangle(4, 5, 20, 30), source="both", query=2),  # the same box again, IoU 0.54
        candidate(key, 0.7, rectangle(0, 40, 9, 9), source="both", query=3),
        candidate(key, 0.4, rectangle(50, 20, 10, 10), source="both", query=4),  # under the threshold
    ]
    labels = select_labels(found, concepts)
    assert reference_check.compared(labels, examples.references[0]).tolist() == [1, 2, 1]
    assert reference_check.compared((), examples.references[0]).tolist() == [0, 0, 2]
    assert reference_check.compared(labels, examples.references[1]).tolist() == [
        0,
        3,
        0,
    ]  # shows none: all are false alarms


# ---- from the command line


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def job(tmp_path: Path, least_checkpoint: Path) -> tuple[list[str | Path], Path]:
    """A run over three photos by references, which a random model is bad at, and its folder."""
    for seed in range(3):
        photo(tmp_path / "photos" / f"{seed}.jpg", 100 + seed)
    references(tmp_path / "refs")
    (tmp_path / "c.yaml").write_text(HELMET % "refs")
    out = tmp_path / "run"
    arguments = ["run", tmp_path / "photos", "-c", tmp_path / "c.yaml", "-o", out]
    return [*arguments, "--model", least_checkpoint, "--workers", 0, "--device", "cpu"], out


def test_a_run_by_references_is_planned_measured_refused_accepted_and_resumed(
    job: tuple[list[str | Path], Path], tmp_path: Path
) -> None:
    command, out = job
    code, output = invoke(*command)
    assert code == 1, output
    plan = "3 photos take 10 image encodes: 3 photos + 3 canvases for helmet + 4 to measure the references first"
    assert plan in output
    assert "helmet: 2 references, each labelled from the others: precision 0" in output
    assert "labelling by these references is not to be trusted" in output
    assert not out.exists()  # nothing to clean up
    code, output = invoke(*command, "--accept-exemplars")
    assert code == 0, output
    with Store.open(out) as store:
        figures = store.meta("trust")["helmet"]
        sources = {c.source for unit in store.units() for c in store.candidates(unit)}
    assert figures["references"] == 2 and figures["f1"] < 0.3 and set(figures) > {"precision", "recall", "conf"}
    assert sources == {"both", "phrase"}  # `cap` is asked in words
    with open_run(out) as run:
        assert len(run) == 3
    said = " ".join(invoke("status", out)[1].split())
    assert "helmet: 2 references, each labelled from the others: precision 0" in said
    code, output = invoke(*command, "--accept-exemplars")
    assert code == 0, output
    assert "image encodes" not in output  # nothing to ask: nothing measured, nothing loaded
    write_coco(tmp_path / "refs" / "labels.json", {**BOXES, "a.jpg": [("helmet", (11, 5, 20, 30))]})
    code, output = invoke(*command, "--accept-exemplars")
    assert code == 0, output
    assert "new exemplars of helmet ('helmet') on 3 images" in output  # and `cap` is not asked again
    assert "helmet: 2 references, each labelled from the others" in output  # other references: measured again


def test_a_photo_whose_partial_labels_do_not_fit_fails_alone(
    job: tuple[list[str | Path], Path], tmp_path: Path
) -> None:
    command, out = job
    write_coco(tmp_path / "p.json", {"1.jpg": [("helmet", (10, 5, 20, 30))]}, size_hw=(60, 90))
    (tmp_path / "c.yaml").write_text(HELMET % "{labels: p.json}")
    code, output = invoke(*command)
    assert code == 3, output
    with open_run(out) as run:
        assert len(run) == 2
        ((name, reason),) = run.failures()
    assert name == "1.jpg" and "its labels are for an image of 90 x 60 pixels and it has 80 x 60" in reason
    write_coco(tmp_path / "p.json", {"1.jpg": [("helmet", (10, 5, 20, 30))]}, size_hw=(60, 80))
    code, output = invoke(*command)  # the boxes are the same: the run goes on, and the photo is tried again
    assert code == 0, output


def test_a_photo_that_will_be_refused_is_known_before_it_is_encoded(detector: Detector, tmp_path: Path) -> None:
    write_coco(tmp_path / "p.json", {"1.jpg": [("helmet", (10, 5, 20, 30))]}, size_hw=(60, 90))
    frames = [frame("1.jpg", 1), frame("2.jpg", 2)]
    concepts = listed(HELMET % "{labels: p.json}", tmp_path)
    guide = Guide(detector, concepts, read_examples(concepts, [one.item for one in frames]))
    assert [guide.labels_fit(one) for one in frames] == [False, True]


def test_bad_exemplars_end_the_run_before_the_model_is_loaded(
    job: tuple[list[str | Path], Path], tmp_path: Path
) -> None:
    command, _ = job
    photo(tmp_path / "refs" / "new.jpg", 5)
    code, output = invoke(*(c if c != command[7] else "no/such/model" for c in command))
    assert code == 1 and "new.jpg: no labels" in output and "Traceback" not in output


def test_a_reference_that_is_gone_before_it_is_needed(detector: Detector, tmp_path: Path) -> None:
    references(tmp_path / "refs")
    concepts = listed(HELMET % "refs", tmp_path)
    examples: Sequence[Examples] = read_examples(concepts, [])
    (tmp_path / "refs" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"refs/a.jpg can no longer be read"):
        Guide(detector, concepts, examples).detect([frame("t.jpg", 1)], 0.1)


def test_reference_tokens_are_cut_to_the_boxes_of_each_image(detector: Detector, tmp_path: Path) -> None:
    references(tmp_path / "refs")
    (examples,) = read_examples(listed(HELMET % "refs", tmp_path), [])
    frames, prompts = [r.frame() for r in examples.references], [r.boxes for r in examples.references]
    together = detector.encode_references(frames, prompts)
    assert [len(tokens) for tokens in together] == [2, 1]
    for one, boxes, tokens in zip(frames, prompts, together, strict=True):
        assert torch.allclose(detector.encode_references([one], [boxes])[0], tokens, atol=1e-5)
    assert ReferenceTokens(tuple(together)).tokens[0].shape[1] == together[1].shape[1]


def test_preview_shows_the_exemplars_as_they_are_used(tmp_path: Path, least_checkpoint: Path) -> None:
    from PIL import Image

    for seed in range(12):
        photo(tmp_path / "photos" / f"{seed:02}.jpg", 100 + seed)
    references(tmp_path / "refs")
    write_coco(tmp_path / "p.json", {"07.jpg": [("vest", (10, 5, 20, 30))]})
    (tmp_path / "c.yaml").write_text(
        "names: [helmet, vest, hat]\nconcepts:\n"
        "  helmet: {not: [cap], exemplars: refs}\n"
        "  vest: {exemplars: {labels: p.json}}\n"
    )
    command = ["preview", tmp_path / "photos", "-c", tmp_path / "c.yaml", "-o", tmp_path / "out", "-n", 3]
    code, output = invoke(*command, "--model", least_checkpoint, "--workers", 0, "--device", "cpu")
    assert code == 0, output
    assert "F1 " in output and "3 photos take " in output and "exemplars.png" in output
    with Image.open(tmp_path / "out" / "exemplars.png") as sheet:  # the canvas, two references, a labelled photo
        assert sheet.width > 800 and sheet.height > 600
    assert "07.jpg" in (tmp_path / "out" / "sample.txt").read_text()  # one in twelve has labels, and it is shown


def test_drawn_exemplars_are_frames_that_leave_the_object_to_see() -> None:
    boxes = BoxPrompt(
        np.array([(0.1, 0.1, 0.5, 0.5), (0.6, 0.2, 1, 0.4), (0, 0, 0.001, 0.001)], np.float32), (True, False, True)
    )
    drawn = preview.boxed(boxes, (400, 800), class_id=2, no=5)
    assert [label.class_id for label in drawn] == [2, 5, 2]
    assert drawn[0].box_xywh == (80, 40, 320, 160) and drawn[1].box_xywh == (480, 80, 320, 80)
    mask = masks.decode(drawn[0].rle)
    assert mask[41:44, 90:390].all() and mask[100, 81:84].all() and not mask[44:196, 84:396].any()


def test_after_the_model_it_does_not_matter_what_found_a_candidate() -> None:
    from support.builders import candidate, rectangle

    from sam3label.run.decide import decide

    concepts = parse_concepts(
        "names: [helmet, hat]\nexclusive: [[helmet, hat]]\n"
        "concepts: {helmet: {not: [cap], prompts: [hard hat], exemplars: refs}}"
    )
    alone, both = exemplar_key("helmet"), exemplar_key("helmet", "hard hat")
    found = [
        candidate("hard hat", 0.7, rectangle(1, 1, 10, 10), query=1),
        candidate(alone, 0.9, rectangle(1, 1, 10, 11), query=2, source="exemplar"),
        candidate(both, 0.8, rectangle(1, 1, 11, 10), query=3, source="both"),
        candidate(both, 0.6, rectangle(30, 1, 10, 10), query=4, source="both"),
        candidate("cap", 0.7, rectangle(30, 1, 10, 10), query=5),
        candidate(alone, 0.6, rectangle(50, 1, 10, 10), query=6, source="exemplar"),
        candidate("hat", 0.8, rectangle(50, 1, 10, 10), query=7),
        candidate(both, 0.4, rectangle(1, 30, 10, 10), query=8, source="both"),
    ]
    outcomes = {(d.label.prompt, d.label.score): d.outcome for d in decide(found, concepts)}
    assert outcomes == {
        (alone, 0.9): "label",
        (both, 0.8): "duplicate",
        ("hard hat", 0.7): "duplicate",
        (both, 0.6): "hard negative",
        (alone, 0.6): "exclusive",
        (both, 0.4): "low score",
        ("hat", 0.8): "label",
    }

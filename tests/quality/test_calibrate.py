"""Calibration: an honest gain on labels made worse on purpose, refusals, and a concept list that loads back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from support.builders import SIZE_HW, candidate, concepts, phrase_prompts, rectangle, unit
from typer.testing import CliRunner

from sam3label.annotations.truth import read_truth
from sam3label.cli import app
from sam3label.concepts.concept_list import dump_concepts, load_concepts, parse_concepts
from sam3label.concepts.starter import starter
from sam3label.core import masks, outlines
from sam3label.core.records import (
    Candidate,
    Concept,
    ConceptList,
    MediaItem,
    Rle,
    UnitResult,
    Verdict,
    Verify,
)
from sam3label.demo.shapes import make_scene, matches
from sam3label.errors import InputError, OutputError
from sam3label.quality.calibrate import Goal, Thresholds, calibrate_run
from sam3label.quality.calibrated_list import edited, write_concepts
from sam3label.quality.calibration_examples import answers, read_examples
from sam3label.run.decide import select_labels
from sam3label.run.reader import open_run
from sam3label.run.store import Store

SCENE_HW = (96, 128)
PHRASES = ("circle", "square", "triangle", "disc", "box")
CLASSES = concepts(
    Concept(0, "circle", ("circle", "disc")),
    Concept(1, "square", ("square",), conf=0.4),
    Concept(2, "hexagon", ("triangle",)),
)
FLOOR = 0.05


def shaken(mask: np.ndarray, rng: np.random.Generator) -> Rle:
    """A mask as a model might find it: moved by a pixel or two."""
    return masks.encode(np.roll(mask, tuple(int(v) for v in rng.integers(-1, 2, 2)), axis=(0, 1)))


def label_scene(item_id: str, seed: int, fade: float) -> tuple[UnitResult, list[tuple[int, Rle]]]:
    """What a fair model says about a demo scene, circles scored too low by the factor `fade`; and the truth."""
    scene, rng = make_scene(seed, SCENE_HW), np.random.default_rng(seed)
    found: list[Candidate] = []
    truth: list[tuple[int, Rle]] = []

    def add(phrase: str, rle: Rle, score: float) -> None:
        found.append(candidate(phrase, max(score, FLOOR), rle, item_id=item_id, query=len(found), presence=0.95))

    for number, thing in enumerate(scene.things, start=1):
        mask = scene.mask(number)
        if matches("circle", thing):
            truth.append((1, masks.encode(mask)))
            if rng.random() < 0.95:
                add("circle", shaken(mask, rng), fade * float(rng.beta(8, 2)))
            if rng.random() < 0.5:  # the synonym sees half of them, and never one that "circle" misses
                add("disc", shaken(mask, rng), fade * float(rng.beta(6, 3)))
        elif matches("square", thing):
            truth.append((2, masks.encode(mask)))
            add("square", shaken(mask, rng), float(rng.beta(8, 2)))
        elif rng.random() < 0.5:  # something else is taken for a circle
            add("circle", masks.encode(mask), fade * float(rng.beta(2, 5)))
    presence = np.full((1, len(PHRASES)), 0.95, np.float32)
    return UnitResult(MediaItem(item_id, f"/photos/{item_id}"), 0, 1, SCENE_HW, tuple(found), presence), truth


def labelled_scenes(folder: Path, n: int, first_seed: int, fade: float = 0.4) -> tuple[Path, Path]:
    """(run folder, truth file) of `n` demo scenes."""
    folder.mkdir()
    units, images, annotations = [], [], []
    for i in range(n):
        result, objects = label_scene(f"{i:03d}.jpg", first_seed + i, fade)
        units.append(result)
        images.append({"id": i, "file_name": f"{i:03d}.jpg", "height": SCENE_HW[0], "width": SCENE_HW[1]})
        for category, rle in objects:
            segmentation = {"size": list(rle.size_hw), "counts": rle.counts.decode()}
            annotations.append({"image_id": i, "category_id": category, "segmentation": segmentation, "iscrowd": 0})
    categories = [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}, {"id": 3, "name": "hexagon"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    with Store.writer(folder / "run", phrase_prompts(*PHRASES), {"floor": FLOOR}) as store:
        store.write(units)
        store.set_meta("concepts", dump_concepts(CLASSES))
    return folder / "run", folder / "truth.json"


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return labelled_scenes(tmp_path_factory.mktemp("small") / "set", 50, first_seed=0)


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images that calibration never sees."""
    return labelled_scenes(tmp_path_factory.mktemp("other") / "set", 150, first_seed=1000)


def test_a_class_scored_too_low_is_repaired_and_the_promise_holds(
    small_set: tuple[Path, Path], other_set: tuple[Path, Path], tmp_path: Path
) -> None:
    calibration = calibrate_run(*small_set)
    circle = calibration.classes[0]
    assert circle.before is not None and circle.after is not None
    assert circle.before.f < 0.2
    assert circle.gain > 0.5
    assert circle.gain_interval[0] > 0.3
    assert circle.new.conf < 0.35
    write_concepts(calibration, tmp_path / "new.yaml")
    held_out = calibrate_run(*other_set, concepts=load_concepts(tmp_path / "new.yaml")).classes[0].before
    assert held_out is not None
    low, high = held_out.interval
    assert low <= circle.after.f <= high
    assert high - low < 0.15


def test_a_class_that_is_fine_is_not_made_worse(small_set: tuple[Path, Path], other_set: tuple[Path, Path]) -> None:
    square = calibrate_run(*small_set).classes[1]
    assert square.before is not None and square.after is not None
    assert square.changed == (square.after.f > square.before.f)
    assert abs(square.gain) < 0.1


def test_reported_before_is_what_select_and_truth_say(small_set: tuple[Path, Path]) -> None:
    """The counts behind F are those of the labels that an export would write."""
    run_folder, truth_path = small_set
    truth = read_truth(truth_path)
    result = calibrate_run(run_folder, truth_path).classes[1]
    hits = found = objects = 0
    with open_run(run_folder) as run:
        for image_id, image in truth.images.items():
            labels = [
                x for x in select_labels(run.candidates(run.unit(image.file_name)), run.concepts) if x.class_id == 1
            ]
            true = [o.rle for o in truth.objects.get((image_id, 2), ()) if o.rle]
            iou = masks.iou_matrix([x.rle for x in labels], true)
            hits += int((iou.max(axis=1, initial=0) >= 0.5).sum()) if len(labels) else 0
            found, objects = found + len(labels), objects + len(true)
    assert result.before is not None
    assert result.before.precision == pytest.approx(hits / found)
    assert result.before.recall == pytest.approx(hits / objects)
    assert result.before.f == pytest.approx(2 * hits / (found + objects))
    assert result.objects == objects


@pytest.mark.parametrize(
    ("presence", "iou", "conf"), [(0.0, 0.7, 0.3), (0.6, 0.7, 0.2), (0.0, 0.2, 0.25), (0.4, 0.9, 0.5)]
)
def test_answers_follow_the_rules_of_select(presence: float, iou: float, conf: float, tmp_path: Path) -> None:
    """Random candidates with synonyms, hard negatives, overlaps, a minimum area and a cap."""
    rng = np.random.default_rng(7)
    concept = Concept(0, "cat", ("cat", "kitten"), ("dog",), conf, iou, presence, min_area=30, max_instances=4)
    for _ in range(25):
        found = [
            candidate(
                str(rng.choice(["cat", "kitten", "dog"])), round(float(rng.random()), 2),
                rectangle(*(int(v) for v in rng.integers(0, 30, 2)), *(int(v) for v in rng.integers(3, 25, 2))),
                query=q, presence=round(float(rng.random()), 2),
            )
            for q in range(12)
        ]  # fmt: skip
        (tmp_path / "t.json").write_text(json.dumps(one_image_truth([rectangle(5, 5, 15, 15)])))
        folder = make_run(
            tmp_path / f"run{rng.integers(1 << 40)}", ConceptList((concept,)), unit("a.jpg", *found, prompts=3)
        )
        with open_run(folder) as run:
            (example,) = read_examples(run, read_truth(tmp_path / "t.json"), [])[0]
        labels = sorted((x.score for x in select_labels(found, ConceptList((concept,)))), reverse=True)
        reply = answers(example, presence, iou, None)
        assert [s for s in reply.score if s >= conf] == labels
        assert reply.counts(conf)[1] == len(labels)


@pytest.mark.parametrize(
    "verify",
    [Verify("replace"), Verify("veto"), Verify("off", 0.5), Verify("replace", 0.3, 0.1), Verify("veto", 0.7, 0.2)],
)
def test_answers_heed_verdicts_as_labels_do(verify: Verify, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    concept = Concept(0, "cat", ("cat",), ("dog",), 0.4, 0.7, 0.2, max_instances=4, verify=verify)
    (tmp_path / "t.json").write_text(json.dumps(one_image_truth([rectangle(5, 5, 15, 15)])))
    for _ in range(20):
        found = [
            candidate(
                str(rng.choice(["cat", "cat", "dog"])), round(float(rng.random()) * 0.8, 2),
                rectangle(*(int(v) for v in rng.integers(0, 30, 2)), *(int(v) for v in rng.integers(3, 25, 2))),
                query=q, presence=0.8,
            )
            for q in range(10)
        ]  # fmt: skip
        said = [Verdict("a.jpg", 0, "cat", None, part, float(rng.random()), "eyes") for part in ("any", "all")]
        said += [Verdict("a.jpg", 0, "cat", c.id, "right", float(rng.random()), "eyes") for c in found]
        folder = make_run(
            tmp_path / f"run{rng.integers(1 << 40)}", ConceptList((concept,)), unit("a.jpg", *found, prompts=2)
        )
        with open_run(folder) as run:
            run.record_verdicts(said)
            run.rely_on(dict.fromkeys(("presence", "missing", "masks"), "eyes"))
            (example,) = read_examples(run, read_truth(tmp_path / "t.json"), [])[0]
            image = run.image("a.jpg")
        assert image is not None
        reply = answers(example, concept.presence, concept.iou, verify.reject_below)
        assert reply.counts(concept.conf)[1] == len(image.labels)


def test_a_verifiers_threshold_is_calibrated_with_the_rest(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    """Every circle that is none has a low score of the verifier, and the list asks for too high a one."""
    folder, truth_file = tmp_path / "run", small_set[1]
    shutil.copytree(small_set[0], folder)
    wanted = ConceptList(tuple(replace(c, conf=0.1, verify=Verify("off", 0.95)) for c in CLASSES.concepts))
    truth = read_truth(truth_file)
    files = {image.file_name: image_id for image_id, image in truth.images.items()}
    with open_run(folder, wanted) as run:
        for unit_ in run.done_units():
            objects = [o.rle for o in truth.objects.get((files[unit_.item.id], 1), ()) if o.rle]
            run.record_verdicts(
                [
                    Verdict(unit_.item.id, 0, "circle", c.id, "right", 0.8 if _fits(c.rle, objects) else 0.2, "eyes")
                    for c in run.candidates(unit_)
                ]
            )
        run.rely_on({"masks": "eyes"})
    calibration = calibrate_run(folder, truth_file, wanted)
    circle = calibration.classes[0]
    assert circle.old.reject_below == 0.95 and circle.new.reject_below in (0.3, 0.5, 0.7)
    assert circle.before is not None and circle.before.recall == 0.0
    assert circle.after is not None and circle.after.precision == 1.0
    assert "Verdicts count: masks by eyes." in calibration.notes
    (tmp_path / "own.yaml").write_text(dump_concepts(wanted))
    write_concepts(calibration, tmp_path / "new.yaml", tmp_path / "own.yaml")
    assert load_concepts(tmp_path / "new.yaml") == calibration.concepts


def _fits(rle: Rle, objects: list[Rle]) -> bool:
    return bool(objects) and float(masks.iou_matrix([rle], objects).max()) >= 0.5


def one_image_truth(objects: list[Rle]) -> dict[str, Any]:
    rows = [
        {"image_id": 1, "category_id": 1, "segmentation": {"size": list(r.size_hw), "counts": r.counts.decode()}}
        for r in objects
    ]
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1]}
    return {"images": [image], "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}


def make_run(folder: Path, classes: ConceptList, *units: UnitResult) -> Path:
    with Store.writer(folder, phrase_prompts(*classes.phrases), {}) as store:
        store.write(list(units))
        store.set_meta("concepts", dump_concepts(classes))
    return folder


def test_phrases_that_help_and_phrases_that_do_not(small_set: tuple[Path, Path]) -> None:
    effects = {e.phrase: e for e in calibrate_run(*small_set).classes[0].phrases}
    assert effects["circle"].verdict == "helps"
    assert effects["circle"].hits > 20
    assert effects["circle"].alone.recall > effects["disc"].alone.recall
    assert effects["disc"].hits <= 1
    assert effects["disc"].verdict != "helps" or effects["disc"].f_gain < 0.02
    assert calibrate_run(*small_set).classes[1].phrases == ()  # one phrase: nothing to compare


def test_a_precision_target_is_met_on_images_held_out(small_set: tuple[Path, Path]) -> None:
    goals = (Goal(), Goal(precision=0.95), Goal(precision=1.0))
    plain, strict, perfect = (calibrate_run(*small_set, goal=g).classes[0] for g in goals)
    assert plain.after is not None and strict.after is not None and perfect.after is not None
    assert plain.after.precision < 0.95 <= strict.after.precision
    assert strict.after.recall > 0.8
    assert strict.new.conf > plain.new.conf
    assert perfect.note == f"the precision on images held out is {perfect.after.precision:.3f}, not the 1 asked for"


def test_beta_weighs_recall(small_set: tuple[Path, Path]) -> None:
    recall, precision = (calibrate_run(*small_set, goal=Goal(beta=b)).classes[0].new.conf for b in (3.0, 0.3))
    assert recall <= precision


def test_too_few_examples_are_refused_with_what_is_missing(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    hexagon = calibrate_run(*small_set).classes[2]
    assert hexagon.note == ("too few examples (0 objects in 0 images): add 20 more objects and 5 more images with it")
    assert (hexagon.new, hexagon.before) == (hexagon.old, None)
    truth = one_image_truth([rectangle(2 * i, 2 * j, 1, 1) for i in range(4) for j in range(4)])
    (tmp_path / "t.json").write_text(json.dumps(truth))
    run = make_run(tmp_path / "run", concepts("cat"), unit("a.jpg"))
    (cat,) = calibrate_run(run, tmp_path / "t.json").classes
    assert "(16 objects in 1 image): add 4 more objects and 4 more images" in cat.note


def test_the_written_list_loads_back_and_keeps_the_rest(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    calibration = calibrate_run(*small_set)
    write_concepts(calibration, tmp_path / "deep" / "new.yaml")
    assert load_concepts(tmp_path / "deep" / "new.yaml") == calibration.concepts
    text = (tmp_path / "deep" / "new.yaml").read_text()
    assert text.startswith("# Thresholds calibrated by sam3label")
    assert "was: conf 0.5, presence 0, iou 0.7" in text
    assert "too few examples" in text and "#   circle: " in text and "gain +" in text
    assert "null" not in text
    assert calibration.concepts.concepts[2] == CLASSES.concepts[2]
    assert replace(calibration.concepts.concepts[0], conf=0.5, presence=0.0, iou=0.7) == CLASSES.concepts[0]
    with pytest.raises(OutputError, match="cannot be written"):
        write_concepts(calibration, tmp_path / "deep" / "new.yaml" / "below.yaml")


OWN_LISTS = {
    "block": """\
# my list, v3
names: [circle, square, hexagon] # never renumber

defaults:
  conf: 0.5 # as agreed

concepts:
  # round things
  circle:
    prompts: [circle, disc] # synonyms
  hexagon: {prompts: triangle}
""",
    "flow": """\
names: {0: circle, 1: square, 2: 'hexagon'} # x
concepts: {circle: {prompts: [circle, disc]}, hexagon: {prompts: triangle}}
""",
    "alias": """\
names: [circle, square, triangle] # x
concepts:
  circle: &plain {conf: 0.5} # x
  square: {conf: 0.5}
  triangle: *plain
""",
}


@pytest.mark.parametrize("form", OWN_LISTS)
def test_the_users_own_file_keeps_its_comments_and_defaults(
    form: str, small_set: tuple[Path, Path], tmp_path: Path
) -> None:
    """Comments, order, quotes and `defaults:` stay; what changed is changed in its class alone; twice is as once."""
    source = tmp_path / "own.yaml"
    source.write_text(OWN_LISTS[form])
    calibration = calibrate_run(*small_set, concepts=load_concepts(source))
    changed = [result.name for result in calibration.classes if result.changed]
    assert "circle" in changed and len(changed) < 3
    write_concepts(calibration, tmp_path / "new.yaml", source)
    text = (tmp_path / "new.yaml").read_text()
    assert load_concepts(tmp_path / "new.yaml") == calibration.concepts
    for line in OWN_LISTS[form].splitlines():
        assert line.partition("#")[2] in text
        assert line in text or form != "block"
    assert f"conf: {calibration.concepts.concepts[0].conf:g}" in text
    again = calibrate_run(*small_set, concepts=load_concepts(tmp_path / "new.yaml"))
    write_concepts(again, tmp_path / "newer.yaml", tmp_path / "new.yaml")
    assert (tmp_path / "newer.yaml").read_text().count("# Thresholds calibrated by") == 1


def test_without_a_list_the_one_the_run_was_labelled_with_is_edited(
    small_set: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its text is not in the run; the file is where it was, or the list is written out as it is known."""
    run, truth = tmp_path / "run", small_set[1]
    shutil.copytree(small_set[0], run)
    own = tmp_path / "own.yaml"
    own.write_text(OWN_LISTS["block"])
    with open_run(run) as opened:
        opened.keep_note("info", {**opened.info, "concept_file": str(own)})
    call = [app, ["calibrate", str(run), "--gt", str(truth), "-o", str(tmp_path / "new.yaml")]]
    assert CliRunner().invoke(*call).exit_code == 0
    first = (tmp_path / "new.yaml").read_text()
    assert all(line.partition("#")[2] in first for line in OWN_LISTS["block"].splitlines())
    own.unlink()
    assert CliRunner().invoke(*call).exit_code == 0
    again = load_concepts(tmp_path / "new.yaml")
    assert again == parse_concepts(first, folder=tmp_path)
    assert (tmp_path / "new.yaml").read_text() != first


def test_the_starter_and_a_bare_list_are_edited_too(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    for text in (starter(["circle", "square", "triangle"]), "[circle, square, triangle]  # bare\n"):
        (tmp_path / "own.yaml").write_text(text)
        calibration = calibrate_run(*small_set, concepts=load_concepts(tmp_path / "own.yaml"))
        assert calibration.concepts.concepts[0].conf != 0.5
        made = edited(text, calibration.concepts, tmp_path, tmp_path)
        assert made is not None and parse_concepts(made) == calibration.concepts
        assert all(line.partition("#")[2] in made for line in text.splitlines() if "#" in line)


@pytest.mark.parametrize("given", ["refs", "{references: refs, mode: tokens} # x", "{labels: refs}"])
def test_paths_of_exemplars_still_lead_there_from_another_folder(given: str, tmp_path: Path) -> None:
    text = f"names: [circle, square]\nconcepts:\n  circle:\n    exemplars: {given}\n"
    own = parse_concepts(text, folder=tmp_path / "here")
    wanted = replace(own, concepts=(own.concepts[0], replace(own.concepts[1], conf=0.25)))
    made = edited(text, wanted, tmp_path / "here", tmp_path / "there")
    assert made is not None and parse_concepts(made, folder=tmp_path / "there") == wanted
    assert str(tmp_path / "here" / "refs") in made and ("# x" in made or "#" not in given)


def test_overrides_go_into_the_file_and_other_phrases_make_a_new_one(
    small_set: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(OWN_LISTS["block"])
    own = load_concepts(tmp_path / "own.yaml", ["concepts.hexagon.min_area=7"])
    calibration = calibrate_run(*small_set, concepts=own)
    write_concepts(calibration, tmp_path / "new.yaml", tmp_path / "own.yaml")
    assert load_concepts(tmp_path / "new.yaml") == calibration.concepts
    assert "# round things" in (tmp_path / "new.yaml").read_text()
    calibration = calibrate_run(
        *small_set, concepts=load_concepts(tmp_path / "own.yaml", ["concepts.circle.prompts=disc"])
    )
    write_concepts(calibration, tmp_path / "new.yaml", tmp_path / "own.yaml")
    assert load_concepts(tmp_path / "new.yaml") == calibration.concepts


def test_thresholds_stay_above_the_floor_of_the_run(small_set: tuple[Path, Path]) -> None:
    for result in calibrate_run(*small_set, goal=Goal(beta=10)).classes:
        assert result.new.conf >= FLOOR


def test_truth_that_cannot_calibrate(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    phrase = {
        "images": [{"id": 1, "file_name": "a", "text_input": "x", "is_instance_exhaustive": 1}],
        "annotations": [],
    }
    (tmp_path / "saco.json").write_text(json.dumps(phrase))
    with pytest.raises(InputError, match="is an SA-Co file. Calibration works class by class: COCO or YOLO truth"):
        calibrate_run(small_set[0], tmp_path / "saco.json")


def boxes_of(truth: Path, out: Path) -> Path:
    """The same truth with boxes alone."""
    content = json.loads(truth.read_text())
    for row in content["annotations"]:
        counts = row.pop("segmentation")["counts"].encode()
        row["bbox"] = list(masks.box_xywh(Rle(SCENE_HW, counts)))
    out.write_text(json.dumps(content))
    return out


def test_a_truth_of_boxes_calibrates_by_boxes(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    calibration = calibrate_run(small_set[0], boxes_of(small_set[1], tmp_path / "boxes.json"))
    by_masks = calibrate_run(*small_set)
    assert calibration.compared == "bbox" and by_masks.compared == "segm"
    assert any("boxes are compared" in note for note in calibration.notes)
    circle, before = calibration.classes[0].after, calibration.classes[0].before
    assert circle is not None and before is not None and circle.f > before.f + 0.1
    assert calibration.classes[0].new.conf == pytest.approx(by_masks.classes[0].new.conf, abs=0.1)


def test_a_yolo_dataset_calibrates_as_the_same_coco_file_does(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    yolo = yolo_of(small_set[1], tmp_path / "yolo")
    for result, other in zip(calibrate_run(small_set[0], yolo).classes, calibrate_run(*small_set).classes, strict=True):
        assert (result.objects, result.images) == (other.objects, other.images)
        assert result.new == other.new and result.note == other.note


def yolo_of(truth: Path, folder: Path) -> Path:
    """A COCO truth as a YOLO dataset with images of the right size."""
    content = json.loads(truth.read_text())
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    height, width = SCENE_HW
    for image in content["images"]:
        Image.new("RGB", (width, height)).save(folder / "images" / image["file_name"])
        rows = []
        for row in (row for row in content["annotations"] if row["image_id"] == image["id"]):
            ring = outlines.contour(Rle(SCENE_HW, row["segmentation"]["counts"].encode())) / (width, height)
            rows.append(" ".join([str(row["category_id"] - 1), *(f"{v:.7f}" for v in ring.reshape(-1).tolist())]))
        (folder / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    (folder / "data.yaml").write_text("train: images\nnames: [circle, square, hexagon]\n")
    return folder


def test_no_candidates_at_all(tmp_path: Path) -> None:
    truth = one_image_truth([])
    truth["images"] = [{"id": i, "file_name": f"{i}.jpg"} for i in range(6)]
    box = {"size": list(SIZE_HW), "counts": rectangle(0, 0, 4, 4).counts.decode()}
    truth["annotations"] = [{"image_id": i, "category_id": 1, "segmentation": box} for i in range(6) for _ in range(4)]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    run = make_run(tmp_path / "run", concepts("cat"), *(unit(f"{i}.jpg") for i in range(6)))
    (cat,) = calibrate_run(run, tmp_path / "t.json").classes
    assert cat.after is not None
    assert (cat.after.f, cat.changed) == (0.0, False)
    assert cat.note == "kept: no other values did better on images held out"
    assert cat.new == Thresholds(0.5, 0.0, 0.7)


def invoke(arguments: list[str]) -> Result:
    return CliRunner().invoke(app, arguments)


def test_command_line_shows_the_gain_and_writes_the_list(small_set: tuple[Path, Path], tmp_path: Path) -> None:
    run, truth = map(str, small_set)
    done = invoke(["calibrate", run, "--gt", truth, "-o", str(tmp_path / "new.yaml"), "--precision", "0.9"])
    assert done.exit_code == 0, done.output
    assert "the most recall at precision 0.9" in done.output
    assert "hexagon" in done.output and "disc" in done.output and "note" in done.output
    assert load_concepts(tmp_path / "new.yaml").names == CLASSES.names
    assert invoke(["calibrate", run, "--gt", truth]).exit_code == 0
    assert (small_set[0] / "concepts.calibrated.yaml").is_file()
    assert invoke(["evaluate", run, "--gt", truth, "-c", str(tmp_path / "new.yaml")]).exit_code == 0

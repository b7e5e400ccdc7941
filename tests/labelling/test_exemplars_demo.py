"""Labelling by example from the command line, with the demo checkpoint and drawn scenes: what it finds is really there.

How good it is, over many scenes, is what scripts/bench/bench_exemplars.py measures; here it is well above chance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.core import masks
from sam3label.core.records import Rle
from sam3label.demo.shapes import Scene, Thing, make_scene
from sam3label.run.reader import open_run
from sam3label.run.store import Store

SIZE_HW = (240, 320)
KIND = "blue square"
UNWANTED = Thing("blue", "square")


def scenes(first_seed: int, kind: str, count: int, at_least: int = 1) -> dict[str, Scene]:
    """The first scenes from a seed on that show the kind so many times or more."""
    found: dict[str, Scene] = {}
    seed = first_seed
    while len(found) < count:
        scene = make_scene(seed, SIZE_HW)
        if sum(thing.name == kind for thing in scene.things) >= at_least:
            found[f"{seed}.png"] = scene
        seed += 1
    return found


def write(folder: Path, photos: dict[str, Scene]) -> Path:
    folder.mkdir(parents=True)
    for name, scene in photos.items():
        cv2.imwrite(str(folder / name), scene.image[..., ::-1])
    return folder


def truth(scene: Scene, kind: str) -> list[Rle]:
    return [masks.encode(scene.mask(k)) for k, thing in enumerate(scene.things, start=1) if thing.name == kind]


def coco(path: Path, boxes: dict[str, dict[str, Sequence[tuple[float, ...]]]]) -> None:
    names = sorted({kind for kinds in boxes.values() for kind in kinds})
    content = {
        "images": [{"id": i, "file_name": n, "height": SIZE_HW[0], "width": SIZE_HW[1]} for i, n in enumerate(boxes)],
        "annotations": [
            {"id": 0, "image_id": i, "category_id": names.index(kind), "bbox": box}
            for i, kinds in enumerate(boxes.values())
            for kind, own in kinds.items()
            for box in own
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    path.write_text(json.dumps(content))


def f1(out: Path, photos: dict[str, Scene], kind: str) -> float:
    hits = wrong = missed = 0
    with open_run(out) as labelled:
        for image in (one for one in labelled.images() if one.item.id in photos):
            wanted = truth(photos[image.item.id], kind)
            own = [one.rle for one in image.labels if labelled.concepts.names[one.class_id] == kind]
            found = int((masks.iou_matrix(own, wanted) >= 0.5).any(0).sum()) if own and wanted else 0
            hits, wrong, missed = hits + found, wrong + len(own) - found, missed + len(wanted) - found
    return 2 * hits / (2 * hits + wrong + missed)


def run(tmp_path: Path, concepts: str, *options: str) -> tuple[int, str, Path]:
    (tmp_path / "c.yaml").write_text(concepts)
    out = tmp_path / "run"
    command = ["run", tmp_path / "photos", "-c", tmp_path / "c.yaml", "-o", out, "--model", "demo", "--workers", 0]
    result = CliRunner().invoke(app, [str(word) for word in (*command, *options)])
    return result.exit_code, result.output, out


def test_one_box_completes_a_photo_and_words_do_the_others(tmp_path: Path) -> None:
    several = scenes(9_300_000, KIND, 6, at_least=2)
    single = scenes(9_310_000, KIND, 2)
    write(tmp_path / "photos", several | single)
    coco(tmp_path / "partial.json", {n: {KIND: [masks.box_xywh(truth(s, KIND)[0])]} for n, s in several.items()})
    code, output, out = run(
        tmp_path,
        f"names: [{KIND}]\ndefaults: {{conf: 0.4}}\nconcepts: {{{KIND}: {{exemplars: {{labels: partial.json}}}}}}",
    )
    assert code == 0, output
    assert "8 photos take 8 image encodes\n" in output
    assert f1(out, several, KIND) > 0.6
    with open_run(out) as labelled:
        sources = {i.item.id: {label.source for label in i.labels} for i in labelled.images()}
    assert all(sources[name] == {"both"} for name in several if sources[name])
    assert all(sources[name] <= {"phrase"} for name in single)


@pytest.mark.parametrize("mode", ["canvas", "tokens"])
def test_references_find_their_kind_on_other_photos(mode: str, tmp_path: Path) -> None:
    photos = scenes(9_320_000, KIND, 8)
    write(tmp_path / "photos", photos)
    references = scenes(9_330_000, KIND, 4)
    write(tmp_path / "refs", references)
    coco(
        tmp_path / "refs" / "l.json",
        {n: {KIND: [masks.box_xywh(r) for r in truth(s, KIND)]} for n, s in references.items()},
    )
    rules = f"{{prompts: [], exemplars: {{references: refs, mode: {mode}}}}}"
    code, output, out = run(tmp_path, f"names: [{KIND}]\ndefaults: {{conf: 0.4}}\nconcepts: {{{KIND}: {rules}}}")
    assert code == 0, output
    assert f1(out, photos, KIND) > 0.5
    with Store.open(out) as store:
        figures = store.meta("trust")[KIND]
        assert {c.source for unit in store.units() for c in store.candidates(unit)} == {"exemplar"}
    assert f"{KIND}: 4 references, each labelled from the others: precision" in output
    assert figures["f1"] > 0.4 and figures["references"] == 4


def test_references_with_boxes_beside_the_objects_are_refused_and_may_be_accepted(tmp_path: Path) -> None:
    write(tmp_path / "photos", scenes(9_340_000, KIND, 2))
    references = scenes(9_350_000, KIND, 3)
    write(tmp_path / "refs", references)
    empty = {n: {KIND: [_elsewhere(s)]} for n, s in references.items()}
    coco(tmp_path / "refs" / "l.json", empty)
    concepts = f"names: [{KIND}]\nconcepts: {{{KIND}: {{prompts: [], exemplars: refs}}}}"
    code, output, out = run(tmp_path, concepts)
    assert code == 1 and "labelling by these references is not to be trusted" in output, output
    assert not out.exists()
    code, output, out = run(tmp_path, concepts, "--accept-exemplars")
    assert code == 0 and "the least to be trusted is 0.30" in output, output


def _elsewhere(scene: Scene) -> tuple[float, ...]:
    """A box where there is little of anything."""
    covered = cv2.boxFilter((scene.index > 0).astype(np.float32), -1, (40, 40))[20:-20, 20:-20]
    y, x = divmod(int(covered.argmin()), covered.shape[1])
    return x, y, 40, 40


def test_a_counter_example_takes_its_kind_out_of_what_the_words_find(tmp_path: Path) -> None:
    """Asked for squares, and shown that a blue one is not meant. `not:` names it with a word the model cannot know."""
    photos = {name: scene for name, scene in scenes(9_360_000, KIND, 22).items() if _has_another_square(scene)}
    write(tmp_path / "photos", photos)
    coco(tmp_path / "p.json", {n: {"qzx": [masks.box_xywh(r) for r in truth(s, KIND)]} for n, s in photos.items()})
    words = "names: [square]\nconcepts: {square: {not: [qzx]%s}}"
    found = []
    for rules in ("", ", exemplars: {labels: p.json}"):
        code, output, out = run(tmp_path, words % rules, "--fresh")
        assert code == 0, output
        found.append([labelled_of(out, photos, is_unwanted) for is_unwanted in (True, False)])
    (unwanted_before, _), (unwanted_after, wanted_after) = found
    assert unwanted_before > 0.6
    assert unwanted_after < unwanted_before - 0.2
    assert unwanted_after < wanted_after - 0.2


def labelled_of(out: Path, photos: dict[str, Scene], is_unwanted: bool) -> float:
    """The share of the unwanted squares, or of the others, that the labels cover."""
    covered = []
    with open_run(out) as labelled:
        for image in labelled.images():
            scene = photos[image.item.id]
            for number, thing in enumerate(scene.things, start=1):
                if thing.shape == "square" and (thing == UNWANTED) == is_unwanted:
                    own = masks.iou_matrix([masks.encode(scene.mask(number))], [one.rle for one in image.labels])
                    covered.append(bool((own >= 0.5).any()))
    return sum(covered) / len(covered)


def _has_another_square(scene: Scene) -> bool:
    return any(thing.shape == "square" and thing != UNWANTED for thing in scene.things)

"""`sam3label demo` end to end with the shipped checkpoint: photos, labels, datasets, figures, a picture to look at."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import load_concepts
from sam3label.demo import job
from sam3label.model.checkpoint import resolve
from sam3label.run.reader import open_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "first look"
    result = CliRunner().invoke(app, ["demo", "-o", str(out), "--number", "8", "--seed", "3"])
    assert result.exit_code == 0, result.output
    return out, result.output


def test_everything_is_where_the_screen_says(made: tuple[Path, str]) -> None:
    out, screen = made
    for path in (
        "contact_sheet.png",
        "photos",
        "concepts.yaml",
        "run",
        "datasets/coco",
        "datasets/yolo",
        "metrics.json",
    ):
        assert str(out / path) in screen
        assert (out / path).exists()
    assert "Next" in screen
    assert len(list((out / "photos").iterdir())) == 8


def test_the_figures_are_the_labels_against_the_truth(made: tuple[Path, str]) -> None:
    out, _ = made
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"f1", "mean_iou", "presence_mcc", "images", "seconds"}
    assert metrics["images"] == 8
    with open_run(out / "run") as labelled:
        again = job.score(labelled, out / "truth.json", metrics["seconds"])
        assert [again.f1, again.mean_iou, again.presence_mcc] == [
            metrics[name] for name in ("f1", "mean_iou", "presence_mcc")
        ]
    # well above chance; how good the checkpoint is stands in its model card
    assert metrics["f1"] > 0.5
    assert metrics["mean_iou"] > 0.7


def test_perfect_labels_score_one(made: tuple[Path, str], tmp_path: Path) -> None:
    """The truth of the run's own labels: nothing but a match of everything may give 1."""
    out, _ = made
    coco = json.loads((out / "datasets" / "coco" / "annotations" / "instances_train.json").read_text())
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(coco))
    with open_run(out / "run") as labelled:
        mine = job.score(labelled, truth, 0.0)
        truth.write_text(json.dumps(coco | {"annotations": []}))
        nothing = job.score(labelled, truth, 0.0)
    assert (mine.f1, mine.mean_iou) == (pytest.approx(1, abs=1e-3), 1.0)
    assert (nothing.f1, nothing.mean_iou) == (0.0, 0.0)


def test_the_concept_list_shows_synonyms_hard_negatives_and_a_group(made: tuple[Path, str]) -> None:
    concepts = load_concepts(made[0] / "concepts.yaml")
    assert concepts.names == tuple(job.TRUTH)
    assert any(len(c.prompts) > 1 for c in concepts.concepts)
    assert any(c.negatives for c in concepts.concepts)
    assert concepts.exclusive


def test_the_datasets_hold_the_labels(made: tuple[Path, str]) -> None:
    out, _ = made
    coco = COCO(str(out / "datasets" / "coco" / "annotations" / "instances_train.json"))
    with open_run(out / "run") as labelled:
        expected = sum(len(image.labels) for image in labelled.images())
    rows = sum(len(path.read_text().splitlines()) for path in (out / "datasets" / "yolo" / "labels").rglob("*.txt"))
    assert len(coco.anns) == rows == expected > 0


def test_the_contact_sheet_shows_the_photos(made: tuple[Path, str]) -> None:
    sheet = np.asarray(Image.open(made[0] / "contact_sheet.png"))
    assert sheet.shape[2] == 3
    assert min(sheet.shape[:2]) > 400
    assert sheet.std() > 20


def test_a_folder_that_is_not_a_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path), "--number", "1"])
    assert result.exit_code == 1
    assert "is not empty and not an earlier demo" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_checkpoint_is_small_and_comes_with_a_card() -> None:
    folder = resolve("demo").folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    assert "held-out" in (folder / "README.md").read_text().lower()


def test_what_the_demo_tells_to_type_works_as_typed_where_it_was_run(made: tuple[Path, str]) -> None:
    out, screen = made
    after = screen.partition("Next, other words on the same photos:\n")[2].splitlines()
    nowhere = {**os.environ, "PATH": "/usr/bin:/bin"}  # the program is not on it
    done = subprocess.run(after[0], shell=True, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 0, (after[0], done.stderr)
    with open_run(out / "yellow") as run:
        assert len(run) == 8 and run.concepts.names == ("yellow shape",)
    # what it says to do next can be typed too, as can the real commands, but for the names in capitals
    following = next(line for line in done.stdout.splitlines() if line.startswith("Next: "))
    commands = [following.removeprefix("Next: "), *(line.strip() for line in after if line.startswith("  "))]
    for command in commands:
        program, verb = shlex.split(command)[:2]
        assert Path(program).is_file() and verb in ("export", "run", "init", "preview"), command
    assert "--split train=0.8,val=0.2" in commands[-1]

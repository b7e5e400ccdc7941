"""The second day of a run: the same command again, from a file, with a log, and watched from beside."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.labelling import run_log
from sam3label.run.reader import open_run
from sam3label.run.store import Store

status = importlib.import_module("sam3label.cli.status")  # the package's name is the verb itself
LIST = "names: [cat, dog]\ndefaults: {conf: 0.3}\n"
# as the program, then which heavy packages it has loaded
COUNTED = """
import sys
from sam3label.cli import main
try:
    main()
except SystemExit as end:
    print("LOADED", sorted({"torch", "transformers", "scipy", "fiftyone"} & sys.modules.keys()), end.code)
"""


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three photos, one of them broken, and a concept list."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60))
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.jpg"), pixels)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "list.yaml").write_text(LIST)
    return tmp_path


def command(place: Path, checkpoint: Path, *more: object) -> tuple[object, ...]:
    return ("run", place / "photos", "-c", place / "list.yaml", "-o", place / "run", "--model", checkpoint,
            "--workers", 0, *more)  # fmt: skip


# ---- the same command again


def test_a_finished_run_answers_without_the_model_though_a_file_is_broken(place: Path, least_checkpoint: Path) -> None:
    code, first = invoke(*command(place, least_checkpoint))
    assert code == 3, first
    assert "1 file could not be labelled:\n  broken.jpg: not an image" in first
    words = [str(word) for word in command(place, least_checkpoint)]
    again = subprocess.run([sys.executable, "-c", COUNTED, *words], capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == "LOADED [] 3", again.stderr
    assert "Nothing to do: everything that can be read was labelled before." in again.stdout
    assert (
        "1 file could not be labelled (unchanged since it was tried, and left alone: --retry-failed tries again):"
        "\n  broken.jpg: not an image"
    ) in again.stdout
    with open_run(place / "run") as run:
        objects = sum(n for n, _ in ((len(image.labels), 0) for image in run.images()))
    assert re.search(rf"│ all +│ +{objects} │ +0 │", again.stdout)


def test_a_broken_file_is_tried_again_when_it_changed_or_when_asked(
    place: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(*command(place, least_checkpoint))[0] == 3
    said = "loading the model"
    assert said not in invoke(*command(place, least_checkpoint))[1]
    code, output = invoke(*command(place, least_checkpoint, "--retry-failed"))
    assert (code, said in output, "not tried again" in output) == (3, True, False)
    (place / "photos" / "broken.jpg").write_bytes((place / "photos" / "a.jpg").read_bytes())
    code, output = invoke(*command(place, least_checkpoint))
    assert (code, said in output) == (0, True)
    assert "1 image labelled" in output


def test_a_photo_that_was_too_large_is_tried_again_once_it_is_not(place: Path, least_checkpoint: Path) -> None:
    (place / "photos" / "broken.jpg").unlink()
    small = ("--max-megapixels", 0.001)
    assert "too large (80 x 60): --max-megapixels 1 reads it" in invoke(*command(place, least_checkpoint, *small))[1]
    assert "loading the model" not in invoke(*command(place, least_checkpoint, *small))[1]
    code, output = invoke(*command(place, least_checkpoint))
    assert code == 0 and "2 images labelled" in output


# ---- options in a file


def job(place: Path, text: str) -> Path:
    path = place / "jobs" / "job.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_job_file_holds_all_of_it_and_the_command_line_wins(
    place: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = job(
        place,
        f"photos: ../photos\nconcepts: ../list.yaml\nout: ../runs/site\nmodel: {least_checkpoint}\nworkers: 0\n"
        "floor: 0.25\nexport: [coco, yolo]\nsplit: {train: 0.5, val: 0.5}\nquiet: false\nlimit: 1\n",
    )
    monkeypatch.chdir(least_checkpoint)  # paths are relative to the file
    monkeypatch.setattr(sys, "argv", ["sam3label", "run", "job.yaml"])
    code, output = invoke("run", path)
    assert code == 0, output
    assert "1 image labelled" in output
    run = place / "runs" / "site"
    assert sorted(p.name for p in (run / "exports").iterdir()) == ["coco", "yolo"]
    assert "val: images/val" in (run / "exports/yolo/data.yaml").read_text()
    with open_run(run) as opened:
        assert (opened.floor, opened.concepts.names) == (0.25, ("cat", "dog"))
        assert opened.info["options"] == {"model": str(least_checkpoint), "floor": 0.25, "workers": 0, "limit": 1}
    told = invoke("status", run)[1]
    assert "options: floor 0.25, workers 0, limit 1\nlast command: sam3label run job.yaml\n" in told
    code, output = invoke("run", path, "--limit", 5, "-p", "bird", "-o", place / "runs" / "other")
    assert code == 3, output
    with open_run(place / "runs" / "other") as opened:
        assert len(opened) == 2 and opened.concepts.names == ("bird",)


def test_a_job_file_may_hold_the_concept_list_itself(place: Path, least_checkpoint: Path) -> None:
    common = f"photos: [../photos/a.jpg]\nout: ../run\nmodel: {least_checkpoint}\nworkers: 0\n"
    path = job(place, f"{common}concepts: {{cat: [cat, kitten], dog: }}\nset: {{defaults.conf: 0.3}}\n")
    code, output = invoke("run", path)
    assert code == 0, output
    with open_run(place / "run") as opened:
        assert opened.concepts.phrases == ("cat", "kitten", "dog")
        assert [c.conf for c in opened.concepts.concepts] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photos: p\nbatchsize: 4\n", "job.yaml:2: 'batchsize' is no option of run. Did you mean batch-size?"),
        ("photos: p\nfloor: 7\n", "job.yaml:2: floor: Input should be less than or equal to 1"),
        ("photos: p\nboth_ways: twice\n", "job.yaml:2: both_ways: 'twice' is neither true nor false"),
        ("photos: p\nvideo: trak\nfloor: x\n", "job.yaml:3: floor: "),
        ("photos: p\nconcepts: [cat]\nphrase: dog\n", "in two ways"),
        ("photos: nowhere\nconcepts: [cat]\n", "nowhere: no such file"),
        ("names: [cat]\n", "is a concept list: sam3label run PHOTOS -c "),
        ("- photos\n", "a job file has keys: photos, concepts, out, model"),
        ("photos: p\n\tfloor: 1\n", "job.yaml:2: not valid YAML: the line begins with a tab"),
    ],
)
def test_a_wrong_job_file_is_a_sentence_with_its_line(place: Path, text: str, said: str) -> None:
    code, output = invoke("run", job(place, text))
    assert code == 1, output
    assert re.search(r"^Error: ", output, re.MULTILINE) and "Traceback" not in output
    assert said in output


# ---- the log


def test_each_session_adds_some_lines_to_the_log_whatever_the_photos(
    place: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "photos" / "c\n\x1b[2J.jpg").write_bytes(b"no photo")
    monkeypatch.setattr(sys, "argv", ["/bin/sam3label", "run", "photos", "it's"])
    invoke(*command(place, least_checkpoint, "--limit", 3))
    log = place / "run" / run_log.LOG
    first = log.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  \S", line) for line in first)
    text = "\n".join(line.split("  ", 1)[1] for line in first)
    assert text.startswith("sam3label 0.1.0, torch ")
    assert "\ncommand: sam3label run photos 'it'\"'\"'s'\n" in text
    assert f"\noptions: model {least_checkpoint}, workers 0, limit 3\n" in text
    assert "\nclasses: cat, dog; 2 phrases\n" in text
    assert "\nfailed: broken.jpg: not an image" in text
    assert re.search(r"\ndone: 2 of 3 images labelled, 1 failed, [\d.]+ images/s, \d+ s; objects: ", text)
    invoke(*command(place, least_checkpoint))
    whole = log.read_text(encoding="utf-8")
    assert whole.startswith("\n".join(first)) and "\x1b" not in whole and "failed: c\\n\\x1b[2J.jpg: " in whole
    before = len(whole.splitlines())
    invoke(*command(place, least_checkpoint))
    assert "done, nothing was left to do" in log.read_text(encoding="utf-8").splitlines()[-1]
    assert len(log.read_text(encoding="utf-8").splitlines()) - before < 12
    assert invoke(*command(place, least_checkpoint, "--floor", 0.2))[0] == 1
    assert "ended by StoreError: " in log.read_text(encoding="utf-8").splitlines()[-1]


def test_nothing_is_logged_where_no_run_came_to_be(place: Path) -> None:
    assert invoke("run", place / "photos", "-p", "cat", "--model", "no/such/place/here", "-o", place / "run")[0] == 1
    assert not (place / "run").exists()


# ---- status


def test_status_counts_against_all_there_is_and_says_who_is_at_it(place: Path, least_checkpoint: Path) -> None:
    invoke(*command(place, least_checkpoint, "--limit", 1))
    code, output = invoke("status", place / "run")
    assert code == 0 and "run: 1 of 3 images labelled, 0 failed, " in output.replace("\n", "")
    assert "Nobody is labelling into it now: the same command continues." in output
    with Store.resume(place / "run"):
        assert "A process is labelling into it now." in invoke("status", place / "run")[1]
        assert json.loads(invoke("status", place / "run", "--json", "-")[1])["running"] is True
    invoke(*command(place, least_checkpoint))
    output = invoke("status", place / "run")[1]
    assert "2 of 3 images labelled, 1 failed" in output and "Nobody" not in output


def test_status_as_json_has_these_keys(place: Path, least_checkpoint: Path) -> None:
    invoke(*command(place, least_checkpoint))
    assert invoke("status", place / "run", "--json", place / "status.json") == (0, "")
    told: dict[str, Any] = json.loads((place / "status.json").read_text(encoding="utf-8"))
    assert list(told) == [
        "run", "running", "complete", "images", "videos", "frames", "candidates", "corrections", "classes", "asked",
        "waiting", "not_looked_for", "full", "near_copies", "failures", "model", "checkpoint", "version", "created",
        "sources", "options", "command",
    ]  # fmt: skip
    assert (told["running"], told["complete"]) == (False, True)
    assert told["images"] == {"done": 2, "failed": 1, "total": 3}
    assert [one["id"] for one in told["failures"]] == ["broken.jpg"]
    assert told["classes"].keys() == {"cat", "dog"} and told["asked"] == {"cat": 2, "dog": 2}


def test_watching_ends_with_the_run(place: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke(*command(place, least_checkpoint))
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.05)
    held, shown = Store.resume(place / "run"), []
    show = status.show

    def counting(*arguments: Any) -> bool:
        shown.append(show(*arguments))
        if len(shown) == 3:
            held.close()
        return shown[-1]

    monkeypatch.setattr(status, "show", counting)
    done = threading.Timer(30, held.close)
    done.start()
    try:
        code, output = invoke("status", place / "run", "--watch")
    finally:
        done.cancel()
        held.close()
    assert code == 0 and shown == [True, True, True, False]
    assert output.count("A process is labelling into it now.") == 3

"""The small things of a first hour: each a message that says what to do, and nothing that is not so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.labelled import photo
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.core.text import count


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--ontology", "person,helmet"), "no such file; phrases are given one by one: -p person -p helmet"),
        (("-c", "person, hard hat"), "no such file; phrases are given one by one: -p person -p 'hard hat'"),
        (("-c", "person"), "person: no such file; phrases are given one by one: -p person"),
        (("--ontology", "map.json"), """no such file; or give it here, as '{"hard hat": "helmet"}'"""),
        (("-c", "lists/person"), "no such file; `sam3label init` writes one"),
        ((), "say what to look for, in one way: -c concepts.yaml (make one with: sam3label init), -p PHRASE, or"),
    ],
)  # fmt: skip
def test_phrases_in_the_wrong_place_are_told_theirs(given: tuple[str, ...], said: str, tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    code, output = invoke("run", tmp_path / "a.png", *given)
    assert code == 1 and said in output, output


def test_phrases_alone_are_enough(tmp_path: Path, tiny_checkpoint: Path) -> None:
    photo(tmp_path, "a.png")
    common = ("--model", tiny_checkpoint, "--workers", 0, "-o", tmp_path / "run")
    code, output = invoke("run", tmp_path / "a.png", "-p", "person", "-p", "hard hat", *common)
    assert code == 0, output
    assert "1 image labelled in " in output and "│ hard hat │" in output


def test_where_nothing_could_be_read_nothing_else_is_said(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no photo")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"")
    common = (tmp_path / "photos", "-p", "cat", "--model", tiny_checkpoint, "--workers", 0)
    for out, verb in ((tmp_path / "run", "run"), (tmp_path / "preview", "preview")):
        code, output = invoke(verb, *common, "-o", out, *(("--export", "yolo") if verb == "run" else ()))
        assert code == 3, output
        assert "a.jpg: not an image" in output and "b.jpg: empty file" in output
        assert "Not one file could be read, so nothing was asked. Look at the reasons above." in output
        for wrong in ("Next", "Try other phrases", "images/s;", "lower conf", "Sheet"):
            assert wrong not in output, (verb, wrong)


def test_a_dataset_without_an_image_is_no_success(tmp_path: Path, tiny_checkpoint: Path) -> None:
    photo(tmp_path, "a.png")
    common = ("--model", tiny_checkpoint, "--workers", 0, "-o", tmp_path / "run")
    assert invoke("run", tmp_path / "a.png", "-p", "cat", *common)[0] == 0
    nothing = ("--min-score", 0.9999, "--no-empty")
    code, output = invoke("export", tmp_path / "run", "-f", "coco", "-o", tmp_path / "coco", *nothing)
    assert code == 1 and "there is nothing to export: no image passes what was chosen" in output


def test_short_help_of_every_verb_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ((), ("review",), ("weights",)):
        code, output = invoke(*words, "-h")
        described = output.partition("Commands")[2]
        assert code == 0 and described and not re.search(r"(\.\.\.|…)\s*(│|$)", described, re.MULTILINE), output


def test_one_of_a_thing_is_one_thing() -> None:
    assert [count(n, "image") for n in (0, 1, 2, 1_000)] == ["0 images", "1 image", "2 images", "1,000 images"]
    assert [count(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]

"""What users called their files and classes is printed as it is: no bracket of it is taken for markup."""

from __future__ import annotations

import ast
import importlib.util
from importlib import metadata
from pathlib import Path

import pytest
from support.builders import candidate, phrase_prompts, rectangle
from support.labelled import photo
from typer.testing import CliRunner

import sam3label
from sam3label.cli import app
from sam3label.cli.tables import failure_lines
from sam3label.concepts.concept_list import concepts_from, dump_concepts
from sam3label.core.records import MediaItem, UnitResult
from sam3label.media.stamps import stamp_of
from sam3label.run.store import Store

PACKAGE = Path(sam3label.__file__).parent
NAMES = ("[red]square", "star [big]", "[/]end", "[link=x]y[/link]")


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in a folder with brackets, of classes and photos with brackets; one photo failed."""
    import numpy as np

    folder, photos = tmp_path / "runs" / "br[x]", tmp_path / "[bold]photos"
    notes = {"concepts": dump_concepts(concepts_from(NAMES)), "info": {"model": "[none]"}}
    with Store.writer(folder, phrase_prompts(*NAMES), {"floor": 0.1}, notes=notes) as store:
        for name in ("a [1].png", "b.png"):
            item = MediaItem(name, photo(photos, name), root=str(photos))
            found = tuple(
                candidate(phrase, 0.9, rectangle(2 + 15 * i, 3, 10, 30), item_id=name) for i, phrase in enumerate(NAMES)
            )
            presence = np.full((1, len(NAMES)), 0.9, np.float32)
            store.write([UnitResult(item, 0, 1, (60, 80), found, presence, stamp=stamp_of(item))])
        broken = MediaItem("c [red].jpg", str(photos / "c [red].jpg"), root=str(photos))
        store.write([UnitResult(broken, 0, 1, None, error="not an image [sic]")])
    return folder


def test_every_verb_prints_brackets_as_they_are(run: Path, tmp_path: Path) -> None:
    yolo, coco = tmp_path / "y[o]lo", tmp_path / "coco"
    assert invoke("export", run, "-f", "coco", "-o", coco, "--images", "none", "-q")[0] == 3  # one photo failed
    truth = coco / "annotations" / "instances_train.json"
    said = {
        "status": invoke("status", run),
        "export": invoke("export", run, "-f", "yolo", "-o", yolo),
        "validate": invoke("validate", yolo, "--run", run),
        "evaluate": invoke("evaluate", run, "--gt", truth),
        "calibrate": invoke("calibrate", run, "--gt", truth, "-o", tmp_path / "c[x].yaml"),
    }
    for verb, (code, output) in said.items():
        assert code == (3 if verb == "export" else 0), (verb, output)
        for name in NAMES:
            assert name in output, (verb, name)
        assert "\\[" not in output, verb
    assert "br[x]: 2 of 3 images labelled, 1 failed" in said["status"][1].replace("\n", "")
    assert "model [none]" in said["status"][1]
    assert "failed  c [red].jpg: not an image [sic]" in said["status"][1]
    assert "c [red].jpg: not an image [sic]" in said["export"][1]
    assert "y[o]lo" in said["export"][1] and "c[x].yaml" in said["calibrate"][1]
    assert "gain [95 %]" in said["calibrate"][1]


def test_errors_and_wrong_commands_do_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", "c [red].jpg", "-p", "cat")[1].endswith("\nError: c [red].jpg: the pattern matches nothing\n")
    assert "[red]verb" in invoke("[red]verb")[1]
    assert "--[bold]x" in invoke("run", "--[bold]x")[1]


def test_the_doctor_names_the_extra_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is half installed: the package is there, and nothing that says which version it is."""
    assert importlib.util.find_spec("fiftyone") is not None
    here = metadata.version

    def version(name: str) -> str:
        if name == "fiftyone":
            raise metadata.PackageNotFoundError(name)
        return here(name)

    monkeypatch.setattr("sam3label.model.doctor.version", version)
    code, said = invoke("doctor", "--model", "demo")
    assert code == 0 and "pip install 'sam3label[review]'" in said


def test_one_console_prints_and_nothing_is_marked_up() -> None:
    """Text is made plain in one place, `cli/tables.py`: nobody makes a console of their own, or escapes for one."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
                found += [(path.name, node.module, alias.name) for alias in node.names]
            if isinstance(node, ast.keyword) and node.arg == "markup":
                found.append((path.name, "markup", ""))
    consoles = {name for name, module, what in found if (module, what) == ("rich.console", "Console")}
    assert consoles <= {"tables.py", *TYPES_ONLY}
    assert not [one for one in found if one[1] in ("rich.markup", "rich.prompt", "rich", "rich.progress")]
    assert {name for name, what, _ in found if what == "markup"} == {"tables.py"}


TYPES_ONLY = {
    "calibrate.py",
    "evaluate.py",
    "validate.py",
    "preview.py",
    "status.py",
    "finetune.py",
}  # which they are handed


def test_those_that_are_handed_a_console_make_none() -> None:
    for name in TYPES_ONLY:
        assert "Console(" not in (PACKAGE / "cli" / name).read_text(encoding="utf-8"), name


def test_failures_that_are_not_shown_are_counted() -> None:
    failures = [(f"{n}.jpg", "not an image") for n in range(25)]
    lines = [*failure_lines(failures, rest="the report lists them")]
    assert len(lines) == 21 and lines[0] == "failed  0.jpg: not an image"
    assert lines[-1] == "... and 5 more: the report lists them"
    assert [*failure_lines(failures[:1], "no decision")] == ["no decision  0.jpg: not an image"]

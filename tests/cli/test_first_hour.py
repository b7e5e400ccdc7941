"""The small things of a first hour: each a message that says what to do, and nothing that is not so."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from support.builders import candidate, phrase_prompts, rectangle
from support.labelled import photo
from typer.testing import CliRunner

import sam3label
from sam3label import face
from sam3label.cli import app
from sam3label.cli.run import finish
from sam3label.concepts.concept_list import concepts_from, dump_concepts
from sam3label.core.records import MediaItem, UnitResult
from sam3label.core.text import count
from sam3label.labelling.run_log import command_line
from sam3label.media.stamps import stamp_of
from sam3label.run.store import Store

PACKAGE = Path(sam3label.__file__).parent


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


def test_phrases_alone_are_enough(tmp_path: Path, least_checkpoint: Path) -> None:
    photo(tmp_path, "a.png")
    common = ("--model", least_checkpoint, "--workers", 0, "-o", tmp_path / "run")
    code, output = invoke("run", tmp_path / "a.png", "-p", "person", "-p", "hard hat", *common)
    assert code == 0, output
    assert "1 image labelled in " in output and "│ hard hat │" in output


def test_where_nothing_could_be_read_nothing_else_is_said(tmp_path: Path, least_checkpoint: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no photo")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"")
    common = (tmp_path / "photos", "-p", "cat", "--model", least_checkpoint, "--workers", 0)
    for out, verb in ((tmp_path / "run", "run"), (tmp_path / "preview", "preview")):
        code, output = invoke(verb, *common, "-o", out, *(("--export", "yolo") if verb == "run" else ()))
        assert code == 3, output
        assert "a.jpg: not an image" in output and "b.jpg: empty file" in output
        assert "Not one file could be read, so nothing was asked. Look at the reasons above." in output
        for wrong in ("Next", "Try other phrases", "images/s;", "lower conf", "Sheet"):
            assert wrong not in output, (verb, wrong)


def test_a_dataset_without_an_image_is_no_success(tmp_path: Path, least_checkpoint: Path) -> None:
    photo(tmp_path, "a.png")
    common = ("--model", least_checkpoint, "--workers", 0, "-o", tmp_path / "run")
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


# ---- what comes next


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of eleven photos, and of one that is broken."""
    place = tmp_path_factory.mktemp("hour")
    with made_run(place, 11) as store:
        broken = MediaItem("c.jpg", str(place / "photos" / "c.jpg"), root=str(place / "photos"))
        store.write([UnitResult(broken, 0, 1, None, error="not an image")])
    return place


def made_run(place: Path, photos: int) -> Store:
    notes = {"concepts": dump_concepts(concepts_from(["cat"])), "info": {"model": "demo"}}
    store = Store.writer(place / "run", phrase_prompts("cat"), {"floor": 0.1}, notes=notes)
    for number in range(photos):
        name = f"{number}.png"
        item = MediaItem(name, photo(place / "photos", name), root=str(place / "photos"))
        found = (candidate("cat", 0.9, rectangle(2, 3, 10, 30), item_id=name),)
        presence = np.full((1, 1), 0.9, np.float32)
        store.write([UnitResult(item, 0, 1, (60, 80), found, presence, stamp=stamp_of(item))])
    return store


def test_an_export_says_how_to_read_it_back_and_to_train(labelled: Path) -> None:
    out = labelled / "two sets"
    code, output = invoke("export", labelled / "run", "-f", "yolo", "-f", "coco", "-o", out)
    assert code == 3 and "c.jpg: not an image" in output, output  # a failed file never looks like one without objects
    last = output.rstrip().splitlines()[-4:]
    assert last[0] == "Next, read back as a trainer does, then train (other trainers: docs/howto/formats.md):"
    assert last[1].endswith(f"sam3label validate '{out}/yolo'")
    assert last[2] == f"  yolo segment train model=yolo11n-seg.pt 'data={out}/yolo/data.yaml'"
    assert last[3].endswith(f"sam3label validate '{out}/coco'")
    assert invoke("export", labelled / "run", "-f", "coco", "-o", labelled / "quiet", "-q") == (3, "")


def test_shares_that_are_not_met_are_explained_with_a_cure(labelled: Path) -> None:
    common = ("-f", "yolo", "-o", labelled / "split", "--split", "train=0.8,val=0.2")
    output = invoke("export", labelled / "run", *common)[1]
    (seed,) = re.findall(
        r"The shares are met roughly \(train 100% for 80%, val 0% for 20%\): a hash of its name decides where a photo "
        r"goes, so that it never moves when others come, and 11 photos cannot do better than by chance\. "
        r"Exporting with --seed (\d+) comes nearer\.",
        output,
    )
    assert "The split val is empty: another --seed splits otherwise." in output and "has no cat" not in output
    output = invoke("export", labelled / "run", *common, "--seed", seed)[1]
    assert "│ 9 (82%) │ 2 (18%) │" in output and "roughly" not in output, output


def test_groups_explain_shares_and_a_part_without_a_class_has_a_cure(tmp_path: Path) -> None:
    with made_run(tmp_path, 3) as store:
        for name in ("x", "y"):
            item = MediaItem(f"{name}.png", photo(tmp_path / "photos", f"{name}.png"), root=str(tmp_path / "photos"))
            store.write([UnitResult(item, 0, 1, (60, 80), (), np.zeros((1, 1), np.float32), stamp=stamp_of(item))])
    common = ("-f", "coco", "-o", tmp_path / "set", "--split", "train=0.5,val=0.5", "--group-regex")
    output = invoke("export", tmp_path / "run", *common, "^")[1]
    assert "train 0% for 50%, val 100% for 50%" in output and "1 group of photos cannot do better" in output
    assert "than by chance. No --seed comes nearer." in output
    output = invoke("export", tmp_path / "run", *common, r"\D", "--seed", 2)[1]
    assert " has no cat: another --seed splits otherwise, or label more photos with it." in output, output


def test_what_is_mistaken_for_a_run_or_a_dataset_is_told_what_it_is(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled)
    assert invoke("export", "run", "-f", "coco", "-o", "set", "-q")[0] == 3
    for given, said in {
        (
            "validate",
            "run",
        ): "run is a run, and datasets are validated: export one first, sam3label export run --format",
        ("validate", "sett"): "sett: no such file or folder (did you mean set?)",
        ("validate", "rum/exports/yolo"): "rum/exports/yolo: no such file or folder (did you mean run?)",
        ("status", "rum"): "rum: no such folder (did you mean run?). Runs are made by: sam3label run PHOTOS -o RUN",
        ("status", "set"): "set is a dataset, not the run it came from. To check it: sam3label validate set",
        ("status", "photos"): "photos is not a run folder (no run.sqlite in it). Runs are made by: sam3label run",
    }.items():
        code, output = invoke(*given)
        assert code == 1 and said in output, output
    assert invoke("export", "run", "-f", "coco", "-q")[0] == 3
    assert "datasets are validated: it has exported run/exports/coco. Whether" in invoke("validate", "run")[1]


def test_a_misspelt_model_and_one_that_cannot_be_had_lead_to_the_demo(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    for given, said in {("--model", "dmo"): "not a hub id (did you mean demo?)", (): "or try --model demo."}.items():
        code, output = invoke("run", tmp_path / "a.png", "-p", "cat", "-o", tmp_path / "run", *given)
        assert code == 1 and said in output, output


def test_each_step_leads_to_the_next(tmp_path: Path, least_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split = "--split train=0.8,val=0.2"
    photo(tmp_path / "photos", "a.png")
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no photo")
    output = invoke("init")[1]
    assert re.search(
        r"preview PHOTOS -c concepts.yaml\n.*run PHOTOS -c concepts.yaml -o runs/first --export yolo", output
    )
    common = ("photos", "-p", "cat", "--model", least_checkpoint, "--workers", 0)
    code, output = invoke("preview", *common)
    assert code == 3 and "failed  b.jpg: not an image" in output  # and not as if it were a photo without objects
    assert output.rstrip().endswith(f"-o preview/run --export yolo {split}"), output
    output = invoke("run", *common)[1]
    assert output.rstrip().endswith(f"export runs/run --format yolo -o DATASET {split}"), output
    assert invoke("status", "runs/run")[1].rstrip().endswith(f"export runs/run --format yolo -o DATASET {split}")
    invoke("run", *common)
    log = (tmp_path / "runs" / "run" / "run.log").read_text(encoding="utf-8").splitlines()
    assert log[-1].endswith("  done, nothing was left to do: the run has 1 image labelled, 1 failed")


def test_a_run_that_is_stopped_before_its_first_photo_says_so(
    tmp_path: Path, least_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    stop.set()
    photos, options = photo(tmp_path, "a.png"), {"model": str(least_checkpoint), "workers": 0}
    with face.label(photos, ["cat"], tmp_path / "run", stop=stop, **options) as run, pytest.raises(typer.Exit) as left:
        finish(run, stopped=True, formats=["yolo"], split=None, quiet=False)
    said = capsys.readouterr()
    assert left.value.exit_code == 130 and "the same command continues." in said.err
    assert re.match(r"0 images labelled in \d+s\n", said.out) and "Nothing to do" not in said.out


def test_what_was_started_as_a_module_is_shown_as_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for first in ("/lib/sam3label/__main__.py", "/bin/sam3label", "sam3label.exe"):
        monkeypatch.setattr(sys, "argv", [first, "run", "my photos"])
        assert command_line() == "sam3label run 'my photos'"


def test_a_verb_says_at_once_what_it_does_without_a_terminal_too(labelled: Path) -> None:
    assert invoke("validate", labelled / "none")[1].startswith("reading the dataset as trainers do ...\n")


# ---- one and several


THINGS = (
    "images|photos|files|objects|labels|frames|videos|classes|instances|corrections|units|candidates|phrases|prompts|"
    "questions|answers|tracks|workers|folders|copies|boxes|misses|records|annotations|identities"
)


def strings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every text that may be printed, with `{}` for what is put into it unless `count` or a constant made it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {node.body[0] for node in ast.walk(tree) if isinstance(node, DOCUMENTED) and ast.get_docstring(node)}
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(map(shown, node.values))
        elif isinstance(node, ast.Expr) and node in prose:
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.lineno, node.value


KEPT = ("track, clips of {} frames",)  # a setting, as runs hold it
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def shown(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    value = part.value
    return "many" if isinstance(value, ast.Name) and value.id.isupper() else "{}"


def are_words(choice: ast.IfExp) -> bool:
    branches = [part.value for part in (choice.body, choice.orelse) if isinstance(part, ast.Constant)]
    return len(branches) == 2 and all(isinstance(branch, str) and " " not in branch.strip() for branch in branches)


def test_nobody_makes_a_plural_by_hand() -> None:
    """One way to say how many of what: `count` and `verb` in core/text.py, whose number may be one."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parts[-2:] == ("core", "text.py"):
            continue
        for line, text in strings_of(path):
            if re.search(rf"\w\((s|es)\)|\{{\}} ({THINGS})\b(?!/s)", text) and text not in KEPT:
                found.append(f"{path.relative_to(PACKAGE)}:{line}: {text[:80]}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.IfExp) and ast.unparse(node.test).endswith("== 1") and are_words(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)

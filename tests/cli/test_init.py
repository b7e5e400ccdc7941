"""`sam3label init`: the starter file loads, keeps names and ids, and never overwrites by accident."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import load_concepts, parse_concepts
from sam3label.concepts.starter import starter
from sam3label.core.records import Concept


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["init", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_starter_loads_with_the_programs_own_defaults(tmp_path: Path) -> None:
    path = tmp_path / "my list.yaml"
    code, output = run(path)
    assert code == 0
    assert output.startswith(f"Wrote {path}: 2 classes. Edit it, then look at a sample, and label:\n")
    assert f"preview PHOTOS -c '{path}'\n" in output and f"run PHOTOS -c '{path}' -o runs/first" in output
    assert load_concepts(path).concepts == (
        Concept(0, "person", ("person",)),
        Concept(1, "helmet", ("helmet",)),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["my list.yaml"]


def test_the_default_name_is_concepts_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run()[0] == 0 and load_concepts("concepts.yaml").names == ("person", "helmet")


def test_names_and_ids_come_from_a_data_yaml(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("path: .\ntrain: x\nnc: 3\nnames: {2: 'no', 0: 'a: b', 1: \"[c]\"}\n")
    code, _ = run(tmp_path / "out.yaml", "--from", tmp_path / "data.yaml")
    assert code == 0 and load_concepts(tmp_path / "out.yaml").names == ("a: b", "[c]", "no")


def test_what_is_commented_out_is_right_too() -> None:
    """Uncommenting the example of the file must give a valid list."""
    text = starter(["person", "no"])
    text = re.sub(r"^(\s*)# (max_instances:|'no':|  (?:prompts|not|conf|exemplars):)", r"\1\2", text, flags=re.M)
    text = re.sub(r"^exclusive: \[\]\n# exclusive: .*", "exclusive: [[person, 'no']]", text, flags=re.M)
    concepts = parse_concepts(text)
    assert concepts.concepts[1].negatives == ("something similar",) and concepts.concepts[1].conf == 0.6
    assert concepts.concepts[0].max_instances == 100 and concepts.exclusive == (("person", "no"),)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("names: [mine]")
    assert run(path) == (
        1, f"Error: {path} is already there: write to another file, or overwrite it with --force\n"
    )  # fmt: skip
    assert path.read_text() == "names: [mine]"
    assert run(path, "--force")[0] == 0 and load_concepts(path).names == ("person", "helmet")


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("names: [mine]")
    assert run(path, "--from", path, "--force") == (
        1, f"Error: {path} is the file the names come from: write to another one\n"
    )  # fmt: skip
    assert path.read_text() == "names: [mine]"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    assert run(tmp_path) == (1, f"Error: {tmp_path} is a folder: name a file, such as {tmp_path}/concepts.yaml\n")
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "c.yaml"
    assert run(target) == (1, f"Error: {target} cannot be written: File exists. Give another place.\n")
    assert run(tmp_path / "new" / "c.yaml")[0] == 0  # a missing folder is made, as by every verb


def test_a_source_that_is_no_concept_list(tmp_path: Path) -> None:
    code, output = run(tmp_path / "c.yaml", "--from", tmp_path / "data.yaml")
    assert (code, output) == (1, f"Error: {tmp_path}/data.yaml: no such file; `sam3label init` writes one\n")
    assert not (tmp_path / "c.yaml").exists()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=300)
        .map(str.strip)
        .filter(bool),
        min_size=1,
        max_size=4,
        unique_by=str.casefold,
    )
)
def test_any_names_survive(names: list[str]) -> None:
    assert parse_concepts(starter(names)).names == tuple(names)

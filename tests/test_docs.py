"""The documentation cannot drift: its commands parse, its links lead somewhere, its concept lists load."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import make_reference
import pytest
import typer
import yaml

from sam3label.cli import app
from sam3label.concepts.concept_list import load_concepts, parse_concepts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(page, command) for every `sam3label ...` in shell blocks, options over several lines joined."""
    found = []
    for page in PAGES:
        for block in blocks(page, "(?:sh|bash|console)"):
            for line in block.replace("\\\n", " ").splitlines():
                found += [(page.name, part) for part in line.split("&&") if re.match(r"\s*(\$ )?sam3label ", part)]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_in_the_documentation_parses(page: str, line: str) -> None:
    words = shlex.split(line.strip().removeprefix("$ "), comments=True)[1:]
    command = typer.main.get_command(app)
    names: list[str] = []
    while words and isinstance(getattr(command, "commands", None), dict):
        assert words[0] in command.commands, f"{page}: no such verb in {line!r}"
        command = command.commands[words[0]]
        names.append(words.pop(0))
    parsed = command.make_context(" ".join(names), words)
    assert parsed.params is not None


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_load(path: Path) -> None:
    assert len(load_concepts(path).names) > 1


@pytest.mark.parametrize("block", blocks(ROOT / "README.md", "yaml"))
def test_the_concept_lists_in_the_readme_load(block: str) -> None:
    assert parse_concepts(block, "README").names[0] == "person"


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [c.name for c in app.registered_commands if c.name and f"sam3label {c.name}" not in text]
    assert [name for name in missing if name != "demo"] == []


PACKAGE = ROOT / "sam3label"
FACE = {"face", "image_detector", "labelled_run"}
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text() and path.stem not in FACE]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_the_code_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the public face, which stand on one another, run with its own tests."""
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("page", ["cli.md", "concept-list.md", "python.md"])
def test_the_reference_is_what_the_code_says(page: str) -> None:
    stale = f"docs/reference/{page} is stale: run scripts/make_reference.py"
    assert make_reference.pages()[page] == (ROOT / "docs" / "reference" / page).read_text(), stale


def test_the_files_for_clusters_are_well_formed() -> None:
    page = ROOT / "docs" / "howto" / "scale.md"
    launcher, job = (yaml.safe_load(block) for block in blocks(page, "yaml"))
    assert launcher["head_node_type"] in launcher["available_node_types"]
    assert job["spec"]["entrypoint"].startswith("sam3label run ")
    (script,) = blocks(page, "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0

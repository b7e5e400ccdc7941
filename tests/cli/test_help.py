"""What --help says: whole sentences, an example, one meaning for one name; and what a shell completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.cli.options import format_names, run_folders


def verbs(command: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its full name: ("review push", command)."""
    command = command or typer.main.get_command(app)
    if below := getattr(command, "commands", None):
        for child, one in below.items():
            yield from verbs(one, f"{name} {child}".strip())
    else:
        yield name, command


VERBS = dict(verbs())


def options(command: Any) -> dict[str, Any]:
    """The shown options of a verb by their longest name."""
    return {max(p.opts, key=len): p for p in command.params if p.param_type_name == "option" and not p.hidden}


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_is_a_whole_sentence(verb: str) -> None:
    sentence = re.compile(r"[A-Z].*[.?]", re.DOTALL)
    said = {name: option.help for name, option in options(VERBS[verb]).items()}
    assert [name for name, text in said.items() if not sentence.fullmatch(text or "")] == []
    assert sentence.fullmatch(VERBS[verb].help.strip())


@pytest.mark.parametrize("verb", VERBS)
def test_help_cuts_nothing_and_shows_an_example_that_parses(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.setenv("COLUMNS", "300")
    long = CliRunner().invoke(app, [*verb.split(), "--help"])
    shown = " ".join(long.output.replace("│", " ").split())
    assert long.exit_code == 0 and VERBS[verb].help in shown
    assert [name for name, option in options(VERBS[verb]).items() if option.help not in shown] == []
    assert CliRunner().invoke(app, [*verb.split(), "-h"]).output == long.output
    example = VERBS[verb].epilog.removeprefix("Example: sam3label ")
    assert example.startswith(verb)
    assert VERBS[verb].make_context(verb, shlex.split(example.removeprefix(verb))).params


def _element(option: Any) -> str:
    return str(option.type_descriptor.annotation).removeprefix("list[").removeprefix("<class '").rstrip("]>'")


def test_an_option_means_one_thing_in_every_verb() -> None:
    """One type, and a flag or a value, whatever the verb. (Some verbs take several.)"""
    kinds: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    for command in VERBS.values():
        for name, option in options(command).items():
            kinds[name].add((_element(option), option.is_flag))
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}


def test_every_option_stands_in_a_panel() -> None:
    placed = {
        f"{verb} {name}": option.rich_help_panel
        for verb, command in VERBS.items()
        for name, option in options(command).items()
        if name != "--help"
    }
    assert {name for name, panel in placed.items() if panel is None} == set()
    assert set(placed.values()) == {"Input", "Model", "Speed", "Video", "Output"}


def test_a_threshold_on_the_command_line_is_told_where_it_belongs() -> None:
    told = CliRunner().invoke(app, ["run", "photos", "--conf", "0.3"])
    words = " ".join(told.output.replace("│", " ").split())
    assert told.exit_code == 2
    assert "--set defaults.conf=0.3 for all classes, --set concepts.NAME.conf=0.3 for one" in words


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("run --video t", ["track"]),
        ("status runs/si", ["runs/site-a"]),
        ("export runs/site-a --format yolo-", ["yolo-detect", "yolo-obb"]),
        ("run photos -c con", ["concepts.yaml"]),
    ],
)
def test_bash_completes_choices_run_folders_formats_and_files(tmp_path: Path, words: str, wanted: list[str]) -> None:
    """Bash itself, with the script that `--install-completion` installs, does what Tab does."""
    (tmp_path / "runs" / "site-a").mkdir(parents=True)
    (tmp_path / "runs" / "site-a" / "run.sqlite").touch()
    (tmp_path / "runs" / "side").mkdir()
    (tmp_path / "concepts.yaml").touch()
    tab = (
        'eval "$(_SAM3LABEL_COMPLETE=source_bash sam3label)"\n'
        "asks=$(complete -p sam3label | sed 's/.* -F \\([^ ]*\\) .*/\\1/')\n"
        'COMP_WORDS=(sam3label "$@") COMP_CWORD=$#\n$asks sam3label\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", tab, "bash", *words.split()], env={**os.environ, "PATH": path}, capture_output=True, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == wanted, done.stderr


def test_run_folders_and_formats_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/site-a", "runs/site-b", "runs/other"):
        Path(name).mkdir(parents=True)
    for name in ("runs/site-a", "runs/other"):
        (Path(name) / "run.sqlite").touch()
    assert list(run_folders("runs/site")) == ["runs/site-a"]
    assert set(run_folders("")) == {"runs/site-a", "runs/other"}
    assert set(run_folders("ru")) == {"runs/site-a", "runs/other"}
    assert "yolo-obb" in set(format_names("yolo")) and "coco" not in set(format_names("yolo"))

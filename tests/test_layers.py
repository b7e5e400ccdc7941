"""The walls between the rooms, one name for one thing, and a command line that answers at once."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.layers import (
    CALLED_BY_CLI,
    CLI_VALUES,
    LAYERS,
    NEVER_IMPORTED,
    Room,
    imported_when_run,
    imports,
    modules,
    names_given,
    private_names,
    table,
    uses_of_private,
    violations,
)

import sam3label

PACKAGE = Path(sam3label.__file__).parent
ROOT = PACKAGE.parent
MODULES = modules(PACKAGE)
HEAVY = {"torch", "torchvision", "transformers", "fiftyone"}
TORCH = {"model", "train", "media.loader", "demo.eyes"}  # rooms and modules that are torch through and through


def test_every_import_is_one_the_table_allows() -> None:
    assert violations(PACKAGE) == []


def test_a_room_imports_only_rooms_below_it() -> None:
    order = [room.name for room in LAYERS]
    for place, room in enumerate(LAYERS):
        assert room.may_import <= set(order[place + 1 :]), room.name
        assert not room.may_import & NEVER_IMPORTED or room.name == "cli"


@pytest.mark.parametrize("room", LAYERS, ids=lambda room: room.name)
def test_each_forbidden_import_is_noticed(room: Room, tmp_path: Path) -> None:
    forbidden = [other.name for other in LAYERS if other.name not in {room.name, *room.may_import}]
    copy = tmp_path / "sam3label"
    shutil.copytree(PACKAGE / room.name, copy / room.name, ignore=shutil.ignore_patterns("__pycache__", "checkpoint"))
    for other in forbidden:  # a guest each
        (copy / room.name / f"guest_{other}.py").write_text(
            f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sam3label.{other} import anything\n"
        )
    assert violations(copy) == [f"{room.name}.guest_{other} imports {other}" for other in sorted(forbidden)]


def test_the_command_line_calls_the_face_alone() -> None:
    """What runs: for types it may look anywhere. Beside the face there are the values that its calls are made from."""
    seen = {
        (name, dotted.removeprefix("sam3label."))
        for name, path in MODULES.items()
        if name.split(".")[0] == "cli"
        for dotted in imported_when_run(path)
        if dotted.startswith("sam3label.")
    }
    allowed = CALLED_BY_CLI | CLI_VALUES
    wrong = [
        f"{name} imports {module}" for name, module in sorted(seen) if not {module, module.split(".")[0]} & allowed
    ]
    assert wrong == []
    assert {module for _, module in seen} >= CLI_VALUES, "the list of values is longer than it need be"


def test_a_public_type_name_is_defined_once() -> None:
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_folder_is_a_room_and_every_room_a_folder() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {room.name for room in LAYERS}


def test_contributing_shows_the_table_as_it_is() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text()
    assert table() in shown, "CONTRIBUTING.md is stale: paste what `python tests/support/layers.py` prints"


OLD_CORRIDOR = (  # modules that lay beside one another before there were rooms
    r"records|masks|files|yamlnodes|device|checkpoint|weights|doctor|head|video|postprocess|pace|clips|loader|truth|"
    r"video_truth|config|exemplars|finetune|finetune_tracker|losses|store|select|footage|stitch|prompts|canvas|trust|"
    r"splits|evaluate|evaluate_video|calibrate|saco|hota|coco_ap|suspects|contact|render|report|preview"
)


def test_no_name_of_the_old_corridor_is_left() -> None:
    old = re.compile(rf"\bsam3label\.(?:{OLD_CORRIDOR})\b(?!\.(?:json|html))")
    texts = [path for kind in ("py", "md", "toml") for path in ROOT.glob(f"*/**/*.{kind}") if ".venv" not in path.parts]
    assert [f"{path.name}: {hit.group()}" for path in texts for hit in old.finditer(path.read_text())] == []


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("export.formats.")))
def test_formats_do_not_import_each_other(name: str) -> None:
    others = {n for n in imports(MODULES[name]) if n.startswith("sam3label.export.formats.")}
    assert not others


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_packages_are_imported_where_they_are_needed(name: str) -> None:
    heavy = {n.split(".")[0] for n in imports(MODULES[name], top_level_only=True)} & HEAVY
    allowed = {"torch", "torchvision"} if {name, name.split(".")[0]} & TORCH else set()
    assert heavy <= allowed
    if not name.startswith(("review.fiftyone", "cli.", "model.doctor")):
        assert not {n for n in imports(MODULES[name]) if n.split(".")[0] == "fiftyone"}


@pytest.mark.parametrize("verb", [[], ["export"], ["run"], ["evaluate"], ["validate"], ["status"]])
def test_help_is_instant_because_it_loads_no_model_code(verb: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sam3label', *{verb!r}, '--help']\n"
        "from sam3label.cli import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert leaving.code == 0, leaving.code\n"
        "heavy = {'torch', 'transformers', 'fiftyone', 'cv2', 'numpy', 'PIL', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_only_the_job_and_the_reader_open_a_store() -> None:
    """Everyone else reads through `Run`, whose store is its own."""
    store = "sam3label.run.store"
    openers = {name.split(".")[0] for name, path in MODULES.items() if f"{store}.Store" in set(imports(path))}
    assert openers == {"run", "labelling"}
    reachers = [
        name for name, path in MODULES.items() if re.search(r"(?<!sam3label\.)\brun\.store\.", path.read_text())
    ]
    assert reachers == []


def test_nothing_private_is_used_from_outside() -> None:
    """Tests and scripts go the public way, or the name is not private. (What other libraries hide is not ours.)"""
    outside = [path for folder in ("tests", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    ours = {name for path in (*MODULES.values(), *outside) for name in private_names(path)}
    used = [f"{path.relative_to(ROOT)}: {name}" for path in outside for name in uses_of_private(path) if name in ours]
    assert used == []


def test_a_video_is_called_a_video() -> None:
    """One thing, one word: these were words for it once."""
    other = re.compile(r"film|footage|(?<![a-z])reel", re.IGNORECASE)
    used = [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("sam3label", "scripts", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in names_given(path)
        if other.search(name)
    ]
    assert used == []

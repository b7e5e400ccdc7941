"""The walls between the rooms, and a command line that answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sam3label

PACKAGE = Path(sam3label.__file__).parent
ROOMS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
HEAVY = {"torch", "torchvision", "transformers", "fiftyone", "ray"}
TORCH_ROOMS = {
    "model",
    "head",
    "device",
    "pace",
    "weights",
    "video",
    "postprocess",
    "loader",
    "finetune",
    "finetune_tracker",
    "losses",
    "distributed",
}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names a module imports; with `top_level_only`, those that run when it is imported."""
    tree = ast.parse(path.read_text())
    nodes = _import_time(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _import_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _import_time(child)


def siblings(path: Path, **how: bool) -> set[str]:
    return {name.split(".")[1] for name in imports(path, **how) if name.startswith("sam3label.")}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_walls_between_rooms(name: str) -> None:
    path, own = ROOMS[name], room(name)
    seen = siblings(path) - {own}
    if own in {"records", "errors"}:
        assert seen <= {"errors"}
    if own in {"model", "head", "video", "postprocess"}:
        assert not seen & {"loader", "store", "config", "run", "select"}
    if own in {"export", "review", "evaluate", "report", "calibrate"}:
        assert not seen & {"run", "model", "video"}
    if own not in {"cli", "distributed", "api", "demo", "preview"}:
        assert "run" not in seen
    assert own in {"cli", "__main__"} or "cli" not in seen


@pytest.mark.parametrize("name", sorted(n for n in ROOMS if n.startswith("export.")))
def test_exporters_do_not_import_each_other(name: str) -> None:
    formats = {n for n in ROOMS if n.startswith("export.") and _writes_a_format(ROOMS[n])}
    others = {n for n in imports(ROOMS[name]) if n.removeprefix("sam3label.") in formats - {name}}
    assert name not in formats or not others


def _writes_a_format(path: Path) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name.startswith("write_") for n in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_heavy_packages_are_imported_where_they_are_needed(name: str) -> None:
    heavy = {n.split(".")[0] for n in imports(ROOMS[name], top_level_only=True)} & HEAVY
    allowed = {"torch", "torchvision"} if room(name) in TORCH_ROOMS else set()
    assert heavy <= allowed
    if room(name) not in {"review", "cli", "doctor"}:
        assert not {n for n in imports(ROOMS[name]) if n.split(".")[0] == "fiftyone"}


@pytest.mark.parametrize("verb", [[], ["export"], ["run"], ["evaluate"], ["validate"], ["status"]])
def test_help_is_instant_because_it_loads_no_model_code(verb: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sam3label', *{verb!r}, '--help']\n"
        "from sam3label.cli import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert leaving.code == 0, leaving.code\n"
        "heavy = {'torch', 'transformers', 'fiftyone', 'ray', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout

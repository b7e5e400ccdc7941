"""The rooms of the package, top to bottom: the table that CONTRIBUTING shows and `test_layers` holds up.

A room imports only rooms below it, and of those only the ones its row names; `errors` is everyone's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Room:
    """A folder of the package: what is in it, and which rooms it may import."""

    name: str
    what: str
    may_import: frozenset[str]


def _room(name: str, what: str, may_import: str = "") -> Room:
    return Room(name, what, frozenset(may_import.split()))


LAYERS = [
    _room(
        "cli",
        "one file a verb: parse, call the face, print, exit",
        "demo verify show review flywheel validate quality export labelling run train concepts annotations media "
        "model core",
    ),
    _room(
        "demo",
        "the demo job, its drawn scenes and the demo checkpoint",
        "verify show quality export labelling run concepts annotations media core",
    ),
    _room(
        "verify",
        "a vision-language model judges labels (`server` asks, `judge` keeps verdicts, `reliability` weighs them), and "
        "uses SAM 3 as a tool (`agent`)",
        "show review quality labelling run media model core",
    ),
    _room(
        "show",
        "pictures, videos and pages for people: contact sheet, report, preview, rendered videos",
        # quality: a report shows the mistakes that an evaluation found
        "review quality labelling run concepts media core",
    ),
    _room(
        "review",
        "what is worth a look, and corrections there and back; `fiftyone/` is the only door to FiftyOne",
        "export run media core",
    ),
    _room(
        "flywheel",
        "reviewed photos to a better checkpoint: what is learned from, what is held out, the gate, the card, history",
        "quality export labelling run train annotations media model core",
    ),
    _room("validate", "reads a dataset back as trainers do", "export run media core"),
    _room(
        "quality",
        "how good labels are: evaluate, calibrate; `metrics/` holds the figures themselves",
        "run concepts annotations core",
    ),
    _room("export", "labels to datasets; `formats/` holds one module a format", "run media core"),
    _room(
        "labelling",
        "the job: media in, store rows out; what each photo is asked, and what becomes of videos",
        "run concepts annotations media model core",
    ),
    # media: whether a photo is still the one that was labelled, wherever it lies
    _room("run", "the run folder: what was seen, what people said, what is a label", "concepts media core"),
    _room("train", "losses and trainers", "annotations media model core"),
    _room("concepts", "what to look for: the concept list and its exemplars", "annotations media core"),
    _room("annotations", "label files that others made, read and checked", "media core"),
    _room("media", "files to upright pixels, and videos back: discovery, the one decoder, worker processes", "core"),
    _room(
        "model", "SAM 3 by its parts: frames and prompts in, candidates and tracks out; checkpoints and devices", "core"
    ),
    _room("core", "frozen values, the mask codec, whole files and folders"),
]
TOP = {"face", "labelled_run", "image_detector", "__init__", "__main__", "errors"}  # modules beside the rooms
NEVER_IMPORTED = {"cli", "demo"}  # by any room but themselves and `cli`
CALLED_BY_CLI = {"face", "cli", "core", "errors"}  # all that runs for the command line starts there
CLI_VALUES = {
    "labelling.options",
    "model.track_rules",
    "export.options",
    "export.registry",
    "export.splits",
    "flywheel.options",
}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names a module imports, those for types too; with `top_level_only`, those that run when it is imported."""
    tree = ast.parse(path.read_text())
    nodes = _import_time(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_when_run(path: Path) -> Iterator[str]:
    """Modules a module imports at any time, in functions too; not those for types."""
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "sam3label":
            yield from (f"sam3label.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def private_names(path: Path) -> set[str]:
    """Names with one underscore before them that a module defines: functions, classes, values, attributes of `self`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
            found.add(node.attr)
    return {name for name in found if _is_private(name)}


def names_given(path: Path) -> Iterator[str]:
    """Every name that a module gives to something: functions, classes, arguments, values, attributes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def uses_of_private(path: Path) -> Iterator[str]:
    """Private names that a module takes from another: imported, after a dot, or as text to replace by another."""
    own = private_names(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if _is_private(alias.name))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr"):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from (name for text in texts if _is_private(name := text.rpartition(".")[2]))


def _is_own(holder: ast.expr) -> bool:
    return isinstance(holder, ast.Name) and holder.id in ("self", "cls")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def _import_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _import_time(child)


def modules(package: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name below it; a room's `__init__` by the room's name."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def violations(package: Path) -> list[str]:
    """`module imports room` for every import that the table does not allow."""
    rooms = {room.name: room for room in LAYERS}
    found = []
    for name, path in modules(package).items():
        own = name.split(".")[0]
        if own in TOP - {"errors"}:
            continue
        allowed = set(rooms[own].may_import | {own, "errors"}) if own in rooms else set()
        allowed |= {"face", "labelled_run"} if own == "cli" else set()
        if own not in rooms and own != "errors":
            found.append(f"{name} is in no room of the table")
        seen = {dotted.split(".")[1] for dotted in imports(path) if dotted.startswith("sam3label.")}
        found += [f"{name} imports {other}" for other in sorted(seen - allowed)]
    return found


def table() -> str:
    """The rooms as CONTRIBUTING's table."""
    rows = [
        f"| `{room.name}/` | {room.what} | {', '.join(f'`{r.name}`' for r in LAYERS if r.name in room.may_import)} |"
        for room in LAYERS
    ]
    return "\n".join(["| room | what is in it | may import |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())

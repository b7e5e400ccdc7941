"""Write `docs/reference/` from the code: the command line from Typer, concept-list keys from the dataclasses, Python
from docstrings. `--check` writes nothing and ends with 1 where a page is stale.

    python scripts/make_reference.py [--check]
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

import sam3label
from sam3label.cli import app
from sam3label.concepts.keys import KEYS

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def pages() -> dict[str, str]:
    """Text of each reference page by its file name."""
    return {"cli.md": command_line(), "concept-list.md": concept_list(), "python.md": python()}


# ---- command line


def command_line() -> str:
    """Every verb with its arguments and options, as `--help` has them."""
    return "\n".join(
        [
            "# Command line",
            "",
            "`--debug`, anywhere on the line, shows tracebacks.",
            "",
            "## Exit codes",
            "",
            "| code | |",
            "| --- | --- |",
            "| 0 | all is well |",
            "| 1 | an error, with what to do next |",
            "| 2 | wrong command line |",
            "| 3 | finished, but not all is well: files could not be labelled (`run`, `masks`, `preview`; `export`, "
            "which leaves them out), questions were not answered (`verify`), a trainer would drop something "
            "(`validate`), a run or its photos are not what they were (`check`) |",
            "| 130 | interrupted; the same command goes on |",
            *_commands(typer.main.get_command(app), "sam3label"),
            "",
        ]
    )


def _commands(command: Any, name: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children:
        for child_name, child in children.items():
            yield from _commands(child, f"{name} {child_name}")
        return
    yield from ("", f"## `{name}`", "", _plain(command.help or ""))
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield from ("", "```text", " ".join([name, *map(_metavar, arguments), "[OPTIONS]"]), "```")
    if command.epilog:
        yield from ("", _plain(command.epilog))
    if command.params:
        yield from ("", "| | | default |", "| --- | --- | --- |")
        yield from (_argument(p) if p in arguments else _option(p) for p in command.params if not p.hidden)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _argument(argument: Any) -> str:
    return f"| `{_metavar(argument)}` | {_cell(argument.help)} | |"


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" `{_value(option)}`"
    unset = option.default in (None, False, (), []) or callable(option.default)
    return f"| {names}{value} | {_cell(option.help)} | {'' if unset else f'`{option.default}`'} |"


def _value(option: Any) -> str:
    """What to write behind an option: its choices, or the kind of value."""
    annotation = option.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if choices:
        return "\\|".join(map(str, choices))
    inner = [a for a in get_args(annotation) if a is not type(None)]
    kind = inner[0] if inner else annotation
    return str(option.metavar or getattr(kind, "__name__", "text")).replace("str", "TEXT").upper()


def _cell(text: str | None) -> str:
    return _plain(text or "").replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    return re.sub(r"\[/?(?:bold|dim|green|cyan|italic)\]", "", inspect.cleandoc(text))


# ---- concept list


def concept_list() -> str:
    """Every key of a concept list with its meaning and default."""
    rows = [f"| `{key.name}` | {_cell(key.meaning)} | {_cell(key.default)} |" for key in KEYS]
    return "\n".join(
        [
            "# Concept list",
            "",
            "A YAML file that says what to look for. Every YOLO `data.yaml` is one already; `sam3label init` writes",
            "one with comments. Keys of a class may also stand under `defaults:`, where they are for all classes.",
            "",
            "| key | meaning | default |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


# ---- Python


def python() -> str:
    """Every public name with its signature and docstring."""
    parts = [
        "# Python",
        "",
        "`import sam3label as sl` gives these names, and nothing else is promised. Everything raises",
        "`sam3label.errors.Sam3LabelError` with a message made for people.",
    ]
    for name in getattr(sam3label, "__all__", ()):
        parts += _entry(name, getattr(sam3label, name))
    return "\n".join([*parts, ""])


def _entry(name: str, thing: Any) -> Iterator[str]:
    if not callable(thing):
        return
    yield from ("", f"## `{name}`", "", *_documented(name, thing))
    if inspect.isclass(thing):
        for method_name, method in vars(thing).items():
            if method_name.startswith("_") or not (inspect.isfunction(method) or isinstance(method, property)):
                continue
            target = method.fget if isinstance(method, property) else method
            yield from ("", f"### `{name}.{method_name}`", "", *_documented(method_name, target, method))


def _documented(name: str, thing: Any, shown: Any = None) -> Iterator[str]:
    if not isinstance(shown, property):
        yield from ("```python", f"{name}{_signature(thing)}", "```", "")
    yield _examples_fenced(inspect.getdoc(thing) or "")
    if dataclasses.is_dataclass(thing):
        yield from ("", "| field | default |", "| --- | --- |")
        for field in dataclasses.fields(thing):
            default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
            yield f"| `{field.name}` | {default} |"


def _signature(thing: Any) -> str:
    try:
        shown = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))  # an address is another one each time
        shown = re.sub(r"<function .*?>>", "...", shown)
        return re.sub(r"'([\w\[\], |.]+)'", r"\1", shown)
    except (TypeError, ValueError):
        return "(...)"


def _examples_fenced(text: str) -> str:
    """Doctest lines in a code block, which Markdown would otherwise take for quotations."""
    lines, fenced = [], False
    for line in text.splitlines():
        example = line.lstrip().startswith((">>>", "...")) or (fenced and line.strip() != "")
        if example != fenced:
            lines.append("```" if fenced else "```python")
            fenced = example
        lines.append(line)
    return "\n".join([*lines, "```"] if fenced else lines)


def main() -> int:
    made = pages()
    if "--check" not in sys.argv[1:]:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            (REFERENCE / name).write_text(text, encoding="utf-8")
        return 0
    stale = [n for n, text in made.items() if not (REFERENCE / n).exists() or (REFERENCE / n).read_text() != text]
    for name in stale:
        print(f"docs/reference/{name} is stale: run scripts/make_reference.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""Run options in a file: `sam3label run job.yaml`.

    photos: [photos, videos]            # as on the command line; a path or a list of them
    concepts: concepts.yaml             # or the list itself, here
    out: runs/site-a
    model: facebook/sam3
    export: [coco, yolo]                # any option of `run` by its name
    split: {train: 0.8, val: 0.2}

Paths are relative to the file, so it means the same wherever it is called from. The command line wins over the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sam3label.cli.boundary import guarded
from sam3label.cli.options import read_concepts
from sam3label.core.checks import did_you_mean
from sam3label.core.problems import Problem
from sam3label.errors import ConfigError

if TYPE_CHECKING:
    from sam3label.core.records import ConceptList
    from sam3label.core.yamlnodes import Node

SUFFIXES = (".yaml", ".yml")
_LOOK_FOR = ("concepts", "phrase", "ontology")  # keys that say what to look for: one of them counts


@dataclass(frozen=True, slots=True)
class Job:
    """Holds a job file: photos, what to look for if the list stands in it, the other options by parameter name."""

    photos: tuple[str, ...]
    concepts: Any
    options: dict[str, Any]
    path: Path


@guarded
def photos_or_job(context: typer.Context, photos: list[str]) -> list[str]:
    """Return the photos of the command line; or, where it names a job file, those of the job, whose options count then.

    Photos after the file win over those in it.
    """
    if not photos or context.resilient_parsing or not photos[0].lower().endswith(SUFFIXES):
        return photos
    job = read_job(Path(photos[0]), context)
    context.default_map = job.options
    context.obj = job
    return photos[1:] or list(job.photos)


def concepts_of(
    context: typer.Context, path: str | None, ontology: str | None, phrases: Sequence[str], settings: Sequence[str]
) -> ConceptList:
    """Return what to look for: as the command line says, else as its job file does. Raises `ConfigError`."""
    from sam3label.face import Concepts

    if not isinstance(context.obj, Job):
        return read_concepts(path, ontology, settings, phrases)
    typed = {name for name in ("concepts", "phrases", "ontology") if _is_typed(context, name)}
    if not typed and context.obj.concepts is not None:
        if path or ontology or phrases:
            raise ConfigError("the job file says what to look for in two ways: keep one of concepts, phrase, ontology")
        job = context.obj
        return Concepts.from_document(job.concepts, *settings, name=f"{job.path}: concepts", folder=job.path.parent)
    given = {"concepts": path, "phrases": phrases, "ontology": ontology}
    kept = {name: value if not typed or name in typed else None for name, value in given.items()}
    return read_concepts(kept["concepts"], kept["ontology"], settings, kept["phrases"] or ())  # type: ignore[arg-type]


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


# ---- reading


def read_job(path: Path, context: typer.Context) -> Job:
    """Return a job file, every value checked as the command line checks it. Raises `ConfigError` with all problems."""
    from sam3label.core.yamlnodes import read_nodes  # with YAML, which the help has no need of

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    problems: list[Problem] = []
    root = read_nodes(text, str(path), lambda line: f"{path}:{line}", problems)
    if root is None or not isinstance(root.value, dict):
        raise ConfigError(f"{path}: a job file has keys: photos, concepts, out, model, and any option of run")
    if "names" in root.value and "photos" not in root.value:
        raise ConfigError(f"{path} is a concept list: sam3label run PHOTOS -c {path}")
    given = dict(root.value)
    photos, concepts = given.pop("photos", None), given.pop("concepts", None)
    known = _options_of_run(context)
    options: dict[str, Any] = {}
    for key, node in given.items():
        name = str(key).replace("_", "-")
        if name in known:
            value = _value(known[name], node, context, problems, str(key))
            options |= {} if value is None else {known[name].name: value}
        else:
            hint = did_you_mean(name, ("photos", "concepts", *known))
            problems.append(Problem(node.where, f"{key!r} is no option of run{hint}"))
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    inline = None
    if concepts is not None and isinstance(concepts.value, str):
        options["concepts"] = concepts.value if "://" in concepts.value else str(path.parent / concepts.value)
    elif concepts is not None:
        inline = _plain(concepts)
    for name in ("out", "model"):
        if name in options:
            options[name] = _placed(name, options[name], path.parent)
    return Job(tuple(_photos(photos, path.parent)), inline, options, path)


def _options_of_run(context: typer.Context) -> dict[str, Any]:
    """Return the options of `run` that a file may hold, by their name without dashes."""
    parameters: list[Any] = context.command.params
    options = [p for p in parameters if p.param_type_name == "option" and not p.hidden]
    names = {max(p.opts, key=len).removeprefix("--"): p for p in options}
    return {name: p for name, p in names.items() if name not in ("help", "concepts")}


def _value(parameter: Any, node: Node, context: typer.Context, problems: list[Problem], key: str) -> Any:
    """Return an option's value as the command line would have given it; None where there is none or it is wrong."""
    if node.value is None:
        return None
    if parameter.is_flag:
        if not isinstance(node.value, bool):
            problems.append(Problem(node.where, f"{key}: {node.text!r} is neither true nor false"))
            return None
        return node.value
    value: Any = _texts(node)
    if parameter.multiple:
        value = [value] if isinstance(value, str) else value
    elif not isinstance(value, str):
        value = ",".join(value)  # split: {train: 0.8, val: 0.2}
    try:
        parameter.process_value(context, value)
    except typer.BadParameter as error:
        problems.append(Problem(node.where, f"{key}: {error.message}"))
        return None
    return value


def _texts(node: Node) -> str | list[str]:
    """Return a scalar as it was written, each of a list, or KEY=VALUE for each entry of a mapping."""
    if isinstance(node.value, list):
        return [str(_texts(child)) for child in node.value]
    if isinstance(node.value, dict):
        return [f"{key}={_texts(child)}" for key, child in node.value.items()]
    return node.text


def _plain(node: Node) -> Any:
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    return node.value


def _photos(node: Node | None, folder: Path) -> Iterator[str]:
    texts = [] if node is None or node.value is None else _texts(node)
    for text in [texts] if isinstance(texts, str) else texts:
        yield _source(text, folder)


def _source(text: str, folder: Path) -> str:
    """Return a source as seen from here: files, globs, @lists and name=FOLDER are relative to the job file."""
    if "://" in text:
        return text
    name, equals, rest = text.partition("=")
    if equals and not (folder / text).exists():
        return f"{name}={folder / rest}"
    return f"@{folder / text[1:]}" if text.startswith("@") else str(folder / text)


def _placed(name: str, text: str, folder: Path) -> str:
    """Return `out` beside the file, and a model too if there is one: else it is a hub id, or demo."""
    return str(folder / text) if name == "out" or (folder / text).exists() else text

"""The concept list: YAML in, `ConceptList` out, or one ConfigError with every problem in the file.

`names:` follows Ultralytics, so a data.yaml is a legal concept list. A problem reads

    concepts.yaml:7: concepts.helmet.conf: got 1.7; allowed: a number from 0 to 1

The YAML is read into `Node`s, which remember their line; `checking` looks at them. A list may also come from a program
or a command line, as a dict, a list or phrases: the same checks, the same messages.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from sam3label.concepts.checking import CANVAS_KEYS, EXAMPLE, RULE_KEYS, check_list, close_to, some
from sam3label.core.problems import Problem, first_of
from sam3label.core.records import Concept, ConceptList, Verify
from sam3label.core.yamlnodes import Node, as_node, read_nodes
from sam3label.errors import ConfigError, os_reason
from sam3label.media import storage

_SHOWN = 50  # problems listed in one message


def load_concepts(source: str | Path, overrides: Sequence[str] = ()) -> ConceptList:
    """Return the concept list in a YAML file, with `--set` overrides such as "concepts.helmet.conf=0.7" applied.

    The file may lie in storage (`s3://bucket/concepts.yaml`). Paths in it are relative to its folder. Raises
    ConfigError listing every problem.
    """
    remote = storage.is_remote(source)
    folder = storage.parent(str(source)) if remote else Path(source).parent
    hint = _as_phrases(str(source)) or "; `sam3label init` writes one"
    read = parse_concepts(read_text(source, hint), str(source), overrides, folder)
    return replace(read, path=str(source) if remote else str(Path(source).absolute()))


def parse_concepts(
    text: str, name: str = "concept list", overrides: Sequence[str] = (), folder: str | Path = "."
) -> ConceptList:
    """Return the concept list in YAML text. `name` stands for the file in messages; paths are relative to `folder`."""
    return _parse(text, name, lambda line: f"{name}:{line}", overrides, folder)


def concepts_from(
    source: object, overrides: Sequence[str] = (), name: str = "the concept list", folder: str | Path = "."
) -> ConceptList:
    """Return the concept list of a program: a YAML file, class names, classes and their phrases, or a whole document.

    `name` is what messages call it; paths in what is no file are relative to `folder`. Raises ConfigError.
    Examples: concepts_from("concepts.yaml"), concepts_from(["person", "helmet"]),
    concepts_from({"helmet": ["hard hat", "safety helmet"], "person": None}), concepts_from({"helmet": {"conf": 0.6}}),
    concepts_from({"names": ["car", "truck"], "exclusive": [["car", "truck"]]}).
    """
    if isinstance(source, ConceptList) and not overrides:
        return source
    if isinstance(source, ConceptList):
        for_each = [one for text in overrides for one in _spelled_out(text, source.names)]
        return parse_concepts(dump_concepts(source), name, for_each)
    if isinstance(source, str | PathLike):
        return load_concepts(source if isinstance(source, str) else Path(source), overrides)
    if isinstance(source, Mapping):
        source = source if "names" in source else _document(source)
    elif not isinstance(source, Sequence):
        raise ConfigError(
            f"{name}: got {type(source).__name__}; allowed: the path of a YAML file, a list of class names, or a dict "
            'such as {"helmet": ["hard hat"]}'
        )
    return _checked(as_node(source, name), name, overrides, Path(folder))


def _spelled_out(setting: str, names: Sequence[str]) -> list[str]:
    """Return a default as the rule of every class: in a list that was read each class has all of its rules."""
    key = setting.removeprefix("defaults.")
    return [setting] if key == setting else [f"concepts.{name}.{key}" for name in names]


def from_phrases(phrases: Sequence[str], overrides: Sequence[str] = ()) -> ConceptList:
    """Return a class of that name for each phrase, in this order, as `-p person -p helmet` asks. Raises ConfigError."""
    nodes = [Node(phrase, f"-p {phrase}", phrase) for phrase in phrases]
    return _checked(Node(nodes, "-p"), "-p", overrides, Path())


def _document(classes: Mapping[Any, Any]) -> dict[str, Any]:
    """Classes with their phrases, or with all their rules, as the file would have them."""
    rules = {name: given if isinstance(given, Mapping) else {"prompts": given} for name, given in classes.items()}
    rules = {name: given for name, given in rules.items() if classes[name] is not None}
    return {"names": list(classes), "concepts": rules}


def parse_ontology(text: str, overrides: Sequence[str] = ()) -> ConceptList:
    """Return the concept list of a JSON object {phrase: class}, given as text or as the path of a JSON file.

    Classes get their ids in order of first mention. Raises ConfigError.
    """
    name = "--ontology"
    if not text.lstrip().startswith("{"):
        hint = _as_phrases(text) or """; or give it here, as '{"hard hat": "helmet"}'"""
        name, text = text, read_text(text, hint)
    prompts: dict[str, list[str]] = {}
    for phrase, label in _ontology_pairs(text, name):
        prompts.setdefault(label, []).append(phrase)
    return _checked(as_node(_document(prompts), name), name, overrides, Path())


def _parse(
    text: str, name: str, place: Callable[[int], str], overrides: Sequence[str], folder: str | Path
) -> ConceptList:
    problems: list[Problem] = []
    root = read_nodes(text, name, place, problems)
    if root is None:
        raise ConfigError(f"{name}: the file is empty; it needs at least: {EXAMPLE}")
    return _checked(root, name, overrides, folder, problems)


def _checked(
    root: Node, name: str, overrides: Sequence[str], folder: str | Path, problems: Sequence[Problem] = ()
) -> ConceptList:
    """Return the concept list of a document. Raises ConfigError with every problem, those found while reading first."""
    found = list(problems)
    if isinstance(root.value, list):
        root = Node({"names": root}, root.where)
    root = _apply(overrides, root, found)
    concepts = check_list(root, folder, found)
    if found:
        raise ConfigError(_message(name, found))
    return concepts


def dump_concepts(concepts: ConceptList) -> str:
    """Return YAML that `parse_concepts` turns back into an equal list.

    Every rule is written out; paths are absolute.
    """
    document = {
        "names": {c.id: c.name for c in concepts.concepts},
        "concepts": {c.name: _dump_concept(c) for c in concepts.concepts},
        "exclusive": [list(group) for group in concepts.exclusive],
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _dump_concept(concept: Concept) -> dict[str, Any]:
    rules: dict[str, Any] = {"prompts": list(concept.prompts), "not": list(concept.negatives)}
    rules |= {key: value for key in RULE_KEYS if (value := getattr(concept, key)) is not None}
    if concept.ask is not None:
        rules["ask"] = concept.ask
    if concept.refine:
        rules["refine"] = True
    if concept.tile is not None:
        tile = concept.tile
        rules["tile"] = "auto" if tile.auto else {"overlap": tile.overlap, **({"size": tile.size} if tile.size else {})}
    if concept.verify != Verify():
        rules["verify"] = dump_verify(concept.verify)
    if concept.where:
        rules["where"] = [str(condition) for condition in concept.where]
    if concept.exemplars is not None:
        rules["exemplars"] = {concept.exemplars.kind: concept.exemplars.path}
        if concept.exemplars.kind == "references":
            rules["exemplars"]["mode"] = concept.exemplars.mode
        if concept.exemplars.kind == "references" and concept.exemplars.mode == "canvas":
            rules["exemplars"] |= {key: getattr(concept.exemplars, key) for key in CANVAS_KEYS}
    return rules


def dump_verify(verify: Verify) -> dict[str, Any]:
    """Return what `verify:` says of a class.

    >>> dump_verify(Verify("veto", 0.3))
    {'presence': 'veto', 'masks': {'reject_below': 0.3}}
    """
    reject, lower = verify.reject_below, verify.missing_conf
    return {
        "presence": verify.presence,
        **({} if lower is None else {"missing": {"conf": lower}}),
        **({} if reject is None else {"masks": {"reject_below": reject}}),
    }


def _as_phrases(text: str) -> str:
    """Return how phrases are given, for one who gave them in place of a file; empty for what looks like a file."""
    phrases = [phrase.strip() for phrase in text.split(",")]
    if Path(text).suffix or "/" in text or not all(phrases):
        return ""
    return f"; phrases are given one by one: {' '.join(f'-p {shlex.quote(phrase)}' for phrase in phrases)}"


def read_text(source: str | Path, hint: str = "") -> str:
    """Return the text of a concept list, wherever it lies. Raises ConfigError; `hint` goes with a missing file."""
    path = Path(source)
    try:
        data = storage.read(str(source)) if storage.is_remote(source) else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not a text file in UTF-8") from None
    except FileNotFoundError as error:
        if storage.is_remote(source):
            raise ConfigError(f"{source}: {os_reason(error)}{hint}") from None
        raise ConfigError(f"{path}: no such file{close_to(path.name, _neighbors(path))}{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{source}: cannot be read: {reason.lower()}") from error


def _neighbors(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


# ---- overrides -----------------------------------------------------------------------------------------------------


def _apply(overrides: Sequence[str], root: Node, problems: list[Problem]) -> Node:
    for text in overrides:
        key, equals, value = text.partition("=")
        path = _override_path(key.strip())
        if not equals or not path:
            problems.append(
                Problem(f"--set {text}", "allowed: defaults.KEY=VALUE, concepts.CLASS.KEY=VALUE or exclusive=VALUE")
            )
            continue
        where = f"--set {text}"
        node = read_nodes(value, where, lambda _line, where=where: where, problems)  # type: ignore[misc]
        root = _put(root, path, node or Node(None, where))
    return root


def _override_path(key: str) -> list[str]:
    """The key's parts, empty if it is none: only the first and the last dot count, since a class name may have some."""
    head, _, rest = key.partition(".")
    if head == "concepts":
        name, _, last = rest.rpartition(".")
        return [head, name, last] if name and last else []
    if head == "defaults":
        return [head, rest] if rest else []
    return [head] if key == "exclusive" else []


def _put(node: Node, path: Sequence[str], leaf: Node) -> Node:
    """Return a copy of `node` with `leaf` at `path`. What is no mapping stays, to be reported by its check."""
    if not path:
        return leaf
    if not isinstance(node.value, dict | None):
        return node
    inner = (node.value or {}).get(path[0], Node({}, leaf.where))
    return replace(node, value={**(node.value or {}), path[0]: _put(inner, path[1:], leaf)})


def _message(name: str, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return "\n".join([f"{name}: {len(problems)} problems", *first_of(problems, _SHOWN, "  ")])


# ---- ontology ------------------------------------------------------------------------------------------------------


def _ontology_pairs(text: str, name: str) -> list[tuple[str, str]]:
    """Return (phrase, class) pairs of a JSON object, a phrase given twice included."""
    try:
        pairs: list[tuple[str, str]] = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    right = isinstance(pairs, list) and all(isinstance(p, tuple) and isinstance(p[1], str) for p in pairs)
    if not right or not pairs:
        raise ConfigError(f'{name}: allowed: phrases and their classes, such as {{"hard hat": "helmet"}}')
    twice = [phrase for phrase, count in Counter(phrase for phrase, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"{name}: given more than once: {some(twice)}; each phrase may be there once")
    return pairs

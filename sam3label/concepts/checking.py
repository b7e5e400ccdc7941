"""The checks of a concept list: `Node`s in, concepts out, and every `Problem` in one list.

Small functions check one thing each, add what they find to `problems` and return a usable value in its place.
"""

from __future__ import annotations

import difflib
import math
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from sam3label.core.problems import Problem
from sam3label.core.records import Concept, ConceptList, Condition, Exemplars, Part, Relation, Tiles, Verify
from sam3label.core.text import count
from sam3label.core.yamlnodes import Node, short
from sam3label.media import storage

TOP_KEYS = ("names", "defaults", "concepts", "exclusive")
RULE_KEYS = ("conf", "iou", "presence", "min_area", "max_instances", "inside", "snap")
CANVAS_KEYS = ("share", "tiles")
EXAMPLE = "names: [person, helmet]"
_DATA_YAML_KEYS = (  # what an Ultralytics or Roboflow data.yaml may hold beside names: known, and not our business
    *("path", "train", "val", "test", "minival", "nc", "download", "channels"),
    *("kpt_shape", "kpt_names", "flip_idx", "roboflow"),
)
_CONCEPT_KEYS = ("prompts", "not", *RULE_KEYS, "exemplars", "tile", "refine", "where", "verify", "ask")
_TILE_KEYS = ("size", "overlap")
_PARTS = "top, .bottom, .left or .right"
_CONDITIONS = (
    "lines such as overlaps person.top, inside cage, with helmet at top, without helmet, left_of car, right_of car, "
    "above table, below table, beside star, nearest ball, and not before any of them"
)
_KINDS: tuple[Literal["labels", "references", "objects"], ...] = ("labels", "references", "objects")


def check_list(root: Node, folder: str | Path, problems: list[Problem]) -> ConceptList:
    """Return the concept list that a document says; paths in it are relative to `folder`."""
    if not isinstance(root.value, dict):
        problems.append(Problem(root.where, f"got {_shown(root)}; allowed: a mapping or a list, such as: {EXAMPLE}"))
        return ConceptList(())
    _refuse_unknown(root, "", (*TOP_KEYS, *_DATA_YAML_KEYS), problems, shown=TOP_KEYS)
    names = _names(root, problems)
    general = _mapping(root.value.get("defaults"), "defaults", (*RULE_KEYS, "tile", "refine", "verify"), problems)
    defaults = (
        _rules(general, "defaults", problems)
        | _tile(general, "defaults", problems)
        | _refine(general, "defaults", problems)
    )
    defaults |= _verify(general, "defaults", problems)
    known = frozenset(names)
    given = _mapping(root.value.get("concepts"), "concepts", None, problems)
    for key, node in given.items():
        _check_class(key, node.where, "concepts", known, problems)
        if key not in known:  # what is in it will be wrong under the right name too
            _concept(0, str(key), node, defaults, known, folder, problems)
    concepts = (_concept(i, name, given.get(name), defaults, known, folder, problems) for i, name in enumerate(names))
    return ConceptList(tuple(concepts), _exclusive(root.value.get("exclusive"), known, problems))


def _names(root: Node, problems: list[Problem]) -> list[str]:
    node = root.value.get("names")
    if node is None or node.value in (None, [], {}):
        problems.append(
            Problem((node or root).where, f"names: there are none; allowed: at least one, such as: {EXAMPLE}")
        )
        return []
    if isinstance(node.value, dict):
        children = _numbered(node, problems)
    elif isinstance(node.value, list):
        children = dict(enumerate(node.value))
    else:
        problems.append(Problem(node.where, f"names: got {_shown(node)}; allowed: a list, or {{0: person, 1: helmet}}"))
        return []
    names = _texts(children, "names", problems)
    _refuse_twins(children, problems)
    _check_nc(root.value.get("nc"), len(children), problems)
    return names


def _refuse_twins(children: Mapping[int, Node], problems: list[Problem]) -> None:
    first: dict[str, Node] = {}
    for i, child in children.items():
        twin = first.setdefault(child.value.casefold(), child) if isinstance(child.value, str) else child
        if twin.value != child.value:
            problems.append(
                Problem(
                    child.where,
                    f"names.{i}: '{child.value}' and '{twin.value}' ({twin.where}) differ only in case, and "
                    "the model and many tools take them for one; rename one, or make one class with both as prompts",
                )
            )


def _numbered(node: Node, problems: list[Problem]) -> dict[int, Node]:
    """Return the entries of an {id: name} mapping in order of id. The ids must be 0..N-1: they are the dataset's."""
    ids: dict[int, Node] = {}
    for key, child in node.value.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if isinstance(number, int) and not isinstance(number, bool):
            ids[number] = child
        else:
            swapped = f"; write {child.value}: {key}" if isinstance(child.value, int) else ""
            problems.append(Problem(child.where, f"names: got the id {key!r}; allowed: a whole number from 0{swapped}"))
    number = len(node.value)
    missing = [str(i) for i in range(number) if i not in ids]
    beyond = [str(i) for i in ids if not 0 <= i < number]
    if beyond:
        problems.append(
            Problem(
                node.where,
                f"names: got {some(beyond)} and no {some(missing)}; "
                f"allowed: the ids 0 to {number - 1} for {count(number, 'class', 'classes')}, none left out",
            )
        )
    return {i: ids[i] for i in sorted(ids)}


def _check_nc(node: Node | None, names: int, problems: list[Problem]) -> None:
    if node is not None and node.value != names:
        problems.append(
            Problem(node.where, f"nc: got {_shown(node)}; allowed: {names}, the number of names, or leave it out")
        )


def _concept(
    number: int,
    name: str,
    node: Node | None,
    defaults: dict[str, Any],
    known: Collection[str],
    folder: str | Path,
    problems: list[Problem],
) -> Concept:
    key = f"concepts.{name}"
    given = _mapping(node, key, _CONCEPT_KEYS, problems)
    exemplars = _exemplars(given.get("exemplars"), f"{key}.exemplars", folder, problems)
    ask = _ask(given, key, problems)
    prompts = [] if ask else _prompts(given.get("prompts"), name, f"{key}.prompts", exemplars is not None, problems)
    negatives = _phrases(given["not"], f"{key}.not", problems) if "not" in given else []
    read = {prompt.casefold() for prompt in prompts}  # the model reads no case
    for phrase in (phrase for phrase in negatives if phrase.casefold() in read):
        problems.append(
            Problem(
                given["not"].where, f"{key}.not: '{phrase}' is also a prompt of {name}; remove it from one of the two"
            )
        )
    rules = (
        defaults
        | _rules(given, key, problems)
        | _tile(given, key, problems)
        | _refine(given, key, problems)
        | _verify(given, key, problems)
    )
    where = _where(given["where"], f"{key}.where", known, problems) if "where" in given else ()
    return Concept(number, name, tuple(prompts), tuple(negatives), exemplars=exemplars, where=where, ask=ask, **rules)


def _ask(given: Mapping[Any, Node], key: str, problems: list[Problem]) -> str | None:
    """Return what an agent is asked, if that is given and right: such a class is asked in no other way."""
    if "ask" not in given:
        return None
    for name in ("prompts", "not", "exemplars"):
        if name in given and given[name].value not in (None, [], ""):
            problems.append(Problem(given[name].where, f"{key}.{name}: a class with ask: has none; make two classes"))
    return _text(given["ask"], f"{key}.ask", problems)


def _prompts(node: Node | None, name: str, key: str, has_exemplars: bool, problems: list[Problem]) -> list[str]:
    if node is None:
        return [name]
    if node.value in (None, []) and not has_exemplars:
        problems.append(
            Problem(node.where, f"{key}: there are none; leave the key out to use the class name as the phrase")
        )
    return _phrases(node, key, problems)


def _phrases(node: Node, key: str, problems: list[Problem]) -> list[str]:
    """Return a list of phrases, or one phrase as it is."""
    if isinstance(node.value, list):
        return _texts(dict(enumerate(node.value)), key, problems)
    if isinstance(node.value, str) and "," in node.value:
        problems.append(
            Problem(
                node.where,
                f"{key}: got {_shown(node)}, which is one phrase; "
                f"allowed: [{node.value}] for a list, or ['{node.value}'] if the comma belongs to the phrase",
            )
        )
    elif isinstance(node.value, str):
        phrase = _text(node, key, problems)
        return [] if phrase is None else [phrase]
    elif node.value is not None:
        problems.append(
            Problem(
                node.where,
                f"{key}: got {_shown(node)}; "
                f"allowed: a phrase, or a list such as [hard hat, safety helmet]{_quoting(node)}",
            )
        )
    return []


def _rules(given: dict[Any, Node], key: str, problems: list[Problem]) -> dict[str, Any]:
    """Return the thresholds that are given and right, by name."""
    rules: dict[str, Any] = {}
    for name in RULE_KEYS:
        if name not in given:
            continue
        value, allowed = _rule(name, given[name])
        if allowed:
            problems.append(Problem(given[name].where, f"{key}.{name}: got {_shown(given[name])}; allowed: {allowed}"))
        else:
            rules[name] = value
    return rules


def _rule(name: str, node: Node) -> tuple[float | str | bool | None, str]:
    """Return a threshold's value, and what is allowed if it is not that."""
    if name == "snap":
        return node.value, "" if isinstance(node.value, bool) else "true or false"
    if name == "inside":
        return node.value, "" if node.value in ("keep", "drop") else "keep or drop"
    number = _number(node)
    if name == "max_instances":
        right = node.value is None or (isinstance(node.value, int) and number is not None and number >= 1)
        return node.value, "" if right else "a whole number from 1, or null for no limit"
    if name == "min_area":
        return number, "" if number is not None and number >= 0 else "an area in pixels, 0 or more"
    return number, "" if number is not None and 0 <= number <= 1 else "a number from 0 to 1"


def _tile(given: dict[Any, Node], key: str, problems: list[Problem]) -> dict[str, Tiles | None]:
    """Return the tiles that are given and right: `auto`, a size in pixels, a mapping, or none at all."""
    if "tile" not in given:
        return {}
    node = given["tile"]
    if node.value in (None, False):
        return {"tile": None}
    if node.value == "auto":
        return {"tile": Tiles(auto=True)}
    inner = _mapping(node, f"{key}.tile", _TILE_KEYS, problems) if isinstance(node.value, dict) else {"size": node}
    size, overlap = inner.get("size"), inner.get("overlap")
    try:
        number = None if size is None else _whole(size)
        share = 0.2 if overlap is None else _number(overlap)
        return {"tile": Tiles(number, float("nan") if share is None else share)}
    except ValueError:
        problems.append(
            Problem(
                node.where,
                f"{key}.tile: got {_shown(node)}; "
                "allowed: auto, a size in pixels from 32, {size: 1024, overlap: 0.2} with an overlap from 0 to 0.5, or "
                "off",
            )
        )
        return {}


def _verify(given: dict[Any, Node], key: str, problems: list[Problem]) -> dict[str, Verify]:
    """Return what verdicts may change, if that is given and right."""
    if "verify" not in given:
        return {}
    node = given["verify"]
    inner = _mapping(node, f"{key}.verify", ("presence", "missing", "masks"), problems)
    presence = inner.get("presence")
    # YAML reads off as false
    says = "off" if presence is None or presence.value is False else presence.value
    if says not in ("off", "veto", "replace"):
        problems.append(
            Problem(node.where, f"{key}.verify.presence: got {_shown(presence or node)}; allowed: off, veto, replace")
        )
        says = "off"
    use = cast(Literal["off", "veto", "replace"], says)
    below = _share_in(inner.get("masks"), f"{key}.verify.masks", "reject_below", problems)
    lower = _share_in(inner.get("missing"), f"{key}.verify.missing", "conf", problems)
    return {"verify": Verify(use, below, lower)}


def _share_in(node: Node | None, key: str, name: str, problems: list[Problem]) -> float | None:
    """Return the one number of a mapping such as {reject_below: 0.3}, if it is given and right."""
    given = _mapping(node, key, (name,), problems).get(name)
    number = None if given is None else _number(given)
    if given is not None and not (number is not None and 0 < number <= 1):
        problems.append(
            Problem(given.where, f"{key}.{name}: got {_shown(given)}; allowed: a number over 0 and at most 1")
        )
        return None
    return number


def _where(node: Node, key: str, names: Collection[str], problems: list[Problem]) -> tuple[Condition, ...]:
    """Return the conditions of one class: a line of text each, or one line alone."""
    lines = dict(enumerate(node.value if isinstance(node.value, list) else [] if node.value is None else [node]))
    found = []
    for i, child in lines.items():
        text = _text(child, f"{key}.{i}", problems)
        try:
            if text is not None:
                found.append(condition(text, names))
        except ValueError as error:
            problems.append(Problem(child.where, f"{key}: {error}"))
    return tuple(found)


def condition(text: str, names: Collection[str]) -> Condition:
    """Read one line of `where:`. Raises ValueError.

    >>> condition("without helmet at top", ["person", "helmet"])
    Condition(relation='with', class_name='helmet', part='top', negated=True)
    """
    word, _, rest = text.partition(" ")
    negated = word in ("not", "without")
    if word == "not":
        word, _, rest = rest.partition(" ")
    if word not in get_args(Relation) and word != "without":
        options = (*get_args(Relation), "without", "not")
        raise ValueError(f"got {short(text)}{close_to(word, options)}; allowed: {_CONDITIONS}")
    relation = "with" if word == "without" else cast(Relation, word)
    name, part = rest.strip(), "whole"
    if name not in names and relation in ("with", "overlaps", "inside"):
        name, _, part = name.rpartition(" at " if relation == "with" else ".")
        name, part = (rest.strip(), "whole") if part not in get_args(Part) or not name else (name, part)
    if names and name not in names:
        raise ValueError(
            f"got {short(text)}: no class '{name}'{close_to(name, names)}; allowed: {some(sorted(names))}"
            f"{f', with .{_PARTS} after it' if relation in ('overlaps', 'inside') else ''}"
        )
    return Condition(relation, name, cast(Part, part), negated)


def _refine(given: dict[Any, Node], key: str, problems: list[Problem]) -> dict[str, bool]:
    """Return whether masks are to be refined, where that is said."""
    if "refine" not in given:
        return {}
    node = given["refine"]
    if not isinstance(node.value, bool):
        problems.append(Problem(node.where, f"{key}.refine: got {_shown(node)}; allowed: true or false"))
        return {}
    return {"refine": node.value}


def _whole(node: Node) -> int:
    if isinstance(node.value, bool) or not isinstance(node.value, int):
        raise ValueError
    return node.value


def _number(node: Node) -> float | None:
    """Return the finite number a node is. Text is tried too, because YAML reads 1e-3 (without a dot) as text."""
    if isinstance(node.value, bool) or not isinstance(node.value, int | float | str):
        return None
    try:
        number = float(node.value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _exemplars(node: Node | None, key: str, folder: str | Path, problems: list[Problem]) -> Exemplars | None:
    allowed = (
        "a folder of references, {references: refs/helmet, mode: canvas}, {labels: partial.json}, "
        "or {objects: boxes.json}"
    )
    if node is None:
        return None
    if isinstance(node.value, str) and node.value.strip():
        return Exemplars(_absolute(node.value, folder), "references")
    if not isinstance(node.value, dict) or not node.value:
        problems.append(Problem(node.where, f"{key}: got {_shown(node)}; allowed: {allowed}"))
        return None
    given = _mapping(node, key, (*_KINDS, "mode", *CANVAS_KEYS), problems)
    kinds = [kind for kind in _KINDS if kind in given]
    if len(kinds) != 1 or (kinds != ["references"] and given.keys() & {"mode", *CANVAS_KEYS}):
        problems.append(Problem(node.where, f"{key}: got {some([str(k) for k in given])}; allowed: {allowed}"))
        return None
    path, mode = given[kinds[0]], given.get("mode", Node("canvas", node.where))
    if not isinstance(path.value, str) or not path.value.strip():
        problems.append(Problem(path.where, f"{key}.{kinds[0]}: got {_shown(path)}; allowed: a path"))
        return None
    if mode.value not in ("canvas", "tokens"):
        problems.append(Problem(mode.where, f"{key}.mode: got {_shown(mode)}; allowed: canvas, tokens"))
        return None
    return Exemplars(_absolute(path.value, folder), kinds[0], mode.value, **_canvas(given, key, mode.value, problems))


def _canvas(given: dict[Any, Node], key: str, mode: str, problems: list[Problem]) -> dict[str, Any]:
    """Return the settings of a canvas that are given and right, by name."""
    settings: dict[str, Any] = {}
    for name in (name for name in CANVAS_KEYS if name in given):
        node, number = given[name], _number(given[name])
        if name == "share":
            right, allowed = number is not None and 0.3 <= number <= 0.95, "a number from 0.3 to 0.95"
        else:
            right = isinstance(node.value, int) and number is not None and 1 <= number <= 8
            allowed = "a whole number from 1 to 8"
        if mode != "canvas":
            right, allowed = False, "it only with mode: canvas"
        if right:
            settings[name] = number if name == "share" else node.value
        else:
            problems.append(Problem(node.where, f"{key}.{name}: got {_shown(node)}; allowed: {allowed}"))
    return settings


def _absolute(path: str, folder: str | Path) -> str:
    """Return a path of a concept list as it is from anywhere: in a folder on a disk, or in storage."""
    if storage.is_remote(path) or storage.is_remote(folder):
        return path if storage.is_remote(path) else storage.joined(str(folder), path)
    return os.path.abspath(Path(folder) / path)  # noqa: PTH100 - resolve() would follow links


def _exclusive(node: Node | None, names: Collection[str], problems: list[Problem]) -> tuple[tuple[str, ...], ...]:
    if node is None or node.value is None:
        return ()
    allowed = "a list of groups of class names, such as [[forklift, truck]]"
    if not isinstance(node.value, list) or not all(isinstance(group.value, list) for group in node.value):
        problems.append(Problem(node.where, f"exclusive: got {_shown(node)}; allowed: {allowed}"))
        return ()
    return tuple(_group(group, f"exclusive.{i}", names, problems) for i, group in enumerate(node.value))


def _group(node: Node, key: str, names: Collection[str], problems: list[Problem]) -> tuple[str, ...]:
    members = _texts(dict(enumerate(node.value)), key, problems)
    for child in node.value:
        if isinstance(child.value, str):
            _check_class(child.value, child.where, key, names, problems)
    if len(node.value) < 2:
        problems.append(
            Problem(node.where, f"{key}: got {_shown(node)}; allowed: at least two classes that exclude each other")
        )
    return tuple(members)


# ---- small checks --------------------------------------------------------------------------------------------------


def _mapping(
    node: Node | None,
    key: str,
    allowed: Sequence[str] | None,
    problems: list[Problem],
    shown: Sequence[str] | None = None,
) -> dict[Any, Node]:
    """Return the mapping at `key`; empty where there is nothing, or something else, which is a problem."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        wanted = f"keys and values ({', '.join(shown or allowed)})" if allowed else "class names and their rules"
        problems.append(Problem(node.where, f"{key}: got {_shown(node)}; allowed: {wanted}"))
        return {}
    if allowed is not None:
        _refuse_unknown(node, key, allowed, problems, shown)
    return node.value


def _refuse_unknown(
    node: Node, key: str, allowed: Sequence[str], problems: list[Problem], shown: Sequence[str] | None = None
) -> None:
    for name, child in node.value.items():
        if name not in allowed:
            dotted = f"{key}.{name}" if key else str(name)
            close = close_to(str(name), shown or allowed)
            problems.append(
                Problem(child.where, f"{dotted}: unknown key{close}; allowed: {', '.join(shown or allowed)}")
            )


def _check_class(name: Any, where: str, key: str, names: Collection[str], problems: list[Problem]) -> None:
    """`name` must be one of the classes. With no valid classes there is nothing to compare with: that is reported."""
    if not isinstance(name, str):
        problems.append(Problem(where, f"{key}: got the key {name!r}, which is not text; write class names in quotes"))
    elif names and name not in names:
        problems.append(
            Problem(where, f"{key}: unknown class '{name}'{close_to(name, names)}; allowed: {some(sorted(names))}")
        )


def _texts(children: Mapping[int, Node], key: str, problems: list[Problem]) -> list[str]:
    """Return class names or phrases: text, each once."""
    first: dict[str, str] = {}
    for i, child in children.items():
        text = _text(child, f"{key}.{i}", problems)
        if text is None:
            continue
        if text in first:
            problems.append(
                Problem(child.where, f"{key}.{i}: '{text}' is already at {first[text]}; each may be there once")
            )
        first.setdefault(text, child.where)
    return list(first)


def _text(node: Node, key: str, problems: list[Problem]) -> str | None:
    if not isinstance(node.value, str):
        problems.append(Problem(node.where, f"{key}: got {_shown(node)}; allowed: text{_quoting(node)}"))
        return None
    if not node.value or node.value != node.value.strip():
        problems.append(Problem(node.where, f"{key}: got '{node.value}'; allowed: text with no space at its ends"))
        return None
    if bad := [c for c in node.value if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]:
        problems.append(
            Problem(node.where, f"{key}: got {node.value!r}; allowed: one line of text, without {bad[0]!r}")
        )
        return None
    return node.value


def _quoting(node: Node) -> str:
    """Return what YAML made of an unquoted word, and how to stop it."""
    if not node.text:
        return ""
    return f' (YAML reads {node.text} without quotes as {_kind(node.value)}; write "{node.text}")'


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds: dict[type, str] = {list: "a list", dict: "a mapping", str: "text"}
    return kinds.get(type(value), "a date")


def _shown(node: Node) -> str:
    """Return a value as the user wrote it, cut short; a list or mapping by its kind."""
    if isinstance(node.value, list | dict):
        return f"{_kind(node.value)} of {len(node.value)}" if node.value else f"an empty {_kind(node.value)[2:]}"
    return (short(node.text) if isinstance(node.value, str) else node.text) or "nothing"


def some(words: Sequence[str]) -> str:
    """Return the first dozen words for a message."""
    return ", ".join([*words[:12], *(["..."] if len(words) > 12 else [])])


def close_to(word: str, options: Collection[str]) -> str:
    """ " (did you mean 'helmet'?)" where one of the options is near, else nothing."""
    close = difflib.get_close_matches(word, options, n=1) if len(options) < 5000 else []  # slow beyond
    return f" (did you mean '{close[0]}'?)" if close else ""

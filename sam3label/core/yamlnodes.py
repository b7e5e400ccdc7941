"""YAML as nodes that remember where they were written, so that a message about a value can name its line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from sam3label.core.problems import Problem
from sam3label.errors import ConfigError

_TAB = re.compile(" *\t")
# libyaml where it is built in: ten times faster on long lists, with the same line numbers
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """A YAML value and where it was written ("concepts.yaml:7"). `value` is a scalar, list[Node] or dict[Any, Node].

    `text` is a scalar as written, before YAML made `no` a false or `007` a seven.
    """

    value: Any
    where: str
    text: str = ""


def read_nodes(text: str, name: str, place: Callable[[int], str], problems: list[Problem]) -> Node | None:
    """Return the document in `text`, None if there is none. `place` turns a line number into the `where` of a node.

    Adds repeated keys and unreadable values to `problems`. Raises ConfigError where the YAML itself is broken.
    """
    try:
        return _Reader(text, place, problems).document()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, text, name, place)) from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None


def as_node(value: Any, where: str) -> Node:
    """Return a value that a program gives as a node, everything in it at the same place."""
    if isinstance(value, Mapping):
        return Node({key: as_node(child, where) for key, child in value.items()}, where)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return Node([as_node(child, where) for child in value], where)
    plain = os.fspath(value) if isinstance(value, os.PathLike) else value
    return Node(plain, where, str(plain))


def short(text: str) -> str:
    """Return `text` quoted for a message, cut after 40 characters."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


class _Reader:
    def __init__(self, text: str, place: Callable[[int], str], problems: list[Problem]) -> None:
        self.loader = _Loader(text)
        self.place = place
        self.problems = problems
        # what an alias repeats is shared, so aliases of aliases cost nothing; None marks a value still being read
        self.done: dict[int, Node | None] = {}

    def document(self) -> Node | None:
        node = self.loader.get_single_node()
        return None if node is None else self.convert(node)

    def convert(self, node: yaml.Node) -> Node:
        where = self.place(node.start_mark.line + 1)
        if id(node) in self.done:
            if (known := self.done[id(node)]) is None:
                raise ConfigError(f"{where}: an alias refers to the value it is part of")
            return known
        self.done[id(node)] = None
        if isinstance(node, yaml.MappingNode):
            result = Node(self.mapping(node), where)
        elif isinstance(node, yaml.SequenceNode):
            result = Node([self.convert(child) for child in node.value], where)
        else:
            result = Node(self.scalar(node, where), where, node.value)
        self.done[id(node)] = result
        return result

    def mapping(self, node: yaml.MappingNode) -> dict[Any, Node]:
        own = {id(key) for key, _ in node.value}
        self.loader.flatten_mapping(node)  # `<<: *other` puts what it merges before the mapping's own keys
        result: dict[Any, Node] = {}
        first: dict[Any, str] = {}
        for key_node, value_node in node.value:
            key = self.convert(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(key.where, "a key must be a plain word or number"))
                continue
            if id(key_node) in own and key.value in first:
                self.problems.append(
                    Problem(key.where, f"the key '{key.text}' is already at {first[key.value]}; keep one")
                )
            elif id(key_node) in own:
                first[key.value] = key.where
            # the key's line, since a nested value starts on the next one
            result[key.value] = replace(self.convert(value_node), where=key.where)
        return result

    def scalar(self, node: yaml.Node, where: str) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError):  # an unknown !tag, or a date such as 2024-99-99
            self.problems.append(Problem(where, f"cannot read {short(node.value)}; put it in quotes if it is text"))
            return node.value


def _syntax_problem(error: yaml.YAMLError, text: str, name: str, place: Callable[[int], str]) -> str:
    mark = getattr(error, "problem_mark", None)
    where = place(mark.line + 1) if mark else name
    if mark and _TAB.match(next(iter(text.splitlines()[mark.line :]), "")):
        return f"{where}: not valid YAML: the line begins with a tab; write spaces instead"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    return f"{where}: not valid YAML: {problem}"

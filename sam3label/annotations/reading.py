"""Text files as the readers of labels take them, with errors in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3label.core.problems import Problem
from sam3label.core.yamlnodes import Node, read_nodes
from sam3label.errors import ConfigError, InputError


def load_yaml(path: Path) -> Mapping[Any, Node]:
    """Return the mapping in a YAML file. Raises InputError."""
    problems: list[Problem] = []
    try:
        root = read_nodes("\n".join(read_lines(path)), str(path), lambda line: f"{path}:{line}", problems)
    except ConfigError as error:
        raise InputError(str(error)) from None
    if problems:
        raise InputError("; ".join(map(str, problems)))
    if root is None or not isinstance(root.value, dict):
        raise InputError(f"{path} holds no boxes: write for each image a line such as  a.jpg: [[40, 30, 120, 90]]")
    return root.value


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file in UTF-8. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error

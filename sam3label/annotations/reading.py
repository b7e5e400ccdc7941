"""Text files as the readers of labels take them, with errors in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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


def load_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file. Raises InputError; so does a document with entities of its own, unread."""
    try:
        text = path.read_bytes()
        if b"<!ENTITY" in text:
            raise InputError(f"{path} declares entities, which label files have no use for: it is not read.")
        return ElementTree.fromstring(text)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not XML: {error}.") from error


def number_in(element: ElementTree.Element, path: str, where: str) -> float | None:
    """Return the number in a leaf; None where there is none. Raises InputError for what is no number."""
    text = (element.findtext(path) or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: <{path}> is '{text[:40]}'; allowed: a number.") from None

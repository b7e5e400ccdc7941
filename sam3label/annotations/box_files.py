"""YAML files of boxes, the form that is quick to write by hand:

a.jpg: [[40, 30, 120, 90]]                                   # x, y, width, height in pixels, of the class at hand
b.jpg: {helmet: [[1, 2, 30, 40]], baseball cap: [[5, 6, 70, 80]]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sam3label.annotations.marks import Labelled, Mark, corners_of
from sam3label.core.yamlnodes import Node, short
from sam3label.errors import InputError


def read_box_file(content: Mapping[Any, Node]) -> list[Labelled]:
    """Return the boxes of a YAML document, image by image. Raises InputError that names the line."""
    where = ((str(name), node, f"{node.where}: {name}") for name, node in content.items())
    return [Labelled(name, tuple(_marks(node, place)), place) for name, node, place in where]


def _marks(node: Node, where: str) -> Iterator[Mark]:
    """Yield the boxes of one image: a list, or a mapping of class names to lists."""
    for name, boxes in node.value.items() if isinstance(node.value, dict) else [(None, node)]:
        place = where if name is None else f"{where}, {name}"
        for number, box in enumerate(boxes.value if isinstance(boxes.value, list) else [boxes], start=1):
            values = [child.value for child in box.value] if isinstance(box.value, list) else []
            if len(values) != 4 or not all(_is_number(value) for value in values):
                got = f"[{', '.join(child.text for child in box.value)}]" if isinstance(box.value, list) else box.text
                raise InputError(
                    f"{place}, box {number}: got {short(got)}; allowed: a list of boxes such as [[40, 30, 120, 90]], "
                    "each x, y, width, height in pixels"
                )
            corners = corners_of((values[0], values[1], values[2], values[3]))
            yield Mark(None if name is None else str(name), corners, f"{place}, box {number}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9

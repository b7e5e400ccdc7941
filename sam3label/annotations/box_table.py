"""CSV tables of boxes and points, a row an object, the columns named in the first row.

    image,class,x1,y1,x2,y2        # or x,y,width,height; or xmin,ymin,xmax,ymax
    image,class,x,y                # a point on the object

Columns go by the names that are common; others are attributes. Values are pixels of the image.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from sam3label.annotations.marks import Labelled, LabelledDataset, Mark, of_points
from sam3label.annotations.reading import read_lines
from sam3label.errors import InputError

_IMAGE = ("image", "filename", "file_name", "file", "path", "image_path", "image_id", "img")
_CLASS = ("class", "label", "name", "class_name", "category", "labelname")
_ID = ("id", "object_id", "annotation_id")
_SIZE = ("width", "height")  # of the image, where the box has corners
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def read_box_table(path: Path) -> LabelledDataset:
    """Read a CSV table. A row without coordinates says that its image shows nothing. Raises InputError."""
    lines = read_lines(path)
    table = csv.DictReader(lines)
    columns = {name.strip().lower(): name for name in table.fieldnames or ()}
    form = _form(columns, path)
    marks: dict[str, list[Mark]] = {}
    for number, row in enumerate(table, start=2):
        values = {key: (row[name] or "").strip() for key, name in columns.items()}
        name = values[form["image"]].replace("\\", "/")
        if not name:
            raise InputError(f"{path}, line {number} names no image.")
        marks.setdefault(name, []).extend(_marks(values, form, f"{path}, line {number}"))
    images = tuple(Labelled(name, tuple(own), f"{path}: {name}") for name, own in marks.items())
    classes = dict.fromkeys(m.class_name for image in images for m in image.marks if m.class_name is not None)
    return LabelledDataset(path, "CSV", tuple(classes), images, (path.parent, path.parent / "images"))


def _form(columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return which column says what: image, class, id, and four of a box or two of a point."""
    chosen = {}
    for key, known in (("image", _IMAGE), ("class", _CLASS), ("id", _ID)):
        found = [name for name in known if name in columns]
        if found:
            chosen[key] = found[0]
    for names, keys in [(n, ("x1", "y1", "x2", "y2")) for n in _CORNERS] + [(n, ("x", "y", "w", "h")) for n in _SIDES]:
        if all(name in columns for name in names):
            chosen |= dict(zip(keys, names, strict=True))
            break
    else:
        if {"x", "y"} <= columns.keys():
            chosen |= {"x": "x", "y": "y"}
    if not {"image", "class"} <= chosen.keys() or not chosen.keys() & {"x1", "x"}:
        raise InputError(
            f"{path} is no table of boxes: its columns are {', '.join(columns) or 'none'}; wanted are image and class "
            "with x1,y1,x2,y2, or x,y,width,height, or x,y for points."
        )
    return chosen


def _marks(values: Mapping[str, str], form: Mapping[str, str], where: str) -> Iterator[Mark]:
    keys = [key for key in ("x1", "y1", "x2", "y2", "x", "y", "w", "h") if key in form]
    texts = [values[form[key]] for key in keys]
    if not any(texts):
        return
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise InputError(f"{where}: got '{', '.join(texts)}'; allowed: {len(keys)} numbers, in pixels.") from None
    name = values[form["class"]]
    if not name:
        raise InputError(f"{where} names no class.")
    size = _SIZE if "x1" in form else ()
    said = tuple((k, v) for k, v in values.items() if v and k not in form.values() and k not in size)
    id = values[form["id"]] if "id" in form else ""
    if len(numbers) == 2:
        yield of_points(name, [(numbers[0], numbers[1], True)], where, id, said)
        return
    a, b, c, d = numbers
    yield Mark(name, (a, b, c, d) if "x1" in form else (a, b, a + c, b + d), where, id, said)

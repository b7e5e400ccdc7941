"""Label Studio's JSON export: rectangles, keypoints and brush regions in per cent of the image, by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sam3label.annotations.coco import load_json
from sam3label.annotations.marks import Labelled, LabelledDataset, Mark, of_points
from sam3label.errors import InputError


def read_labelstudio(path: Path) -> LabelledDataset:
    """Read tasks as Label Studio exports them ("JSON"), or as they are imported with predictions. Raises InputError."""
    tasks = load_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{path} is no list of Label Studio tasks: export as JSON, not as JSON-MIN.")
    images = tuple(_image(task, f"{path}: task {task.get('id', number)}") for number, task in enumerate(tasks))
    classes = dict.fromkeys(m.class_name for image in images for m in image.marks if m.class_name is not None)
    return LabelledDataset(path, "Label Studio", tuple(classes), images, (path.parent / "images", path.parent))


def _image(task: Mapping[str, Any], where: str) -> Labelled:
    data = task.get("data")
    urls = [v for k, v in data.items() if isinstance(v, str) and k != "split"] if isinstance(data, dict) else []
    named = data.get("file_name") if isinstance(data, dict) else None
    if not urls:
        raise InputError(f"{where} names no image in its 'data'.")
    regions = _regions(task, where)
    sizes = {(r.get("original_height"), r.get("original_width")) for r in regions}
    size_hw = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    known = (int(size_hw[0]), int(size_hw[1])) if size_hw[0] and size_hw[1] else None
    return Labelled(str(named) if named else _name(urls[0]), tuple(_marks(regions, where)), where, known)


def _regions(task: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """Return the regions of the newest annotation that was not cancelled; where nobody annotated, of the prediction."""
    made = [a for a in task.get("annotations") or [] if isinstance(a, dict) and not a.get("was_cancelled")]
    made = made or [p for p in task.get("predictions") or [] if isinstance(p, dict)]
    result = made[-1].get("result", []) if made else []
    if not isinstance(result, list) or not all(isinstance(r, dict) for r in result):
        raise InputError(f"{where}: its 'result' is no list of regions.")
    return [r for r in result if isinstance(r.get("value"), dict)]


def _name(url: str) -> str:
    """Return the file a URL leads to: local files by their path, uploads by their name without the random prefix."""
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d")
    if local:
        return local[0].lstrip("/")
    name = Path(unquote(parts.path)).name
    head, dash, rest = name.partition("-")
    uploaded = "/upload/" in parts.path and dash and len(head) == 8
    return rest if uploaded else name


def _marks(regions: list[Mapping[str, Any]], where: str) -> Iterator[Mark]:
    said: dict[str, list[tuple[str, str]]] = {}
    for region in regions:
        if region.get("type") in ("choices", "textarea", "number", "rating") and region.get("id"):
            value = region["value"].get(region["type"])
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            said.setdefault(str(region["id"]), []).append((str(region.get("from_name", region["type"])), text))
    for region in regions:
        kind, value = str(region.get("type", "")), region["value"]
        if kind not in ("rectanglelabels", "keypointlabels", "polygonlabels"):
            if kind == "brushlabels":
                raise InputError(f"{where} has brush regions, which are masks already: export them as COCO with boxes.")
            continue
        place, id = f"{where}, region {region.get('id', '?')}", str(region.get("id", ""))
        names, width, height = value.get(kind), region.get("original_width"), region.get("original_height")
        if not isinstance(names, list) or len(names) != 1 or not width or not height:
            raise InputError(f"{place} has not one label and its image's size: allowed are regions of one label.")
        try:
            yield _mark(kind, value, str(names[0]), (float(width), float(height)), place, id, tuple(said.get(id, ())))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{place} has no whole coordinates.") from None


def _mark(
    kind: str, value: Mapping[str, Any], name: str, size: tuple[float, float], where: str, id: str,
    said: tuple[tuple[str, str], ...],
) -> Mark:  # fmt: skip
    if float(value.get("rotation") or 0) % 360:
        raise InputError(f"{where} is rotated: draw it upright, or as a polygon.")
    across, down = size[0] / 100, size[1] / 100
    if kind == "polygonlabels":
        xs, ys = [x * across for x, _ in value["points"]], [y * down for _, y in value["points"]]
        return Mark(name, (min(xs), min(ys), max(xs), max(ys)), where, id, said)
    x, y = value["x"] * across, value["y"] * down
    if kind == "keypointlabels":
        return of_points(name, [(x, y, True)], where, id, said)
    return Mark(name, (x, y, x + value["width"] * across, y + value["height"] * down), where, id, said)

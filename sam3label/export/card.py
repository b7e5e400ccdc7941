"""The dataset card: a README.md that says what is in a dataset, where its labels come from, how far to trust them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sam3label.core.records import Concept, ConceptList
from sam3label.core.text import count
from sam3label.export.dataset import SplitCount, Summary
from sam3label.export.options import Options

FILE = "README.md"
_LICENSES = {
    "facebook/sam3": "the SAM License (https://huggingface.co/facebook/sam3), which also binds what is made with them",
    "demo": "the Apache License 2.0",
}
_UNKNOWN_LICENSE = "whatever license the checkpoint names; look there"

Json = dict[str, Any]


def part(concepts: ConceptList, run_info: Mapping[str, Any], options: Options, summary: Summary) -> Json:
    """Return what one export, or one `--append`, put into a dataset: kept in its marker, and read by `text`."""
    kept = [c for c in concepts.concepts if not options.classes or c.name in options.classes]
    return {
        **{key: run_info.get(key) for key in ("model", "checkpoint", "version", "created")},
        "concepts": [_rules(c, options.map.get(c.name, c.name)) for c in kept],
        "min_score": options.min_score,
        "splits": {name: _counts(held, summary.classes) for name, held in summary.splits.items()},
        "failed": len(summary.failed),
        "polygon_iou": list(summary.polygon_iou) if summary.polygon_iou else None,
    }


def _rules(concept: Concept, name: str) -> Json:
    return {
        "name": concept.name,
        "class": name,
        "phrases": list(concept.prompts),
        "not": list(concept.negatives),
        "exemplars": concept.exemplars is not None,
        **{key: getattr(concept, key) for key in ("conf", "presence", "iou", "min_area", "max_instances")},
    }


def _counts(held: SplitCount, classes: Mapping[int, str]) -> Json:
    instances = {classes[i]: n for i, n in sorted(held.instances.items())}
    return {
        "images": held.images,
        "empty": held.empty,
        "reviewed": held.reviewed,
        "by_people": held.by_people,
        "instances": instances,
    }


def text(marker: Mapping[str, Any]) -> str:
    """Return the card of a dataset by its marker, in Markdown. The same marker gives the same text."""
    return "\n".join(_lines(marker, marker["parts"]))


def _lines(marker: Mapping[str, Any], parts: Sequence[Json]) -> Iterator[str]:
    images, labels = count(marker["images"], "image"), count(marker["instances"], "label")
    yield f"# {marker['format']} dataset, {images}, {labels}"
    yield ""
    yield f"Written by {marker['info']['version']} (`sam3label export`), labels by a model, corrected where people did."
    yield ""
    yield from _table_of_classes(list(marker["classes"].values()), _by_split(parts))
    yield from _review(parts)
    for number, one in enumerate(parts, 1):
        yield from _part(one, f" {number}" if len(parts) > 1 else "")


def _by_split(parts: Sequence[Json]) -> dict[str, Json]:
    """Return the counts of all parts together."""
    found: dict[str, Json] = {}
    for one in parts:
        for split, counts in one["splits"].items():
            total = found.setdefault(split, {"images": 0, "empty": 0, "instances": Counter[str]()})
            total["images"] += counts["images"]
            total["empty"] += counts["empty"]
            total["instances"] += Counter(counts["instances"])
    return found


def _table_of_classes(names: Sequence[str], splits: Mapping[str, Json]) -> Iterator[str]:
    rows = [["class", *splits], ["---", *("---:" for _ in splits)]]
    rows += [[name, *(str(s["instances"][name]) for s in splits.values())] for name in names]
    rows += [["*images*", *(str(s["images"]) for s in splits.values())]]
    rows += [["*of these without a label*", *(str(s["empty"]) for s in splits.values())]]
    yield "## Classes"
    yield ""
    yield from (f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    yield ""


def _review(parts: Sequence[Json]) -> Iterator[str]:
    counts = [counted for one in parts for counted in one["splits"].values()]
    images, reviewed = sum(c["images"] for c in counts), sum(c["reviewed"] for c in counts)
    people = count(sum(c["by_people"] for c in counts), "label")
    yield "## Review"
    yield ""
    yield f"People have gone through {reviewed} of {count(images, 'image')}, and drew or changed {people}."
    if reviewed < images:
        yield "The rest is as the model left it: look at a sample before you trust figures measured on it."
    if failed := sum(one["failed"] for one in parts):
        yield f"Not in it: {count(failed, 'file')} that could not be labelled."
    yield ""


def _part(one: Json, number: str) -> Iterator[str]:
    model = one["model"] or "an unknown model"
    yield f"## Where the labels{number} come from"
    yield ""
    yield f"Model {model} (checkpoint {one['checkpoint'] or 'unknown'}), run of {one['created'] or 'an unknown day'}."
    yield f"The weights are under {_LICENSES.get(model, _UNKNOWN_LICENSE)}."
    yield "The photos' own license is yours to know and to write here."
    if one["polygon_iou"]:
        mean, lowest = one["polygon_iou"]
        yield f"Polygons against the masks they were drawn from: IoU {mean:.4f} on average, {lowest:.4f} at worst."
    yield ""
    yield "| class | phrases | never | conf | presence | iou | smallest area |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for rules in one["concepts"]:
        name = rules["name"] if rules["name"] == rules["class"] else f"{rules['name']} → {rules['class']}"
        phrases = [*rules["phrases"], *(["(exemplars)"] if rules["exemplars"] else [])]
        conf = max(rules["conf"], one["min_score"])
        cells = [name, ", ".join(phrases), ", ".join(rules["not"]), f"{conf:g}", f"{rules['presence']:g}"]
        cells += [f"{rules['iou']:g}", f"{rules['min_area']:g}"]
        yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

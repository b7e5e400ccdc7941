"""What a run answers to a truth: its labels by pair of (image, concept), and what the two do not share, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.core.records import Candidate, ConceptList, Label
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.quality.metrics import cgf1
from sam3label.run.reader import Run
from sam3label.run.rows import Unit


@dataclass(frozen=True, slots=True)
class Predictions:
    """`answers` are what counts as found; `ranked` is everything with its score, for average precision."""

    answers: Mapping[Pair, Sequence[JudgedObject]]
    ranked: Mapping[Pair, Sequence[JudgedObject]]
    item_ids: Mapping[int, str] = field(default_factory=dict)  # image id of the truth -> the run's


def predictions_of_run(run: Run, truth: Truth) -> tuple[Truth, Predictions, list[str]]:
    """Return (truth reduced to what the run can answer, its answers by pair, what was left out, in words)."""
    notes: list[str] = []
    known = units_of_truth(run, truth, notes)
    reader = _phrase_answers if truth.by_phrase else _class_answers
    answered, predictions = reader(run, truth, known, notes)
    item_ids = {image_id: unit.item.id for image_id, unit in known.items()}
    return answered, replace(predictions, item_ids=item_ids), notes


def units_of_truth(run: Run, truth: Truth, notes: list[str]) -> dict[int, Unit]:
    """Return image id -> the run's unit of that file, in truth order. Adds what is missing on either side to `notes`.

    Raises `InputError` when no file is on both sides, and when the two disagree about an image's size.
    """
    units = {u.item.id: u for u in run.done_units() if u.item.kind == "image"}
    items = match_files([image.file_name for image in truth.images.values()], units)
    if not items:
        raise InputError(
            f"no image of {truth.path} is in the run: the truth names files like "
            f"{_example(image.file_name for image in truth.images.values())}, the run like {_example(units)}."
        )
    notes += _coverage(truth, items, units)
    known = {i: units[items[image.file_name]] for i, image in truth.images.items() if image.file_name in items}
    for image_id, unit in known.items():
        _same_size(truth, image_id, unit)
    return known


def match_files(names: Sequence[str], item_ids: Iterable[str]) -> dict[str, str]:
    """Match file names of a truth to ids of a run: the same relative path, else a base name unique on both sides."""
    ids = set(item_ids)
    unique_ids = _unique_bases(ids)
    unique_names = _unique_bases(set(names))
    matched: dict[str, str] = {}
    for name in set(names):
        clean = name.replace("\\", "/").removeprefix("./")
        base = PurePosixPath(clean).name
        if clean in ids:
            matched[name] = clean
        elif base in unique_ids and base in unique_names:
            matched[name] = unique_ids[base]
    return matched


def _unique_bases(paths: Iterable[str]) -> dict[str, str]:
    by_base: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_base[PurePosixPath(path.replace("\\", "/")).name].append(path)
    return {base: found[0] for base, found in by_base.items() if len(found) == 1}


def _example(names: Iterable[str]) -> str:
    return repr(next(iter(sorted(names)), "(nothing)"))


def _coverage(truth: Truth, items: Mapping[str, str], units: Mapping[str, Unit]) -> list[str]:
    notes = []
    files = {image.file_name for image in truth.images.values()}
    if missing := len(files - items.keys()):
        notes.append(
            f"Not in the run, or failed, and left out: {missing} of {count(len(files), 'image')} of the truth."
        )
    if extra := len(units.keys() - set(items.values())):
        notes.append(f"Not in the truth and left out: {extra} of {count(len(units), 'image')} of the run.")
    return notes


def _class_answers(run: Run, truth: Truth, known: Mapping[int, Unit], notes: list[str]) -> tuple[Truth, Predictions]:
    """Answer a COCO truth by class: labels, and for average precision labels without score thresholds."""
    categories = categories_of_classes(run.concepts, truth.categories, truth.path, notes)
    everything = run.without_thresholds()
    answers: dict[Pair, list[JudgedObject]] = defaultdict(list)
    ranked: dict[Pair, list[JudgedObject]] = defaultdict(list)
    for image_id, unit in known.items():
        for source, target in ((run, answers), (everything, ranked)):
            (image,) = source.unit_images(unit)
            for label in image.labels:
                if label.class_id in categories:
                    target[image_id, categories[label.class_id]].append(instance_of(label))
    if any(c.conf != cgf1.MIN_SCORE for c in run.concepts.concepts):
        notes.append("The classes' own conf thresholds decide what counts as found, in place of SA-Co's 0.5.")
    judged = set(categories.values())
    pairs = (pair for pair in truth.pairs if pair[0] in known and pair[1] in judged)
    return truth.only(pairs), Predictions(answers, ranked)


def categories_of_classes(
    concepts: ConceptList, categories: Mapping[int, str], path: str, notes: list[str]
) -> dict[int, int]:
    """Return class id -> category id, by name. Adds to `notes` what has none; raises `InputError` if nothing has."""
    by_name = {name.casefold().strip(): category_id for category_id, name in categories.items()}
    found = {c.id: by_name[key] for c in concepts.concepts if (key := c.name.casefold().strip()) in by_name}
    if not found:
        raise InputError(
            f"{path} and the run have no class in common: the truth has {some(categories.values())}, "
            f"the run {some(concepts.names)}. Names must be the same."
        )
    if missing := [name for i, name in categories.items() if i not in found.values()]:
        notes.append(f"The run did not look for {some(missing)}: these categories of the truth were left out.")
    if extra := [c.name for c in concepts.concepts if c.id not in found]:
        notes.append(f"The truth does not have {some(extra)}: these classes of the run were left out.")
    return found


def _phrase_answers(run: Run, truth: Truth, known: Mapping[int, Unit], notes: list[str]) -> tuple[Truth, Predictions]:
    """Answer an SA-Co truth by phrase: that phrase's candidates, or the labels of a class of that name."""
    prompts = {p.text.casefold().strip(): p.key for p in run.prompts if p.text is not None}
    classes = {c.name.casefold().strip(): c.id for c in run.concepts.concepts}
    answers: dict[Pair, list[JudgedObject]] = {}
    ranked: dict[Pair, list[JudgedObject]] = {}
    for pair in truth.pairs:
        phrase = truth.name(pair).casefold().strip()
        if pair[0] not in known or (phrase not in prompts and phrase not in classes):
            continue
        unit = known[pair[0]]
        if phrase in prompts:
            asked = [c for c in run.candidates(unit) if c.prompt == prompts[phrase]]
            ranked[pair] = [instance_of(c) for c in asked]
            answers[pair] = [i for i in ranked[pair] if i.score >= cgf1.MIN_SCORE]
        else:
            (image,) = run.unit_images(unit)
            ranked[pair] = [instance_of(i) for i in image.labels if i.class_id == classes[phrase]]
            answers[pair] = ranked[pair]
    if not answers:
        raise InputError(f"the run was asked for none of the phrases of {truth.path}: it has {some(prompts)}.")
    if unasked := sum(pair[0] in known for pair in truth.pairs) - len(answers):
        notes.append(f"Left out: {count(unasked, 'pair')} with a phrase that the run never put to the model.")
    return truth.only(answers), Predictions(answers, ranked)


def instance_of(found: Label | Candidate) -> JudgedObject:
    """Return a label or a candidate as the figures compare it."""
    return JudgedObject(found.box_xywh, found.area, found.area, found.rle, found.score)


def _same_size(truth: Truth, image_id: int, unit: Unit) -> None:
    image = truth.images[image_id]
    if image.size_hw is not None and image.size_hw != unit.size_hw:
        assert unit.size_hw is not None  # a done unit has a size
        turned = image.size_hw == unit.size_hw[::-1]
        hint = "The truth was drawn on the picture before its EXIF orientation." if turned else "Another picture?"
        raise InputError(
            f"{truth.path} says that {image.file_name} is {image.size_hw[1]} x {image.size_hw[0]} pixels, "
            f"the run saw {unit.size_hw[1]} x {unit.size_hw[0]}. {hint}"
        )


def some(names: Iterable[str], n: int = 5) -> str:
    """Return the first few names, quoted, and how many more there are."""
    listed = list(names)
    return ", ".join(map(repr, listed[:n])) + (f" and {len(listed) - n} more" if len(listed) > n else "")

"""How good labels are, against truth: SA-Co figures, COCO average precision, and both broken down.

Truth says what to judge, pair by pair (see `truth`). Predictions come from a results file, where an answer is whatever
scores at least 0.5, or from a run, where an answer is a label: it has passed the thresholds of its own class.
Average precision looks past thresholds, at everything the model proposed.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sam3label.annotations.coco import Instance, Pair, Truth, align, read_results
from sam3label.annotations.truth import read_truth
from sam3label.core import masks
from sam3label.core.files import write_whole
from sam3label.core.records import Candidate, ConceptList, Label
from sam3label.errors import InputError
from sam3label.quality.metrics import cgf1
from sam3label.quality.metrics.average_precision import Kind, average_precision
from sam3label.run.reader import Run, open_run
from sam3label.run.store import Unit

KINDS: tuple[Kind, ...] = ("segm", "bbox")
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, np.inf))  # areas in pixels
MAX_GROUPS = 50  # a CSV column with more values than this is an identifier, not a group

Figures = dict[str, Any]
Attributes = Mapping[str, Mapping[int, str]]  # column -> image id -> value
_NO_PAIR = cgf1.PairScore(np.empty(0), np.empty(0))


@dataclass(frozen=True, slots=True)
class Predictions:
    """`answers` are what counts as found; `ranked` is everything with its score, for average precision."""

    answers: Mapping[Pair, Sequence[Instance]]
    ranked: Mapping[Pair, Sequence[Instance]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`figures` by kind of overlap, `segm` and `bbox`; None where truth or predictions have no masks."""

    figures: dict[Kind, Figures | None]
    pairs: int
    images: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {kind: self.figures[kind] for kind in KINDS}
        return {**figures, "pairs": self.pairs, "images": self.images, "notes": list(self.notes)}


def evaluate_results(
    truth_paths: Sequence[str | Path], results_path: str | Path, attributes_csv: str | Path | None = None
) -> Evaluation:
    """Judge a COCO results file. Several truth files are several annotators. Raises `InputError`."""
    truths = [read_truth(path) for path in truth_paths]
    ranked, unknown = read_results(results_path, truths[0])
    answers = {pair: [i for i in found if i.score >= cgf1.MIN_SCORE] for pair, found in ranked.items()}
    notes = []
    if unknown:
        notes.append(f"{unknown} results name an image or a category that the truth does not have; they were left out.")
    return evaluate(truths, Predictions(answers, ranked), attributes_csv, notes)


def evaluate_run(
    run_folder: str | Path,
    truth_paths: Sequence[str | Path],
    concepts: ConceptList | None = None,
    attributes_csv: str | Path | None = None,
) -> Evaluation:
    """Judge the labels of a run, by its own concept list or another over the same phrases. Raises `InputError`."""
    truths = [read_truth(path) for path in truth_paths]
    with open_run(run_folder, concepts) as run:
        truth, predictions, notes = predictions_of_run(run, truths[0])
    return evaluate([truth, *truths[1:]], predictions, attributes_csv, notes)


def evaluate(
    truths: Sequence[Truth],
    predictions: Predictions,
    attributes_csv: str | Path | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Judge predictions given by the pairs of the first truth; the others are further annotators of the same images."""
    others = [align(truth, truths[0]) for truth in truths[1:]]
    unsure = {pair for truth in others for pair in truth.unsure}
    first = truths[0].only(pair for pair in truths[0].pairs if pair not in unsure)
    if not first.pairs:
        raise InputError(f"{first.path} leaves nothing to judge: no (image, concept) pair is labelled exhaustively.")
    notes = list(notes)
    if others:
        notes.append("Average precision is against the first truth file; the SA-Co figures choose one for each pair.")
    attributes = read_attributes(attributes_csv, first, notes) if attributes_csv else {}
    figures: dict[Kind, Figures | None] = {}
    for kind in KINDS:
        masks_missing = kind == "segm" and _without_masks((first, *others), predictions)
        figures[kind] = None if masks_missing else _figures(kind, (first, *others), predictions, attributes)
    if figures["segm"] is None:
        notes.append("Some truth objects or predictions have boxes only: masks were not compared.")
    notes += warnings_of(figures["bbox"] or {})
    return Evaluation(figures, len(first.pairs), len({pair[0] for pair in first.pairs}), tuple(notes))


def warnings_of(figures: Figures) -> list[str]:
    """What the definitions do to a one-sided truth, in words."""
    warnings = []
    if figures["IL_TN"] + figures["IL_FP"] == 0:
        warnings.append(
            "The truth has no negatives: every pair shows its concept. IL_MCC and with it cgF1 are 0 by definition, "
            "however good the labels are. Add images that do not show some of the classes, or read positive_micro_F1."
        )
    if figures["IL_TP"] + figures["IL_FN"] == 0:
        warnings.append("The truth has only negatives: no pair shows its concept, so F1 and cgF1 cannot be above 0.")
    if figures["IL_TP"] + figures["IL_FP"] == 0:
        warnings.append("There is not one prediction above the threshold.")
    return warnings


# ---- predictions of a run


def predictions_of_run(run: Run, truth: Truth) -> tuple[Truth, Predictions, list[str]]:
    """(truth reduced to what the run can answer, the run's answers by its pairs, what was left out, in words)."""
    notes: list[str] = []
    known = units_of_truth(run, truth, notes)
    reader = _phrase_answers if truth.by_phrase else _class_answers
    answered, predictions = reader(run, truth, known, notes)
    return answered, predictions, notes


def units_of_truth(run: Run, truth: Truth, notes: list[str]) -> dict[int, Unit]:
    """Image id -> the run's unit of that file, in truth order. Adds what is missing on either side to `notes`.

    Raises `InputError` when no file is on both sides, and when the two disagree about an image's size.
    """
    units = {u.item.id: u for u in run.done_units() if u.item.kind == "image"}
    items = match_files([image.file_name for image in truth.images.values()], units)
    if not items:
        raise InputError(
            f"none of the {len(truth.images)} images of {truth.path} is in the run: the truth names files like "
            f"{_example(image.file_name for image in truth.images.values())}, the run like {_example(units)}."
        )
    notes += _coverage(truth, items, units)
    known = {i: units[items[image.file_name]] for i, image in truth.images.items() if image.file_name in items}
    for image_id, unit in known.items():
        _same_size(truth, image_id, unit)
    return known


def match_files(names: Sequence[str], item_ids: Iterable[str]) -> dict[str, str]:
    """File names of a truth to ids of a run: the same relative path, else a base name that is unique on both sides."""
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
        notes.append(f"{missing} of {len(files)} images of the truth are not in the run (or failed); left out.")
    if extra := len(units.keys() - set(items.values())):
        notes.append(f"{extra} of {len(units)} images of the run are not in the truth; left out.")
    return notes


def _class_answers(run: Run, truth: Truth, known: Mapping[int, Unit], notes: list[str]) -> tuple[Truth, Predictions]:
    """A COCO truth is answered by class: labels, and for average precision labels without score thresholds."""
    categories = categories_of_classes(run.concepts, truth.categories, truth.path, notes)
    everything = run.without_thresholds()
    answers: dict[Pair, list[Instance]] = defaultdict(list)
    ranked: dict[Pair, list[Instance]] = defaultdict(list)
    for image_id, unit in known.items():
        for source, target in ((run, answers), (everything, ranked)):
            (image,) = source.unit_images(unit)
            for label in image.labels:
                if label.class_id in categories:
                    target[image_id, categories[label.class_id]].append(_instance_of(label))
    if any(c.conf != cgf1.MIN_SCORE for c in run.concepts.concepts):
        notes.append("The classes' own conf thresholds decide what counts as found, in place of SA-Co's 0.5.")
    judged = set(categories.values())
    pairs = (pair for pair in truth.pairs if pair[0] in known and pair[1] in judged)
    return truth.only(pairs), Predictions(answers, ranked)


def categories_of_classes(
    concepts: ConceptList, categories: Mapping[int, str], path: str, notes: list[str]
) -> dict[int, int]:
    """Class id -> category id, by name. Adds to `notes` what has no counterpart; raises `InputError` if nothing has."""
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
    """An SA-Co truth is answered by phrase: that phrase's candidates, or the labels of a class of that name."""
    prompts = {p.text.casefold().strip(): p.key for p in run.prompts if p.text is not None}
    classes = {c.name.casefold().strip(): c.id for c in run.concepts.concepts}
    answers: dict[Pair, list[Instance]] = {}
    ranked: dict[Pair, list[Instance]] = {}
    for pair in truth.pairs:
        phrase = truth.name(pair).casefold().strip()
        if pair[0] not in known or (phrase not in prompts and phrase not in classes):
            continue
        unit = known[pair[0]]
        if phrase in prompts:
            asked = [c for c in run.candidates(unit) if c.prompt == prompts[phrase]]
            ranked[pair] = [_instance_of(c) for c in asked]
            answers[pair] = [i for i in ranked[pair] if i.score >= cgf1.MIN_SCORE]
        else:
            (image,) = run.unit_images(unit)
            ranked[pair] = [_instance_of(i) for i in image.labels if i.class_id == classes[phrase]]
            answers[pair] = ranked[pair]
    if not answers:
        raise InputError(f"the run was asked for none of the phrases of {truth.path}: it has {some(prompts)}.")
    if unasked := sum(pair[0] in known for pair in truth.pairs) - len(answers):
        notes.append(f"{unasked} pairs ask for a phrase that the run never put to the model; left out.")
    return truth.only(answers), Predictions(answers, ranked)


def _instance_of(found: Label | Candidate) -> Instance:
    return Instance(found.box_xywh, found.area, found.area, found.rle, found.score)


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
    """The first few names, quoted, and how many more there are."""
    listed = list(names)
    return ", ".join(map(repr, listed[:n])) + (f" and {len(listed) - n} more" if len(listed) > n else "")


# ---- attributes of images


def read_attributes(path: str | Path, truth: Truth, notes: list[str]) -> dict[str, dict[int, str]]:
    """Column -> image id -> value, from a CSV whose first column is the file name. Raises `InputError`."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(
            f"{path} has no header line: the first column is the file name, the others attributes."
        ) from error
    if bad := next((row for row in rows if len(row) != len(header)), None):
        raise InputError(f"{path}: the row of {bad[0]!r} has {len(bad)} cells, the header {len(header)}.")
    values = {row[0]: row[1:] for row in rows}
    row_of = match_files([image.file_name for image in truth.images.values()], values)
    if not row_of:
        raise InputError(f"{path}: no file name in its first column is in the truth; it has {some(values)}.")
    columns: dict[str, dict[int, str]] = {}
    for position, name in enumerate(header[1:]):
        if len({row[position] for row in values.values()}) > MAX_GROUPS:
            notes.append(f"Column {name!r} has more than {MAX_GROUPS} different values and was left out.")
            continue
        columns[name] = {
            i: values[row_of[image.file_name]][position] if image.file_name in row_of else "(no row)"
            for i, image in truth.images.items()
        }
    return columns


# ---- figures


@dataclass(slots=True)
class _Objects:
    """Every truth object and every answer of all pairs, flat: what breakdowns by size and score count."""

    truth_area: list[float]
    truth_iou: list[float]
    answer_area: list[float]
    answer_iou: list[float]
    answer_score: list[float]


def _figures(kind: Kind, truths: Sequence[Truth], predictions: Predictions, attributes: Attributes) -> Figures:
    truth = truths[0]
    scores, objects = _judge(kind, truths, predictions.answers)
    precision = average_precision(truth, predictions.ranked, kind)
    figures: Figures = {**cgf1.summarize(scores.values()), **precision.overall}
    by_class = _by_group(scores, {pair: truth.name(pair) for pair in truth.pairs})
    if not truth.by_phrase:
        for category_id, name in truth.categories.items():
            by_class.get(name, {}).update(precision.by_category[category_id])
    figures["by_class"] = by_class
    figures["by_size"] = _by_size(objects, precision.overall)
    figures["by_score"] = _by_score(objects)
    for column, values in attributes.items():
        figures[f"by_{column}"] = _by_group(scores, {pair: values[pair[0]] for pair in truth.pairs})
    return figures


def _judge(
    kind: Kind, truths: Sequence[Truth], answers: Mapping[Pair, Sequence[Instance]]
) -> tuple[dict[Pair, cgf1.PairScore], _Objects]:
    scores: dict[Pair, cgf1.PairScore] = {}
    flat = _Objects([], [], [], [], [])
    for pair in truths[0].pairs:
        found = answers.get(pair, ())
        annotators = [t for t in truths if pair[0] in t.images and pair[1] in t.categories]
        options = [[o for o in t.objects.get(pair, ()) if not o.crowd] for t in annotators]
        if not found and not all(options):
            scores[pair] = _NO_PAIR
            continue
        matched = [cgf1.match(overlap(kind, found, objects)) for objects in options]
        chosen = cgf1.best(matched)
        score = scores[pair] = matched[chosen]
        flat.truth_area += [_area(kind, o) for o in options[chosen]]
        flat.truth_iou += score.truth_iou.tolist()
        flat.answer_area += [_area(kind, o) for o in found]
        flat.answer_iou += score.found_iou.tolist()
        flat.answer_score += [o.score for o in found]
    return scores, flat


def overlap(kind: Kind, found: Sequence[Instance], truth: Sequence[Instance]) -> npt.NDArray[np.float64]:
    """IoU of predictions with truth objects, [D, G], by pycocotools' arithmetic, which decides exact ties."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    if kind == "segm":
        return masks.iou_matrix([i.rle for i in found if i.rle], [i.rle for i in truth if i.rle])
    boxes = np.array([i.box_xywh for i in found]), np.array([i.box_xywh for i in truth])
    return np.asarray(coco_mask.iou(*boxes, [0] * len(truth)), dtype=np.float64)


def _area(kind: Kind, instance: Instance) -> float:
    return instance.area if kind == "segm" else instance.box_area


def _without_masks(truths: Sequence[Truth], predictions: Predictions) -> bool:
    everything = (*(truth.objects for truth in truths), predictions.answers, predictions.ranked)
    return any(i.rle is None for by_pair in everything for instances in by_pair.values() for i in instances)


def _by_group(scores: Mapping[Pair, cgf1.PairScore], group_of: Mapping[Pair, str]) -> dict[str, Figures]:
    groups: dict[str, list[cgf1.PairScore]] = defaultdict(list)
    for pair, score in scores.items():
        groups[group_of[pair]].append(score)
    return {name: {"pairs": len(group), **cgf1.summarize(group)} for name, group in sorted(groups.items())}


def _by_size(objects: _Objects, precision: Mapping[str, float]) -> dict[str, Figures]:
    truth_area, answer_area = np.array(objects.truth_area), np.array(objects.answer_area)
    truth_hit, answer_hit = np.array(objects.truth_iou) >= 0.5, np.array(objects.answer_iou) >= 0.5
    result = {}
    for name, low, high in SIZES:
        truth_in, answer_in = (truth_area >= low) & (truth_area < high), (answer_area >= low) & (answer_area < high)
        result[name] = {
            "truth": int(truth_in.sum()),
            "recall@0.5": _share(truth_hit[truth_in]),
            "answers": int(answer_in.sum()),
            "precision@0.5": _share(answer_hit[answer_in]),
            "AP": precision[f"AP{name[0]}"],
        }
    return result


def _by_score(objects: _Objects) -> dict[str, Figures]:
    hit = np.array(objects.answer_iou) >= 0.5
    tenth = np.minimum(np.array(objects.answer_score) * 10 + 1e-9, 9.5).astype(int)
    return {
        f"{n / 10:.1f}-{(n + 1) / 10:.1f}": {
            "answers": int((tenth == n).sum()),
            "precision@0.5": _share(hit[tenth == n]),
        }
        for n in range(10)
        if (tenth == n).any()
    }


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else -1.0


def write_json(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write figures to a file that appears whole. Raises `OutputError`."""
    write_whole(path, json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False))

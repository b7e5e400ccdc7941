"""How good labels are, against truth: SA-Co figures, COCO average precision, and both broken down.

Truth says what to judge, pair by pair (see `truth`). Predictions come from a results file, where an answer is whatever
scores at least 0.5, or from a run, where an answer is a label: it has passed the thresholds of its own class.
Average precision looks past thresholds, at everything the model proposed.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.annotations.coco import JudgedObject, Pair, Truth, align, read_results
from sam3label.annotations.truth import read_truth
from sam3label.annotations.yolo_results import read_yolo_results
from sam3label.core.files import write_whole
from sam3label.core.records import ConceptList
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.quality.metrics import cgf1
from sam3label.quality.metrics.average_precision import Kind, average_precision
from sam3label.quality.metrics.overlap import overlap
from sam3label.quality.mistakes import NOTHING, JudgedPair, Mistakes, find_mistakes
from sam3label.quality.run_answers import Predictions, match_files, predictions_of_run, some
from sam3label.run.reader import open_run

KINDS: tuple[Kind, ...] = ("segm", "bbox")
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, np.inf))  # areas in pixels
MAX_GROUPS = 50  # a CSV column with more values than this is an identifier, not a group

Figures = dict[str, Any]
OnCount = Callable[[int, int], None]  # called with how much is done, and out of how much
_TOLD = 256  # pairs between two calls
Attributes = Mapping[str, Mapping[int, str]]  # column -> image id -> value


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`figures` by kind of overlap, `segm` and `bbox`; None where truth or predictions have no masks."""

    figures: dict[Kind, Figures | None]
    pairs: int
    images: int
    notes: tuple[str, ...]
    mistakes: Mistakes  # by masks where there are some

    @property
    def cgf1(self) -> float:
        """SA-Co's figure, of masks where there are any, else of boxes; at most 1."""
        return float((self.figures["segm"] or self.figures["bbox"] or {})["cgF1"])

    def to_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {kind: self.figures[kind] for kind in KINDS}
        counts = {"pairs": self.pairs, "images": self.images, "notes": list(self.notes)}
        return {**figures, **counts, "mistakes": self.mistakes.to_json()}

    def write_json(self, path: str | Path) -> None:
        """Write every figure to a file that appears whole. Raises `OutputError`."""
        write_whole(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False))


def evaluate_results(
    truth_paths: Sequence[str | Path],
    results_path: str | Path,
    attributes_csv: str | Path | None = None,
    split: str | None = None,
) -> Evaluation:
    """Judge a COCO results file, or a folder of YOLO's. Several truths are several annotators. Raises `InputError`.

    A truth is a COCO, LVIS or SA-Co file, or a YOLO dataset: all of it, or one `split`.
    """
    truths = [read_truth(path, split) for path in truth_paths]
    read = read_yolo_results if Path(results_path).is_dir() else read_results
    ranked, unknown = read(results_path, truths[0])
    answers = {pair: [i for i in found if i.score >= cgf1.MIN_SCORE] for pair, found in ranked.items()}
    notes = []
    if unknown:
        results = count(unknown, "result")
        notes.append(f"{results} of an image or a category that the truth does not have, or of no area: left out.")
    return evaluate(truths, Predictions(answers, ranked), attributes_csv, notes)


def evaluate_run(
    run_folder: str | Path | Sequence[str | Path],
    truth_paths: Sequence[str | Path],
    concepts: ConceptList | None = None,
    attributes_csv: str | Path | None = None,
    split: str | None = None,
    on_progress: OnCount = lambda done, total: None,
) -> Evaluation:
    """Judge the labels of a run, by its own concept list or another over the same phrases. Raises `InputError`.

    A truth is a COCO, LVIS or SA-Co file, or a YOLO dataset: all of it, or one `split`.
    """
    truths = [read_truth(path, split) for path in truth_paths]
    with open_run(run_folder, concepts) as run:
        truth, predictions, notes = predictions_of_run(run, truths[0])
        deaf = predictions_of_run(run.without_verdicts(), truths[0])[1] if run.heeds_verdicts else None
        heeded = run.heeded
    found = evaluate([truth, *truths[1:]], predictions, attributes_csv, notes, on_progress)
    if deaf is None:
        return found
    before = evaluate([truth, *truths[1:]], deaf).cgf1
    note = f"{heeded}. Without them cgF1 is {before:.3f} instead of {found.cgf1:.3f}."
    return replace(found, notes=(*found.notes, note))


def evaluate(
    truths: Sequence[Truth],
    predictions: Predictions,
    attributes_csv: str | Path | None = None,
    notes: Sequence[str] = (),
    on_progress: OnCount = lambda done, total: None,
) -> Evaluation:
    """Judge predictions given by the pairs of the first truth; the others are further annotators of the same images."""
    others = [align(truth, truths[0]) for truth in truths[1:]]
    unsure = {pair for truth in others for pair in truth.unsure}
    first = truths[0].only(pair for pair in truths[0].pairs if pair not in unsure)
    if not first.pairs:
        raise InputError(f"{first.path} leaves nothing to judge: no (image, concept) pair is labelled exhaustively.")
    notes = [*(note for truth in truths for note in truth.notes), *notes]
    if others:
        notes.append("Average precision is against the first truth file; the SA-Co figures choose one for each pair.")
    attributes = read_attributes(attributes_csv, first, notes) if attributes_csv else {}
    figures: dict[Kind, Figures | None] = {}
    mistakes: Mistakes | None = None
    for kind in KINDS:
        masks_missing = kind == "segm" and _without_masks((first, *others), predictions)
        if masks_missing:
            figures[kind] = None
            continue
        tell = partial(_tell, on_progress, KINDS.index(kind), len(first.pairs))
        judged = _judge(kind, (first, *others), predictions.answers, tell)
        figures[kind] = _figures(kind, first, judged, predictions, attributes)
        mistakes = mistakes or find_mistakes(kind, first, judged, predictions.item_ids)
    if figures["segm"] is None:
        notes.append("Some truth objects or predictions have boxes only: masks were not compared.")
    notes += warnings_of(figures["bbox"] or {})
    assert mistakes is not None  # boxes are always judged
    return Evaluation(figures, len(first.pairs), len({pair[0] for pair in first.pairs}), tuple(notes), mistakes)


def warnings_of(figures: Figures) -> list[str]:
    """Return what the definitions do to a one-sided truth, in words."""
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


# ---- attributes of images


def read_attributes(path: str | Path, truth: Truth, notes: list[str]) -> dict[str, dict[int, str]]:
    """Return column -> image id -> value, from a CSV whose first column is the file name. Raises `InputError`."""
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

    truth_area: list[float] = field(default_factory=list)
    truth_iou: list[float] = field(default_factory=list)
    answer_area: list[float] = field(default_factory=list)
    answer_iou: list[float] = field(default_factory=list)
    answer_score: list[float] = field(default_factory=list)


def _figures(
    kind: Kind, truth: Truth, judged: Mapping[Pair, JudgedPair], predictions: Predictions, attributes: Attributes
) -> Figures:
    scores = {pair: one.score for pair, one in judged.items()}
    objects = _flat(kind, judged)
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


def _tell(on_progress: OnCount, number: int, pairs: int, done: int) -> None:
    on_progress(number * pairs + done, len(KINDS) * pairs)


def _judge(
    kind: Kind,
    truths: Sequence[Truth],
    answers: Mapping[Pair, Sequence[JudgedObject]],
    tell: Callable[[int], None],
) -> dict[Pair, JudgedPair]:
    """Return every pair with the annotator's truth that it is judged by."""
    judged: dict[Pair, JudgedPair] = {}
    for done, pair in enumerate(truths[0].pairs):
        if done % _TOLD == 0:
            tell(done)
        found = answers.get(pair, ())
        annotators = [t for t in truths if pair[0] in t.images and pair[1] in t.categories]
        options = [[o for o in t.objects.get(pair, ()) if not o.crowd] for t in annotators]
        if not found and not all(options):
            judged[pair] = NOTHING
            continue
        matched = [cgf1.match(overlap(kind, found, objects)) for objects in options]
        chosen = cgf1.best(matched)
        judged[pair] = JudgedPair(found, options[chosen], matched[chosen])
    return judged


def _flat(kind: Kind, judged: Mapping[Pair, JudgedPair]) -> _Objects:
    flat = _Objects()
    for one in (one for one in judged.values() if one is not NOTHING):
        flat.truth_area += [_area(kind, o) for o in one.truth]
        flat.truth_iou += one.score.truth_iou.tolist()
        flat.answer_area += [_area(kind, o) for o in one.found]
        flat.answer_iou += one.score.found_iou.tolist()
        flat.answer_score += [o.score for o in one.found]
    return flat


def _area(kind: Kind, instance: JudgedObject) -> float:
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

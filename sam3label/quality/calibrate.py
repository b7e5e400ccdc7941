"""Thresholds from a few labelled images: the score, presence and NMS values that serve each class best, honestly.

Pure arithmetic over the stored candidates; nothing is asked of a model. Every threshold setting is judged by counts of
hits, false alarms and misses at mask IoU 0.5. What is reported is cross-validated: an image is only ever judged by
thresholds that were chosen without it. The thresholds that are written come from all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from sam3label.annotations.truth import read_truth
from sam3label.core.records import Concept, ConceptList
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.quality.calibration_examples import MATCH_IOU, Answers, Example, Flags, Floats, answers, read_examples
from sam3label.quality.metrics.average_precision import Kind
from sam3label.run.reader import open_run

MIN_OBJECTS = 20  # truth objects without which a class is left alone
MIN_IMAGES = 5  # and images that show it
NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PRESENCE_STEPS = 8
REJECTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # scores of a verifier
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class Goal:
    """What is best: the highest F-beta, or the most recall at a precision."""

    beta: float = 1.0
    precision: float | None = None

    def value(self, hits: Floats, answers: Floats, truth: Floats | float) -> Floats:
        """Larger is better. Under the precision that is asked for it is below 0, and more precision is better.

        One false alarm more must be affordable: thresholds that just reach a precision miss it on the next images.
        """
        if self.precision is None:
            return f_score(hits, answers, truth, self.beta)
        precision = hits / (answers + 1)
        recall = hits / np.maximum(truth, 1e-9)
        return np.where(precision >= self.precision, recall, precision - 1)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The values that are chosen; `reject_below` where a trusted verifier's verdicts on masks count."""

    conf: float
    presence: float
    iou: float
    reject_below: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Pooled over images; `interval` is the 95 % bootstrap interval of `f`, resampling images."""

    precision: float
    recall: float
    f: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PhraseEffect:
    """What a phrase brings to its class: alone, and by how much the class would change without it."""

    phrase: str
    alone: Measured
    hits: int  # true objects that only this phrase finds
    false_alarms: int  # false alarms that only this phrase brings
    f_gain: float

    @property
    def verdict(self) -> str:
        if self.hits > 0 and self.f_gain > 0:
            return "helps"
        if self.hits <= 0 and self.false_alarms > 0:
            return "only adds false alarms"
        return "costs more than it finds" if self.f_gain < 0 else "adds nothing"


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class: what it had, what it gets, and what that is worth on images the choice has not seen."""

    name: str
    objects: int
    images: int
    old: Thresholds
    new: Thresholds  # the same as `old` unless `changed`
    before: Measured | None = None
    after: Measured | None = None  # cross-validated
    gain: float = 0.0
    gain_interval: tuple[float, float] = (0.0, 0.0)
    note: str = ""  # why nothing was changed, or what falls short
    phrases: tuple[PhraseEffect, ...] = ()

    @property
    def changed(self) -> bool:
        return self.new != self.old


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result for every class, and the concept list with the new values."""

    classes: tuple[ClassResult, ...]
    concepts: ConceptList
    truth: str
    goal: Goal
    notes: tuple[str, ...]
    compared: Kind = "segm"

    @property
    def sought(self) -> str:
        """Say what was sought, for a headline."""
        if self.goal.precision is not None:
            return f"the most recall at precision {self.goal.precision:g}"
        return f"F{self.goal.beta:g} at {'mask' if self.compared == 'segm' else 'box'} IoU {MATCH_IOU:g}"


def calibrate_run(
    run_folder: str | Path | Sequence[str | Path],
    truth_path: str | Path,
    concepts: ConceptList | None = None,
    goal: Goal = Goal(),
    folds: int = 5,
    split: str | None = None,
) -> Calibration:
    """Choose thresholds for the classes that `truth_path` has enough examples of. Raises `InputError`.

    The truth is a COCO or LVIS file, or a YOLO dataset: all of it, or one `split`. Where it has boxes alone, boxes are
    compared.
    """
    truth = read_truth(truth_path, split)
    if truth.by_phrase:
        raise InputError(
            f"{truth_path} is an SA-Co file. Calibration works class by class: COCO or YOLO truth is expected."
        )
    notes = list(truth.notes)
    compared: Kind = "bbox" if any(o.rle is None for found in truth.objects.values() for o in found) else "segm"
    if compared == "bbox":
        notes.append("The truth has objects with boxes only: boxes are compared, not masks.")
    with open_run(run_folder, concepts) as run:
        floor = run.floor
        examples = read_examples(run, truth, notes, compared)
        results = tuple(
            calibrate_class(concept, examples.get(concept.id, []), goal, folds, floor)
            for concept in run.concepts.concepts
        )
        if run.heeds_verdicts:
            notes.append(f"{run.heeded}.")
        if run.concepts.exclusive:
            notes.append("Exclusive groups are not part of the choice: check the result with sam3label evaluate.")
        chosen = tuple(
            replace(
                c,
                conf=r.new.conf,
                presence=r.new.presence,
                iou=r.new.iou,
                verify=replace(c.verify, reject_below=r.new.reject_below),
            )
            for c, r in zip(run.concepts.concepts, results, strict=True)
        )
        return Calibration(
            results, replace(run.concepts, concepts=chosen), str(truth_path), goal, tuple(notes), compared
        )


# ---- choosing


def calibrate_class(concept: Concept, examples: Sequence[Example], goal: Goal, folds: int, floor: float) -> ClassResult:
    """Choose a class's thresholds, and judge the choice on images that it was made without."""
    old = Thresholds(concept.conf, concept.presence, concept.iou, concept.verify.reject_below)
    objects, images = sum(e.truth for e in examples), sum(e.truth > 0 for e in examples)
    result = ClassResult(concept.name, objects, images, old, old)
    if note := _too_few(objects, images):
        return replace(result, note=note)
    settings = _settings(examples, old)
    table = {s: [answers(e, *s) for e in examples] for s in settings}
    truth = np.array([e.truth for e in examples], dtype=float)
    before = _judge(table[_setting(old)], truth, old.conf)
    after = np.zeros_like(before)
    for held_out in _folds(len(examples), folds):
        chosen = _choose(table, truth, ~held_out, old, goal, floor)
        after[held_out] = _judge(table[_setting(chosen)], truth, chosen.conf)[held_out]
    gain = measure(after, goal).f - measure(before, goal).f
    result = replace(
        result,
        before=measure(before, goal),
        after=measure(after, goal),
        gain=gain,
        gain_interval=_interval(_resampled(after, goal) - _resampled(before, goal)),
    )
    better = goal.value(*after.sum(axis=0)) > goal.value(*before.sum(axis=0))
    new = _choose(table, truth, np.ones(len(examples), dtype=bool), old, goal, floor) if better else old
    shortfall = _shortfall(result.after, goal)
    kept = "kept: no other values did better on images held out"
    result = replace(result, new=new, note=shortfall if better else kept)
    return replace(result, phrases=_phrase_effects(concept, examples, new, goal))


def _too_few(objects: int, images: int) -> str:
    if objects >= MIN_OBJECTS and images >= MIN_IMAGES:
        return ""
    missing = []
    if objects < MIN_OBJECTS:
        missing.append(count(MIN_OBJECTS - objects, "more object"))
    if images < MIN_IMAGES:
        missing.append(f"{count(MIN_IMAGES - images, 'more image')} with it")
    seen = f"{count(objects, 'object')} in {count(images, 'image')}"
    return f"too few examples ({seen}): add {' and '.join(missing)}"


def _shortfall(after: Measured | None, goal: Goal) -> str:
    if after is None or goal.precision is None or after.precision >= goal.precision:
        return ""
    return f"the precision on images held out is {after.precision:.3f}, not the {goal.precision:g} asked for"


Setting = tuple[float, float, float | None]  # presence, NMS IoU, reject_below


def _setting(chosen: Thresholds) -> Setting:
    return chosen.presence, chosen.iou, chosen.reject_below


def _settings(examples: Sequence[Example], old: Thresholds) -> list[Setting]:
    """Return the settings to try: the old ones first, so that they win ties."""
    seen = np.concatenate([[0.0], *(e.presence for e in examples)])
    steps = np.quantile(seen, np.linspace(0, 0.9, PRESENCE_STEPS)).round(3).tolist()
    presences = dict.fromkeys([old.presence, *steps])
    judged = old.reject_below is not None and any((e.masks < 1).any() for e in examples)
    rejects = dict.fromkeys([old.reject_below, *(REJECTS if judged else ())])
    return list(product(presences, dict.fromkeys([old.iou, *NMS_IOUS]), rejects))


def _folds(n: int, folds: int) -> Iterator[Flags]:
    """Yield masks of the images held out, each image once."""
    part = np.random.default_rng(SEED).permutation(n) % min(folds, n)
    for fold in range(min(folds, n)):
        yield part == fold


def _judge(table: Sequence[Answers], truth: Floats, conf: float) -> Floats:
    """Return (hits, answers, truth objects) of each image, [N, 3]."""
    counts = np.array([a.counts(conf) for a in table], dtype=float).reshape(-1, 2)
    return np.column_stack([counts, truth])


def _choose(
    table: Mapping[Setting, Sequence[Answers]],
    truth: Floats,
    use: Flags,
    old: Thresholds,
    goal: Goal,
    floor: float,
) -> Thresholds:
    """Return the best thresholds for the images of `use`; of equally good ones those nearest to the old."""
    best, best_key = old, (-np.inf, -np.inf)
    for (presence, iou, reject), row in table.items():
        used = [a for a, wanted in zip(row, use, strict=True) if wanted]
        conf, value = _best_conf(used, float(truth[use].sum()), goal, floor)
        moved = abs(presence - old.presence) + abs(iou - old.iou) + abs((reject or 0) - (old.reject_below or 0))
        key = value, -moved
        if key > best_key:
            best, best_key = Thresholds(conf, presence, iou, reject), key
    return best


def _best_conf(used: Iterable[Answers], truth: float, goal: Goal, floor: float) -> tuple[float, float]:
    """Return (score threshold, value): half way between the last answer that is taken and the first that is not."""
    pairs = [(s, h) for a in used for s, h in zip(a.score, a.hit, strict=True)]
    if not pairs:
        return max(0.5, floor), -np.inf
    score, hit = np.array(sorted(pairs, reverse=True), dtype=float).T
    values = goal.value(np.cumsum(hit), np.arange(1.0, len(hit) + 1), truth)
    below = np.append(score[1:], floor)
    values[score == below] = -np.inf  # equal scores cannot be told apart
    k = int(np.argmax(values))
    middle = (score[k] + below[k]) / 2
    rounded = round(float(middle), 3)
    return (rounded if below[k] < rounded <= score[k] else float(middle)), float(values[k])


# ---- measuring


def f_score(hits: Floats, answers: Floats, truth: Floats | float, beta: float) -> Floats:
    """Return F-beta of counts; 0 where there is nothing at all."""
    weighted = beta**2 * truth + answers
    return np.divide((1 + beta**2) * hits, weighted, out=np.zeros_like(weighted), where=weighted > 0)


def measure(counts: Floats, goal: Goal = Goal()) -> Measured:
    """Pool (hits, answers, truth) of images, [N, 3], with the bootstrap interval of F."""
    hits, found, truth = counts.sum(axis=0)
    f = f_score(hits, found, truth, goal.beta)
    precision, recall = (hits / n if n else 0.0 for n in (found, truth))
    return Measured(float(precision), float(recall), float(f), _interval(_resampled(counts, goal)))


def _resampled(counts: Floats, goal: Goal) -> Floats:
    """F of images drawn with replacement, [RESAMPLES]. The same draws every time, so that differences pair up."""
    n = len(counts)
    weights = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    hits, found, truth = (weights @ counts).T
    return f_score(hits, found, truth, goal.beta)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# ---- phrases


def _phrase_effects(
    concept: Concept, examples: Sequence[Example], chosen: Thresholds, goal: Goal
) -> tuple[PhraseEffect, ...]:
    """For a class with several phrases: each alone, and the class without it, at the chosen thresholds."""
    if len(concept.prompts) < 2:
        return ()
    truth = np.array([e.truth for e in examples], dtype=float)

    def judged(phrases: Sequence[int]) -> Floats:
        rows = [answers(e, *_setting(chosen), phrases) for e in examples]
        return _judge(rows, truth, chosen.conf)

    everyone = range(len(concept.prompts))
    together = judged(everyone)
    effects = []
    for position, phrase in enumerate(concept.prompts):
        without = judged([p for p in everyone if p != position])
        (hits, found, _), (fewer_hits, fewer_found, _) = together.sum(axis=0), without.sum(axis=0)
        more_hits = int(hits - fewer_hits)
        gain = measure(together, goal).f - measure(without, goal).f
        alone = measure(judged([position]), goal)
        effects.append(PhraseEffect(phrase, alone, more_hits, int(found - fewer_found) - more_hits, gain))
    return tuple(effects)


# ---- in words


def describe(result: ClassResult) -> list[str]:
    """Return what was found for a class, in one or two lines of plain text."""
    if result.before is None or result.after is None:
        return [result.note]
    old = result.old
    low, high = result.gain_interval
    lines = [
        f"{count(result.objects, 'object')} in {count(result.images, 'image')}: "
        f"F {result.before.f:.3f} -> {result.after.f:.3f}, gain {result.gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    ]
    if result.changed:
        reject = "" if old.reject_below is None else f", reject_below {old.reject_below:g}"
        lines.append(f"was: conf {old.conf:g}, presence {old.presence:g}, iou {old.iou:g}{reject}")
    if result.note:
        lines.append(result.note)
    return lines

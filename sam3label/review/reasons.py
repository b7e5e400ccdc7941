"""The one judge of doubt: which images are worth a person's hour, and why. Report and FiftyOne's queue ask no other.

Nothing here says that a label is wrong. Every reason has a gain in (0, 1]: how much a look may correct, 1 being
"probably wrong". What a person has settled (a reviewed image, a corrected label) gives no reason.

Where the numbers come from: "the same object" is the IoU by which `decide` settles exclusive groups and `not:` phrases,
so the judge never calls two objects what the rules call one. The others were chosen on demo scenes with known truth;
docs/howto/review.md has the figures and `scripts/bench/bench_reasons.py` measures them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import Literal

from sam3label.core import masks
from sam3label.core.records import Concept, ConceptList, Label, MediaItem
from sam3label.core.saturation import is_full
from sam3label.core.text import count
from sam3label.review.survey import NEIGHBORS, SeenImage, Survey, UsualSize, look
from sam3label.run.decide import SAME_OBJECT_IOU, VETO_BELOW
from sam3label.run.reader import Run, tiled_phrases
from sam3label.run.rows import Unit

Kind = Literal[
    "kept as box",
    "near threshold",
    "presence disagrees",
    "two classes",
    "twins",
    "synonyms disagree",
    "hard negative",
    "empty among similar",
    "unusual size",
    "saturated",
    "cut short",
    "verifier",
    "audit",
]
KINDS: tuple[Kind, ...] = (
    "kept as box", "near threshold", "presence disagrees", "two classes", "twins", "synonyms disagree", "hard negative",
    "empty among similar", "unusual size", "saturated", "cut short", "verifier", "audit",
)  # fmt: skip
EXPLAINED: Mapping[Kind, str] = {
    "kept as box": "boxes that were given and got no mask to be believed: the label is the box",
    "near threshold": "scores that could fall on either side of their class's threshold",
    "presence disagrees": "said to be there and nothing labelled, or labelled and said to be absent",
    "two classes": "one object, two classes",
    "twins": "two labels of one class on the same object",
    "synonyms disagree": "one phrase of a class found an object that another did not",
    "hard negative": "objects suppressed by a `not:` phrase",
    "empty among similar": "no labels, where the most similar images have some",
    "unusual size": "labels far larger or smaller than is usual for their class, specks, and whole images",
    "saturated": "the model gave nearly as many answers as it can: there may be more objects",
    "cut short": "more objects than the class's max_instances lets through",
    "verifier": "a vision-language model disagrees: labels it rejects, objects it misses, classes it sees or does not",
    "audit": "the random sample: review all of it for an unbiased estimate of the error",
}

NEAR = 0.1  # a score this close to its class's threshold could fall on either side
SAID_THERE = 0.5  # the presence from which the model says that a phrase is in the image
UNUSUAL = 3.5  # robust standard deviations (of log area share) beyond which a size is unusual
SPECK_PX = 6  # the side of a square no larger than which a label is a speck whatever its class
WHOLE = 0.9  # the share of the image from which a label is nearly all of it
SPOKEN = 3  # reasons of one kind that are put in words


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an image is worth a look. `label_ids` name the labels and candidates it is about, else `class_names`."""

    kind: Kind
    words: str
    gain: float
    label_ids: tuple[str, ...] = ()
    frame: int = 0
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """A photo or a video of the queue with its reasons, by kind in the order of `KINDS`, the strongest first."""

    item: MediaItem
    reasons: tuple[Reason, ...]
    reviewed: bool = False

    def of(self, kind: Kind) -> tuple[Reason, ...]:
        return tuple(reason for reason in self.reasons if reason.kind == kind)

    @property
    def gains(self) -> dict[Kind, float]:
        """Expected corrections by kind: the sum of the gains. Kinds without a reason are 0."""
        return gains(self.reasons)


# ---- the queue


def judge(run: Run, item: MediaItem, units: Iterable[Unit], whole: Survey) -> Case:
    """Return what there is to say about one photo, or one video with all its units."""
    found: list[Reason] = []
    reviewed = True
    for unit in units:
        for seen in look(run, unit):
            found += reasons(seen, run.concepts, whole)
            reviewed &= seen.reviewed
    return case(item, found, reviewed)


def case(item: MediaItem, found: Sequence[Reason], reviewed: bool = False) -> Case:
    """Join the reasons of an item's frames. A video speaks once per kind, of its worst frame: frames repeat."""
    if item.kind == "video":
        best: dict[Kind, Reason] = {}
        for reason in found:
            if reason.kind not in best or reason.gain > best[reason.kind].gain:
                best[reason.kind] = replace(reason, words=f"frame {reason.frame}: {reason.words}")
        found = list(best.values())
    return Case(item, tuple(sorted(found, key=lambda r: (KINDS.index(r.kind), -r.gain))), reviewed)


def cases(run: Run, whole: Survey) -> Iterator[Case]:
    """Yield every photo and video in item order, those without a reason too."""
    for _, units in groupby(run.done_units(), key=lambda unit: unit.item.id):
        own = list(units)
        yield judge(run, own[0].item, own, whole)


def worst_first(every: Iterable[Case], n: int) -> dict[Kind, list[Case]]:
    """Return the first `n` of each kind as the saved views show them: largest gain first, then by id, unreviewed only.

    `every` comes in item order, and no more than `n` of a kind are held.
    """
    heaps: dict[Kind, list[tuple[float, int, Case]]] = defaultdict(list)
    for number, one in enumerate(every):
        for kind, gain in () if one.reviewed else one.gains.items():
            if gain > 0:
                entry = gain, -number, one
                heap = heaps[kind]
                heapq.heappush(heap, entry) if len(heap) < n else heapq.heappushpop(heap, entry)
    return {kind: [one for _, _, one in sorted(heaps[kind], reverse=True)] for kind in KINDS if kind in heaps}


def gains(found: Iterable[Reason]) -> dict[Kind, float]:
    """Return expected corrections by kind: the sum of an image's gains. Kinds without a reason are 0."""
    total: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
    for reason in found:
        total[reason.kind] += reason.gain
    return total


def sentence(found: Iterable[Reason]) -> str | None:
    """Return reasons in one text, of each kind the strongest `SPOKEN`; None where there are none."""
    parts = []
    for kind, group in groupby(found, key=lambda r: r.kind):
        said = [r.words for r in group]
        more = [f"{len(said) - SPOKEN} more"] if len(said) > SPOKEN else []
        parts.append(f"{kind}: " + "; ".join(said[:SPOKEN] + more))
    return ". ".join(parts) or None


# ---- one image


def reasons(seen: SeenImage, concepts: ConceptList, whole: Survey) -> tuple[Reason, ...]:
    """Return every reason to look at one image, by kind in the order of `KINDS`; none once a person reviewed it."""
    if seen.reviewed:
        return ()
    found = [
        *_kept_as_box(seen, concepts),
        *_near_threshold(seen, concepts),
        *_presence_disagrees(seen, concepts),
        *_two_classes(seen, concepts),
        *_twins(seen, concepts),
        *_synonyms_disagree(seen, concepts),
        *_hard_negative(seen, concepts),
        *_empty_among_similar(seen, concepts, whole),
        *_unusual_size(seen, concepts, whole.sizes),
        *_saturated(seen, concepts, whole.queries),
        *_cut_short(seen, concepts),
        *_verifier(seen, concepts),
        *_audit(seen, whole),
    ]
    open_ = (replace(reason, frame=seen.frame) for reason in found if seen.corrected.isdisjoint(reason.label_ids))
    return tuple(sorted(open_, key=lambda r: (KINDS.index(r.kind), -r.gain)))


def _empty_among_similar(seen: SeenImage, concepts: ConceptList, whole: Survey) -> Iterator[Reason]:
    if (part := whole.empty.get(seen.item_id)) is not None and not seen.labels:
        words = f"empty, though {part:.0%} of the {NEIGHBORS} images most like it have labels"
        yield Reason("empty among similar", words, part, class_names=concepts.names)


def _verifier(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield what `sam3label verify` heard against the labels, whether or not its verdicts count."""
    labelled = {concepts.names[label.class_id] for label in seen.labels}
    rejected: dict[str, tuple[float, str]] = {}
    for verdict in seen.verdicts:
        if verdict.score is None or verdict.score >= VETO_BELOW:
            if verdict.part == "any" and verdict.score is not None and verdict.class_name not in labelled:
                words = f"{verdict.class_name}: the verifier sees one, and none is labelled"
                yield Reason("verifier", words, verdict.score)
        elif verdict.label_id is not None:
            rejected[verdict.label_id] = min(
                (verdict.score, verdict.class_name), rejected.get(verdict.label_id, (1.0, ""))
            )
        elif verdict.part == "all":
            words = f"{verdict.class_name}: the verifier says that not all are masked"
            yield Reason("verifier", words, 1 - verdict.score)
        elif verdict.class_name in labelled:
            words = f"{verdict.class_name}: labelled, and the verifier sees none"
            yield Reason("verifier", words, 1 - verdict.score)
    for label_id, (score, name) in rejected.items():
        yield Reason("verifier", f"{name}: the verifier rejects it ({score:.2f})", 1 - score, (label_id,))


def _audit(seen: SeenImage, whole: Survey) -> Iterator[Reason]:
    if (rank := whole.audit.get(seen.item_id)) is not None:
        words = f"random audit sample: number {rank + 1} of {len(whole.audit)}"
        yield Reason("audit", words, 1 - rank / len(whole.audit))


def _kept_as_box(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield objects that were given and whose masks came back empty, elsewhere, or unsure."""
    for label in seen.labels:
        if label.doubt is not None:
            called = f" {label.given.id}" if label.given is not None and label.given.id else ""
            name = concepts.names[label.class_id]
            words = f"{name}{called} is its box: {label.doubt} (IoU as expected {label.score:.2f})"
            yield Reason("kept as box", words, max(1 - label.score, 0.5), (label.id,))


def _near_threshold(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield labels just over their threshold, and candidates just under it: of those on one object the best."""
    known = {concept.id: [x for x in seen.labels if x.class_id == concept.id] for concept in concepts.concepts}
    for decision in seen.decisions:  # best first within a class
        label = decision.label
        concept = concepts.concepts[label.class_id]
        distance = label.score - concept.conf
        if decision.outcome not in ("label", "low score") or abs(distance) >= NEAR or label.given is not None:
            continue
        if decision.outcome == "low score":
            if _covered(label, known[concept.id]):
                continue
            known[concept.id].append(label)
        side = "a label, just over" if distance >= 0 else "left out, just under"
        words = f"{concept.name} {label.score:.2f} is {side} the threshold {concept.conf:.2f}"
        yield Reason("near threshold", words, 1 - abs(distance) / NEAR, (label.id,))


def _covered(label: Label, others: Sequence[Label]) -> bool:
    overlap = masks.iou_matrix([label.rle], [x.rle for x in others])
    return bool((overlap >= SAME_OBJECT_IOU).any())


def _presence_disagrees(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield classes said to be there of which nothing is labelled, and labels of phrases said to be absent.

    An object that convinces under a low presence and is no label is left alone: presence is right then nine times in
    ten (measured as the module says).
    """
    for concept in concepts.concepts:
        own = [label for label in seen.labels if label.class_id == concept.id]
        asked = {phrase: seen.presence[phrase] for phrase in concept.prompts if phrase in seen.presence}
        phrase, presence = max(asked.items(), key=lambda entry: entry[1], default=("", 0.0))
        if presence >= SAID_THERE and not own:
            words = f"'{phrase}' is said to be there (presence {presence:.2f}), but no {concept.name} is labelled"
            yield Reason("presence disagrees", words, presence, class_names=(concept.name,))
        for label in own:
            if asked.get(label.prompt, 1.0) < SAID_THERE:
                said = f"'{label.prompt}' is said to be absent (presence {asked[label.prompt]:.2f})"
                words = f"{concept.name} {label.score:.2f} is a label, though {said}"
                yield Reason("presence disagrees", words, 1 - asked[label.prompt], (label.id,))


def _two_classes(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    labels = seen.labels
    overlap = masks.iou_matrix([x.rle for x in labels], [x.rle for x in labels])
    for i, j in combinations(range(len(labels)), 2):
        a, b = labels[i], labels[j]
        if a.class_id != b.class_id and overlap[i, j] >= SAME_OBJECT_IOU:
            yield _rivals(a, b, concepts)
    by_id = {x.id: x for x in labels}
    for decision in seen.decisions:
        if decision.outcome == "exclusive" and (winner := by_id.get(decision.by or "")) is not None:
            yield _rivals(winner, decision.label, concepts)


def _rivals(a: Label, b: Label, concepts: ConceptList) -> Reason:
    high, low = sorted((a, b), key=lambda x: -x.score)
    names = concepts.names
    words = f"one object is {names[high.class_id]} ({high.score:.2f}) and {names[low.class_id]} ({low.score:.2f})"
    return Reason("two classes", words, low.score / high.score if high.score > 0 else 1.0, (high.id, low.id))


def _twins(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield pairs of labels of one class that the class's `iou` let stand."""
    for concept in concepts.concepts:
        own = [label for label in seen.labels if label.class_id == concept.id]
        overlap = masks.iou_matrix([x.rle for x in own], [x.rle for x in own])
        for i, j in combinations(range(len(own)), 2):
            if overlap[i, j] >= SAME_OBJECT_IOU:
                words = f"{concept.name}: two labels overlap by {overlap[i, j]:.0%} (IoU), perhaps one object"
                yield Reason("twins", words, min(1.0, float(overlap[i, j])), (own[i].id, own[j].id))


def _synonyms_disagree(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    for concept in concepts.concepts:
        if len(concept.prompts) > 1:
            own = [d.label for d in seen.decisions if d.label.class_id == concept.id]
            for label in (d.label for d in seen.decisions if d.outcome == "label" and d.label.class_id == concept.id):
                yield from _lone_synonym(label, own, concept)


def _lone_synonym(label: Label, own: Sequence[Label], concept: Concept) -> Iterator[Reason]:
    """Yield a label that another phrase of its class did not find, not even under the threshold."""
    if label.prompt not in concept.prompts:
        return
    others = [p for p in concept.prompts if p != label.prompt]
    silent = [p for p in others if not _covered(label, [x for x in own if x.prompt == p])]
    if silent:
        quoted = " nor ".join(f"'{p}'" for p in silent)
        words = f"{concept.name} found by '{label.prompt}' ({label.score:.2f}) but not by {quoted}"
        yield Reason("synonyms disagree", words, len(silent) / len(others), (label.id,))


def _hard_negative(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    for decision in seen.decisions:
        if decision.outcome == "hard negative":
            label = decision.label
            words = f"{concepts.names[label.class_id]} {label.score:.2f} was suppressed by its `not:` phrases"
            yield Reason("hard negative", words, label.score, (label.id,))


def _unusual_size(seen: SeenImage, concepts: ConceptList, sizes: Mapping[int, UsualSize]) -> Iterator[Reason]:
    for label in seen.labels:
        found = _unusual(seen.share(label), sizes.get(label.class_id)) or _extreme(label, seen.share(label))
        if found is not None:
            words, gain = found
            yield Reason("unusual size", f"{concepts.names[label.class_id]} {words}", gain, (label.id,))


def _unusual(share: float, usual: UsualSize | None) -> tuple[str, float] | None:
    """Return what to say of a size that its class rarely has, and the gain."""
    if usual is None:
        return None
    deviation = (math.log(max(share, 1e-12)) - usual.center) / usual.spread
    if abs(deviation) <= UNUSUAL:
        return None
    low, high = _percent(usual.low), _percent(usual.high)
    return f"covers {_percent(share)} of the image; half of them cover {low} to {high}", _bounded(deviation)


def _bounded(deviation: float) -> float:
    return min(1.0, abs(deviation) / (2 * UNUSUAL))


def _extreme(label: Label, share: float) -> tuple[str, float] | None:
    """Return what to say of a speck, or of a label that is nearly the whole image, whatever is usual for its class."""
    if label.area <= SPECK_PX**2:
        return f"is {count(label.area, 'pixel')} in all", 0.5
    return (f"covers {_percent(share)} of the image", share) if share > WHOLE else None


def _saturated(seen: SeenImage, concepts: ConceptList, queries: int) -> Iterator[Reason]:
    """Yield phrases with nearly as many answers as the model can give: of photos those that
    `tile: auto` looks at in parts; tracked videos have no tiles."""
    tiled = tiled_phrases(concepts)
    counted = set[str]()
    for concept in concepts.concepts:
        own = [d.label for d in seen.decisions if d.label.class_id == concept.id and d.label.given is None]
        plain = (label.prompt for label in own if label.prompt not in tiled or label.track_id is not None)
        for phrase in dict.fromkeys(plain):
            if is_full(own, phrase, queries):
                counted.add(phrase)
                answers = sum(label.prompt == phrase for label in own)
                held = f"{count(answers, 'answer')} of {queries} that the model can give"
                words = f"'{phrase}' has {held}: there may be more"
                yield Reason("saturated", words, min(1.0, answers / queries), class_names=(concept.name,))
    for phrase in sorted(seen.full - counted):
        where = "in the closest tiles too" if phrase in tiled else "some without a mask"
        words = f"'{phrase}' has nearly all the answers that the model can give ({queries}), {where}"
        yield Reason("saturated", words, 1.0)


def _cut_short(seen: SeenImage, concepts: ConceptList) -> Iterator[Reason]:
    """Yield classes whose list of labels ends at `max_instances`."""
    cut = Counter(d.label.class_id for d in seen.decisions if d.outcome == "max_instances")
    for class_id, left_out in cut.items():
        concept = concepts.concepts[class_id]
        words = f"{concept.name}: {left_out} more were left out, max_instances is {concept.max_instances}"
        gain = left_out / (left_out + (concept.max_instances or 0))
        yield Reason("cut short", words, gain, class_names=(concept.name,))


def _percent(part: float) -> str:
    return f"{100 * part:.2g}%" if part < 0.995 else "100%"

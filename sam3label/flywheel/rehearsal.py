"""What is rehearsed beside the corrections: what the base itself is sure of, in photos that nobody reviewed.

A few corrected photos teach, and let be forgotten what they do not show. The runs hold what the base answered
everywhere else, so that rehearsing it costs no call of the model. Candidates well over the threshold are objects; of
those that are neither well over it nor well under it nothing is learned. Phrases on which the base is silent in
corrected photos that show their objects are not rehearsed: what people teach would be unlearned.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sam3label.core import masks
from sam3label.core.records import Concept, ConceptList, Label, LabeledImage, MediaItem
from sam3label.core.text import count, verb
from sam3label.export.splits import Splits
from sam3label.flywheel.material import Material, truth_object
from sam3label.run.decide import INSIDE, SAME_OBJECT_IOU, decide
from sam3label.run.reader import Run, SeenFrame
from sam3label.train.taught import PhraseAnswer, TaughtPhoto, TruthObject

SURE = 0.8  # score from which a candidate is an object
UNSURE = 0.3  # score from which it may be one
SILENT = 0.1  # presence under which there is none
MISSED = 0.25  # of the corrected photos that show it, at most: where a phrase that is rehearsed is sure to find nothing
GUARDING = 1 / 3  # of the photos that nobody reviewed, at most
LOOKED_AT = 1000  # of those that are left, at most
SUREST = 1 / 2  # of those that are looked at


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """What the model said to a phrase: objects that it is sure of, and what may be others; or that there is none."""

    objects: tuple[Label, ...]
    unsure: tuple[Label, ...]
    silent: bool

    @property
    def says_something(self) -> bool:
        return bool(self.objects) or self.silent


@dataclass(frozen=True, slots=True)
class Unreviewed:
    """Photos that nobody reviewed: those that show what was forgotten, and the ids of those that may be rehearsed.

    No group is on both sides, and none of those that judge is rehearsed.
    """

    guard: tuple[MediaItem, ...]
    free: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Photos with sure answers of the base; empty where there are none."""

    photos: tuple[TaughtPhoto, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases that are rehearsed, in the order in which they are asked."""
        return tuple(dict.fromkeys(str(q.phrase) for photo in self.photos for q in photo.questions))

    @property
    def told(self) -> str:
        """What is rehearsed, in a sentence."""
        if not self.photos:
            return "nothing is rehearsed: the base has no sure answers in photos that nobody reviewed"
        photos = f"{count(len(self.photos), 'photo')} that nobody reviewed {verb(len(self.photos), 'is', 'are')}"
        return f"{photos} rehearsed, by what the base is sure of there: {count(len(self.phrases), 'phrase')}"


def unreviewed(runs: Sequence[Run], material: Material, groups: Splits, most_guarding: int) -> Unreviewed:
    """Divide what nobody reviewed, by group, the same way every time."""
    known = {image.item.id for image in (*material.train, *material.held_out)}
    judging = {groups.group(image.item.id) for image in material.held_out}
    found = {item.id: item for run in runs for item in run.items("image") if item.id not in known}
    members: dict[str, list[str]] = {}
    for id_ in sorted(found, key=_digest):
        members.setdefault(groups.group(id_), []).append(id_)
    order = sorted(members, key=lambda group: (group not in judging, _digest(group)))
    most, guarding = min(most_guarding, max(1, round(GUARDING * len(found)))), list[str]()
    free: list[str] = []
    for group in order:
        (guarding if group in judging or len(guarding) < most else free).extend(members[group])
    corrected = {one.item_id for run in runs for one in run.corrections()}
    return Unreviewed(tuple(found[id_] for id_ in guarding[:most]), frozenset(free) - corrected)


def rehearse(runs: Sequence[Run], material: Material, free: Collection[str], base: str) -> Rehearsal:
    """Return the photos of which the base is surest, among those with these ids that it labelled itself.

    `base` is its checkpoint's identity.
    """
    own = [run for run in runs if run.info.get("checkpoint") == base]
    phrases = _known(own, material, _phrases(material.asked))
    looked_at = (_seen(own, item_id) for item_id in sorted(free, key=_digest)[:LOOKED_AT])
    told = [(seen.image, answers_of(seen, phrases)) for seen in looked_at if seen is not None]
    surest = sorted(told, key=lambda one: _doubt(one[1]))[: math.ceil(SUREST * len(told))]
    photos = (_taught(image, answers) for image, answers in surest)
    return Rehearsal(tuple(photo for photo in photos if photo.questions))


def answers_of(seen: SeenFrame, phrases: Sequence[str]) -> dict[str, BaseAnswer]:
    """Return what the model said to each phrase that it was asked."""
    asked = ConceptList(tuple(Concept(i, phrase, (phrase,), conf=SURE) for i, phrase in enumerate(phrases)))
    decisions = decide([c for c in seen.candidates if c.source == "phrase"], asked)
    answers: dict[str, BaseAnswer] = {}
    for number, phrase in enumerate(phrases):
        own = [d for d in decisions if d.label.class_id == number]
        objects = tuple(d.label for d in own if d.outcome == "label")
        rest = [d.label for d in own if d.outcome == "low score" and d.label.score >= UNSURE]
        unsure = tuple(one for one, again in zip(rest, _again(rest, objects), strict=True) if not again)
        if phrase in seen.presence:
            silent = not objects and not unsure and seen.presence[phrase] < SILENT
            answers[phrase] = BaseAnswer(objects, unsure, silent)
    return answers


def _again(labels: Sequence[Label], objects: Sequence[Label]) -> list[bool]:
    """Tell of each label whether it is one of the objects again, or a part of it."""
    if not labels or not objects:
        return [False] * len(labels)
    pair = [one.rle for one in labels], [one.rle for one in objects]
    again = (masks.iou_matrix(*pair) >= SAME_OBJECT_IOU) | (masks.cover_matrix(*pair) >= INSIDE)
    return [bool(row.any()) for row in again]


def _phrases(asked: Sequence[Concept]) -> list[str]:
    """Return the phrases that are asked in words alone."""
    return list(dict.fromkeys(phrase for concept in asked if concept.exemplars is None for phrase in concept.prompts))


def _known(runs: Sequence[Run], material: Material, phrases: Sequence[str]) -> list[str]:
    """Return the phrases whose objects the base does not often miss, being sure, in the photos that are learned from.

    Its silence on others is what people corrected.
    """
    classes = {phrase: {c.id for c in material.asked if phrase in c.prompts} for phrase in phrases}
    missed, shown = Counter[str](), Counter[str]()
    for image in material.train:
        there = {class_id for class_id, _ in image.objects}
        seen = _seen(runs, image.item.id)
        for phrase, answer in ({} if seen is None else answers_of(seen, phrases)).items():
            if classes[phrase] & there:
                shown[phrase] += 1
                missed[phrase] += answer.silent
    return [phrase for phrase in phrases if missed[phrase] <= MISSED * shown[phrase]]


def _seen(runs: Sequence[Run], item_id: str) -> SeenFrame | None:
    """Return what the last of the runs that has a photo saw in it."""
    for run in reversed(runs):
        if (unit := run.unit(item_id)) is not None:
            return next(run.frames(unit))
    return None


def _doubt(answers: Mapping[str, BaseAnswer]) -> float:
    """Return the share of what may be objects that is unsure, as if there were one more of both: nothing is a half."""
    sure = sum(len(answer.objects) for answer in answers.values())
    unsure = sum(len(answer.unsure) or not answer.says_something for answer in answers.values())
    return (unsure + 1) / (sure + unsure + 2)


def _taught(image: LabeledImage, answers: Mapping[str, BaseAnswer]) -> TaughtPhoto:
    objects: list[TruthObject] = []
    questions: list[PhraseAnswer] = []
    for phrase, answer in answers.items():
        if answer.says_something:
            first, then = len(objects), len(objects) + len(answer.objects)
            objects += [truth_object(one.box_xywh, one.rle, image.size_hw) for one in answer.objects]
            objects += [truth_object(one.box_xywh, None, image.size_hw) for one in answer.unsure]
            questions.append(PhraseAnswer(phrase, tuple(range(first, then)), unsure=tuple(range(then, len(objects)))))
    return TaughtPhoto(image.item, image.size_hw, tuple(objects), tuple(questions))


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

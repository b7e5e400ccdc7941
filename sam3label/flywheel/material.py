"""What runs have to learn from: photos whose every object is known, the questions labelling would ask, and a part that
is held out by group before anything else happens.

What an earlier turn was trained on stays on that side, and what it was judged by on the other: a checkpoint that was
trained from another one is never judged by what that one has seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sam3label.annotations.coco import JudgedObject, Pair, Truth, TruthImage
from sam3label.annotations.truth import read_truth
from sam3label.core.records import Box, Concept, ConceptList, Label, MediaItem, Rle
from sam3label.core.text import count
from sam3label.errors import InputError
from sam3label.export.splits import Splits
from sam3label.quality.run_answers import categories_of_classes, units_of_truth
from sam3label.run.reader import Run
from sam3label.train.taught import PhraseAnswer, TaughtPhoto, TruthObject

FEWEST = 4  # images to learn from: fewer teach nothing
JUDGES = 8  # images to judge by: of 1,000 draws four let a good checkpoint pass in 66 %, eight in 89 % (docs)


@dataclass(frozen=True, slots=True)
class KnownImage:
    """A photo and its every object of the classes in `known`: boxes xywh in pixels, masks where there are."""

    item: MediaItem
    size_hw: tuple[int, int]
    objects: tuple[tuple[int, JudgedObject], ...]  # (class id, object)
    known: frozenset[int]


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from and what is held out, over one concept list; `touched` are the classes people corrected.

    `asked` are the classes whose phrases are trained; `notes` say what was left out.
    """

    concepts: ConceptList
    train: tuple[KnownImage, ...]
    held_out: tuple[KnownImage, ...]
    asked: tuple[Concept, ...]
    touched: frozenset[str]
    notes: tuple[str, ...]

    def samples(self, images: Sequence[KnownImage]) -> list[TaughtPhoto]:
        """Return images as a training takes them."""
        return [_sample(image, self.asked) for image in images]

    def truth(self) -> Truth:
        """Return the held-out part as a truth, by which answers are judged."""
        categories = {concept.id: concept.name for concept in self.concepts.concepts}
        images = {number: TruthImage(one.item.id, one.size_hw) for number, one in enumerate(self.held_out)}
        objects: dict[Pair, list[JudgedObject]] = {}
        pairs: list[Pair] = []
        for number, one in enumerate(self.held_out):
            pairs += [(number, concept.id) for concept in self.concepts.concepts if concept.id in one.known]
            for class_id, found in one.objects:
                objects.setdefault((number, class_id), []).append(found)
        return Truth("what people reviewed", images, categories, objects, tuple(pairs), frozenset(), False)


@dataclass(frozen=True, slots=True)
class Division:
    """How photos are divided: the share that judges, what keeps photos together, and where they were in earlier turns.

    By the hash of a photo's group, in its order, until the share is reached.
    """

    share: float
    groups: Splits
    trained: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()

    def held_out(self, ids: Sequence[str]) -> frozenset[str]:
        """Return the ids that are held out."""
        members: dict[str, list[str]] = {}
        for id_ in ids:
            members.setdefault(self.groups.group(id_), []).append(id_)
        held = [id_ for own in members.values() if self.judged.intersection(own) for id_ in own]
        free = [g for g, own in members.items() if not (self.judged | self.trained).intersection(own)]
        for group in sorted(free, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()):
            if len(held) >= max(round(self.share * len(ids)), JUDGES):
                break
            held += members[group]
        return frozenset(held) - self.trained


def gather(
    runs: Sequence[Run], division: Division, gt: str | Path | None = None, gt_split: str | None = None
) -> Material:
    """Read the reviewed photos of runs, or those that `gt`, a COCO or YOLO truth, has labels of.

    The runs may be of different checkpoints, and hold the same photos: what was reviewed last counts, in the order of
    the runs. Raises InputError where there are too few, saying how many more are needed, and where classes differ.
    """
    notes: list[str] = []
    concepts = runs[-1].concepts
    for run in runs:
        if run.concepts.names != concepts.names:
            raise InputError(
                f"{run.folder} and {runs[-1].folder} do not have the same classes: give one concept list for them (-c)."
            )
    images: dict[str, KnownImage] = {}
    for run in runs:
        found = _reviewed(run, notes) if gt is None else _of_truth(run, gt, gt_split, notes)
        images |= {image.item.id: image for image in found}
    asked = _asked(concepts, notes)
    if not asked:
        raise InputError("none of the classes can be trained by what was reviewed: " + " ".join(notes))
    held = division.held_out(sorted(images))
    held_out = tuple(image for id_, image in sorted(images.items()) if id_ in held)
    train = tuple(image for id_, image in sorted(images.items()) if id_ not in held)
    _refuse_few(len(train), len(held_out))
    touched = frozenset(concepts.names) if gt is not None else frozenset().union(*(_touched(run) for run in runs))
    return Material(concepts, train, held_out, asked, touched, tuple(dict.fromkeys(notes)))


def _refuse_few(train: int, held_out: int) -> None:
    if train >= FEWEST and held_out >= JUDGES:
        return
    more = max(FEWEST - train, JUDGES - held_out, FEWEST + JUDGES - train - held_out)
    raise InputError(
        f"{count(train + held_out, 'image')} with every object known, of which {held_out} are held out to judge by: at "
        f"least {FEWEST} are needed to learn from and {JUDGES} to judge by. Review some {more} more: sam3label review "
        "next RUN says which. (If they lie in few groups, --group keeps these together.)"
    )


# ---- runs


def _reviewed(run: Run, notes: list[str]) -> Iterator[KnownImage]:
    frames = 0
    everything = frozenset(concept.id for concept in run.concepts.concepts)
    for image in run.images():
        if not image.reviewed:
            continue
        if image.item.kind == "video":
            frames += 1
            continue
        objects = tuple((label.class_id, _object(label)) for label in image.labels)
        yield KnownImage(image.item, image.size_hw, objects, everything)
    if frames:
        notes.append(f"{count(frames, 'reviewed frame')} of videos left out: photos alone are trained on.")


def _object(label: Label) -> JudgedObject:
    rle = None if label.doubt is not None else label.rle
    return JudgedObject(label.box_xywh, label.area, label.area, rle)


def _touched(run: Run) -> frozenset[str]:
    """Return the classes whose labels people added, removed, renamed or reshaped."""
    names = run.concepts.names
    was: dict[str, str] = {}
    corrections = [one for one in run.corrections() if one.action not in ("reviewed", "approved")]
    touched = {one.class_name for one in corrections if one.class_name}
    by_item = {one.item_id for one in corrections if one.label_id is not None}
    for unit in run.done_units():
        if unit.item.id in by_item:
            for seen in run.frames(unit):
                was |= {d.label.id: names[d.label.class_id] for d in seen.decisions}
    touched |= {was[one.label_id] for one in corrections if one.label_id in was}
    return frozenset(touched)


def _of_truth(run: Run, gt: str | Path, split: str | None, notes: list[str]) -> Iterator[KnownImage]:
    truth = read_truth(gt, split)
    if truth.by_phrase:
        raise InputError(f"{gt} is an SA-Co file. Fine-tuning works class by class: COCO or YOLO truth is expected.")
    notes += truth.notes
    units = units_of_truth(run, truth, notes)
    class_of = {category: class_id for class_id, category in categories_of_classes(
        run.concepts, truth.categories, truth.path, notes).items()}  # fmt: skip
    judged = set(truth.pairs)
    for image_id, unit in units.items():
        assert unit.size_hw is not None  # a done unit has a size
        objects, known = [], set[int]()
        for category, class_id in class_of.items():
            found = truth.objects.get((image_id, category), ())
            if (image_id, category) in judged and not any(one.crowd for one in found):
                known.add(class_id)
                objects += [(class_id, one) for one in found]
        yield KnownImage(unit.item, unit.size_hw, tuple(objects), frozenset(known))


# ---- questions


def _asked(concepts: ConceptList, notes: list[str]) -> tuple[Concept, ...]:
    """Return the classes whose labels are all that their phrases name."""
    asked = []
    for concept in concepts.concepts:
        if concept.where:
            notes.append(f"{concept.name}: not trained, its `where:` leaves out objects that its phrases name.")
        elif concept.exemplars is not None and concept.exemplars.kind == "objects":
            notes.append(f"{concept.name}: not trained, it has no phrase.")
        else:
            asked.append(concept)
    return tuple(asked)


def _sample(image: KnownImage, asked: Sequence[Concept]) -> TaughtPhoto:
    objects = tuple(truth_object(found.box_xywh, found.rle, image.size_hw) for _, found in image.objects)
    own = {c.id: tuple(i for i, (class_id, _) in enumerate(image.objects) if class_id == c.id) for c in asked}
    known = [concept for concept in asked if concept.id in image.known]
    return TaughtPhoto(image.item, image.size_hw, objects, tuple(_questions(known, own)))


def _questions(known: Sequence[Concept], own: Mapping[int, tuple[int, ...]]) -> Iterator[PhraseAnswer]:
    """Yield each phrase once with all that it names, then `not:` phrases with what they do not."""
    answers: dict[str, set[int]] = {}
    guided: set[str] = set()
    for concept in known:
        for phrase in concept.prompts:
            answers.setdefault(phrase, set()).update(own[concept.id])
            if concept.exemplars is not None:
                guided.add(phrase)
        if concept.exemplars is not None and not concept.prompts:
            yield PhraseAnswer(None, own[concept.id], guided=True)
    for phrase, numbers in answers.items():
        yield PhraseAnswer(phrase, tuple(sorted(numbers)), guided=phrase in guided)
    for concept in known:
        for phrase in concept.negatives:
            if phrase not in answers and own[concept.id]:
                yield PhraseAnswer(phrase, own[concept.id], denied=True)


def truth_object(box_xywh: Box, rle: Rle | None, size_hw: tuple[int, int]) -> TruthObject:
    """Return an object as a training takes it, from its box in pixels."""
    x, y, width, height = box_xywh
    box: Box = (x / size_hw[1], y / size_hw[0], (x + width) / size_hw[1], (y + height) / size_hw[0])
    return TruthObject(_inside(box), rle)


def _inside(box: Box) -> Box:
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return x1, y1, x2, y2


def with_guard(concepts: ConceptList, phrases: Sequence[str]) -> ConceptList:
    """Return the list with further phrases as classes of their own, to see what becomes of their answers."""
    new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in concepts.names]
    first = len(concepts.concepts)
    return replace(
        concepts,
        concepts=(*concepts.concepts, *(Concept(first + i, phrase, (phrase,)) for i, phrase in enumerate(new))),
    )

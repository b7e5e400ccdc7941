"""A run is verified: what is worth a question is asked first, and each answer is kept beside what SAM 3 saw.

Two kinds of questions. About a class in an image: is there any, and is every one of them masked? About a label: is it
of its class, and is its mask good? What was asked of the same model in the same way is not asked again, so a run that
was interrupted goes on, and a verdict is never there twice.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sam3label.core.records import Concept, Label, Verdict, VerdictPart
from sam3label.errors import UndecodableError
from sam3label.media.image import decode_image
from sam3label.review.reasons import reasons
from sam3label.review.survey import SeenImage, Survey, look, survey_run
from sam3label.run.reader import Run
from sam3label.run.rows import Unit
from sam3label.verify import pictures
from sam3label.verify.server import ANSWER_WORDS, INSTRUCTIONS, Answer, Inquiry, Server

COMMIT_EVERY = 16  # answers
CLASS_PARTS: tuple[VerdictPart, ...] = ("any", "all")
LABEL_PARTS: tuple[VerdictPart, ...] = ("right", "outline")

ABOUT_CLASS = """\
The class is "{name}"{synonyms}. The first picture is a photo; the second is the same photo in which every {name} that
was found so far is covered by a colored, numbered mask ({count} of them).
"any": is there at least one {name} in the photo, found or not?
"all": is every {name} in the photo covered by a numbered mask? (Also yes if there is none and nothing is numbered.)"""

ABOUT_LABEL = """\
The class is "{name}"{synonyms}. The first picture is a photo in which one object is covered by a colored mask with the
number 1. The second picture is that part of the photo enlarged, the third the same with the mask.
"right": is the masked object a {name}?
"outline": does the mask cover the whole object and nothing else?"""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to ask: a class in a photo, or one of its labels. `gain` says how much an answer may correct.

    `shown` stands for the masks that a question about a class shows.
    """

    gain: float
    item_id: str
    class_id: int
    label_id: str | None = None
    shown: str = ""

    @property
    def key(self) -> str:
        return "\0".join((self.item_id, str(self.class_id), self.label_id or ""))


@dataclass(frozen=True, slots=True)
class Agenda:
    """What would be asked, in the order of what it may gain. `known` were asked before, of the same verifier."""

    targets: tuple[Subject, ...]
    known: int = 0
    left_out: int = 0  # beyond the budget
    videos: int = 0  # that are not asked about

    @property
    def about_classes(self) -> int:
        return sum(target.label_id is None for target in self.targets)

    def tokens(self) -> int:
        """Return about how many tokens the questions will be counted as."""
        per_class = Inquiry("", (b"", b""), ABOUT_CLASS, CLASS_PARTS).tokens
        per_label = Inquiry("", (b"", b"", b""), ABOUT_LABEL, LABEL_PARTS).tokens
        return self.about_classes * per_class + (len(self.targets) - self.about_classes) * per_label

    def cost(self, price: tuple[float, float]) -> float:
        """Return about what the questions cost, in US dollars, at a price for a million tokens in and out."""
        return (self.tokens() * price[0] + len(self.targets) * ANSWER_WORDS * price[1]) / 1e6


@dataclass(slots=True)
class Done:
    """How a verification went."""

    asked: int = 0
    verdicts: int = 0
    unsure: int = 0
    failed: list[tuple[str, str]] | None = None  # (item id, reason), asked again next time

    def fail(self, item_id: str, reason: str) -> None:
        self.failed = [*(self.failed or ()), (item_id, reason)]


def verifier_of(model: str) -> str:
    """Return the name under which verdicts are kept: the model, and a digest of how it is asked."""
    asked = f"{INSTRUCTIONS}\0{ABOUT_CLASS}\0{ABOUT_LABEL}"
    how = f"{asked}\0{pictures.SIDE}\0{pictures.CROP_SIDE}\0{pictures.MARGIN}"
    return f"{model}@{hashlib.blake2b(how.encode(), digest_size=4).hexdigest()}"


# ---- what to ask


def plan(run: Run, verifier: str, budget: int | None = None) -> Agenda:
    """Return what is worth a question, best first; no more than `budget` of it. Photos only.

    What a person has reviewed comes first: those answers tell how far the verifier can be trusted. What was found
    because a trusted verifier said that some are missing is asked about like any other label.
    Memory grows with the budget, not with the run.
    """
    run = run.without_verdicts(but_missing=True)
    survey = survey_run(run, audit=0)
    known, total = 0, 0
    heap: list[tuple[float, int, Subject]] = []
    videos: set[str] = set()
    for unit in run.done_units():
        if unit.item.kind != "image":
            videos.add(unit.item.id)
            continue
        answered = {(v.class_name, v.label_id, v.shown) for v in run.verdicts(verifier, unit.item.id)}
        for target in _targets(run, next(look(run, unit)), survey):
            name = run.concepts.concepts[target.class_id].name
            if (name, target.label_id, target.shown) in answered:
                known += 1
                continue
            total += 1
            entry = (target.gain, -total, target)
            if budget is None or len(heap) < budget:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    best = sorted(heap, reverse=True)
    return Agenda(tuple(target for _, _, target in best), known, total - len(best), len(videos))


def _targets(run: Run, seen: SeenImage, survey: Survey) -> Iterator[Subject]:
    """Yield what can be asked about one photo. A gain is that of the strongest reason that names the label or class."""
    named: dict[str, float] = {}
    for reason in reasons(seen, run.concepts, survey):
        for name in (*reason.label_ids, *reason.class_names):
            named[name] = max(named.get(name, 0.0), reason.gain)
    presences = {prompt.key: prompt.class_name for prompt in run.prompts}
    for concept in run.concepts.concepts:
        keys = {*concept.prompts, *(key for key, own in presences.items() if own == concept.name)}
        presence = max((seen.presence.get(key, 0.0) for key in keys), default=0.0)
        gain = max(named.get(concept.name, 0.0), _doubt(presence, 0.5)) + seen.reviewed
        own = [label for label in seen.labels if label.class_id == concept.id]
        yield Subject(gain, seen.item_id, concept.id, shown=masks_shown(own))
    for label in seen.labels:
        conf = run.concepts.concepts[label.class_id].conf
        gain = max(named.get(label.id, 0.0), 0.5 * _doubt(label.score, conf)) + seen.reviewed
        yield Subject(gain, seen.item_id, label.class_id, label.id)


def masks_shown(labels: Sequence[Label]) -> str:
    """Return what stands for the masks of a class in a photo: other masks are another question."""
    return hashlib.blake2b("\0".join(sorted(label.id for label in labels)).encode(), digest_size=6).hexdigest()


def _doubt(score: float, threshold: float) -> float:
    """Return 1 at the threshold, 0 at the ends."""
    room = threshold if score < threshold else 1 - threshold
    return max(0.0, 1 - abs(score - threshold) / room) if room > 0 else 0.0


# ---- asking


def verify(
    run: Run, todo: Agenda, server: Server, verifier: str, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Done]:
    """Ask what the plan holds, until `stopped`, and keep the verdicts; yield where it stands after each answer.

    Raises ServerError when the server cannot be used; what was answered by then is kept.
    """
    done = Done()
    rows = list[Verdict]()
    by_key = {target.key: target for target in todo.targets}
    try:
        for answer in server.ask(_questions(run, todo.targets, done), stopped):
            done.asked += 1
            target = by_key[answer.question.key]
            if answer.error is not None:
                done.fail(target.item_id, answer.error)
            found = list(_verdicts(run, target, answer, verifier))
            done.verdicts += len(found)
            done.unsure += sum(verdict.score is None for verdict in found)
            rows += found
            if len(rows) >= COMMIT_EVERY:
                run.record_verdicts(rows)
                rows = []
            yield done
    finally:
        run.record_verdicts(rows)


def _questions(run: Run, targets: Iterable[Subject], done: Done) -> Iterator[Inquiry]:
    """Draw each question when there is room for it in flight. A photo that cannot be read is a failure of its own."""
    for target in targets:
        unit = run.unit(target.item_id)
        if unit is None:
            continue
        try:
            yield _question(run, unit, target)
        except UndecodableError as error:
            done.fail(target.item_id, str(error))


def _question(run: Run, unit: Unit, target: Subject) -> Inquiry:
    pixels = decode_image(unit.item.path)
    concept = run.concepts.concepts[target.class_id]
    labels = next(look(run.without_verdicts(but_missing=target.label_id is not None), unit)).labels
    words = {"name": concept.name, "synonyms": _synonyms(concept)}
    if target.label_id is None:
        own = [label for label in labels if label.class_id == target.class_id]
        shown = pictures.whole(pixels), pictures.numbered(pixels, own)
        return Inquiry(target.key, shown, ABOUT_CLASS.format(**words, count=len(own)), CLASS_PARTS)
    label = next(label for label in labels if label.id == target.label_id)
    shown_label = pictures.numbered(pixels, [label]), *pictures.enlarged(pixels, label)
    return Inquiry(target.key, shown_label, ABOUT_LABEL.format(**words), LABEL_PARTS)


def _synonyms(concept: Concept) -> str:
    others = [phrase for phrase in concept.prompts if phrase != concept.name]
    return f" (also called {', '.join(others)})" if others else ""


def _verdicts(run: Run, target: Subject, answer: Answer, verifier: str) -> Iterator[Verdict]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    name = run.concepts.concepts[target.class_id].name
    parts: Sequence[VerdictPart] = CLASS_PARTS if target.label_id is None else LABEL_PARTS
    for part in parts if answer.error is None else ():
        score = answer.scores.get(part)
        yield Verdict(target.item_id, 0, name, target.label_id, part, score, verifier, at, answer.seconds, target.shown)

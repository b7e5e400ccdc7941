"""FiftyOne -> run: what people changed becomes human rows in the store, beside the model's candidates.

All rows of a pull are committed in one transaction, together with what run and dataset then agree on, and only then is
the dataset told. A pull that dies in between is finished by the next one, before it reads anything.
"""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sam3label.core import masks
from sam3label.core.records import Correction, CorrectionAction, Hint, Label, Rle
from sam3label.core.text import count
from sam3label.review import labels, survey
from sam3label.review.fiftyone import connect, schema
from sam3label.review.fiftyone.push import VIDEO_SUFFIX
from sam3label.review.labels import AgreedLabel, Sync
from sam3label.review.merge import Merged, State, merge, stored_state
from sam3label.run.reader import Run

CONFLICTS = "review_conflicts"  # where the store keeps them, in words
PENDING = "review_pending"  # agreed and committed, the dataset not yet told: dataset -> sample -> frame -> packed


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull recorded: decisions by action, conflicts with earlier pulls, and what needs a person's attention."""

    dataset: str
    actions: Mapping[str, int]
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """A box that a person drew without a mask, or moved with the mask in it, and the mask that it is to get.

    `label` has that mask; where none was to be believed, `believed` is False and the label is the whole box.
    """

    item_id: str
    frame: int
    label: Label
    believed: bool


MaskOf = Callable[[str, int, Hint], Rle | None]  # of a box on an image (frame); None: none to be believed


@dataclass(slots=True)
class _Found:
    """What a pull has gathered so far. Nothing is written before the whole dataset was read."""

    pull_id: str
    who: str
    corrections: list[Correction] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)  # of what, and what about it
    agreed: dict[str, dict[int, Sync]] = field(default_factory=dict)  # sample id -> frame -> what is agreed on now
    mask_of: MaskOf | None = None
    drawn: list[DrawnBox] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _View:
    """One image or frame of the dataset as it is now."""

    sample_id: str
    item_id: str
    frame: int
    truth: Mapping[str, Any]  # FiftyOne label id -> Detection
    maybe: Mapping[str, Any]
    reviewed: bool
    sync: Sync
    at: str

    @property
    def where(self) -> str:
        return f"{self.item_id} frame {self.frame}" if self.frame else self.item_id


@dataclass(frozen=True, slots=True)
class _Known:
    """The same image as the run has it: the model's labels and the decisions on each, by label id."""

    size_hw: tuple[int, int]
    base: Mapping[str, State]
    corrections: Mapping[str, Sequence[Correction]]
    reviewed: bool
    ids: Mapping[str, str]  # FiftyOne label id -> label id
    shapes: Mapping[str, Rle]  # label id -> mask

    def stored(self, label_id: str) -> State | None:
        return stored_state(self.base.get(label_id), self.corrections.get(label_id, ()))


def pull(
    run: Run,
    dataset: str | None = None,
    who: str | None = None,
    mask_of: MaskOf | None = None,
    accept: Callable[[Sequence[DrawnBox]], bool] = lambda _: True,
) -> tuple[Pulled, ...]:
    """Record what people did in FiftyOne since the last pull, as `who` (default: the login name).

    With `mask_of`, boxes that were drawn without a mask or moved get one: what is made of them is shown to `accept`
    before anything is recorded, and where it says no nothing is. Without it boxes that have no mask wait.
    Raises `ReviewUnavailableError`, and `StoreError` or `InputError` when there is no dataset of this run to pull.
    """
    fo = connect.fiftyone()
    names = [dataset] if dataset else _pushed_names(fo, run)
    who = who or login_name()
    return tuple(_pull_one(run, connect.load_dataset(fo, run, name), who, mask_of, accept) for name in names)


def login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


def _pushed_names(fo: Any, run: Run) -> list[str | None]:
    """Return the run's datasets as far as they are there; None lets `load_dataset` explain that there is none."""
    state = run.note(connect.META)
    if state is None:
        return [None]
    both = (state["dataset"], state["dataset"] + VIDEO_SUFFIX)
    return [name for name in both if fo.dataset_exists(name)] or [None]


def _pull_one(
    run: Run, dataset: Any, who: str, mask_of: MaskOf | None, accept: Callable[[Sequence[DrawnBox]], bool]
) -> Pulled:
    found = _Found(f"{dataset.name} {datetime.now(UTC).isoformat(timespec='milliseconds')}", who, mask_of=mask_of)
    _finish(run, dataset)
    book = _Book(run)
    for sample in _slim(dataset).iter_samples(progress=False):
        for view in _views(sample):
            _read(book, view, found)
    if found.drawn and not accept(found.drawn):
        return Pulled(dataset.name, {}, (), ("nothing was recorded",))
    _keep_conflicts(run, found.conflicts)
    agreed = {id_: {str(f): sync.packed() for f, sync in frames.items()} for id_, frames in found.agreed.items()}
    if agreed:
        run.record(found.corrections, {PENDING: {**(run.note(PENDING) or {}), dataset.name: agreed}})
    _finish(run, dataset)
    actions = Counter[str](correction.action for correction in found.corrections)
    notes = tuple(sorted(f"{count(n, what)} {how}" for (what, how), n in found.notes.items()))
    return Pulled(dataset.name, dict(actions), tuple(found.conflicts), notes)


def _keep_conflicts(run: Run, new: Sequence[str]) -> None:
    known = run.note(CONFLICTS) or []
    if added := [text for text in new if text not in known]:
        run.keep_note(CONFLICTS, known + added)


def _finish(run: Run, dataset: Any) -> None:
    """Tell the dataset what the last committed pull agreed on, if that is still to be done."""
    pending = dict(run.note(PENDING) or {})
    if agreed := pending.pop(dataset.name, None):
        agree(dataset, agreed)
        run.keep_note(PENDING, pending)


def agree(dataset: Any, agreed: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what both sides hold, by sample and frame. Touches nothing a person edits; samples may have gone."""
    there = set(dataset.values("id"))
    agreed = {id_: frames for id_, frames in agreed.items() if id_ in there}
    if dataset.media_type != "video":
        values = {id_: frames["0"] for id_, frames in agreed.items()}
        if values:
            dataset.set_values(schema.SYNC, values, key_field="id", progress=False)
        return
    for id_, frames in agreed.items():
        sample = dataset[id_]
        for frame, packed in frames.items():
            sample.frames[int(frame) + 1][schema.SYNC] = packed
        sample.save()


# ---- the dataset


def _slim(dataset: Any) -> Any:
    """Leave out `predictions`, whose masks nobody can have changed."""
    prefix = "frames." if dataset.media_type == "video" else ""
    labels_ = [prefix + name for name in (schema.TRUTH, schema.MAYBE, schema.SYNC)]
    return dataset.select_fields([*labels_, "item_id", schema.STATUS])


def _views(sample: Any) -> Iterator[_View]:
    """Yield a photo, or each frame of a video. FiftyOne counts frames from 1."""
    if sample.media_type != "video":
        yield _view(sample, sample, 0)
        return
    for number in sample.frames:
        yield _view(sample, sample.frames[number], number - 1)


def _view(sample: Any, holder: Any, frame: int) -> _View:
    truth, maybe = (_by_id(holder[name]) for name in (schema.TRUTH, schema.MAYBE))
    at = holder.last_modified_at.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
    reviewed = sample[schema.STATUS] == schema.REVIEWED
    return _View(sample.id, sample.item_id, frame, truth, maybe, reviewed, labels.unpack(holder[schema.SYNC]), at)


def _by_id(detections: Any) -> dict[str, Any]:
    return {str(d.id): d for d in (detections.detections if detections else ())}


# ---- the run


@dataclass(slots=True)
class _Book:
    """The run, read a unit at a time: the frames of a clip come one after the other and share one reading."""

    run: Run
    at: tuple[int, int] | None = None  # the unit that was read last, and the folder it is in
    frames: dict[int, _Known] = field(default_factory=dict)

    def known(self, item_id: str, frame: int) -> _Known | None:
        """Return the image as the run has it; None when the run does not have it (any more)."""
        unit = self.run.unit(item_id, frame)
        if unit is None:
            return None
        if (unit.part, unit.id) != self.at:
            corrections = self.run.corrections(item_id)
            names = self.run.concepts.names
            seen = survey.look(self.run, unit)
            self.frames = {s.frame: _known(s, names, [e for e in corrections if e.frame == s.frame]) for s in seen}
            self.at = unit.part, unit.id
        return self.frames[frame]


def _known(seen: survey.SeenImage, names: Sequence[str], own: Sequence[Correction]) -> _Known:
    base = {
        d.label.id: State(names[d.label.class_id], labels.shape_digest(d.label.rle))
        for d in seen.decisions
        if d.label.area > 0
    }
    corrections: dict[str, list[Correction]] = {}
    for correction in own:
        if correction.label_id is not None:
            corrections.setdefault(correction.label_id, []).append(correction)
    ids = {labels.object_id(id_): id_ for id_ in (*base, *corrections)}
    shapes = {d.label.id: d.label.rle for d in seen.decisions} | {label.id: label.rle for label in seen.labels}
    return _Known(seen.size_hw, base, corrections, any(e.action == "reviewed" for e in own), ids, shapes)


# ---- what changed


def _read(book: _Book, view: _View, found: _Found) -> None:
    """Gather the decisions of one image. Reads the run only where the dataset says something new."""
    if view.sync.reviewed and not view.reviewed:
        found.notes["image", "'unreviewed' again in FiftyOne, in the run still reviewed"] += 1
    held = {id_: labels.held_digest(d.bounding_box, d.get_mask()) for id_, d in view.truth.items()}
    vouches = view.reviewed and not view.sync.reviewed
    taken = {id_ for id_, d in view.maybe.items() if labels.APPROVED in d.tags} - view.sync.taken
    if not vouches and not taken and _unchanged(view, held):
        return
    known = book.known(view.item_id, view.frame)
    if known is None:
        found.notes["image", "not in the run any more: the corrections stay in FiftyOne alone"] += 1
        return
    reader = _Reader(view, known, found, held, book.run.concepts.names)
    marks = {id_: reader.label(id_, vouches) for id_ in sorted(view.sync.marks.keys() | view.truth.keys())}
    for id_ in sorted(taken):
        reader.take(id_)
    if vouches and not known.reviewed:
        reader.add("reviewed", None)
    kept = {id_: mark for id_, mark in marks.items() if mark is not None}
    agreed = Sync(view.sync.reviewed or vouches, kept, view.sync.taken | taken)
    found.agreed.setdefault(view.sample_id, {})[view.frame] = agreed


def _unchanged(view: _View, held: Mapping[str, str]) -> bool:
    now = {id_: (d.label, held[id_], labels.APPROVED in d.tags) for id_, d in view.truth.items()}
    return now == {id_: (m.class_name, m.held, m.approved) for id_, m in view.sync.marks.items()}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the labels of one image into decisions, added to `found`. `held` has each detection's digest."""

    view: _View
    known: _Known
    found: _Found
    held: Mapping[str, str]
    names: Sequence[str]

    def label(self, id_: str, vouches: bool) -> AgreedLabel | None:
        """Decide on one label; its mark from now on, or None when there is no such label any more."""
        old = self.view.sync.marks.get(id_)
        then = State(old.class_name, old.shape) if old else None
        detection = self.view.truth.get(id_)
        if detection is None:
            self.decide(id_, then, None)
            return None
        if not detection.label:
            self.found.notes["label", "without a class yet, waiting for one"] += 1
            return old
        same = old is not None and old.held == self.held[id_]
        if not detection.has_mask and not same and self.found.mask_of is None:
            waits = "drawn as a box without a mask, waiting: --masks makes the mask, or draw it"
            self.found.notes["label", waits] += 1
            return old
        rle = labels.rle_of(detection.bounding_box, detection.get_mask(), self.known.size_hw)
        if masks.area(rle) == 0:  # erased altogether
            self.decide(id_, then, None)
            return None
        if not same and self.found.mask_of is not None and (not detection.has_mask or self.moved(id_, detection)):
            rle = self.masked(id_, detection, self.found.mask_of)
        shape = old.shape if old is not None and same else labels.shape_digest(rle)
        approved = labels.APPROVED in detection.tags
        now = State(detection.label, shape)
        vouched = vouches or (approved and not (old is not None and old.approved))
        self.decide(id_, then, now, rle, vouched=vouched, track=detection.index)
        return AgreedLabel(now.class_name, self.held[id_], shape, approved)

    def moved(self, id_: str, detection: Any) -> bool:
        """Return whether a label's mask is the one it had, in another box."""
        before = self.known.shapes.get(self.known.ids.get(id_, id_))
        if before is None or masks.area(before) == 0:
            return False
        was = labels.boxed(before)
        same_mask = np.array_equal(detection.get_mask() > 0, was.mask)
        return same_mask and not np.allclose(detection.bounding_box, was.box, rtol=0, atol=1e-6)

    def masked(self, id_: str, detection: Any, mask_of: MaskOf) -> Rle:
        """Return the mask that the model makes of a box, to be shown; where none is to be believed, the whole box."""
        height, width = self.known.size_hw
        x, y, w, h = (float(v) for v in detection.bounding_box)
        x1, y1, x2, y2 = max(x, 0) * width, max(y, 0) * height, min(x + w, 1) * width, min(y + h, 1) * height
        made = mask_of(self.view.item_id, self.view.frame, Hint((x1, y1, x2, y2)))
        rle = made if made is not None else labels.rle_of((x, y, w, h), None, self.known.size_hw)
        if made is None:
            self.found.notes["label", "whose box got no mask to be believed, counted as drawn"] += 1
        number = self.names.index(detection.label) if detection.label in self.names else len(self.names)
        label = Label(id_, number, 1.0, 1.0, masks.box_xywh(rle), masks.area(rle), rle, "", "human", self.view.frame)
        self.found.drawn.append(DrawnBox(self.view.item_id, self.view.frame, label, made is not None))
        return rle

    def take(self, id_: str) -> None:
        """Record a left-out candidate that a person wants: approving it makes it a label."""
        detection = self.view.maybe[id_]
        base = self.known.base.get(self.known.ids.get(id_, id_))
        if base is None or not detection.label:
            self.found.notes["approved candidate", "not in the run any more, to be drawn instead"] += 1
            return
        self.decide(id_, base, State(detection.label, base.shape), vouched=True)

    def decide(
        self,
        id_: str,
        then: State | None,
        now: State | None,
        rle: Rle | None = None,
        *,
        vouched: bool = False,
        track: int | None = None,
    ) -> None:
        label_id = self.known.ids.get(id_, id_)
        stored = self.known.stored(label_id)
        earlier = self.known.corrections.get(label_id, ())
        base = self.known.base.get(label_id)
        merged = merge(base, then, now, stored, vouched=vouched, touched=bool(earlier))
        for action in merged.actions:
            self.add(action, label_id, merged.result, rle, track)
        if merged.conflict:
            self.found.conflicts.append(self.conflict(label_id, earlier, merged))

    def add(
        self,
        action: CorrectionAction,
        label_id: str | None,
        result: State | None = None,
        rle: Rle | None = None,
        track: int | None = None,
    ) -> None:
        name = result.class_name if result and action in ("added", "relabelled") else None
        if name is not None and name not in self.names:
            unknown = f"of class '{name}', which is not in the concept list: kept, but not exported"
            self.found.notes["label", unknown] += 1
        view, found = self.view, self.found
        mask = rle if action in ("added", "reshaped") else None
        track = track if action == "added" else None
        found.corrections.append(
            Correction(view.item_id, view.frame, action, label_id, name, mask, track, found.who, view.at, found.pull_id)
        )

    def conflict(self, label_id: str, earlier: Sequence[Correction], merged: Merged) -> str:
        """Say who said what before, and who says what now."""
        before = _said(earlier[-1].who, earlier) if earlier else "the run had changed it"
        own = [e for e in self.found.corrections if e.label_id == label_id and e.item_id == self.view.item_id]
        after = _said(self.found.who, own) if own else f"{self.found.who} agrees only in part"
        return f"{self.view.where}, label {label_id}: {before}; {after}, which stands"


def _said(who: str, corrections: Sequence[Correction]) -> str:
    """Return the gist of one person's last decisions on one label."""
    last = [e for e in corrections if e.pull == corrections[-1].pull]
    return f"{who} " + " and ".join(f"{e.action} it" + (f" as {e.class_name}" if e.class_name else "") for e in last)

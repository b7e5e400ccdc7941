"""A run, as everything after the GPU pass reads it. Nobody else opens the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import (
    USES,
    Candidate,
    ConceptList,
    Correction,
    LabeledImage,
    Likeness,
    MediaItem,
    Processor,
    Stamp,
    Transcript,
    Verdict,
    VerdictUse,
    Verify,
)
from sam3label.core.saturation import QUERIES, enough
from sam3label.core.text import count, one_line, verb
from sam3label.errors import ConfigError
from sam3label.media import storage
from sam3label.media.stamps import is_unchanged, looked_up
from sam3label.run.asked import Wanted
from sam3label.run.corrections import apply_corrections
from sam3label.run.database import is_in_use
from sam3label.run.decide import Decision, decide
from sam3label.run.extent import Extent
from sam3label.run.places import moved, relocated
from sam3label.run.rows import Totals, Unit
from sam3label.run.store import Store
from sam3label.run.store_errors import DamagedStoreError

TRUSTED_VERIFIERS, LAST_VERIFIER = "trusted verifiers", "last verifier"  # the notes: use -> name, and a name


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """One image, or frame of a video, as the run holds it: what was seen, what became of it, and its labels.

    `presence` is by prompt key and leaves out prompts that were not asked.
    """

    candidates: tuple[Candidate, ...]
    decisions: tuple[Decision, ...]
    presence: Mapping[str, float]
    image: LabeledImage


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of a run's units (photos, clips of videos) were asked each of the list's prompts, by key.

    `waiting` are the items that were not asked everything yet: they have no labels until they are. `unlisted` are
    prompts that were asked once and are no longer in the list. `unsought` counts, by class, the units in which it was
    not looked for: it has no phrases, and they none of its boxes.
    """

    units: int
    asked: Mapping[str, int]
    waiting: tuple[str, ...]
    unlisted: tuple[str, ...]
    unsought: Mapping[str, int] = field(default_factory=dict)

    @property
    def wait(self) -> str | None:
        """A sentence on the items that wait, or None: what is made of the run has not their labels."""
        if not self.waiting:
            return None
        them = verb(len(self.waiting), "it", "them")
        return (
            f"{count(len(self.waiting), 'image')} not asked everything yet, and without labels until then: "
            f"the same sam3label run asks {them}"
        )

    def notes(self) -> Iterator[str]:
        """Yield a sentence on each class that was not looked for everywhere: there it must not look like "none"."""
        for name, units in self.unsought.items():
            yield (
                f"{one_line(name)} was not looked for in {units:,} of {count(self.units, 'image')}, which have no "
                "boxes of it, and it has no phrases: without a label there may be some."
            )


class Run:
    """A finished or growing run, read through a concept list. Streams: memory does not grow with the run.

    Failed images are in `failures()` and nowhere else, and those that were not asked yet what the list asks are in
    `coverage()`: units, frames and images are those whose labels are complete.
    """

    def __init__(self, store: Store, concepts: ConceptList, places: Mapping[str, str] | None = None) -> None:
        self._store = store
        self.concepts = concepts
        self._places = places or {}  # root as it was -> where that folder is now
        self._wanted = Wanted.of(concepts, store.guides)
        self.prompts = self._wanted.prompts
        """What the list asks the model, in the order of `presence`."""
        known = {prompt.identity: i for i, prompt in enumerate(store.prompts)}
        self._columns = [known.get(prompt.identity, -1) for prompt in self.prompts]
        self._heeds_verdicts = any(concept.verify != Verify() for concept in concepts.concepts)
        self._last_verifier: str | None = None
        self._verifiers: dict[VerdictUse, str] | None = None
        self._missing: dict[int | None, frozenset[str]] = {}  # by question
        self._unsought: dict[int | None, frozenset[str]] = {}

    @classmethod
    def open(cls, folder: str | Path, concepts: ConceptList | None = None, photos: str | Path | None = None) -> Self:
        """Open a run folder: see `open_run`."""
        store = Store.open(folder)
        try:
            places = {} if photos is None else relocated(store.items(), _absolute(photos))
            run = cls(store, concepts or _own_concepts(store), places)
            if concepts is not None:
                _refuse_unasked(concepts, store)
                refuse_below_floor(concepts, run.floor)
        except BaseException:
            store.close()
            raise
        return run

    def __repr__(self) -> str:
        classes = count(len(self.concepts.concepts), "class", "classes")
        return f"Run({str(self.folder)!r}, {count(len(self), 'image')}, {classes})"

    def __len__(self) -> int:
        """Return how many images, and of videos how many clips, are done."""
        return sum(1 for _ in self.done_units())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    # ---- the run as a whole

    @property
    def folder(self) -> Path:
        return self._store.folder

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run's folder; of runs that are read as one each of them."""
        return (self.folder,)

    @property
    def info(self) -> dict[str, Any]:
        """What the run was made with: `model`, `checkpoint` (identity), `created`, `version`, `sources`, ..."""
        return dict(self.note("info") or {})

    @property
    def floor(self) -> float:
        """The score under which candidates were not kept."""
        return float((self.note("fingerprint") or {}).get("floor", 0.0))

    @property
    def is_writable(self) -> bool:
        """Whether corrections and notes can be kept in it."""
        return self._store.is_writable

    @property
    def is_growing(self) -> bool | None:
        """Whether a process is labelling into it now; None where this one may not ask."""
        return is_in_use(self.folder)

    def extent(self) -> Extent:
        """Return how much is labelled, and how much there is in all."""
        found = self.note("extent")
        if found and (copies := self._store.skipped_photos()):
            found = {**found, "images": found["images"] - copies}
        return Extent.of(self._store.units(), found)

    def totals(self) -> Totals:
        return self._store.totals()

    def processors(self) -> list[tuple[Processor, int]]:
        """Return what computed the run, and how many units each device did; the busiest first."""
        return self._store.processors()

    def failures(self) -> list[tuple[str, str]]:
        """Return (item id, reason) of everything that could not be labelled, or not asked what came later."""
        failed = ((u.item.id, u.error or (u.trouble if self._lacks(u) else None)) for u in self._store.units())
        return [(item_id, reason) for item_id, reason in failed if reason is not None]

    def changed_photos(self) -> list[tuple[str, str]]:
        """Return (item id, what happened) of every labelled file that is gone, or has other content than was labelled.

        Only files whose size is the same and whose time is not are read. Those that an earlier version labelled have
        no stamp: of them it is known only whether they are there.
        """
        done = self._store.done_ids()
        stored = [(moved(item, self._places), stamp) for item, stamp in self._store.items() if item.id in done]
        now = looked_up(item for item, _ in stored)
        return [(item.id, what) for item, (_, stamp) in zip(now, stored, strict=True) if (what := _change(item, stamp))]

    def coverage(self) -> Coverage:
        """Return how much of the run each of the list's prompts was put to."""
        lacking, waiting, unsought, units = Counter[str](), set[str](), Counter[str](), 0
        for unit in (u for u in self._store.units() if u.error is None):
            units += 1
            if missing := self._lacks(unit):
                lacking.update(missing)
                waiting.add(unit.item.id)
            else:
                unsought.update(self._unsought_in(unit))
        listed = {prompt.key for prompt in self.prompts}
        unlisted = tuple(p.key for p in self._store.prompts if p.key not in listed)
        asked = {p.key: units - lacking[p.key] for p in self.prompts}
        return Coverage(units, asked, tuple(sorted(waiting)), unlisted, dict(sorted(unsought.items())))

    def _unsought_in(self, unit: Unit) -> frozenset[str]:
        """Return classes that a unit was not asked for in any way."""
        if unit.question not in self._unsought:
            keys = {identity.partition("\0")[0] for identity in self._store.asked(unit).prompts}
            wordless = {c.name for c in self.concepts.concepts if not c.prompts}
            of_class = {p.class_name for p in self.prompts if p.class_name in wordless}
            sought = {p.class_name for p in self.prompts if p.key in keys}
            self._unsought[unit.question] = frozenset(name for name in of_class - sought if name is not None)
        return self._unsought[unit.question]

    def full(self) -> list[tuple[str, int, str]]:
        """Return (item id, frame, phrase) where the model gave nearly all the answers that it can give.

        Of phrases that are asked in tiles only those are named of which the closest views were full: each part has as
        many answers as the whole. Frames of tracked videos, which have no tiles, and photos labelled before the model
        said so itself, are known by the candidates that they have.
        """
        tiled, tracked = tiled_phrases(self.concepts), self.tracked_ids()
        listed = self._answered_by_queries
        least = enough(int(self.info.get("queries", QUERIES)))
        counted = (row for row in self._store.crowded(least) if row[2] not in tiled or row[0] in tracked)
        return sorted(row for row in {*counted, *self._store.full()} if row[2] in listed)

    def tracked_ids(self) -> set[str]:
        """Return ids of the videos through which objects were followed: other than photos and sampled frames."""
        if not str((self.note("fingerprint") or {}).get("video", "")).startswith("track"):
            return set()
        return {unit.item.id for unit in self._store.done_units() if unit.item.kind == "video"}

    def is_tiled(self, phrase: str) -> bool:
        """Return whether a phrase is asked in tiles."""
        return phrase in tiled_phrases(self.concepts)

    def full_of(self, item_id: str) -> list[tuple[int, str]]:
        """Return (frame, phrase) of one photo or video where even the closest views were full of answers."""
        listed = self._answered_by_queries
        return [(frame, key) for _, frame, key in self._store.full(item_id) if key in listed]

    @property
    def _answered_by_queries(self) -> set[str]:
        """The prompts whose answers can run out of room: neither given by people nor chosen by an agent."""
        return {prompt.key for prompt in self.prompts if prompt.source not in ("given", "agent")}

    def near_copies(self) -> list[tuple[str, int, Likeness]]:
        """Return (item id, frame, what it is like) of what `--skip-similar` left out: neither labelled nor failed."""
        return list(self._store.skipped())

    def stamp(self, item_id: str) -> Stamp | None:
        """Return what tells the content that was labelled, where it is known."""
        return self._store.stamp(item_id)

    def without_thresholds(self) -> Run:
        """Return the same run, in which every candidate over the floor passes its class's two thresholds."""
        relaxed = tuple(replace(c, conf=0.0, presence=0.0) for c in self.concepts.concepts)
        return Run(self._store, replace(self.concepts, concepts=relaxed), self._places)

    def without_verdicts(self, but_missing: bool = False) -> Run:
        """Return the same run, in which no verdict of a verifier changes anything.

        With `but_missing` what was found because it said that some are missing is there.
        """
        deaf = tuple(
            replace(c, verify=Verify(missing_conf=c.verify.missing_conf if but_missing else None))
            for c in self.concepts.concepts
        )
        return Run(self._store, replace(self.concepts, concepts=deaf), self._places)

    def relying_on(self, uses: Mapping[VerdictUse, str], otherwise: Verify) -> Run:
        """Return the same run, in which these verdicts count and no others: as the list lets them, or `otherwise`."""
        heeding = tuple(
            replace(
                c,
                verify=Verify(
                    otherwise.presence if c.verify.presence == "off" else c.verify.presence,
                    otherwise.reject_below if c.verify.reject_below is None else c.verify.reject_below,
                    otherwise.missing_conf if c.verify.missing_conf is None else c.verify.missing_conf,
                ),
            )
            for c in self.concepts.concepts
        )
        same = Run(self._store, replace(self.concepts, concepts=heeding), self._places)
        same._verifiers = dict(uses)
        return same

    # ---- what was labelled

    def done_units(self) -> Iterator[Unit]:
        """Return labelled photos and clips of videos, in item order: those that were asked all that the list asks."""
        return (self._here(unit) for unit in self._store.units() if self._is_done(unit))

    def _here(self, unit: Unit) -> Unit:
        return replace(unit, item=moved(unit.item, self._places)) if self._places else unit

    def _is_done(self, unit: Unit) -> bool:
        return unit.error is None and not self._lacks(unit)

    def _lacks(self, unit: Unit) -> frozenset[str]:
        """Return keys of the list's prompts that a unit was not asked; none for one that failed."""
        if unit.error is not None:
            return frozenset()
        if unit.question not in self._missing:
            self._missing[unit.question] = self._wanted.missing(self._store.asked(unit))
        return self._missing[unit.question]

    def items(self, kind: str | None = None) -> list[MediaItem]:
        """Return labelled photos and videos once each, in order; of one kind, if asked."""
        items = {unit.item.id: unit.item for unit in self.done_units()}
        return [item for item in items.values() if kind in (None, item.kind)]

    def unit(self, item_id: str, frame: int = 0) -> Unit | None:
        """Return the labelled unit that holds a frame; None where the run has none."""
        unit = self._store.unit(item_id, frame)
        return self._here(unit) if unit is not None and self._is_done(unit) else None

    def images(self) -> Iterator[LabeledImage]:
        """Yield labelled images (and frames of videos) in item order; empty ones are among them."""
        corrected = self._corrected_ids()
        for unit in self.done_units():
            yield from self._images(unit, unit.item.id in corrected)

    def image(self, item_id: str, frame: int = 0) -> LabeledImage | None:
        """Return one labelled image by its id, or None when the run does not have it or it failed."""
        unit = self.unit(item_id, frame)
        return None if unit is None else next(image for image in self.unit_images(unit) if image.frame == frame)

    def unit_images(self, unit: Unit) -> Iterator[LabeledImage]:
        """Return the labelled frames of one unit; a photo has one."""
        return self._images(unit, corrected=True)

    def frames(self, unit: Unit) -> Iterator[SeenFrame]:
        """Yield the frames of one unit with all that was seen in them; a photo has one."""
        keys = [prompt.key for prompt in self.prompts]
        corrections, verdicts = self.corrections(unit.item.id), self.counting_verdicts(unit.item.id)
        for (frame, candidates), row in zip(self._by_frame(unit), self.presence(unit).tolist(), strict=True):
            presence = {key: value for key, value in zip(keys, row, strict=True) if value == value}
            decisions = decide(candidates, self.concepts, verdicts.get(frame, ()))
            image = self._image(unit, frame, decisions, corrections)
            yield SeenFrame(candidates, decisions, presence, image)

    def candidates(self, unit: Unit) -> tuple[Candidate, ...]:
        """Return everything over the floor in all frames of a unit, for the prompts of the list."""
        asked = {prompt.key for prompt in self.prompts} - self._superseded(unit)
        return tuple(c for c in self._store.candidates(unit) if c.prompt in asked)

    def presence(self, unit: Unit) -> npt.NDArray[np.float32]:
        """Return float32 [F, P] in the order of `prompts`; NaN where a prompt was not asked."""
        known = self._store.presence(unit)
        values = np.full((len(known), len(self.prompts)), np.nan, np.float32)
        superseded = self._superseded(unit)
        for column, (prompt, place) in enumerate(zip(self.prompts, self._columns, strict=True)):
            if place >= 0 and prompt.key not in superseded:
                values[:, column] = known[:, place]
        return values

    def _superseded(self, unit: Unit) -> frozenset[str]:
        """Return phrases that the unit was asked before its class had exemplars for it."""
        if not any(prompt.class_name for prompt in self.prompts):
            return frozenset()
        presence = self._store.presence(unit)
        answered = np.flatnonzero(~np.isnan(presence).all(axis=0))
        return self._wanted.superseded({self._store.prompts[i].key for i in answered})

    def _corrected_ids(self) -> set[str]:
        return self._store.corrected_ids()

    def _images(self, unit: Unit, corrected: bool) -> Iterator[LabeledImage]:
        corrections = self.corrections(unit.item.id) if corrected else []
        verdicts = self.counting_verdicts(unit.item.id)
        for frame, candidates in self._by_frame(unit):
            decisions = decide(candidates, self.concepts, verdicts.get(frame, ()))
            yield self._image(unit, frame, decisions, corrections)

    def _by_frame(self, unit: Unit) -> Iterator[tuple[int, tuple[Candidate, ...]]]:
        frames: dict[int, list[Candidate]] = {}
        for candidate in self.candidates(unit):
            frames.setdefault(candidate.frame, []).append(candidate)
        return ((frame, tuple(frames.get(frame, ()))) for frame in range(unit.frame_start, unit.frame_stop))

    def _image(
        self, unit: Unit, frame: int, decisions: Sequence[Decision], corrections: Sequence[Correction]
    ) -> LabeledImage:
        assert unit.size_hw is not None  # a labelled unit has a size
        labels, reviewed = tuple(d.label for d in decisions if d.outcome == "label"), False
        if own := [c for c in corrections if c.frame == frame]:
            labels, reviewed = apply_corrections(labels, decisions, own, self.concepts.names)
        return LabeledImage(unit.item, unit.size_hw, labels, reviewed, frame)

    # ---- what a verifier said

    @property
    def verifiers(self) -> dict[VerdictUse, str]:
        """The verifiers whose verdicts count where the list lets them, by what each of them was trusted with last."""
        if self._verifiers is None:
            noted = self.note(TRUSTED_VERIFIERS) or {}
            self._verifiers = {use: str(noted[use]) for use in USES if noted.get(use)}
        return self._verifiers

    def rely_on(self, uses: Mapping[VerdictUse, str | None]) -> None:
        """Let a verifier's verdicts of these uses count from now on; with None nobody's."""
        self._verifiers = {use: name for use in USES if (name := {**self.verifiers, **uses}.get(use))}
        self.keep_note(TRUSTED_VERIFIERS, self._verifiers)

    @property
    def last_verifier(self) -> str | None:
        """The verifier that was asked last, trusted or not."""
        if self._last_verifier is None:
            name = self.note(LAST_VERIFIER)
            self._last_verifier = name if isinstance(name, str) else ""
        return self._last_verifier or None

    def verdicts(self, verifier: str, item_id: str | None = None) -> Iterator[Verdict]:
        """Yield what one verifier said, of one item or of all."""
        return self._store.verdicts(verifier, item_id)

    def transcripts(self, item_id: str | None = None) -> Iterator[Transcript]:
        """Yield what agents and their tools said to each other, about one photo or all."""
        return self._store.transcripts(item_id)

    def record_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Keep verdicts, all or none. What the model saw and what people said is never touched."""
        self._store.add_verdicts(verdicts)

    @property
    def heeds_verdicts(self) -> bool:
        """Whether verdicts count: the list lets them, and a verifier is trusted."""
        return self._heeds_verdicts and bool(self.verifiers)

    @property
    def heeded(self) -> str:
        """Say whose verdicts count on what, for notes."""
        return "Verdicts count: " + ", ".join(f"{use} by {name}" for use, name in self.verifiers.items())

    def counting_verdicts(self, item_id: str) -> dict[int, list[Verdict]]:
        """Return the trusted verdicts on an item by frame, if any class of the list lets verdicts count."""
        by_frame: dict[int, list[Verdict]] = {}
        for verifier in dict.fromkeys(self.verifiers.values()) if self._heeds_verdicts else ():
            parts = {part for use, parts in USES.items() if self.verifiers.get(use) == verifier for part in parts}
            for verdict in self._store.verdicts(verifier, item_id):
                if verdict.part in parts:
                    by_frame.setdefault(verdict.frame, []).append(verdict)
        return by_frame

    def count_objects(self) -> dict[str, tuple[int, int]]:
        """Return (objects, images with at least one) per class name, in id order."""
        objects, images = Counter[int](), Counter[int]()
        for image in self.images():
            found = [label.class_id for label in image.labels]
            objects.update(found)
            images.update(set(found))
        return {c.name: (objects[c.id], images[c.id]) for c in self.concepts.concepts}

    # ---- what people said, and what others keep in a run

    def corrections(self, item_id: str | None = None) -> list[Correction]:
        """Return what people decided, oldest first: of one item, or of all."""
        return self._store.corrections(item_id)

    def record(self, corrections: Sequence[Correction], notes: Mapping[str, Any] | None = None) -> None:
        """Append corrections, all or none, and with them notes by key. What the model saw is never touched."""
        self._store.add_corrections(corrections, notes)

    def note(self, key: str) -> Any:
        """Return a JSON value that was kept in the run, or None."""
        return self._store.meta(key)

    def keep_note(self, key: str, value: Any) -> None:
        """Keep a JSON value in the run."""
        self._store.set_meta(key, value)


def tiled_phrases(concepts: ConceptList) -> set[str]:
    """Return the phrases that are asked in tiles."""
    return {phrase for concept in concepts.concepts if concept.tile for phrase in concept.prompts}


def _change(item: MediaItem, stamp: Stamp | None) -> str | None:
    if storage.is_remote(item.path) and not item.version:
        return "gone since it was labelled"
    try:
        if storage.is_remote(item.path) and stamp is None:
            return None
        if stamp is None:
            return None if Path(item.path).exists() else "gone since it was labelled"
        return None if is_unchanged(item, stamp) else "replaced since it was labelled"
    except OSError:
        return "gone since it was labelled"


def open_run(
    folder: str | Path | Sequence[str | Path], concepts: ConceptList | None = None, photos: str | Path | None = None
) -> Run:
    """Open a run for reading, or several as one, with the concept list it was made with or another over its phrases.

    `photos` is where the photos are now, if not where they were labelled. Raises `StoreError` when there is no run,
    or several were made with different settings or hold the same photos; `ConfigError` when `concepts` asks for
    phrases the run never put, `InputError` when `photos` holds others.
    """
    folders = [folder] if isinstance(folder, str | Path) else folder
    if len(folders) == 1:
        return Run.open(folders[0], concepts, photos)
    from sam3label.run.joined import JoinedRun  # which is a Run

    return JoinedRun.join(folders, concepts, photos)


def _absolute(photos: str | Path) -> str:
    return str(photos) if storage.is_remote(photos) else str(Path(photos).absolute())


def _own_concepts(store: Store) -> ConceptList:
    own = store.meta("concepts")
    if not isinstance(own, str):
        raise DamagedStoreError(store.folder, "its concept list is missing")
    try:
        return parse_concepts(own, "its own concept list")
    except ConfigError as error:
        raise DamagedStoreError(store.folder, str(error).partition("\n")[0]) from error


def refuse_below_floor(concepts: ConceptList, floor: float) -> None:
    """Raise `ConfigError` where a class wants scores that a run with this floor does not keep."""
    wanted = [(c.name, conf) for c in concepts.concepts for conf in (c.conf, c.verify.missing_conf) if conf is not None]
    low = [f"{name} ({conf:g})" for name, conf in wanted if conf < floor]
    if low:
        raise ConfigError(
            f"the run keeps candidates with a score of at least {floor:g}, and these classes have a lower conf: "
            f"{', '.join(low[:5])}. Raise their conf, or make a run with a lower --floor."
        )


def _refuse_unasked(concepts: ConceptList, store: Store) -> None:
    asked = {p.key for p in store.prompts}
    missing = [repr(p) for p in concepts.phrases if p not in asked]
    missing += [f"exemplars of {c.name!r}" for c in concepts.concepts if c.exemplars and c.name not in store.guides]
    if missing:
        raise ConfigError(
            f"the concept list asks for {', '.join(missing[:5])}, which this run never put to the model. "
            f"Ask for it now, and for nothing else: sam3label run PHOTOS -c LIST -o {store.folder}"
        )

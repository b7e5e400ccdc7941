"""The job of the agent: photos in, what it selected out as candidates of the classes that ask for it.

A conversation is a thread that waits for the server most of its time, and there are many. One of them at a time uses
SAM 3, and each photo is encoded once for all that is asked about it. What was decided is committed photo by photo with
its transcript; a photo without a decision is asked again by the same command.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import (
    Candidate,
    Concept,
    ConceptList,
    Frame,
    MediaItem,
    Prompt,
    Transcript,
    UnitResult,
    candidate_id,
    exemplar_key,
)
from sam3label.core.text import count
from sam3label.errors import ConfigError, ServerError, StoreError, UndecodableError
from sam3label.labelling.job import Standing, extent_of, find_media
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.media.image import read_photo
from sam3label.media.memory import megapixels_that_fit
from sam3label.run.asked import Wanted
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE
from sam3label.verify import agent
from sam3label.verify.server import SPENT, Server, ServerOptions, Spent

if TYPE_CHECKING:
    from sam3label.model.detector import Detector
    from sam3label.model.head import ImageState

FLOOR = 0.3  # of a mask's score: what the agent is shown


@dataclass(frozen=True, slots=True)
class Asking:
    """What a session came to. `failures` are (item id, why) of photos without a decision, which are asked again."""

    photos: int = 0  # that were asked about in this session
    before: int = 0  # that earlier ones had decided
    selected: int = 0  # objects
    failures: tuple[tuple[str, str], ...] = ()
    spent: Spent | None = None
    is_spent: bool = False
    interrupted: bool = False


def ask_photos(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    out: str | Path,
    server: ServerOptions,
    options: LabelOptions,
    max_turns: int = agent.MAX_TURNS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Asking:
    """Have an agent find what the `ask:` classes of a list ask for, into the run folder `out`, continuing it.

    Photos only. Raises a `Sam3LabelError` for a bad list, checkpoint, store or server; what was decided is kept.
    """
    refuse_unfit(out)
    asking = ConceptList(tuple(c for c in concepts.concepts if c.ask is not None))
    if not asking.concepts:
        raise ConfigError('no class asks the agent: give one of the list ask: "person without a helmet"')
    found = find_media(sources, options)
    photos = [item for item in found.items if item.kind == "image"]
    videos = len(found.items) - len(photos)
    guides = {c.name: digest_of(c, server.model) for c in asking.concepts}
    wanted = Wanted.of(asking, guides)
    with ExitStack() as held:
        goes_on = not options.fresh and (Path(out) / DATABASE).exists()
        known = held.enter_context(Store.resume(out)) if goes_on else None
        before = Standing.of(known, asking, wanted, photos, options, lambda _: None)
        pending = before.pending(photos, None)[: options.limit]
        if not pending:
            return Asking(before=len(photos))
        others = f" Not asked about: {count(videos, 'video')} (only photos are)." if videos else ""
        on_message(f"{count(len(pending), 'photo')} of {len(photos):,} to ask about.{others}")
        detector = _loaded(options, on_message)
        made = detector.describe()
        if known is not None:
            _refuse_other(known, made)
        on_message(f"Photos are sent to {server.address}, and nowhere else.")
        notes = _notes(known, concepts, guides, sources, options, made | {"queries": detector.queries})
        fingerprint = {"floor": options.floor, "video": options.video_settings, "tracker": options.tracker_settings}
        store = known or held.enter_context(
            Store.writer(out, wanted.prompts, {**fingerprint, **made}, notes=notes, fresh=options.fresh)
        )
        store.begin(wanted.prompts, notes)
        before.note(store, extent_of(store, photos, 0))
        client = held.enter_context(Server(server))
        job = _Job(asking, client, detector, max_turns)
        made_of = job.work(store, pending, on_progress, (stop or threading.Event()).is_set)
        return replace(made_of, before=len(photos) - len(pending))


def digest_of(concept: Concept, model: str) -> str:
    """Return what tells a question to one agent from another, or from the same one asked in another way."""
    how = f"{concept.ask}\0{model}\0{agent.INSTRUCTIONS}\0{json.dumps(agent.TOOLS)}\0{FLOOR}"
    return f"agent {model}@{hashlib.blake2b(how.encode(), digest_size=4).hexdigest()}"


def with_question(own: ConceptList, asked: str) -> ConceptList:
    """Return the list with a class that asks the agent, named as it is asked; as it is where it has that already."""
    if any(c.ask == asked for c in own.concepts):
        return own
    return replace(own, concepts=(*own.concepts, Concept(len(own.concepts), asked, (), ask=asked)))


def _loaded(options: LabelOptions, say: Callable[[str], None]) -> Detector:
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector

    say(f"loading the model {options.model} ...")
    return Detector.load(
        resolve(options.model, options.revision), device=options.device, dtype=options.dtype, single=True
    )


def _refuse_other(known: Store, made: dict[str, Any]) -> None:
    """Raise StoreError where the run's masks are of another model: one class must not be finer than another."""
    stored = known.meta("fingerprint") or {}
    fields = [name for name in made if stored.get(name) != made[name]]
    if fields:
        changes = "\n".join(f"  {name}: was {stored.get(name)}, now {made[name]}" for name in fields)
        raise StoreError(f"{known.folder} was labelled with another model:\n{changes}\nGive its own, or another -o.")


def _notes(
    known: Store | None,
    concepts: ConceptList,
    guides: dict[str, str],
    sources: Sequence[str | Path],
    options: LabelOptions,
    made: dict[str, Any],
) -> dict[str, Any]:
    before = {} if known is None else known.meta("info") or {}
    info = {
        "model": options.model,
        **made,
        "version": version("sam3label"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": [str(source) for source in sources],
        **before,
        "concept_file": concepts.path,
    }
    settings = {} if known is not None else {"settings": options.settings}
    kept = {} if known is None else known.guides
    return {"info": info, "concepts": dump_concepts(concepts), "exemplars": {**kept, **guides}, **settings}


# ---- conversations


@dataclass(frozen=True, slots=True)
class _Decided:
    """What came of one photo; `result` is None where the budget was spent first."""

    item: MediaItem
    result: UnitResult | None
    transcripts: tuple[Transcript, ...] = ()
    failures: tuple[str, ...] = ()


class _Job:
    """Asks about photos, several at once."""

    def __init__(self, asking: ConceptList, server: Server, detector: Detector, max_turns: int) -> None:
        self._asking, self._server, self._detector = asking, server, detector
        self._max_turns = max_turns
        self._limit = megapixels_that_fit(server.options.in_flight + 1)
        self._lock = threading.Lock()  # of the model

    def work(
        self,
        store: Store,
        pending: Sequence[MediaItem],
        on_progress: Callable[[int, int], None],
        stopped: Callable[[], bool],
    ) -> Asking:
        """Ask about photos and commit each. Raises ServerError once those under way are over."""
        photos, selected, failures = 0, 0, list[tuple[str, str]]()
        on_progress(0, len(pending))
        for one in self._each(pending, stopped):
            if one.result is None:
                continue
            store.add_transcripts(one.transcripts)
            store.write([one.result])
            photos += 1
            selected += len(one.result.candidates)
            failures += [(one.item.id, why) for why in one.failures]
            on_progress(photos, len(pending))
        return Asking(
            photos, 0, selected, tuple(failures), self._server.spent, self._server.is_spent, photos < len(pending)
        )

    def _each(self, pending: Sequence[MediaItem], stopped: Callable[[], bool]) -> Iterator[_Decided]:
        source, room = iter(pending), self._server.options.in_flight
        lost: ServerError | None = None
        with ThreadPoolExecutor(room) as pool:
            running: set[Future[_Decided]] = set()
            while True:
                free = 0 if lost or stopped() or self._server.is_spent else room - len(running)
                running |= {pool.submit(self._photo, item) for item in islice(source, free)}
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if isinstance(error, ServerError):
                        lost = error
                    else:
                        yield future.result()
        if lost is not None:
            raise lost

    def _photo(self, item: MediaItem) -> _Decided:
        try:
            photo = read_photo(item.path, self._limit)
        except UndecodableError as error:
            return _Decided(item, UnitResult(item, 0, 1, None, error=str(error)), (), (str(error),))
        frame = Frame(item, 0, photo.pixels, photo.stamp)
        view = _View(frame, self._detector, self._lock)
        presence = np.full((1, len(self._asking.concepts)), np.nan, np.float32)
        found, transcripts, failures = list[Candidate](), list[Transcript](), list[str]()
        for place, concept in enumerate(self._asking.concepts):
            outcome = agent.converse(str(concept.ask), frame.pixels, view.segment, self._server, self._max_turns)
            if outcome.undecided == SPENT:
                return _Decided(item, None)
            transcripts.append(_transcript(item, concept, self._server.options.model, outcome))
            if outcome.undecided is not None:
                failures.append(f"{concept.name}: {outcome.undecided}")
                continue
            presence[0, place] = float(bool(outcome.selected))
            found += [_selected(one, concept, n) for n, one in enumerate(outcome.selected)]
        if len(failures) == len(self._asking.concepts):
            result = UnitResult(item, 0, 1, None, error="; ".join(failures))
        else:
            result = UnitResult(item, 0, 1, frame.size_hw, tuple(found), presence, stamp=frame.stamp)
        return _Decided(item, result, tuple(transcripts), tuple(failures))


class _View:
    """One photo as the agent's tools see it: encoded when the first phrase comes, and once."""

    def __init__(self, frame: Frame, detector: Detector, lock: threading.Lock) -> None:
        self._frame, self._detector, self._lock = frame, detector, lock
        self._known: dict[str, list[Candidate]] = {}

    @cached_property
    def _state(self) -> ImageState:
        return self._detector.encode_frame(self._frame)

    def segment(self, phrase: str) -> list[Candidate]:
        """Return the masks of a phrase, best first."""
        if phrase not in self._known:
            with self._lock:
                found = self._detector.detect_in(self._frame, self._state, [Prompt(phrase, phrase)], FLOOR)
            self._known[phrase] = sorted(found.candidates, key=lambda one: (-one.score, one.id))
        return self._known[phrase]


def _selected(one: Candidate, concept: Concept, number: int) -> Candidate:
    key = exemplar_key(concept.name)
    return replace(one, id=candidate_id(one.item_id, 0, key, number), prompt=key, source="agent")


def _transcript(item: MediaItem, concept: Concept, model: str, outcome: agent.Outcome) -> Transcript:
    came_of = outcome.undecided or f"{count(len(outcome.selected), 'mask')} selected"
    turns = tuple((turn.said, turn.told) for turn in outcome.turns)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Transcript(item.id, concept.name, digest_of(concept, model), turns, came_of, at)

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
from sam3label.errors import ServerError, UndecodableError
from sam3label.labelling.agent_job import AgentJob, agent_job
from sam3label.labelling.options import LabelOptions
from sam3label.media.image import read_photo
from sam3label.media.memory import megapixels_that_fit
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
    digests = {c.name: digest_of(c, server.model) for c in concepts.concepts if c.ask is not None}
    with agent_job(sources, concepts, digests, out, options, on_message) as job:
        if isinstance(job, int):
            return Asking(before=job)
        on_message(f"Photos are sent to {server.address}, and nowhere else.")
        with Server(server) as client:
            return _Conversations(job, client, max_turns).work(on_progress, (stop or threading.Event()).is_set)


def digest_of(concept: Concept, model: str) -> str:
    """Return what tells a question to one agent from another, or from the same one asked in another way."""
    how = f"{concept.ask}\0{model}\0{agent.INSTRUCTIONS}\0{json.dumps(agent.TOOLS)}\0{FLOOR}"
    return f"agent {model}@{hashlib.blake2b(how.encode(), digest_size=4).hexdigest()}"


def with_question(own: ConceptList, asked: str) -> ConceptList:
    """Return the list with a class that asks the agent, named as it is asked; as it is where it has that already."""
    if any(c.ask == asked for c in own.concepts):
        return own
    return replace(own, concepts=(*own.concepts, Concept(len(own.concepts), asked, (), ask=asked)))


# ---- conversations


@dataclass(frozen=True, slots=True)
class _Decided:
    """What came of one photo; `result` is None where the budget was spent first."""

    item: MediaItem
    result: UnitResult | None
    transcripts: tuple[Transcript, ...] = ()
    failures: tuple[str, ...] = ()


class _Conversations:
    """Asks about the photos of a job, several at once."""

    def __init__(self, job: AgentJob, server: Server, max_turns: int) -> None:
        self._job, self._server, self._max_turns = job, server, max_turns
        self._limit = megapixels_that_fit(server.options.in_flight + 1)
        self._lock = threading.Lock()  # of the model

    def work(self, on_progress: Callable[[int, int], None], stopped: Callable[[], bool]) -> Asking:
        """Ask about photos and commit each. Raises ServerError once those under way are over."""
        photos, selected, failures, total = 0, 0, list[tuple[str, str]](), len(self._job.pending)
        on_progress(0, total)
        for one in self._each(stopped):
            if one.result is None:
                continue
            self._job.keep(one.result, one.transcripts)
            photos += 1
            selected += len(one.result.candidates)
            failures += [(one.item.id, why) for why in one.failures]
            on_progress(photos, total)
        spent, is_spent = self._server.spent, self._server.is_spent
        return Asking(photos, self._job.before, selected, tuple(failures), spent, is_spent, photos < total)

    def _each(self, stopped: Callable[[], bool]) -> Iterator[_Decided]:
        source, room = iter(self._job.pending), self._server.options.in_flight
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
        view = _View(frame, self._job.detector, self._lock)
        presence = np.full((1, len(self._job.asking.concepts)), np.nan, np.float32)
        found, transcripts, failures = list[Candidate](), list[Transcript](), list[str]()
        keys = self._job.asked[item.id]
        asked = [(n, one) for n, one in enumerate(self._job.asking.concepts) if exemplar_key(one.name) in keys]
        for place, concept in asked:
            outcome = agent.converse(str(concept.ask), frame.pixels, view.segment, self._server, self._max_turns)
            if outcome.undecided == SPENT:
                return _Decided(item, None)
            transcripts.append(_transcript(item, concept, self._server.options.model, outcome))
            if outcome.undecided is not None:
                failures.append(f"{concept.name}: {outcome.undecided}")
                continue
            presence[0, place] = float(bool(outcome.selected))
            found += [_selected(one, concept, n) for n, one in enumerate(outcome.selected)]
        if len(failures) == len(asked):
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

"""The run folder of a job whose photos an agent is asked about: what is still to be asked, and where answers go.

Like `job.label`, it goes on with what is there; the agent itself is in another room and hands over units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.records import ConceptList, MediaItem, Transcript, UnitResult
from sam3label.core.text import count
from sam3label.errors import ConfigError, StoreError
from sam3label.labelling.job import Standing, extent_of, find_media
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.run.asked import Wanted
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE

if TYPE_CHECKING:
    from sam3label.model.detector import Detector


@dataclass(frozen=True, slots=True)
class AgentJob:
    """A job that is under way: `pending` photos are asked about now, with `detector`; `before` were decided earlier.

    `asking` has the classes that ask the agent, in the order of a unit's presence, `asked` the keys of those that a
    photo is still to be asked for, by its id.
    """

    asking: ConceptList
    pending: tuple[MediaItem, ...]
    asked: Mapping[str, frozenset[str]]
    before: int
    detector: Detector
    store: Store

    def keep(self, result: UnitResult, transcripts: Sequence[Transcript]) -> None:
        """Commit what came of one photo, after how it came about."""
        self.store.add_transcripts(transcripts)
        self.store.write([result])


@contextmanager
def agent_job(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    digests: Mapping[str, str],
    out: str | Path,
    options: LabelOptions,
    say: Callable[[str], None],
) -> Iterator[AgentJob | int]:
    """Open the run folder `out` for what an agent is asked; gives how many photos are decided where all of them are.

    `digests` tell, by class, what is asked and of whom: photos that others answered are asked again. Raises a
    `Sam3LabelError` for a bad list, checkpoint or store.
    """
    refuse_unfit(out)
    asking = ConceptList(tuple(concept for concept in concepts.concepts if concept.ask is not None))
    if not asking.concepts:
        raise ConfigError('no class asks the agent: give one of the list ask: "person without a helmet"')
    found = find_media(sources, options)
    photos = [item for item in found.items if item.kind == "image"]
    wanted = Wanted.of(asking, digests)
    known = Store.resume(out) if not options.fresh and (Path(out) / DATABASE).exists() else None
    store = known
    try:
        standing = Standing.of(known, asking, wanted, photos, options, lambda _: None)
        pending = standing.pending(photos, None)[: options.limit]
        if not pending:
            yield len(photos)
            return
        say(_planned(len(pending), len(photos), len(found.items) - len(photos)))
        detector = _loaded(options, say)
        made = detector.describe()
        if known is not None:
            _refuse_other(known, made)
        notes = _notes(known, concepts, digests, sources, options, made | {"queries": detector.queries})
        if store is None:
            how = {"floor": options.floor, "video": options.video_settings, "tracker": options.tracker_settings}
            store = Store.writer(out, wanted.prompts, {**how, **made}, notes=notes, fresh=options.fresh)
        store.begin(wanted.prompts, notes)
        standing.note(store, extent_of(store, photos, 0))
        yield AgentJob(asking, tuple(pending), standing.plan.asked, len(photos) - len(pending), detector, store)
    finally:
        if store is not None:
            store.close()


def _planned(pending: int, photos: int, videos: int) -> str:
    others = f" Not asked about: {count(videos, 'video')} (only photos are)." if videos else ""
    return f"{count(pending, 'photo')} of {photos:,} to ask about.{others}"


def _loaded(options: LabelOptions, say: Callable[[str], None]) -> Detector:
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector

    say(f"loading the model {options.model} ...")
    return Detector.load(
        resolve(options.model, options.revision), device=options.device, dtype=options.dtype, single=True
    )


def _refuse_other(known: Store, made: Mapping[str, Any]) -> None:
    """Raise StoreError where the run's masks are of another model: one class must not be finer than another."""
    stored = known.meta("fingerprint") or {}
    fields = [name for name in made if stored.get(name) != made[name]]
    if fields:
        changes = "\n".join(f"  {name}: was {stored.get(name)}, now {made[name]}" for name in fields)
        raise StoreError(f"{known.folder} was labelled with another model:\n{changes}\nGive its own, or another -o.")


def _notes(
    known: Store | None,
    concepts: ConceptList,
    digests: Mapping[str, str],
    sources: Sequence[str | Path],
    options: LabelOptions,
    made: Mapping[str, Any],
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
    return {"info": info, "concepts": dump_concepts(concepts), "exemplars": {**kept, **digests}, **settings}

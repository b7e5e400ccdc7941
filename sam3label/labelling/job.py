"""The labelling job: the one loop that joins media, model and store.

    loader workers decode -> this thread runs the model -> one writer thread commits, a few times a second

Queues are bounded, so a slow disk slows the job and never fills the memory. What the writer has committed is safe
whatever happens next; what it has not is simply labelled again by the next one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sam3label.concepts import concept_list as concept_lists
from sam3label.concepts.changes import changes
from sam3label.concepts.exemplars import Examples, read_examples
from sam3label.core.records import USUAL_CONF, ConceptList, MediaItem
from sam3label.core.text import count, one_line, verb
from sam3label.errors import ConfigError
from sam3label.labelling.growing import Plan, pace_of, plan
from sam3label.labelling.identity import Comparison, broken, compare
from sam3label.labelling.near_copies import NearCopies, unchanged_copies
from sam3label.labelling.options import DEFAULTS, LabelOptions
from sam3label.labelling.photos import batches_of
from sam3label.labelling.progress import JobTally, Progress, RunSummary
from sam3label.labelling.questions import guides_of
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.labelling.run_log import RunLog, chosen, command_line
from sam3label.labelling.videos import VideoWork, frames_to_label, video_work
from sam3label.labelling.workers.start import Start, started
from sam3label.labelling.workers.work import Assignment, Facts, Work, Workers
from sam3label.labelling.writer import Writer
from sam3label.media import discovery
from sam3label.media.memory import megapixels_that_fit
from sam3label.run.asked import Wanted
from sam3label.run.database import network_of
from sam3label.run.reader import refuse_below_floor
from sam3label.run.store import Store
from sam3label.run.store_errors import DATABASE


def label(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    out: str | Path,
    options: LabelOptions = DEFAULTS,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
    only: Collection[str] | None = None,
    start: Start = started,
) -> RunSummary:
    """Label everything in `sources` into the run folder `out`, continuing what is there.

    `on_progress` is called after every batch, from this thread; `on_message` with what a user should read before the
    first one, where classes have exemplars: what the run takes, and how far the references can be trusted. Setting
    `stop` ends the run after the batch in flight, with everything labelled so far committed. `only` names by their ids
    the images of `sources` that are labelled now, where that is not all of them. `start` brings the model: another one
    than `started` lets jobs share what one of them has loaded. Raises a `Sam3LabelError` for bad input, checkpoint or
    store; a file that cannot be labelled is no error but a failure in the summary.
    """
    refuse_unfit(out)
    refuse_below_floor(concepts, options.floor)
    if all(concept.ask is not None for concept in concepts.concepts):
        raise ConfigError("every class has ask:, and none a phrase: sam3label ask PHOTOS -c LIST -o RUN")
    with RunLog(out) as log:
        log.begin(sources, concepts, options)

        def tell(progress: Progress) -> None:
            log.pace(progress)
            on_progress(progress)

        summary = _label(sources, concepts, out, options, tell, log.also(on_message), stop, only, log, start)
        log.end(summary)
    return summary


def _label(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    out: str | Path,
    options: LabelOptions,
    on_progress: Callable[[Progress], None],
    on_message: Callable[[str], None],
    stop: threading.Event | None,
    only: Collection[str] | None,
    log: RunLog,
    start: Start,
) -> RunSummary:
    found = find_media(sources, options)
    for sentence in (
        *_about_links(found, options),
        *_about_disk(out),
        *_about_agents(concepts),
        *_about_tracking(concepts, found, options),
    ):
        on_message(sentence)
    examples = _examples(concepts, found.items, options)
    wanted = Wanted.of(concepts, guides_of(examples))
    if options.shard is not None:
        found = _in_shard(found, options, on_message)
    with ExitStack() as held:
        known = held.enter_context(Store.resume(out)) if _goes_on(out, options) else None
        before = Standing.of(known, concepts, wanted, found.items, options, on_message)
        if known is not None and before.is_complete and known.meta("settings") == options.settings:
            notes = _notes(known, concepts, options, sources, wanted.guides)
            _begin(known, wanted, notes, options)
            before.note(known, notes | extent_of(known, found.items, 0))
            nothing = JobTally(concepts, 0, before=len(before.done)).snapshot()
            on_progress(nothing)
            return before.summary(known, nothing, found, interrupted=False)
        on_message(f"loading the model {options.model} ...")
        waiting = before.pending(found.items, only)
        pending = waiting[: options.limit]
        workers = held.enter_context(
            start(Assignment(concepts, examples, options), pending[0] if pending else None, on_message)
        )
        fingerprint = _fingerprint(workers.facts, options)
        if workers.facts.note:
            on_message(workers.facts.note)
        for sentence in _about_threshold(concepts, workers.facts):
            on_message(sentence)
        if known is not None:
            known.refuse_other(fingerprint)
        figures = _trust(workers, wanted, examples, pending, known, on_message)
        notes = _notes(known, concepts, options, sources, wanted.guides, workers.facts) | {"trust": figures}
        store = known or held.enter_context(
            Store.writer(out, wanted.prompts, fingerprint, notes=notes, fresh=options.fresh)
        )
        _begin(store, wanted, notes, options)
        log.open()
        lengths = {i.id: frames_to_label(store, wanted, [i], options) for i in waiting if i.kind == "video"}
        to_come = sum(frames for id_, frames in lengths.items() if id_ not in before.done)
        before.note(store, extent_of(store, found.items, to_come))
        videos = [item for item in pending if item.kind == "video"]
        frames = sum(lengths[item.id] for item in videos)
        tally = JobTally(concepts, len(pending), len(videos), frames, len(before.done) - before.reopened)
        on_progress(tally.snapshot())
        asked = {item.id: before.plan.asked[item.id] for item in pending}
        batch_size = options.batch_size or notes["info"]["image_batch"]
        # batches are cut from these, whatever is left of them
        photos = [item for item in found.items if item.kind == "image" and (only is None or item.id in only)]
        with Writer(store) as writer:

            def standing(item: MediaItem) -> VideoWork:
                writer.settle()
                return video_work(store, wanted, item, options)

            copies = None if options.skip_similar is None else NearCopies.of(store, options.skip_similar)
            work = Work(batches_of(photos, asked, batch_size), videos, batch_size, standing, copies)
            for answer in workers.label(work, tally, (stop or threading.Event()).is_set):
                with tally.stage("write"):
                    writer.put(answer.results)
                for result, labels in zip(answer.results, answer.labels, strict=True):
                    tally.count(result, labels)
                on_progress(tally.snapshot())
        progress = tally.snapshot()
        prompts = sum(map(len, asked.values())) / max(1, len(asked))
        if pace := pace_of(progress, prompts):
            store.set_meta("pace", pace)
        return before.summary(store, progress, found, interrupted=progress.finished < len(pending))


def _begin(store: Store, wanted: Wanted, notes: Mapping[str, Any], options: LabelOptions) -> None:
    if names := store.renamings(wanted.guides):
        store.rename_classes(names)
    store.begin(wanted.prompts, notes)
    if options.tracks:
        store.carry_tracked()


def extent_of(store: Store, items: Sequence[MediaItem], frames_to_come: int) -> dict[str, Any]:
    """Return how much the run will hold once all of it is labelled, for those who ask how far it is."""
    kinds = Counter(({i.id: i.kind for i, _ in store.items()} | {i.id: i.kind for i in items}).values())
    frames = frames_to_come
    if kinds["video"]:
        frames += sum(u.frame_stop - u.frame_start for u in store.done_units() if u.item.kind == "video")
    return {"extent": {"images": kinds["image"], "videos": kinds["video"], "frames": frames}}


def _goes_on(out: str | Path, options: LabelOptions) -> bool:
    return not options.fresh and (Path(out) / DATABASE).exists()


def _in_shard(found: discovery.Found, options: LabelOptions, say: Callable[[str], None]) -> discovery.Found:
    """Return what was found without what other shards have. (Exemplars may be of photos of any of them.)"""
    own = [item for item in found.items if options.takes(item.id)]
    say(f"shard {options.shard}: {len(own):,} of {count(len(found.items), 'image or video', 'images and videos')}")
    return replace(found, items=own)


def _about_links(found: discovery.Found, options: LabelOptions) -> Iterator[str]:
    if found.links_out:
        done = "followed; --no-follow-links leaves them out" if options.follow_links else "left out"
        yield f"{count(len(found.links_out), 'link')} out of the folders, {done}: {one_line(found.links_out[0])}" + (
            ", ..." if len(found.links_out) > 1 else ""
        )


def _about_agents(concepts: ConceptList) -> Iterator[str]:
    if names := [concept.name for concept in concepts.concepts if concept.ask is not None]:
        yield f"{', '.join(map(one_line, names))}: not found by a phrase, but by sam3label ask with the same list."


def _about_threshold(concepts: ConceptList, facts: Facts) -> Iterator[str]:
    usual = [concept.name for concept in concepts.concepts if concept.conf == USUAL_CONF and concept.ask is None]
    theirs = facts.thresholds.get("detection", USUAL_CONF)
    if usual and theirs != USUAL_CONF:
        yield (
            f"{count(len(usual), 'class', 'classes')} with conf {USUAL_CONF:g}, SAM 3's threshold: the authors of this "
            f"checkpoint use {theirs:g}, which --set defaults.conf={theirs:g} sets."
        )


def _about_tracking(concepts: ConceptList, found: discovery.Found, options: LabelOptions) -> Iterator[str]:
    keys = {"tile": any(c.tile for c in concepts.concepts), "refine": any(c.refine for c in concepts.concepts)}
    chosen = [f"{key}:" for key, is_on in keys.items() if is_on]
    videos = sum(item.kind == "video" for item in found.items) if options.tracks else 0
    if chosen and videos:
        does, is_ = verb(len(chosen), "does", "do"), verb(videos, "is", "are")
        yield (
            f"{' and '.join(chosen)} {does} nothing in {count(videos, 'video')}, which {is_} tracked: only photos and "
            "sampled frames (--video frames) have tiles and are refined."
        )


def _about_disk(out: str | Path) -> Iterator[str]:
    if kind := network_of(Path(out)):
        yield (
            f"{out} is on a network file system ({kind}), where SQLite's write-ahead log is not safe: the run keeps a "
            "rollback journal, which is slower. A local disk is better (-o)."
        )


def _examples(concepts: ConceptList, items: Sequence[MediaItem], options: LabelOptions) -> Sequence[Examples]:
    examples = read_examples(concepts, items, options.max_megapixels)
    videos = [item for item in items if item.kind == "video"] if not options.tracks else []
    if any(one.gives_objects and one.has_boxes_in(item) for one in examples for item in videos):
        raise ConfigError(
            "objects that are given in frames of videos are followed from there: --video track does that."
        )
    referring = any(one.references for one in examples)
    if referring and options.tracks and any(item.kind == "video" for item in items):
        raise ConfigError(
            "reference images are for photos and sampled frames, and there are videos to track: --video frames samples "
            "them, --video off leaves them out, and labels: with boxes on a frame of a video are for tracking too."
        )
    return examples


def _fingerprint(facts: Facts, options: LabelOptions) -> dict[str, Any]:
    """Return all that changes the numbers, by name."""
    return {
        "floor": options.floor,
        "video": options.video_settings,
        "tracker": options.tracker_settings,
        **options.shard_settings,
        **facts.numbers,
    }


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands before a job: how its files compare with those found, and what is to be asked."""

    content: Comparison
    plan: Plan
    done: frozenset[str]  # ids of what was labelled before
    broken: frozenset[str]  # ids of what failed before and is left alone, being as it was

    @classmethod
    def of(
        cls,
        known: Store | None,
        concepts: ConceptList,
        wanted: Wanted,
        items: Sequence[MediaItem],
        options: LabelOptions,
        say: Callable[[str], None],
    ) -> Standing:
        """Look at a run, and say what changed and what is to be done. Raises `InputError` for foreign files."""
        if known is None:
            everything = frozenset(prompt.key for prompt in wanted.prompts)
            return cls(
                Comparison(), Plan(dict.fromkeys((i.id for i in items), everything), {}, 0), frozenset(), frozenset()
            )
        content = compare(known, items)
        again = options.retry_failed or any(prompt.class_name for prompt in wanted.prompts)  # exemplars may be why
        spared = frozenset[str]() if again else broken(known, items, _largest(options))
        copies = unchanged_copies(known, items, options.skip_similar)
        renamed = known.renamings(wanted.guides)
        replaced = {item.id for item in content.replaced}
        todo = plan(known, wanted, items, replaced, spared, copies, tracks=options.tracks, renamed=renamed)
        own = known.meta("concepts")
        changed = [] if own is None else changes(concept_lists.parse_concepts(own, f"{known.folder}"), concepts)
        for line in (*content.sentences(), *changed, *todo.sentences(len(wanted.prompts), known.meta("pace") or {})):
            say(line)
        if changed and not todo.asked:
            say("Nothing new is asked: what was seen is decided anew.")
        done = frozenset(known.done_ids()) - {item.id for item in content.replaced}
        return cls(content, todo, done, spared)

    def pending(self, items: Sequence[MediaItem], only: Collection[str] | None) -> list[MediaItem]:
        """Return what is labelled now, in order."""
        return [i for i in items if i.id in self.plan.asked and (only is None or i.id in only)]

    @property
    def reopened(self) -> int:
        """How many items that were done are to be asked more."""
        return sum(id_ in self.plan.asked for id_ in self.done)

    @property
    def is_complete(self) -> bool:
        return not self.plan.asked

    def note(self, store: Store, notes: Mapping[str, Any]) -> None:
        """Write down what was found to have moved or to have been replaced, and JSON values by key."""
        store.relocate(self.content.moved)
        store.forget(self.content.replaced)
        store.set_notes(notes)

    def summary(self, store: Store, progress: Progress, found: discovery.Found, *, interrupted: bool) -> RunSummary:
        """Return what the session came to."""
        here = {item.id for item in found.items}
        return RunSummary(
            progress=progress,
            found=len(found.items),
            already_done=sum(id_ in here and id_ not in self.plan.asked for id_ in self.done),
            missing=tuple(sorted(self.done - here)),
            skipped_videos=found.videos_skipped,
            failures=tuple((u.item.id, u.error or u.trouble or "") for u in store.units() if u.error or u.trouble),
            interrupted=interrupted,
            not_tried=len(self.broken),
        )


def _largest(options: LabelOptions) -> float:
    """Return how many megapixels a photo may have that is tried again alone."""
    if options.max_megapixels is not None:
        return options.max_megapixels
    return megapixels_that_fit((1 if options.workers is None else options.workers) + 1)


def find_media(sources: Sequence[str | Path], options: LabelOptions) -> discovery.Found:
    """Return what a job with these options labels. Numbered photos are a video only for those who ask for videos."""
    return discovery.find_media(
        sources, options.video != "off", numbered_folders=options.video != "auto", links=options.follow_links
    )


def _trust(
    workers: Workers,
    wanted: Wanted,
    examples: Sequence[Examples],
    pending: Sequence[MediaItem],
    known: Store | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Say what the exemplars cost and are worth, before the run folder is touched. Returns the figures by class."""
    if not examples:
        return {}
    figures = {} if known is None else known.meta("trust") or {}
    same = {name for name, digest in wanted.guides.items() if known and known.guides.get(name) == digest}
    for note in (note for one in examples for note in one.notes):
        say(note)
    photos = sum(item.kind == "image" for item in pending)
    return workers.check_references(photos, {name: figures[name] for name in figures.keys() & same}, say)


def _agents_guides(known: Store | None, concepts: ConceptList) -> dict[str, str]:
    """Return what the run keeps of classes that an agent answers: `sam3label ask` goes on with them."""
    guides = {} if known is None else known.guides
    return {c.name: guides[c.name] for c in concepts.concepts if c.ask is not None and c.name in guides}


def _notes(
    known: Store | None,
    concepts: ConceptList,
    options: LabelOptions,
    sources: Sequence[str | Path],
    guides: Mapping[str, str],
    facts: Facts | None = None,
) -> dict[str, Any]:
    """Return what the run was made with, for later readers. Thresholds may change from session to session."""
    before = {} if known is None else known.meta("info") or {}
    made: dict[str, Any] = {}
    if facts is not None:  # `queries`: answers that one phrase can have in one image
        made = {**facts.numbers, "queries": facts.queries, "device": facts.device}
        if facts.thresholds:
            made["authors_thresholds"] = dict(facts.thresholds)
        made["image_batch"] = before.get("image_batch", facts.image_batch)  # a run is cut in the same way to its end
    info = {
        **before,
        "model": options.model,
        **made,
        "version": version("sam3label"),
        "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
        "sources": [str(s) for s in sources],
        **options.shard_settings,
        "command": command_line(),
        "options": chosen(options),
        "concept_file": concepts.path,
    }
    return {
        "info": info,
        "concepts": concept_lists.dump_concepts(concepts),
        "exemplars": {**_agents_guides(known, concepts), **guides},
        "settings": options.settings,
    }

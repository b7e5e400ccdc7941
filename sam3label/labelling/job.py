"""The labelling job: the one loop that joins media, model and store.

    loader workers decode -> this thread runs the model -> one writer thread commits, a few times a second

Queues are bounded, so a slow disk slows the job and never fills the memory. What the writer has committed is safe
whatever happens next; what it has not is simply labelled again by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts import concept_list as concept_lists
from sam3label.concepts.exemplars import read_examples
from sam3label.core.records import ConceptList, MediaItem, UnitResult
from sam3label.errors import ConfigError
from sam3label.labelling import reference_check
from sam3label.labelling.options import DEFAULTS, LabelOptions
from sam3label.labelling.photos import label_photos
from sam3label.labelling.progress import JobTally, Progress, RunSummary
from sam3label.labelling.questions import Guide
from sam3label.labelling.run_folder import refuse_unfit
from sam3label.labelling.videos import frames_to_label, label_videos
from sam3label.labelling.writer import Writer
from sam3label.media import discovery
from sam3label.run.reader import refuse_below_floor
from sam3label.run.store import DATABASE, Store

if TYPE_CHECKING:
    from sam3label.model.checkpoint import Checkpoint
    from sam3label.model.detector import Detector


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
) -> RunSummary:
    """Label everything in `sources` into the run folder `out`, continuing what is there.

    `on_progress` is called after every batch, from this thread; `on_message` with what a user should read before the
    first one, where classes have exemplars: what the run takes, and how far the references can be trusted. Setting
    `stop` ends the run after the batch in flight, with everything labelled so far committed. `only` names by their ids
    the images of `sources` that are labelled now, where that is not all of them. Raises a `Sam3LabelError`
    for bad input, checkpoint or store; a file that cannot be labelled is no error but a failure in the summary.
    """
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector

    refuse_unfit(out)
    refuse_below_floor(concepts, options.floor)
    found = find_media(sources, options)
    examples = read_examples(concepts, found.items)
    if examples and options.tracks and any(item.kind == "video" for item in found.items):
        raise ConfigError(
            "exemplars are for photos and sampled frames, and there are videos to track: "
            "--video frames samples them, --video off leaves them out."
        )
    checkpoint = resolve(options.model, options.revision)
    on_message(f"loading the model {options.model} ...")
    detector = Detector.load(
        checkpoint,
        device=options.device,
        dtype=options.dtype,
        prompt_style=options.prompt_style,
        vram_gb=options.vram_gb,
        compiled=options.compiled,
    )
    fingerprint = {
        "phrases": sorted(concepts.phrases),
        "floor": options.floor,
        "video": options.video_settings,
        "tracker": options.tracker_settings,
        **detector.describe(),
    }
    guide = Guide(detector, concepts, examples)
    fingerprint |= guide.fingerprint()
    figures = _trust(guide, found.items, out, fingerprint, options, on_message, only) if examples else {}
    with Store.writer(out, guide.prompts, fingerprint, fresh=options.fresh) as store:
        _describe(store, concepts, options, sources, detector)
        store.set_meta("trust", figures)
        done = store.done_ids()
        pending = _pending(found.items, done, only, options)
        videos = [item for item in pending if item.kind == "video"]
        tally = JobTally(concepts, len(pending), len(videos), frames_to_label(store, videos, options), len(done))
        on_progress(tally.snapshot())
        work = _units(store, guide, checkpoint, pending, options, tally, (stop or threading.Event()).is_set)
        if pending:
            detector.encode_phrases(concepts.phrases)
        with Writer(store) as writer:
            for results in work:
                with tally.stage("write"):
                    writer.put(results)
                tally.count(results)
                on_progress(tally.snapshot())
        progress = tally.snapshot()
        return RunSummary(
            progress=progress,
            found=len(found.items),
            already_done=len(done),
            missing=tuple(sorted(done - {item.id for item in found.items})),
            skipped_videos=found.videos_skipped,
            failures=tuple((u.item.id, u.error) for u in store.units() if u.error is not None),
            interrupted=progress.done + progress.failed < len(pending),
        )


def find_media(sources: Sequence[str | Path], options: LabelOptions) -> discovery.Found:
    """What a job with these options labels. Numbered photos are a video only for those who ask for videos."""
    return discovery.find_media(sources, options.video != "off", numbered_folders=options.video != "auto")


def _pending(
    items: Sequence[MediaItem], done: Collection[str], only: Collection[str] | None, options: LabelOptions
) -> list[MediaItem]:
    """What is labelled now, in order."""
    return [i for i in items if i.id not in done and (only is None or i.id in only)][: options.limit]


def _trust(
    guide: Guide,
    items: Sequence[MediaItem],
    out: str | Path,
    fingerprint: Mapping[str, Any],
    options: LabelOptions,
    say: Callable[[str], None],
    only: Collection[str] | None,
) -> dict[str, Any]:
    """Say what the exemplars cost and are worth, before the run folder is touched. Returns the figures by class."""
    done, known = set[str](), dict[str, Any]()
    if not options.fresh and (Path(out) / DATABASE).is_file():
        with Store.open(out) as store:
            store.refuse_other(fingerprint)
            done, known = store.done_ids(), store.meta("trust") or {}
    pending = _pending(items, done, only, options)
    for note in (note for examples in guide.examples for note in examples.notes):
        say(note)
    say(reference_check.plan(guide, sum(item.kind == "image" for item in pending), known))
    return reference_check.check(guide, options.floor, options.accept_exemplars, known, say)


def _describe(
    store: Store, concepts: ConceptList, options: LabelOptions, sources: Sequence[str | Path], detector: Detector
) -> None:
    """What the run was made with, for everyone who reads it later. Thresholds may change from session to session."""
    before = store.meta("info") or {}
    info: dict[str, Any] = {
        "model": options.model,
        **detector.describe(),
        "queries": detector.queries,  # answers that one phrase can have in one image
        "device": str(detector.device),
        "version": version("sam3label"),
        "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
        "sources": [str(s) for s in sources],
    }
    store.set_meta("info", info)
    store.set_meta("concepts", concept_lists.dump_concepts(concepts))


def _units(
    store: Store,
    guide: Guide,
    checkpoint: Checkpoint,
    pending: Sequence[MediaItem],
    options: LabelOptions,
    tally: JobTally,
    stopped: Callable[[], bool],
) -> Iterator[list[UnitResult]]:
    """Photos first, then one video after the other; what tracks is loaded before the photos, not hours later."""
    photos = [item for item in pending if item.kind == "image"]
    videos = [item for item in pending if item.kind == "video"]
    units_of_videos = label_videos(store, guide, checkpoint, videos, options, tally, stopped)
    return chain(label_photos(guide, photos, options, tally, stopped), units_of_videos)

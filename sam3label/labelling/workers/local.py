"""The worker that is this process: one model on one device, photos decoded ahead by processes of the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from sam3label.core.records import UnitResult
from sam3label.labelling import reference_check
from sam3label.labelling.photos import label_photos
from sam3label.labelling.progress import JobTally, labels_in
from sam3label.labelling.questions import Guide
from sam3label.labelling.videos import label_videos, load_tracker
from sam3label.labelling.workers.work import Answered, Assignment, Facts, Say, Work

if TYPE_CHECKING:
    from sam3label.model.checkpoint import Checkpoint
    from sam3label.model.detector import Detector


class LocalWorker:
    """The model in this process."""

    def __init__(self, assignment: Assignment) -> None:
        """Load the model. Raises CheckpointError, ConfigError."""
        from sam3label.model.checkpoint import resolve
        from sam3label.model.device import processor_of

        self._assignment = assignment
        self._checkpoint = resolve(assignment.options.model, assignment.options.revision, assignment.options.image_size)
        self._guide = load_guide(self._checkpoint, assignment)
        self._processor = processor_of(self._guide.detector.device)
        self.facts = facts_of(self._guide.detector)

    def assign(self, assignment: Assignment) -> None:
        """Give the model that is loaded other concepts to look for; the options must be the same."""
        self._assignment = assignment
        self._guide = Guide(self._guide.detector, assignment.concepts, assignment.examples, self._guide.clicker)

    def check_references(self, n_images: int, known: Mapping[str, Any], say: Say) -> dict[str, Any]:
        """See `Workers`."""
        options = self._assignment.options
        say(reference_check.plan(self._guide, n_images, known))
        return reference_check.check(self._guide, options.floor, options.accept_exemplars, known, say)

    def label(self, work: Work, tally: JobTally, stopped: Callable[[], bool]) -> Iterator[Answered]:
        """See `Workers`. Photos come first, then one video after the other."""
        if work.is_empty:
            return
        guide, options = self._guide, replace(self._assignment.options, batch_size=work.batch_size)
        guide.detector.encode_phrases(guide.concepts.phrases)
        tracker = load_tracker(self._checkpoint, guide, options) if work.videos else None  # not hours later
        photos = label_photos(guide, work.batches, options, tally, stopped, work.copies)
        videos = label_videos(guide, tracker, map(work.standing, work.videos), options, tally, stopped, work.copies)
        for results in chain(photos, videos):
            yield self._answer(results)

    def _answer(self, results: Sequence[UnitResult]) -> Answered:
        made = [replace(result, processor=self._processor) for result in results]
        return Answered(made, [labels_in(result, self._assignment.concepts) for result in made])


def load_guide(checkpoint: Checkpoint, assignment: Assignment) -> Guide:
    """Load the detector, and return it with what it is to be asked. Raises CheckpointError, ConfigError."""
    from sam3label.model.detector import Detector

    options = assignment.options
    detector = Detector.load(
        checkpoint,
        device=options.device,
        dtype=options.dtype,
        prompt_style=options.prompt_style,
        vram_gb=options.vram,
        compiled=options.compile,
    )
    clicker = None
    given = any(one.gives_objects for one in assignment.examples)
    if given or any(concept.refine for concept in assignment.concepts.concepts):
        from sam3label.model.interactive import Clicker

        clicker = Clicker.load(checkpoint, detector)
    return Guide(detector, assignment.concepts, assignment.examples, clicker)


def facts_of(detector: Detector) -> Facts:
    """Return what a detector says of itself."""
    return Facts(
        detector.describe(),
        detector.queries,
        str(detector.device),
        detector.image_batch,
        detector.size_note,
        detector.thresholds,
    )

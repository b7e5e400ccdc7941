"""What passes between a job and its workers, whoever these are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sam3label.concepts.exemplars import Examples
from sam3label.core.records import ConceptList, MediaItem, UnitResult
from sam3label.labelling.near_copies import NearCopies
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.photos import PhotoBatch
from sam3label.labelling.progress import FoundLabel, JobTally
from sam3label.labelling.videos import VideoWork

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What all of a job is labelled by."""

    concepts: ConceptList
    examples: Sequence[Examples]
    options: LabelOptions


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loaded model says of itself.

    `numbers` is everything in it that changes the labels, for the run's fingerprint; `queries` the most answers that
    one prompt can have in one image; `image_batch` the images that its device computes together.
    `note` is what a user should know of its input size; `thresholds` what its authors use, if not SAM 3's own.
    """

    numbers: Mapping[str, Any]
    queries: int
    device: str
    image_batch: int
    note: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Work:
    """Photos in the batches that they are computed in, and videos; `standing` reads how far one of these is committed.

    Frames of sampled videos are computed `batch_size` at a time.
    """

    batches: Sequence[PhotoBatch]
    videos: Sequence[MediaItem]
    batch_size: int
    standing: Callable[[MediaItem], VideoWork]
    copies: NearCopies | None = None  # compares images in the order of one worker

    @property
    def is_empty(self) -> bool:
        return not self.batches and not self.videos


@dataclass(frozen=True, slots=True)
class Answered:
    """Units that are committed together, and the labels that the concept list finds in each."""

    results: Sequence[UnitResult]
    labels: Sequence[Sequence[FoundLabel]]


class Workers(Protocol):
    """The model, loaded wherever it computes."""

    @property
    def facts(self) -> Facts:
        """What the model says of itself."""

    def check_references(self, n_images: int, known: Mapping[str, Any], say: Say) -> dict[str, Any]:
        """Say what exemplars cost and are worth, and return the figures by class. Raises ConfigError for poor ones.

        `known` has figures of an earlier session, `n_images` is how many photos are to be labelled.
        """

    def label(self, work: Work, tally: JobTally, stopped: Callable[[], bool]) -> Iterator[Answered]:
        """Label until `stopped` says so. Answers without units come between, so that progress can be shown.

        Adds to the tally where the time goes, and the frames of videos as they are labelled.
        """

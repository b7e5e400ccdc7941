"""Whether a fine-tuned checkpoint is better than its base: by photos it never saw, and by what it was not to change.

Both label the held-out photos, and some that nobody reviewed, by the ordinary job with the same concept list. It passes
where the held-out figure (cgF1; F1 where no photo is without its class) is higher, with the whole 95 % interval of the
gain above zero, and nothing was forgotten: no untouched class is worse on the held-out photos, and on all photos the
labels of untouched classes agree with the base's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam3label.annotations.coco import Truth
from sam3label.core.records import ConceptList, MediaItem
from sam3label.core.text import count, one_line
from sam3label.errors import InputError, os_reason
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.media import storage
from sam3label.quality.compare import Agreement, BeforeAfter, Change, agreement, compare
from sam3label.run.reader import open_run

LEAST_AGREEMENT = 0.9  # F1 of the labels of untouched classes by the base's
FEW = 3  # objects of a corrected class on held-out photos: fewer say nothing of it
FELL = 0.02  # of an untouched class's F1 on held-out photos, where the whole interval lies below zero
BEFORE, AFTER, PHOTOS = "before", "after", "photos"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The figures, and what speaks against the checkpoint: nothing, where it passes."""

    comparison: BeforeAfter
    guard: Agreement | None
    untouched: tuple[str, ...]
    against: tuple[str, ...]

    @property
    def passes(self) -> bool:
        return not self.against

    @property
    def hardly_judged(self) -> str:
        """What nothing here tells, in a sentence: corrected classes with next to no object held out; empty if none."""
        classes = [
            f"{one_line(name)} ({count(change.objects, 'object')})"
            for name, change in self.comparison.classes.items()
            if name not in self.untouched and change.objects < FEW
        ]
        if not classes:
            return ""
        return f"Hardly judged, by what is held out: {', '.join(classes)}. Look at these before you rely on them."

    def rows(self) -> list[tuple[str, ...]]:
        """Return the figures as rows: what, before, after, gain with its interval, calibrated before and after."""
        comparison = self.comparison
        whole = (("cgF1", comparison.cgf1), ("F1", comparison.f1), ("IL_MCC", comparison.mcc))
        rows: list[tuple[str, ...]] = [(name, *_cells(change), "") for name, change in whole]
        for name, one in comparison.classes.items():
            calibrated = "" if one.calibrated is None else f"{one.calibrated[0]:.3f} -> {one.calibrated[1]:.3f}"
            rows.append((f"F1 {name} ({one.objects})", *_cells(one.f1), calibrated))
            rows.append((f"IL_MCC {name}", *_cells(one.mcc), ""))
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "passes": self.passes,
            "against": list(self.against),
            "untouched": list(self.untouched),
            "held_out": self.comparison.to_json(),
            "guard": None if self.guard is None else self.guard.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Examination:
    """What both checkpoints are asked: photos, of which those in `held_out` have a truth, and the concept list."""

    photos: Sequence[MediaItem]
    concepts: ConceptList
    options: LabelOptions  # but for the model
    folder: Path

    def label(self, model: str, revision: str | None, name: str, on_progress: Callable[[Progress], None]) -> Path:
        """Label the photos with a checkpoint into a run folder of that name, from wherever it stands."""
        out = self.folder / name
        photos = place(self.photos, self.folder / PHOTOS)
        job.label(
            [photos], self.concepts, out, replace(self.options, model=model, revision=revision), on_progress=on_progress
        )
        return out


def place(photos: Sequence[MediaItem], folder: Path) -> Path:
    """Bring photos into a folder under their ids, by links where the file system can. Raises InputError."""
    for item in photos:
        target = folder / item.id
        if target.exists():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if storage.is_remote(item.path):
                target.write_bytes(storage.read(item.path))
                continue
            try:
                os.link(os.path.realpath(item.path), target)
            except OSError:
                shutil.copyfile(item.path, target)
        except OSError as error:
            raise InputError(
                f"{item.path} cannot be read any more ({os_reason(error)}): say where the photos are with --photos."
            ) from error
    return folder


def judge(before: Path, after: Path, truth: Truth, groups: Sequence[str], untouched: Sequence[str]) -> Judgement:
    """Compare the two runs of an examination, and say what speaks against the second."""
    with open_run(before) as one, open_run(after) as other:
        comparison = compare(one, other, truth, groups)
        guard = agreement(one, other, untouched) if untouched else None
    return Judgement(comparison, guard, tuple(untouched), tuple(against(comparison, guard, untouched)))


def against(comparison: BeforeAfter, guard: Agreement | None, untouched: Sequence[str]) -> Iterator[str]:
    """Yield what speaks against the checkpoint, in words with figures."""
    name, deciding = deciding_figure(comparison)
    if deciding.interval[0] <= 0:
        what = "is not better" if deciding.gain <= 0 else "may be better by chance alone"
        yield f"on {count(comparison.images, 'held-out photo')} it {what}: {name} {in_words(deciding)}"
    for class_name in (name for name in untouched if name in comparison.classes):
        f1 = comparison.classes[class_name].f1
        if f1.gain < -FELL and f1.interval[1] < 0:  # one that had F1 1 cannot gain: 0 says nothing
            yield f"the untouched class {class_name!r} is worse on held-out photos: F1 {in_words(f1)}"
    if guard is not None and guard.f1 < LEAST_AGREEMENT and guard.interval[1] < 1:
        low, high = guard.interval
        worst = min(guard.classes.items(), key=lambda entry: entry[1])
        yield (
            f"its answers to untouched classes are no longer the base's: F1 {guard.f1:.3f} [{low:.3f}, {high:.3f}] "
            f"of {count(guard.answers, 'label')} in {count(guard.images, 'photo')}, where {LEAST_AGREEMENT:g} "
            f"is asked for ({worst[0]!r} {worst[1]:.3f})"
        )


def deciding_figure(comparison: BeforeAfter) -> tuple[str, Change]:
    """Return the figure that decides, with its name: cgF1 is 0 by definition where no photo is without its class."""
    return ("cgF1", comparison.cgf1) if comparison.has_negatives else ("F1", comparison.f1)


def in_words(change: Change) -> str:
    """Return a change with its interval: "0.312 -> 0.801, +0.489 [+0.301, +0.640]"."""
    low, high = change.interval
    return f"{change.before:.3f} -> {change.after:.3f}, {change.gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cells(change: Change) -> tuple[str, str, str]:
    low, high = change.interval
    return f"{change.before:.3f}", f"{change.after:.3f}", f"{change.gain:+.3f} [{low:+.3f}, {high:+.3f}]"

"""What `import sam3label` gives: label, look, judge, export and review from Python, as the command line does.

    import sam3label as sl

    run = sl.label("photos", {"helmet": ["hard hat"]}, out="runs/site-a")
    for image in run:
        for label in image.labels:
            print(image.path, label.class_name, label.score, label.box_xyxy)
    run.export("yolo", "datasets/site-a", split={"train": 0.8, "val": 0.2})

Names that do the same are called the same on both sides: keywords are the fields of `LabelOptions` and of the export's
options. Everything raises a `Sam3LabelError` with a message made for people.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts.concept_list import concepts_from, load_concepts
from sam3label.core.records import ConceptList, Frame, LabeledImage, MediaItem, Prompt
from sam3label.labelling.options import LabelOptions
from sam3label.run import reader
from sam3label.run.reader import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from sam3label.export.dataset import Summary
    from sam3label.labelling.progress import Progress, RunSummary
    from sam3label.quality.calibrate import Calibration
    from sam3label.quality.evaluate import Evaluation
    from sam3label.review.fiftyone.pull import Pulled
    from sam3label.review.fiftyone.push import Pushed
    from sam3label.validate import Report

Source = str | Path


class Concepts(ConceptList):
    """What to look for: class names, classes with their phrases and rules, or the document of a YAML concept list.

    Raises `ConfigError` with every problem at once.

    >>> sl.Concepts(["person", "helmet"]).names
    ('person', 'helmet')
    >>> sl.Concepts({"helmet": ["hard hat", "safety helmet"], "person": {"conf": 0.6}}).phrases
    ('hard hat', 'safety helmet', 'person')
    """

    def __init__(self, classes: Sequence[str] | Mapping[str, Any]) -> None:
        read = concepts_from(classes)
        super().__init__(read.concepts, read.exclusive)

    @staticmethod
    def load(path: Source, *settings: str) -> ConceptList:
        """Read a concept list from a YAML file; `settings` override keys of it, such as "defaults.conf=0.3"."""
        return load_concepts(path, settings)


def label(
    photos: Source | Sequence[Source],
    concepts: ConceptList | Sequence[str] | Mapping[str, Any] | Source,
    out: Source = "runs/run",
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
    **options: Any,
) -> LabeledRun:
    """Label photos and videos into the run folder `out`, continuing what is there, and open it.

    `photos` are files, folders, globs, or `@list.txt`; `concepts` are a `ConceptList`, what `Concepts` takes, or a YAML
    file. `options` are the fields of `LabelOptions`: model, device, floor, ... What this session came to, failures
    among it, is in the run's `summary`. Setting `stop` ends it after the batch in flight.

    >>> classes = {"disc": {"prompts": ["circle"], "conf": 0.3}, "star": {"conf": 0.3}}
    >>> run = sl.label("photos", classes, out="runs/demo", model="demo")
    >>> len(run), run.summary.failures
    (4, ())
    >>> run
    LabeledRun('runs/demo', 4 images, 2 classes)
    """
    from sam3label.labelling import job

    sources = [photos] if isinstance(photos, str | Path) else list(photos)
    summary = job.label(
        sources,
        concepts_from(concepts),
        out,
        LabelOptions(**options),
        on_progress=on_progress,
        on_message=on_message,
        stop=stop,
    )
    run = open_run(out)
    run.summary = summary
    return run


def open_run(folder: Source, concepts: ConceptList | Source | None = None) -> LabeledRun:
    """Open a run folder, with the concept list it was made with or another over the same phrases.

    >>> with sl.open_run("runs/demo") as run:
    ...     sorted({label.class_name for image in run for label in image.labels})
    ['disc', 'star']
    """
    opened = reader.open_run(folder, None if concepts is None else concepts_from(concepts))
    return LabeledRun(opened._store, opened.concepts)


class LabeledRun(Run):
    """A run folder with all that can be done with it. Iterating gives its images (and frames of videos).

    >>> run = sl.open_run("runs/demo")
    >>> image = next(image for image in run if image.labels)
    >>> image.size, image.reviewed
    ((640, 480), False)
    >>> image.labels[0].mask().shape
    (480, 640)
    """

    summary: RunSummary | None = None  # of the session that `label` just ended; None for a run that was opened

    def __repr__(self) -> str:
        return "Labeled" + super().__repr__()

    def __enter__(self) -> LabeledRun:
        return self

    def __iter__(self) -> Iterator[LabeledImage]:
        return self.images()

    def export(
        self,
        format: str,
        out: Source | None = None,
        *,
        split: Mapping[str, float] | str | None = None,
        seed: int = 0,
        group: str | None = None,
        group_regex: str | None = None,
        on_progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Summary:
        """Write the labels as a training set, by default into RUN/exports/FORMAT. `options`: see `sam3label export`.

        >>> sl.open_run("runs/demo").export("yolo", "datasets/demo", split={"train": 1.0}).images
        4
        """
        from sam3label.export.options import Options
        from sam3label.export.splits import parse_splits
        from sam3label.export.write import export

        text = split if split is None or isinstance(split, str) else ",".join(f"{k}={v}" for k, v in split.items())
        chosen = Options(splits=parse_splits(text, seed, group, group_regex), **options)
        return export(self, format, out or self.folder / "exports" / format, chosen, on_progress)

    def validate(self, dataset: Source) -> Report:
        """Read a dataset of this run back as trainers do: what they would drop, and how much of each label comes back.

        >>> sl.open_run("runs/demo").validate("datasets/demo").clean
        True
        """
        from sam3label.validate import validate

        return validate(dataset, self)

    def evaluate(self, truth: Source | Sequence[Source], *, attributes: Source | None = None) -> Evaluation:
        """Judge the labels against truth; several files are several annotators. Raises `InputError`.

        >>> sl.open_run("runs/demo").evaluate("photos/truth.json").cgf1 > 0.4
        True
        """
        from sam3label.annotations.youtube_vis import is_video_truth
        from sam3label.quality.evaluate import evaluate_run
        from sam3label.quality.evaluate_tracks import evaluate_tracked_run

        truths = [truth] if isinstance(truth, str | Path) else list(truth)
        if is_video_truth(Path(truths[0])):
            return evaluate_tracked_run(self.folder, truths[0], self.concepts)
        return evaluate_run(self.folder, truths, self.concepts, attributes)

    def calibrate(
        self,
        truth: Source,
        out: Source | None = None,
        *,
        beta: float = 1.0,
        precision: float | None = None,
        folds: int = 5,
    ) -> Calibration:
        """Choose each class's thresholds from a few labelled images, and write them, by default into the run folder.

        >>> sl.open_run("runs/demo").calibrate("photos/truth.json").goal.beta
        1.0
        """
        from sam3label.quality.calibrate import Goal, calibrate_run
        from sam3label.quality.calibrated_list import write_concepts

        calibration = calibrate_run(self.folder, truth, self.concepts, Goal(beta, precision), folds)
        write_concepts(calibration, out or self.folder / "concepts.calibrated.yaml")
        return calibration

    def report(self, out: Source | None = None) -> Path:
        """Write one self-contained HTML page about the run, by default RUN/report.html, and return where it is.

        >>> sl.open_run("runs/demo").report().name
        'report.html'
        """
        from sam3label.show.report import write_report

        target = Path(out) if out is not None else self.folder / "report.html"
        write_report(self.folder, target, self.concepts)
        return target

    def review_push(self, dataset: str | None = None, *, audit: int | None = None) -> tuple[Pushed, ...]:
        """Bring the run into FiftyOne. Again: adds what is new and leaves people's work alone."""
        from sam3label.review.fiftyone.push import push

        return push(self, dataset, audit)

    def review_pull(self, dataset: str | None = None, *, who: str | None = None) -> tuple[Pulled, ...]:
        """Record what people changed in FiftyOne; pulling twice changes nothing."""
        from sam3label.review.fiftyone.pull import pull

        return pull(self, dataset, who)


class PictureDetector:
    """SAM 3 for one picture at a time, without a run folder: `sl.Detector`.

    `device`, `dtype` and `prompt_style` are as in `LabelOptions`.

    >>> with sl.Detector("demo") as detector:
    ...     found = detector("photos/scene_0000.jpg", ["circle", "star"], floor=0.3)
    >>> {label.class_name for label in found.labels} <= {"circle", "star"}
    True
    """

    def __init__(
        self, model: str = "facebook/sam3", *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> None:
        from sam3label.model.checkpoint import resolve
        from sam3label.model.detector import Detector

        chosen = LabelOptions(model=model, revision=revision, device=device, dtype=dtype)  # type: ignore[arg-type]
        self._model: Detector | None = Detector.load(
            resolve(chosen.model, chosen.revision), device=chosen.device, dtype=chosen.dtype
        )

    def __enter__(self) -> PictureDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None

    def __call__(
        self,
        image: Source | Image | npt.NDArray[np.uint8],
        concepts: Sequence[str] | Mapping[str, Any] | ConceptList,
        floor: float = 0.1,
    ) -> LabeledImage:
        """Find objects in a picture: a file, a Pillow image, or uint8 [H, W, 3] in RGB.

        Every class takes what scores at least `floor`, or its own conf where that is higher and you gave one.
        """
        from dataclasses import replace

        from sam3label.run.decide import select_labels

        if self._model is None:
            raise ValueError("this detector is closed: make another one")
        asked = concepts_from(concepts)
        if not isinstance(concepts, ConceptList | Mapping):  # names alone: no threshold but the floor
            asked = ConceptList(tuple(replace(concept, conf=floor) for concept in asked.concepts))
        frame = _frame(image)
        prompts = [Prompt(phrase, phrase) for phrase in asked.phrases]
        found = self._model.detect([frame], prompts, floor)[0]
        return LabeledImage(frame.item, frame.size_hw, tuple(select_labels(found.candidates, asked)))


def _frame(image: Source | Image | npt.NDArray[np.uint8]) -> Frame:
    import numpy as np
    from PIL import Image, ImageOps

    from sam3label.media.image import decode_image

    if isinstance(image, str | Path):
        return Frame(MediaItem(Path(image).name, str(image)), 0, decode_image(str(image)))
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return Frame(MediaItem("picture", ""), 0, image)

"""What `import sam3label` gives: label, look, judge, export and review from Python, as the command line does.

    import sam3label as sl

    run = sl.label("photos", {"helmet": ["hard hat"]}, out="runs/site-a")
    for image in run:
        for label in image.labels:
            print(image.path, label.class_name, label.score, label.box_xyxy)
    run.export("yolo", "datasets/site-a", split={"train": 0.8, "val": 0.2})

The command line calls these and nothing else, and keywords are called as its options are. Everything raises a
`Sam3LabelError` with a message made for people.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts.concept_list import concepts_from, from_phrases, load_concepts, parse_ontology
from sam3label.core.records import ConceptList, Frame, LabeledImage, MediaItem, Prompt
from sam3label.errors import ConfigError
from sam3label.labelling.options import LabelOptions
from sam3label.run.reader import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from sam3label.demo.job import DemoResult
    from sam3label.demo.videos import VideoDemoResult
    from sam3label.export.dataset import Summary
    from sam3label.export.options import Options, Placement
    from sam3label.labelling.progress import Progress, RunSummary
    from sam3label.labelling.reference_check import Trust
    from sam3label.model.doctor import Check
    from sam3label.model.inventory import Weights
    from sam3label.quality.calibrate import Calibration
    from sam3label.quality.evaluate import Evaluation
    from sam3label.review.fiftyone.app import ReviewApp
    from sam3label.review.fiftyone.pull import DrawnBox, Pulled
    from sam3label.review.fiftyone.push import Pushed
    from sam3label.review.summary import ReviewSummary
    from sam3label.run.repair import StoreFindings
    from sam3label.show.preview import Preview
    from sam3label.validate import Report
    from sam3label.verify.judge import Agenda
    from sam3label.verify.session import Verification

Source = str | Path
OnCount = Callable[[int, int], None]  # called with how much is done, and out of how much


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

    @staticmethod
    def from_phrases(phrases: Sequence[str], *settings: str) -> ConceptList:
        """Make a class of each phrase.

        >>> sl.Concepts.from_phrases(["hard hat"], "defaults.conf=0.3").concepts[0].conf
        0.3
        """
        return from_phrases(phrases, settings)

    @staticmethod
    def from_ontology(ontology: Mapping[str, str] | str, *settings: str) -> ConceptList:
        """Make the classes that phrases are mapped to: a dict, its JSON text, or a JSON file.

        >>> sl.Concepts.from_ontology({"hard hat": "helmet", "safety helmet": "helmet"}).names
        ('helmet',)
        """
        return parse_ontology(ontology if isinstance(ontology, str) else json.dumps(ontology), settings)


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

    summary = job.label(
        _several(photos),
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


def mask_boxes(
    dataset: Source,
    out: Source = "runs/masks",
    *,
    photos: Source | None = None,
    snap: bool = False,
    iou: float = 0.5,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
    **options: Any,
) -> LabeledRun:
    """Give the boxes and points of a dataset masks, in the run folder `out`, continuing what is there, and open it.

    `dataset` is COCO or Label Studio JSON, a YOLO data.yaml, VOC or CVAT XML, a CSV table, or a folder with one;
    `photos` where its photos are. Labels keep what the dataset says of them in `given`; one whose mask the model does
    not expect to have `iou` is its box, and `doubt` says why. `snap` sets boxes to their masks. `options` are the
    fields of `LabelOptions`. Raises `InputError`, `CheckpointError`, `StoreError`.

    >>> run = sl.mask_boxes("photos/truth.json", "runs/boxes", model="demo")
    >>> {label.source for image in run for label in image.labels}
    {'given'}
    """
    from sam3label.labelling import boxes_to_masks

    job = boxes_to_masks.MaskJob.of(dataset, photos, snap=snap, conf=iou)
    summary = boxes_to_masks.mask_boxes(
        job, out, LabelOptions(**options), on_progress=on_progress, on_message=on_message, stop=stop
    )
    run = open_run(out)
    run.summary = summary
    return run


def open_run(
    run: Source,
    concepts: ConceptList | Source | None = None,
    *,
    photos: Source | None = None,
    settings: Sequence[str] = (),
) -> LabeledRun:
    """Open a run folder, with the concept list it was made with or another over the same phrases.

    `photos` is where the photos are now, if not where they were labelled. `settings` override keys of the concept list.

    >>> with sl.open_run("runs/demo", settings=["concepts.star.conf=0.99"]) as run:
    ...     sorted({label.class_name for image in run for label in image.labels})
    ['disc']
    """
    if concepts is not None:
        opened = LabeledRun.open(run, concepts_from(concepts, settings), photos)
        opened.concept_file = concepts if isinstance(concepts, str | Path) else None
        return opened
    if not settings:
        return LabeledRun.open(run, photos=photos)
    with LabeledRun.open(run) as opened:
        own = concepts_from(opened.concepts, settings, f"{run} (the run's own concept list)")
    return LabeledRun.open(run, own, photos)


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
    concept_file: Source | None = None  # that it was opened with, where that is not its own list

    def __repr__(self) -> str:
        return "Labeled" + super().__repr__()

    def __iter__(self) -> Iterator[LabeledImage]:
        return self.images()

    def trust(self) -> dict[str, Trust]:
        """Return how far the reference images of a class can be trusted, by class; empty where there are none.

        >>> sl.open_run("runs/demo").trust()
        {}
        """
        from sam3label.labelling.reference_check import Trust

        return {name: Trust.from_json(figures) for name, figures in (self.note("trust") or {}).items()}

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
        from sam3label.export.write import export

        chosen = self._export_options(split, seed, group, group_regex, **options)
        return export(self, format, out or self.folder / "exports" / format, chosen, on_progress)

    def export_each(
        self,
        formats: Sequence[str],
        out: Source | None = None,
        *,
        split: Mapping[str, float] | str | None = None,
        seed: int = 0,
        group: str | None = None,
        group_regex: str | None = None,
        on_progress: Callable[[str, int], None] | None = None,
        **options: Any,
    ) -> Iterator[Summary]:
        """Write several training sets, into OUT/FORMAT. What one of them cannot do is refused before the first.

        >>> [summary.format for summary in sl.open_run("runs/demo").export_each(["coco", "voc"], "datasets/both")]
        ['coco', 'voc']
        """
        from sam3label.export.write import export, refuse_senseless

        wanted = list(dict.fromkeys(formats))
        chosen = self._export_options(split, seed, group, group_regex, **options)
        refuse_senseless(wanted, chosen)
        folder = Path(out) if out is not None else self.folder / "exports"
        for name in wanted:
            yield export(self, name, folder / name, chosen, None if on_progress is None else partial(on_progress, name))

    def _export_options(
        self,
        split: Mapping[str, float] | str | None,
        seed: int,
        group: str | None,
        group_regex: str | None,
        *,
        classes: Sequence[str] = (),
        map: Mapping[str, str] | Sequence[str] = (),
        **options: Any,
    ) -> Options:
        from sam3label.export.options import Options, parse_classes, parse_map
        from sam3label.export.splits import parse_splits

        text = split if split is None or isinstance(split, str) else ",".join(f"{k}={v}" for k, v in split.items())
        names = self.concepts.names
        return Options(
            splits=parse_splits(text, seed, group, group_regex),
            classes=parse_classes(classes, names),
            map=map if isinstance(map, Mapping) else parse_map(map, names),
            **options,
        )

    def validate(self, dataset: Source) -> Report:
        """Read a dataset of this run back as trainers do: what they would drop, and how much of each label comes back.

        >>> sl.open_run("runs/demo").validate("datasets/demo").clean
        True
        """
        from sam3label.validate import validate

        return validate(dataset, self)

    def evaluate(
        self, gt: Source | Sequence[Source], *, attributes: Source | None = None, gt_split: str | None = None
    ) -> Evaluation:
        """Judge the labels against truth; several files are several annotators. Raises `InputError`.

        >>> round(sl.open_run("runs/demo").evaluate("photos/truth.json").cgf1, 1)
        0.5
        """
        from sam3label.quality.evaluate import evaluate_run
        from sam3label.quality.evaluate_tracks import evaluate_tracked_run

        truths = _several(gt)
        if _is_of_videos(truths, attributes, gt_split):
            return evaluate_tracked_run(self.folder, truths[0], self.concepts)
        return evaluate_run(self.folder, truths, self.concepts, attributes, gt_split)

    def calibrate(
        self,
        gt: Source,
        out: Source | None = None,
        *,
        gt_split: str | None = None,
        beta: float = 1.0,
        precision: float | None = None,
        folds: int = 5,
    ) -> Calibration:
        """Choose each class's thresholds from a few labelled images, and write them, by default into the run folder.

        A run that was opened with a concept list in a file gets that list back, comments and all, with new thresholds.

        >>> calibration = sl.open_run("runs/demo").calibrate("photos/truth.json")
        >>> calibration.classes[0].note
        'too few examples (2 objects in 1 image): add 18 more objects and 4 more images with it'
        """
        from sam3label.quality.calibrate import Goal, calibrate_run
        from sam3label.quality.calibrated_list import write_concepts

        calibration = calibrate_run(self.folder, gt, self.concepts, Goal(beta, precision), folds, gt_split)
        write_concepts(calibration, out or self.folder / "concepts.calibrated.yaml", self.concept_file)
        return calibration

    def report(
        self,
        out: Source | None = None,
        *,
        gt: Source | Sequence[Source] = (),
        gt_split: str | None = None,
        on_progress: OnCount = lambda done, total: None,
    ) -> Path:
        """Write one self-contained HTML page about the run, by default RUN/report.html, and return where it is.

        With `gt`, a truth, it also shows where the run and that truth disagree.

        >>> sl.open_run("runs/demo").report(gt="photos/truth.json").name
        'report.html'
        """
        from sam3label.show.report import write_report

        target = Path(out) if out is not None else self.folder / "report.html"
        truths = _several(gt)
        mistakes = self.evaluate(truths, gt_split=gt_split).mistakes if truths else None
        write_report(self, target, on_progress, mistakes)
        return target

    def render(
        self,
        out: Source,
        item: str | None = None,
        *,
        on_progress: OnCount = lambda done, total: None,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> int:
        """Draw the tracks of the run's videos, or of the one with id `item`, and return how many were drawn.

        `out` is the file of one video (.mp4 or .mov), or a folder. Raises `InputError` where there is no such video.

        >>> sl.open_run("runs/demo").render("rendered")
        Traceback (most recent call last):
        sam3label.errors.InputError: the run has no labelled videos. ...
        """
        from sam3label.show.render import render

        return render(self, out, item, on_progress, on_message)

    def verify(
        self,
        server: str | None = None,
        vlm: str | None = None,
        *,
        budget: int = 500,
        everything: bool = False,
        price: str | None = None,
        dry_run: bool = False,
        on_plan: Callable[[Agenda, tuple[float, float] | None], None] = lambda todo, price: None,
        on_progress: OnCount = lambda done, total: None,
        on_message: Callable[[str], None] = lambda _: None,
        **limits: Any,
    ) -> Verification:
        """Let the model `vlm` of an OpenAI-compatible server judge labels; photos go there, and nowhere else.

        Its verdicts count once it agreed with what people reviewed. `limits`: in_flight, timeout, votes, max_requests
        and max_cost (US dollars, by `price` for a million tokens in and out). `dry_run` asks nothing.

        >>> len(sl.open_run("runs/demo").verify(budget=3, dry_run=True).agenda.targets)
        3
        """
        from sam3label.verify import session
        from sam3label.verify.server import parse_price

        prices = None if price is None else parse_price(price)
        todo = session.agenda_of(self, vlm, None if everything else budget)
        on_plan(todo, prices)
        if dry_run:
            return session.Verification(todo)
        options = session.server_options(server, vlm, price=prices, **limits)
        return session.verify(self, todo, options, on_progress, on_message)

    def review_push(
        self, dataset: str | None = None, *, audit: int | None = None, on_progress: OnCount = lambda done, total: None
    ) -> tuple[Pushed, ...]:
        """Bring the run into FiftyOne. Again: adds what is new and leaves people's work alone.

        >>> [(pushed.dataset, pushed.added) for pushed in sl.open_run("runs/demo").review_push("site-a", audit=2)]
        [('site-a', 4)]
        """
        from sam3label.review.fiftyone.push import push

        return push(self, dataset, audit, on_progress)

    def review_open(self, dataset: str | None = None, *, remote: bool = False, port: int = 5151) -> ReviewApp:
        """Start the FiftyOne App on the review queue, reachable from this machine only. It runs until it is closed."""
        from sam3label.review.fiftyone.app import open_app

        return open_app(self, dataset, remote, port)

    def review_pull(
        self,
        dataset: str | None = None,
        *,
        who: str | None = None,
        masks: bool = False,
        accept: Callable[[Sequence[DrawnBox]], bool] = lambda _: True,
        **options: Any,
    ) -> tuple[Pulled, ...]:
        """Record what people changed in FiftyOne; pulling twice changes nothing.

        With `masks`, boxes that were drawn without one or moved get a mask: what became of them is shown to `accept`
        before it is recorded. `options` are the fields of `LabelOptions`; the model is the run's own without one.

        >>> [dict(pulled.actions) for pulled in sl.open_run("runs/demo").review_pull("site-a", who="anna")]
        [{}]
        """
        from sam3label.labelling.drawn_boxes import DrawnBoxes
        from sam3label.review.fiftyone.pull import pull

        own = {"model": self.info["model"]} if "model" in self.info else {}
        maker = DrawnBoxes(self, LabelOptions(**{**own, **options})) if masks else None
        return pull(self, dataset, who, maker, accept)

    def review_summary(self) -> ReviewSummary:
        """Return how good the model was, from the images that people reviewed.

        >>> sl.open_run("runs/demo").review_summary().reviewed_images
        0
        """
        from sam3label.review.summary import summarize

        return summarize(self)

    def review_write(
        self, out: Source, *, images: Placement = "hardlink", audit: int | None = None
    ) -> tuple[Path, ...]:
        """Write the run as a folder that FiftyOne loads on another machine. Needs no FiftyOne and no database here.

        >>> [path.name for path in sl.open_run("runs/demo").review_write("fiftyone", audit=2)]
        ['fiftyone']
        """
        from sam3label.review.fiftyone.folder import write_folder

        return write_folder(self, Path(out), audit, images)


# ---- what needs no run, or no open one


def preview(
    photos: Source | Sequence[Source],
    concepts: ConceptList | Sequence[str] | Mapping[str, Any] | Source,
    out: Source = "preview",
    n: int = 16,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Preview:
    """Label `n` photos spread over all: a contact sheet, a page, and what the whole folder would take.

    A run into `out`/run goes on from it. `options` are the fields of `LabelOptions`.

    >>> made = sl.preview("photos", ["circle"], out="look", n=2, model="demo", workers=0)
    >>> made.labelled, made.total, made.page.name
    (2, 4, 'report.html')
    """
    from sam3label.show.preview import preview

    return preview(_several(photos), concepts_from(concepts), out, n, LabelOptions(**options), on_progress, on_message)


def validate_dataset(dataset: Source) -> Report:
    """Read a dataset, whoever wrote it, as trainers do, and say what they would drop.

    `Run.validate` also says how much of each label of the run comes back.

    >>> sl.validate_dataset("datasets/demo").clean
    True
    """
    from sam3label.validate import validate

    return validate(dataset)


def evaluate(
    gt: Source | Sequence[Source], pred: Source, *, attributes: Source | None = None, gt_split: str | None = None
) -> Evaluation:
    """Judge a COCO (or YouTube-VIS) results file against truth, as `Run.evaluate` judges a run. Raises `InputError`.

    >>> import json, pathlib
    >>> truth = json.loads(pathlib.Path("photos/truth.json").read_text())
    >>> perfect = [{**annotation, "score": 1.0} for annotation in truth["annotations"]]
    >>> _ = pathlib.Path("results.json").write_text(json.dumps(perfect))
    >>> round(sl.evaluate("photos/truth.json", "results.json").cgf1, 3)
    1.0
    """
    from sam3label.quality.evaluate import evaluate_results
    from sam3label.quality.evaluate_tracks import evaluate_track_results

    truths = _several(gt)
    if _is_of_videos(truths, attributes, gt_split):
        return evaluate_track_results(truths[0], pred)
    return evaluate_results(truths, pred, attributes, gt_split)


def check(run: Source, *, photos: Source | None = None, repair: Source | None = None) -> StoreFindings:
    """Go through all of a run: the database, every mask and correction, and whether the photos are still the same.

    With `repair`, write what is whole into a new run there.

    >>> sl.check("runs/demo").is_sound
    True
    """
    from sam3label.run import repair as repairs

    return repairs.examine(run, photos) if repair is None else repairs.repair(run, repair)


def init(out: Source = "concepts.yaml", *, source: Source | None = None, force: bool = False) -> tuple[str, ...]:
    """Write a commented concept list to start from, and return its class names: those of `source`, if it is given.

    >>> sl.init("concepts.yaml")
    ('person', 'helmet')
    """
    from sam3label.concepts.starter import write_starter

    return write_starter(Path(out), None if source is None else Path(source), force)


def demo_photos(
    out: Source | None = None,
    number: int | None = None,
    seed: int = 0,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> DemoResult:
    """Label synthetic photos with the demo checkpoint into `out`, and judge the labels by their known truth.

    >>> sl.demo_photos("look/demo", number=2).metrics.images
    2
    """
    from sam3label.demo.job import demo

    return demo(out or "runs/demo", number or 24, seed, on_progress)


def demo_videos(
    out: Source | None = None,
    number: int | None = None,
    seed: int = 0,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> VideoDemoResult:
    """Track objects through synthetic videos with the demo checkpoint into `out`, and judge them by their truth."""
    from sam3label.demo.videos import video_demo

    return video_demo(out or "runs/demo-video", number or 2, seed, on_progress)


def doctor(model: str = "facebook/sam3") -> list[Check]:
    """Check this machine: Python, torch, device and memory, access to the checkpoint, optional extras.

    >>> [check.advice for check in sl.doctor("demo") if check.what == "checkpoint"]
    ['']
    """
    from sam3label.model.doctor import examine

    return examine(model)


def weights() -> list[Weights]:
    """Return which weights are on this machine, where they came from, and what they can do.

    >>> sl.weights()[0].model
    'demo'
    """
    from sam3label.model.inventory import on_this_machine

    return on_this_machine()


def convert_weights(source: str, out: Source) -> str:
    """Write weights under the official code's names (`out` ends in .pt), else in the hub's layout; say what it is.

    >>> sl.convert_weights("demo", "weights")
    Traceback (most recent call last):
    sam3label.errors.CheckpointError: demo is in the layout of facebook/sam3 already: name a .pt file to write.
    """
    from sam3label.model.inventory import convert

    return convert(source, Path(out))


def _several(sources: Source | Sequence[Source]) -> list[Source]:
    return [sources] if isinstance(sources, str | Path) else list(sources)


def _is_of_videos(truths: Sequence[Source], attributes: Source | None = None, gt_split: str | None = None) -> bool:
    from sam3label.annotations.youtube_vis import is_video_truth

    if not is_video_truth(Path(truths[0])):
        return False
    if attributes or gt_split or len(truths) > 1:
        raise ConfigError("gt: a video truth is judged alone: one file, without attributes and gt_split")
    return True


# ---- one image


class ImageDetector:
    """Finds objects in one image at a time, without a run folder: `sl.Detector`.

    `model`, `revision`, `device` and `dtype` are as in `LabelOptions`.

    >>> path = next(image.path for image in sl.open_run("runs/demo") if image.labels)
    >>> with sl.Detector("demo") as detector:
    ...     found = detector(path, ["circle", "star"], floor=0.3)
    >>> found.size, sorted({label.class_name for label in found.labels})
    ((640, 480), ['circle', 'star'])
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

    def __enter__(self) -> ImageDetector:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None

    def __call__(
        self,
        image: Source | Image | npt.NDArray[np.uint8],
        concepts: Sequence[str] | Mapping[str, Any] | ConceptList,
        floor: float = 0.1,
    ) -> LabeledImage:
        """Find objects in an image: a file, a Pillow image, or uint8 [H, W, 3] in RGB.

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
    return Frame(MediaItem("image", ""), 0, image)

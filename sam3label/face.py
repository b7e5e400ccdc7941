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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.concepts.concept_list import concepts_from, from_phrases, load_concepts, parse_ontology
from sam3label.core.records import ConceptList
from sam3label.labelled_run import LabeledRun, LabeledRuns, Source, is_of_videos, several
from sam3label.labelling.options import LabelOptions

if TYPE_CHECKING:
    from sam3label.demo.job import DemoResult
    from sam3label.demo.verified import VerifiedDemo
    from sam3label.demo.videos import VideoDemoResult
    from sam3label.flywheel.history import ProjectStep
    from sam3label.flywheel.job import Finetuned
    from sam3label.flywheel.options import FinetuneOptions
    from sam3label.labelling.progress import Progress
    from sam3label.model.doctor import Check
    from sam3label.model.inventory import Weights
    from sam3label.quality.evaluate import Evaluation
    from sam3label.run.repair import StoreFindings
    from sam3label.show.preview import Preview
    from sam3label.train.loop import Course
    from sam3label.validate import Report


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
    def from_document(
        document: Sequence[str] | Mapping[str, Any],
        *settings: str,
        name: str = "the concept list",
        folder: Source = ".",
    ) -> ConceptList:
        """Read what `Concepts` takes, out of another file: paths in it are relative to `folder`, messages say `name`.

        >>> sl.Concepts.from_document({"helmet": ["hard hat"]}, "defaults.conf=0.3").concepts[0].conf
        0.3
        """
        return concepts_from(document, settings, name, folder)

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

    `photos` are files, folders, globs, `@list.txt`, or addresses such as `s3://bucket/photos`; `concepts` are a
    `ConceptList`, what `Concepts` takes, or a YAML file. `options` are the fields of `LabelOptions`: model, device,
    floor, ... What this session came to, failures among it, is in the run's `summary`. Setting `stop` ends it after the
    batch in flight.

    >>> classes = {"disc": {"prompts": ["circle"], "conf": 0.3}, "star": {"conf": 0.3}}
    >>> run = sl.label("photos", classes, out="runs/demo", model="demo")
    >>> len(run), run.summary.failures
    (4, ())
    >>> run
    LabeledRun('runs/demo', 4 images, 2 classes)
    """
    from sam3label.labelling import job

    summary = job.label(
        several(photos),
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


def ask(
    photos: Source | Sequence[Source],
    what: str | ConceptList,
    out: Source = "runs/asked",
    *,
    server: str | None = None,
    vlm: str | None = None,
    turns: int = 10,
    price: str | None = None,
    in_flight: int = 8,
    timeout: float = 120.0,
    max_requests: int | None = None,
    max_cost: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_message: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
    **options: Any,
) -> LabeledRun:
    """Have the model `vlm` of an OpenAI-compatible server find what no phrase says, with SAM 3 as its tool.

    `what` is what is asked for, which becomes a class of the run (beside those it has), or a list with `ask:` classes.
    `turns` bounds its replies about one photo and class; the rest bounds all of them, as in `Run.verify`. `options` are
    the fields of `LabelOptions`. What the session came to is in the run's `asking`; the conversations are in its
    `transcripts()`. Photos are sent to that address, and nowhere else.

    >>> sl.ask("photos", "circle without a star beside it", "runs/asked", vlm="qwen3-vl")
    Traceback (most recent call last):
    sam3label.errors.ConfigError: say which server to ask and which of its models: ...
    """
    from sam3label.run.store_errors import DATABASE
    from sam3label.verify import asking
    from sam3label.verify.server import parse_price
    from sam3label.verify.session import server_options

    where = server_options(
        server, vlm, price=None if price is None else parse_price(price), in_flight=in_flight, timeout=timeout,
        max_requests=max_requests, max_cost=max_cost,
    )  # fmt: skip
    concepts = what
    if isinstance(concepts, str):
        goes_on = (Path(out) / DATABASE).exists() and not options.get("fresh")
        own = ConceptList(())
        if goes_on:
            with open_run(out) as before:
                own = before.concepts
        concepts = asking.with_question(own, concepts)
    chosen = LabelOptions(**options)
    made = asking.ask_photos(several(photos), concepts, out, where, chosen, turns, on_progress, on_message, stop)
    run = open_run(out)
    run.asking = made
    return run


def open_run(
    run: Source | Sequence[Source],
    concepts: ConceptList | Source | None = None,
    *,
    photos: Source | None = None,
    settings: Sequence[str] = (),
) -> LabeledRun:
    """Open a run folder, or several as one, with the concept list it was made with or another over the same phrases.

    `photos` is where the photos are now, if not where they were labelled. `settings` override keys of the concept list.

    >>> with sl.open_run("runs/demo", settings=["concepts.star.conf=0.99"]) as run:
    ...     sorted({label.class_name for image in run for label in image.labels})
    ['disc']
    """
    if concepts is not None:
        opened = _opened(run, concepts_from(concepts, settings), photos)
        opened.concept_file = concepts if isinstance(concepts, str | Path) else None
        return opened
    if not settings:
        return _opened(run, None, photos)
    with _opened(run, None, None) as opened:
        own = concepts_from(opened.concepts, settings, f"{run} (the run's own concept list)")
    return _opened(run, own, photos)


def _opened(run: Source | Sequence[Source], concepts: ConceptList | None, photos: Source | None) -> LabeledRun:
    folders = several(run)
    if len(folders) == 1:
        return LabeledRun.open(folders[0], concepts, photos)
    return LabeledRuns.join(folders, concepts, photos)


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

    return preview(several(photos), concepts_from(concepts), out, n, LabelOptions(**options), on_progress, on_message)


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

    truths = several(gt)
    if is_of_videos(truths, attributes, gt_split):
        return evaluate_track_results(truths[0], pred)
    return evaluate_results(truths, pred, attributes, gt_split)


def finetune(
    runs: Source | Sequence[Source],
    out: Source,
    options: FinetuneOptions | None = None,
    *,
    gt: Source | None = None,
    gt_split: str | None = None,
    concepts: ConceptList | Source | None = None,
    photos: Source | None = None,
    on_course: Callable[[Course], None] = lambda _: None,
    on_labelled: Callable[[str, Progress], None] = lambda _name, _progress: None,
    on_message: Callable[[str], None] = lambda _: None,
    **chosen: Any,
) -> Finetuned:
    """Train a checkpoint on what people reviewed in runs, and write it to `out` if held-out photos say it is better.

    `chosen` are the fields of `FinetuneOptions`, instead of `options`: method, steps, guard, keep_anyway, ... The same
    call goes on where an earlier one ended. Raises `InputError` where too little was reviewed.

    >>> sl.finetune("runs/demo", "checkpoints/demo-1")
    Traceback (most recent call last):
    sam3label.errors.InputError: 0 images with every object known, of which 0 are held out to judge by: ...
    """
    from contextlib import ExitStack

    from sam3label.flywheel import job
    from sam3label.flywheel.options import FinetuneOptions

    tell = job.Listeners(on_course, on_labelled, on_message)
    with ExitStack() as held:
        opened = [held.enter_context(open_run(run, concepts, photos=photos)) for run in several(runs)]
        return job.finetune(opened, Path(out), options or FinetuneOptions(**chosen), gt, gt_split, tell=tell)


def history(project: Source) -> list[ProjectStep]:
    """Return a project's runs and the checkpoints that were made of them, oldest first. Raises `InputError`.

    >>> {turn.kind for turn in sl.history("runs")}
    {'run'}
    """
    from sam3label.flywheel.history import history

    return history(project)


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


def demo_verified(
    out: Source | None = None,
    number: int | None = None,
    seed: int = 0,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_verdict: Callable[[int, int], None] = lambda done, total: None,
) -> VerifiedDemo:
    """Label synthetic photos too freely into `out`, review some, and let the demo's own verifier judge the rest."""
    from sam3label.demo.verified import verify_demo

    return verify_demo(out or "runs/demo-verify", number or 48, seed, on_progress, on_verdict)


def doctor(model: str = "facebook/sam3") -> list[Check]:
    """Check this machine: Python, torch, device and memory, access to the checkpoint, optional extras.

    >>> [check.advice for check in sl.doctor("demo") if check.what == "checkpoint"]
    ['']
    """
    from sam3label.model.doctor import examine

    return examine(model)


def weights() -> list[Weights]:
    """Return which weights are on this machine, where they came from, and what they can do. Downloads nothing.

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

"""A run folder with all that can be done with it, as `import sam3label` gives it: `sl.Run`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.core.files import write_whole
from sam3label.core.records import LabeledImage
from sam3label.errors import ConfigError
from sam3label.labelling.options import LabelOptions
from sam3label.run.joined import JoinedRun
from sam3label.run.reader import Run

if TYPE_CHECKING:
    from sam3label.export.dataset import Summary
    from sam3label.export.options import Options, Placement
    from sam3label.labelling.progress import RunSummary
    from sam3label.labelling.reference_check import Trust
    from sam3label.quality.calibrate import Calibration
    from sam3label.quality.evaluate import Evaluation
    from sam3label.review.fiftyone.app import ReviewApp
    from sam3label.review.fiftyone.pull import DrawnBox, Pulled
    from sam3label.review.fiftyone.push import Pushed
    from sam3label.review.proposals import Proposal
    from sam3label.review.summary import ReviewSummary
    from sam3label.validate import Report
    from sam3label.verify.asking import Asking
    from sam3label.verify.judge import Agenda
    from sam3label.verify.session import Verification

Source = str | Path
OnCount = Callable[[int, int], None]  # called with how much is done, and out of how much


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
    asking: Asking | None = None  # of the session that `ask` just ended
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
        self,
        gt: Source | Sequence[Source],
        *,
        attributes: Source | None = None,
        gt_split: str | None = None,
        on_progress: OnCount = lambda done, total: None,
    ) -> Evaluation:
        """Judge the labels against truth; several files are several annotators. Raises `InputError`.

        >>> round(sl.open_run("runs/demo").evaluate("photos/truth.json").cgf1, 1)
        0.5
        """
        from sam3label.quality.evaluate import evaluate_run
        from sam3label.quality.evaluate_tracks import evaluate_tracked_run

        truths = several(gt)
        if is_of_videos(truths, attributes, gt_split):
            return evaluate_tracked_run(self.folders, truths[0], self.concepts)
        return evaluate_run(self.folders, truths, self.concepts, attributes, gt_split, on_progress)

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

        Where the run was labelled or opened with a concept list in a file, it is that list, comments and all, with new
        thresholds.

        >>> calibration = sl.open_run("runs/demo").calibrate("photos/truth.json")
        >>> calibration.classes[0].note
        'too few examples (2 objects in 1 image): add 18 more objects and 4 more images with it'
        """
        from sam3label.quality.calibrate import Goal, calibrate_run
        from sam3label.quality.calibrated_list import write_concepts

        calibration = calibrate_run(self.folders, gt, self.concepts, Goal(beta, precision), folds, gt_split)
        own = self.info.get("concept_file")
        source = self.concept_file or (own if own and Path(own).is_file() else None)
        write_concepts(calibration, out or self.folder / "concepts.calibrated.yaml", source)
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
        truths = several(gt)
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
        stop: threading.Event | None = None,
        **limits: Any,
    ) -> Verification:
        """Let the model `vlm` of an OpenAI-compatible server judge labels; photos go there, and nowhere else.

        The server "demo" is the demo's own verifier, which knows drawn shapes, started on this machine.
        Its verdicts count once it agreed with what people reviewed. `limits`: in_flight, timeout, votes, max_requests
        and max_cost (US dollars, by `price` for a million tokens in and out). `dry_run` asks nothing; once `stop` is
        set, what is under way is waited for and kept.

        >>> len(sl.open_run("runs/demo").verify(budget=3, dry_run=True).agenda.targets)
        3
        """
        from sam3label.verify import session
        from sam3label.verify.server import parse_price

        prices = None if price is None else parse_price(price)
        vlm = vlm or (server if server == DEMO else None)
        todo = session.agenda_of(self, vlm, None if everything else budget)
        on_plan(todo, prices)
        if dry_run:
            return session.Verification(todo)
        with _address(server) as address:
            options = session.server_options(address, vlm, price=prices, **limits)
            return session.verify(self, todo, options, on_progress, on_message, stop)

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
        before it is recorded. `options` are the fields of `LabelOptions`; without a model it is the one that the run
        was made with, and `CheckpointError` is raised where that has become another.

        >>> [dict(pulled.actions) for pulled in sl.open_run("runs/demo").review_pull("site-a", who="anna")]
        [{}]
        """
        from sam3label.labelling.drawn_boxes import DrawnBoxes
        from sam3label.review.fiftyone.pull import pull

        identity = None if "model" in options else self.info.get("checkpoint")
        maker = DrawnBoxes(self, self._options(**options), identity) if masks else None
        return pull(self, dataset, who, maker, accept)

    def _options(self, **options: Any) -> LabelOptions:
        """Return options for more work on the run's media: by the checkpoint that made it, if none is named."""
        made = self.note("settings") or {"model": self.info.get("model")}
        kept = ("image_size",) if "model" in options else ("model", "revision", "image_size")
        return LabelOptions(**{**{name: made[name] for name in kept if made.get(name) is not None}, **options})

    def draw_boxes(self, drawn: Sequence[DrawnBox]) -> tuple[Path, int]:
        """Draw what became of boxes that people drew, for `accept`, and return the picture's place and its images.

        >>> sl.open_run("runs/demo").draw_boxes([])[1]
        0
        """
        from sam3label.show.contact_sheet import drawn_sheet

        sheet = self.folder / "review_masks.png"
        return sheet, drawn_sheet(self, [(one.item_id, one.frame, one.label) for one in drawn], sheet)

    def review_summary(self) -> ReviewSummary:
        """Return how good the model was, from the images that people reviewed.

        >>> sl.open_run("runs/demo").review_summary().reviewed_images
        0
        """
        from sam3label.review.summary import summarize

        return summarize(self)

    def review_next(
        self,
        n: int = 20,
        *,
        out: Source | None = None,
        on_progress: OnCount = lambda done, total: None,
        **options: Any,
    ) -> list[Proposal]:
        """Return photos to review next for a training: much to correct, and unlike each other and what was reviewed.

        `out` is a file for their paths, one a line. `options` are the fields of `LabelOptions`; the model is the run's
        own without one.

        >>> [proposal.gain > 0 for proposal in sl.open_run("runs/demo").review_next(2, model="demo")]
        [True, True]
        """
        from sam3label.labelling.features import EncoderFeatures
        from sam3label.review.proposals import propose

        proposed = propose(self, n, EncoderFeatures(self._options(**options), on_progress))
        if out is not None:
            write_whole(out, "".join(f"{one.item.path}\n" for one in proposed))
        return proposed

    def review_write(
        self, out: Source, *, images: Placement = "hardlink", audit: int | None = None
    ) -> tuple[Path, ...]:
        """Write the run as a folder that FiftyOne loads on another machine. Needs no FiftyOne and no database here.

        >>> [path.name for path in sl.open_run("runs/demo").review_write("fiftyone", audit=2)]
        ['fiftyone']
        """
        from sam3label.review.fiftyone.folder import write_folder

        return write_folder(self, Path(out), audit, images)


# ---- what its methods and the functions beside it share


DEMO = "demo"  # the server that is started here


@contextmanager
def _address(server: str | None) -> Iterator[str | None]:
    """Give where to ask. The demo's verifier is started on this machine, and ends with the block."""
    if server != DEMO:
        yield server
        return
    from sam3label.demo.eyes import serving

    with serving() as address:
        yield address


class LabeledRuns(JoinedRun, LabeledRun):
    """Several run folders that are read as one, with all that can be done with them: what `open_run` gives for a list.

    >>> sl.open_run(["runs/demo"]).folders == (sl.open_run("runs/demo").folder,)
    True
    """


def several(sources: Source | Sequence[Source]) -> list[Source]:
    """Return one or more sources as a list."""
    return [sources] if isinstance(sources, str | Path) else list(sources)


def is_of_videos(truths: Sequence[Source], attributes: Source | None = None, gt_split: str | None = None) -> bool:
    """Return whether truths are of videos, which are judged one at a time. Raises `ConfigError`."""
    from sam3label.annotations.youtube_vis import is_video_truth

    if not is_video_truth(Path(truths[0])):
        return False
    if attributes or gt_split or len(truths) > 1:
        raise ConfigError("gt: a video truth is judged alone: one file, without attributes and gt_split")
    return True

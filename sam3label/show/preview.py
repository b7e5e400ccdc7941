"""Label a few images before labelling them all: what comes out, and what the whole folder would take.

The sample is spread over the sorted images, since the first few are often from one folder, one camera, one morning.
It is a run like any other, in a folder of its own, so what is shown and measured is what `run` does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sam3label.concepts.exemplars import Examples, pixel_digest, read_examples
from sam3label.core import masks
from sam3label.core.files import write_whole
from sam3label.core.records import BoxPrompt, ConceptList, Frame, Label, MediaItem
from sam3label.core.text import count, verb
from sam3label.errors import InputError, OutputError, UndecodableError
from sam3label.labelling import canvas
from sam3label.labelling.job import find_media, label
from sam3label.labelling.options import DEFAULTS, LabelOptions
from sam3label.labelling.progress import Progress, RunSummary
from sam3label.labelling.questions import crops
from sam3label.labelling.workers.local import LocalWorker
from sam3label.labelling.workers.start import started
from sam3label.labelling.workers.work import Assignment, Say, Workers
from sam3label.media import storage
from sam3label.media.image import decode_image, megapixels
from sam3label.media.loader import default_workers
from sam3label.run.reader import open_run
from sam3label.run.store_errors import DATABASE
from sam3label.show.contact_sheet import contact_sheet
from sam3label.show.draw import Pixels, outline
from sam3label.show.lettering import Fonts
from sam3label.show.report import write_report

BATCHES = 4  # the sample is labelled in at least so many: the first warms up, the others are timed
SHEET_IMAGES = 64
COMPARED, COMPARED_PX = 16, 800  # photos on the sheet of tiles, each twice, so large that small objects are seen
SHOWN_EXAMPLES = 8  # per class, on the sheet of exemplars
Cell = tuple[Pixels, Sequence[Label], str]


@dataclass(frozen=True, slots=True)
class WithTiles:
    """What tiles add to the sample and what they cost, each (without, with): objects, and seconds an image."""

    objects: tuple[int, int]
    seconds: tuple[float, float]
    sheet: Path  # each photo twice: without tiles, and with them


@dataclass(frozen=True, slots=True)
class Preview:
    """What the sample came to, and estimates for all `total` images. Bytes and seconds."""

    total: int
    videos: int  # that a run would label too; not in the sample and not in the estimates
    labelled: int
    failures: tuple[tuple[str, str], ...]
    objects: dict[str, int]  # by class name
    empty: int  # images without a label
    images_per_s: float  # once warm
    seconds: float  # for all images, model loading included
    memory: int  # most that was in use at a time
    memory_kind: str
    disk: int  # of the run folder for all images
    sheet: Path | None  # None when no image could be labelled
    page: Path
    exemplars: Path | None  # the exemplars as they are used; None when there are none
    messages: tuple[str, ...]  # what the run says of them: cost and trust
    gpus: int = 1  # of this machine, of which one was measured
    tiles: WithTiles | None = None  # None where the list has no tiles


def preview(
    sources: Sequence[str | Path],
    concepts: ConceptList,
    out: str | Path,
    n: int = 16,
    options: LabelOptions = DEFAULTS,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Preview:
    """Label `n` images spread over `sources` into `out`, and write a contact sheet and a page there.

    The sample has the ids it would have in a run of all `sources`, so that a run into `out`/run goes on from it.
    Classes with exemplars get a sheet that shows these as they are used, and are labelled by them whatever they are
    worth: to see that is what a preview is for. Where the list has tiles, the sample is labelled without them too, for
    comparison. Raises a `Sam3LabelError` as `run` does.
    """
    folder = Path(out).absolute()
    _refuse_continued(folder)
    items, videos = _photos(sources, options, folder)
    examples = read_examples(concepts, items, options.max_megapixels)
    sample = _sample(items, examples, n)
    write_whole(folder / "sample.txt", "".join(f"{item.path}\n" for item in sample))
    exemplars = _write_exemplars(folder, examples, sample, options, concepts.names) if examples else None
    batch = options.batch_size or max(1, len(sample) // BATCHES)
    steps: list[Progress] = []
    messages: list[str] = []
    start = time.perf_counter()

    def follow(progress: Progress) -> None:
        steps.append(progress)
        on_progress(progress)

    def hear(text: str) -> None:
        if text.startswith("loading "):
            on_message(text)
        else:
            messages.append(text)

    chosen = replace(options, batch_size=batch, fresh=True, accept_exemplars=True)
    run = partial(label, sources, options=chosen, only={item.id for item in sample}, start=_OneModel().started)
    summary = run(concepts, folder / "run", on_progress=follow, on_message=hear)
    loading = time.perf_counter() - start - steps[-1].seconds
    overhead, per_image = _pace(steps)
    asking = _seconds_each(steps)
    per_image = max(per_image, _decode_seconds(sample, options) / _workers(options, len(items)))
    memory, kind = _peak_memory()
    tiles = None
    if summary.progress.done and any(concept.tile for concept in concepts.concepts):
        on_message("labelling the same images without tiles ...")
        tiles = _compared(run, concepts, folder, asking, on_progress)
    return Preview(
        total=len(items),
        videos=videos,
        labelled=summary.progress.done,
        failures=summary.failures,
        objects={name: summary.progress.objects.get(name, 0) for name in concepts.names},
        empty=_empty(folder / "run"),
        images_per_s=1 / per_image,
        seconds=loading + overhead + per_image * len(items),
        memory=memory,
        memory_kind=kind,
        disk=round((folder / "run" / DATABASE).stat().st_size / len(sample) * len(items)),
        sheet=_write_sheet(folder),
        page=_write_page(folder),
        exemplars=exemplars,
        messages=(*messages, *([said] if (said := Fonts().notice(concepts.names)) else [])),
        gpus=_gpus(),
        tiles=tiles,
    )


class _OneModel:
    """Brings several jobs of the same options the one model that the first of them has loaded into this process."""

    def __init__(self) -> None:
        self._worker: LocalWorker | None = None

    @contextmanager
    def started(self, assignment: Assignment, first: MediaItem | None, say: Say) -> Iterator[Workers]:
        if assignment.options.ray is not None:
            with started(assignment, first, say) as workers:
                yield workers
            return
        if self._worker is None:
            self._worker = LocalWorker(assignment)
        else:
            self._worker.assign(assignment)
        yield self._worker


def _compared(
    run: Callable[..., RunSummary],
    concepts: ConceptList,
    folder: Path,
    seconds: float,
    on_progress: Callable[[Progress], None],
) -> WithTiles:
    """Label the sample without tiles, and put both answers to each photo side by side."""
    plain = replace(concepts, concepts=tuple(replace(concept, tile=None) for concept in concepts.concepts))
    steps: list[Progress] = []

    def follow(progress: Progress) -> None:
        steps.append(progress)
        on_progress(progress)

    run(plain, folder / "without-tiles", on_progress=follow)
    objects, cells = [0, 0], list[Cell]()
    with open_run(folder / "without-tiles") as without, open_run(folder / "run") as tiled:
        for image in tiled.images():
            other = without.image(image.item.id)
            both = (() if other is None else other.labels), image.labels
            objects = [total + len(labels) for total, labels in zip(objects, both, strict=True)]
            if len(cells) < 2 * COMPARED:
                pixels = decode_image(image.item.path, megapixels(image.size_hw))
                for how, labels in zip(("without", "with"), both, strict=True):
                    cells.append((pixels, labels, f"{image.item.id}, {how} tiles ({len(labels)})"))
    contact_sheet(cells, concepts.names, folder / "tiles.png", columns=2, cell=COMPARED_PX)
    return WithTiles((objects[0], objects[1]), (_seconds_each(steps), seconds), folder / "tiles.png")


def _refuse_continued(folder: Path) -> None:
    """Refuse to start over in a folder in which `sam3label run` went on to label: that is not thrown away."""
    run_folder, sample = folder / "run", folder / "sample.txt"
    if not (run_folder / DATABASE).is_file() or not sample.is_file():
        return
    with open_run(run_folder) as labelled:
        images = len(labelled.items())
    if images > len(sample.read_text(encoding="utf-8").splitlines()):
        raise OutputError(
            f"{run_folder} holds {count(images, 'image')}, more than the preview labelled: a run has gone on from it. "
            "Choose another folder for this preview with -o, or delete that one."
        )


def _photos(sources: Sequence[str | Path], options: LabelOptions, out: Path) -> tuple[list[MediaItem], int]:
    """Return the photos that `run` would label, without earlier previews, and how many videos it would label too."""
    found = find_media(sources, options).items
    photos = [item for item in found if item.kind == "image" and not _lies_in(item.path, out)]
    videos = sum(item.kind == "video" for item in found)
    if not photos and videos:
        raise InputError(
            f"there {verb(videos, 'is', 'are')} {count(videos, 'video')} (or folders of numbered frames) and no "
            "photos. A preview shows photos: "
            "label one short video with sam3label run, or take numbered frames as photos with --video off."
        )
    if not photos:
        raise InputError(f"{out} holds all the images that were found: choose another folder for the preview with -o.")
    return photos, videos


def _lies_in(path: str, folder: Path) -> bool:
    return not storage.is_remote(path) and Path(path).is_relative_to(folder)


def spread(items: Sequence[MediaItem], n: int) -> list[MediaItem]:
    """Return `n` items, each from the middle of an equal share of the list; all of them when there are no more."""
    if len(items) <= n:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def _sample(items: Sequence[MediaItem], examples: Sequence[Examples], n: int) -> list[MediaItem]:
    """Return a spread sample; half of it has partial labels, where there are some."""
    labelled = {item_id for one in examples for item_id in one.photos}
    first = spread([item for item in items if item.id in labelled], (n + 1) // 2)
    taken = {item.id for item in first}
    rest = spread([item for item in items if item.id not in taken], n - len(first)) if len(first) < n else []
    return sorted((*first, *rest), key=lambda item: item.id)


def _pace(steps: Sequence[Progress]) -> tuple[float, float]:
    """Return (seconds before the first image, seconds per image once warm) from the progress after each batch."""
    finished = [step.done + step.failed for step in steps]
    first, last = steps[min(1, len(steps) - 1)], steps[-1]
    before = finished[min(1, len(steps) - 1)]
    if finished[-1] == before:  # one batch: nothing to tell warming up from working
        return 0.0, last.seconds / max(finished[-1], 1)
    per_image = (last.seconds - first.seconds) / (finished[-1] - before)
    return max(0.0, first.seconds - before * per_image), per_image


def _seconds_each(steps: Sequence[Progress]) -> float:
    """Return seconds per image, once warm; of a few that are labelled one by one, of all: one may be the only large."""
    last = steps[-1]
    finished = last.done + last.failed
    return last.seconds / max(finished, 1) if finished < 2 * BATCHES else _pace(steps)[1]


def _decode_seconds(sample: Sequence[MediaItem], options: LabelOptions) -> float:
    """Return seconds to decode one image. A small sample hides it behind the model; it may limit a long run."""
    start = time.perf_counter()
    for item in sample:
        try:
            decode_image(item.path, options.max_megapixels)
        except UndecodableError:
            continue
    return (time.perf_counter() - start) / len(sample)


def _workers(options: LabelOptions, total: int) -> int:
    return max(1, default_workers(total) if options.workers is None else options.workers)


def _peak_memory() -> tuple[int, str]:
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return torch.cuda.max_memory_reserved(), "GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return 0, "memory"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "memory"


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _empty(run_folder: Path) -> int:
    with open_run(run_folder) as labelled:
        return sum(not image.labels for image in labelled.images())


def _write_sheet(folder: Path) -> Path | None:
    with open_run(folder / "run") as labelled:
        images = list(labelled.images())[:SHEET_IMAGES]
        shown = [
            (decode_image(i.item.path, megapixels(i.size_hw)), i.labels, _title(i.item.id, len(i.labels)))
            for i in images
        ]
        if not shown:
            return None
        contact_sheet(shown, labelled.concepts.names, folder / "contact.png")
        return folder / "contact.png"


def _write_exemplars(
    folder: Path, examples: Sequence[Examples], sample: Sequence[MediaItem], options: LabelOptions, names: Sequence[str]
) -> Path | None:
    """Return every class's exemplars with their boxes, and the canvas that the first photo becomes."""
    cells = [cell for one in examples for cell in _example_cells(one, sample, options, len(names))]
    if not cells:
        return None
    contact_sheet(cells, (*names, "not this"), folder / "exemplars.png")
    return folder / "exemplars.png"


def _example_cells(examples: Examples, sample: Sequence[MediaItem], options: LabelOptions, no: int) -> Iterator[Cell]:
    name, number, rules = examples.concept.name, examples.concept.id, examples.concept.exemplars
    target = next(_decoded(sample, options), None)
    if examples.references and target and rules is not None and rules.mode == "canvas":
        chosen = canvas.choose([crops(reference) for reference in examples.references_for(pixel_digest(target.pixels))])
        if chosen:
            made = canvas.compose(target.pixels, chosen, rules.share)
            yield made.pixels, boxed(made.boxes, made.pixels.shape[:2], number, no), f"{name}: as the model sees it"
    for reference in examples.references[:SHOWN_EXAMPLES]:
        title = f"{name}: {reference.name}"
        yield reference.frame().pixels, boxed(reference.boxes, reference.size_hw, number, no), title
    for frame in _decoded([item for item in sample if item.id in examples.photos][:SHOWN_EXAMPLES], options):
        yield frame.pixels, boxed(_boxes_on(examples, frame), frame.size_hw, number, no), f"{name}: {frame.item.id}"


def _boxes_on(examples: Examples, frame: Frame) -> BoxPrompt | None:
    try:
        return examples.boxes_on(frame)
    except InputError:  # the run lists the photo with the reason
        return None


def _decoded(sample: Sequence[MediaItem], options: LabelOptions) -> Iterator[Frame]:
    for item in sample:
        try:
            yield Frame(item, 0, decode_image(item.path, options.max_megapixels))
        except UndecodableError:
            continue


def boxed(boxes: BoxPrompt | None, size_hw: tuple[int, ...], class_id: int, no: int) -> list[Label]:
    """Return boxes as labels to draw, of the frame alone, so that the example shows; negatives are of class `no`."""
    height, width = size_hw[0], size_hw[1]
    labels = []
    for corners, positive in zip(boxes.boxes_xyxy, boxes.positive, strict=True) if boxes else ():
        x, y, right, bottom = (float(v) for v in corners * (width, height, width, height))
        rle = outline((x, y, right - x, bottom - y), (height, width))
        number = class_id if positive else no
        labels.append(Label("", number, 1.0, 1.0, masks.box_xywh(rle), masks.area(rle), rle, "", "human"))
    return labels


def _title(item_id: str, objects: int) -> str:
    return f"{item_id}  ({objects})"


def _write_page(folder: Path) -> Path:
    with open_run(folder / "run") as labelled:
        write_report(labelled, folder / "report.html")
    return folder / "report.html"

"""One HTML page about a run, with everything in it: it opens without a network, without this program, and at once.

Counts are of the whole run; pictures are samples. The candidates that the sliders recount are embedded as numbers
(score, presence, image), as they stand once everything but score and presence has been decided; of a very large run
those of a spread sample of images, and the page says so.
"""

from __future__ import annotations

import base64
import heapq
import html
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sam3label.core.files import write_whole
from sam3label.core.records import ConceptList, Label, LabeledImage, MediaItem
from sam3label.errors import UndecodableError
from sam3label.media import video
from sam3label.media.image import decode_image
from sam3label.review.suspects import Suspect, find_suspects
from sam3label.run.decide import Decision, select_labels
from sam3label.run.reader import Run, SeenFrame, open_run
from sam3label.show.draw import Pixels, class_color, draw_labels

GALLERY = 48  # pictures
CASES_PER_KIND = 6
PICTURE_PX = 320
JPEG_QUALITY = 72
MAX_EMBEDDED = 100_000  # candidates
MAX_FAILURES = 500  # rows
SCORE_BINS = 20
PRESENCE_BINS = 10
SIZE_EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, np.inf)  # square root of the area, in pixels
MAX_TOGETHER = 25  # classes in the co-occurrence table


def write_report(run_folder: str | Path, path: str | Path, concepts: ConceptList | None = None) -> None:
    """Write the page. Raises `StoreError` when there is no run, `OutputError` when the page cannot be written."""
    with open_run(run_folder, concepts) as run:
        write_whole(path, render(collect(run, str(run_folder))))


def render(data: Mapping[str, Any]) -> str:
    """The page as one string: the template with the data as JSON in it."""
    template = files("sam3label.show").joinpath("report.html").read_text(encoding="utf-8")
    # "<" could end the script element that holds the data; JSON reads the escape as the same character
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return template.replace("@TITLE@", html.escape(str(data["title"]))).replace("@DATA@", embedded)


def collect(run: Run, title: str) -> dict[str, Any]:
    """Everything the page shows, as JSON values."""
    tally = _tally(run)
    return {
        "title": title,
        "info": _info(run),
        "totals": _totals(run, tally),
        "classes": [_class(run.concepts, tally, class_id) for class_id in range(len(run.concepts.concepts))],
        "sizes": [f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+" for low, high in pairwise(SIZE_EDGES)],
        "embedded": tally.embedded.to_json(len(run.concepts.concepts)),
        "together": _together(run.concepts, tally),
        **_pictures(run, tally),
        "failures": run.failures()[:MAX_FAILURES],
    }


# ---- one pass over the run


@dataclass(slots=True)
class _Embedded:
    """Candidates for the sliders: of every `step`-th image."""

    step: int
    images: int = 0
    rows: dict[int, list[tuple[float, float, int]]] = field(default_factory=lambda: defaultdict(list))

    def to_json(self, classes: int) -> dict[str, Any]:
        columns = [np.array(self.rows.get(c, []), dtype=np.float64).reshape(-1, 3) for c in range(classes)]
        flat = np.concatenate(columns) if columns else np.zeros((0, 3))
        return {
            "images": self.images,
            "step": self.step,
            "counts": [len(c) for c in columns],
            "score": _base64(flat[:, 0].astype("<f8")),
            "presence": _base64(flat[:, 1].astype("<f8")),
            "image": _base64(flat[:, 2].astype("<u4")),
        }


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


@dataclass(slots=True)
class _Tally:
    """What the pass over all images adds up."""

    embedded: _Embedded
    images: int = 0
    empty: int = 0
    reviewed: int = 0
    objects: Counter[int] = field(default_factory=Counter)
    shown: Counter[int] = field(default_factory=Counter)  # images with at least one
    together: Counter[tuple[int, int]] = field(default_factory=Counter)
    scores: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # candidates, [SCORE_BINS]
    sizes: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # labels, [len(SIZE_EDGES) - 1]
    presence: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)  # images and those labelled, [2, bins]
    cases: dict[str, list[tuple[float, int, Suspect]]] = field(default_factory=lambda: defaultdict(list))

    def worst(self) -> list[Suspect]:
        """The most suspicious of each kind, at most one per image and kind."""
        return [case for kind in sorted(self.cases) for _, _, case in sorted(self.cases[kind], reverse=True)]


def _tally(run: Run) -> _Tally:
    totals = run.totals()
    tally = _Tally(_Embedded(max(1, -(-totals.candidates // MAX_EMBEDDED))))
    everything = run.without_thresholds().concepts
    for unit in run.done_units():
        for seen in run.frames(unit):
            _add(tally, run.concepts, seen, everything)
    return tally


def _add(tally: _Tally, concepts: ConceptList, seen: SeenFrame, everything: ConceptList) -> None:
    standing = select_labels(seen.candidates, everything)
    _add_counts(tally, seen.image)
    _add_histograms(tally, concepts, seen.image, standing, seen.presence)
    if tally.images % tally.embedded.step == 0:
        for label in standing:
            tally.embedded.rows[label.class_id].append((label.score, label.presence, tally.embedded.images))
        tally.embedded.images += 1
    _add_cases(tally, seen.image, seen.decisions, seen.presence, concepts)
    tally.images += 1


def _add_counts(tally: _Tally, image: LabeledImage) -> None:
    found = Counter(label.class_id for label in image.labels)
    tally.objects += found
    tally.shown.update(found.keys())
    tally.together.update((a, b) for a in found for b in found if a < b)
    tally.empty += not found
    tally.reviewed += image.reviewed


def _add_histograms(
    tally: _Tally, concepts: ConceptList, image: LabeledImage, standing: Sequence[Label], presence: Mapping[str, float]
) -> None:
    labelled = {label.class_id for label in image.labels}
    for concept in concepts.concepts:
        scores = tally.scores.setdefault(concept.id, np.zeros(SCORE_BINS, np.int64))
        scores += np.histogram([x.score for x in standing if x.class_id == concept.id], SCORE_BINS, (0, 1))[0]
        sides = [label.area**0.5 for label in image.labels if label.class_id == concept.id]
        tally.sizes.setdefault(concept.id, np.zeros(len(SIZE_EDGES) - 1, np.int64))
        tally.sizes[concept.id] += np.histogram(sides, SIZE_EDGES)[0]
        asked = [presence[p] for p in concept.prompts if p in presence]
        if asked:
            bins = tally.presence.setdefault(concept.id, np.zeros((2, PRESENCE_BINS), np.int64))
            bins[:, min(int(max(asked) * PRESENCE_BINS), PRESENCE_BINS - 1)] += (1, concept.id in labelled)


def _add_cases(
    tally: _Tally,
    image: LabeledImage,
    decisions: Sequence[Decision],
    presence: Mapping[str, float],
    concepts: ConceptList,
) -> None:
    """Keep the worst few of each kind; of one image only its worst."""
    of_image: dict[str, Suspect] = {}
    for case in find_suspects(image, decisions, presence, concepts):
        if case.kind not in of_image or case.weight > of_image[case.kind].weight:
            of_image[case.kind] = case
    for case in of_image.values():
        worst = tally.cases[case.kind]
        entry = case.weight, -tally.images, case  # of equal weight the earlier image
        heapq.heappush(worst, entry) if len(worst) < CASES_PER_KIND else heapq.heappushpop(worst, entry)


# ---- parts of the page


def _info(run: Run) -> list[tuple[str, str]]:
    info = {k: v for k, v in run.info.items() if not isinstance(v, dict)}
    shown = {**info, "floor": run.floor}
    return [
        (name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in shown.items() if v is not None
    ]


def _totals(run: Run, tally: _Tally) -> dict[str, int]:
    totals = run.totals()
    return {
        "images": tally.images,
        "failed": totals.failed,
        "candidates": totals.candidates,
        "objects": sum(tally.objects.values()),
        "empty": tally.empty,
        "reviewed": tally.reviewed,
    }


def _class(concepts: ConceptList, tally: _Tally, class_id: int) -> dict[str, Any]:
    concept = concepts.concepts[class_id]
    nothing = np.zeros((2, PRESENCE_BINS), np.int64)
    return {
        "name": concept.name,
        "color": "#{:02x}{:02x}{:02x}".format(*class_color(class_id)),
        "prompts": list(concept.prompts),
        "not": list(concept.negatives),
        "conf": concept.conf,
        "presence": concept.presence,
        "iou": concept.iou,
        "min_area": concept.min_area,
        "objects": tally.objects[class_id],
        "images": tally.shown[class_id],
        "scores": tally.scores[class_id].tolist() if class_id in tally.scores else [0] * SCORE_BINS,
        "size_counts": tally.sizes[class_id].tolist() if class_id in tally.sizes else [0] * (len(SIZE_EDGES) - 1),
        "presence_bins": tally.presence.get(class_id, nothing).tolist(),
    }


def _together(concepts: ConceptList, tally: _Tally) -> dict[str, Any]:
    """Images that show both of two classes, for the classes seen most."""
    classes = sorted(class_id for class_id, _ in tally.shown.most_common(MAX_TOGETHER))
    table = [[tally.shown[a] if a == b else tally.together[min(a, b), max(a, b)] for b in classes] for a in classes]
    return {"classes": classes, "table": table, "left_out": len(concepts.concepts) - len(classes)}


def _pictures(run: Run, tally: _Tally) -> dict[str, Any]:
    """The suspicious cases and the gallery, all pictures drawn in one go: a video is read once."""
    cases, gallery = tally.worst(), list(_gallery(run, tally))
    wanted = [*((case.image, case.labels) for case in cases), *((image, image.labels) for image in gallery)]
    drawn = draw_all(wanted, run.concepts.names)
    return {
        "cases": [
            {"item": _name(case.image), "kind": case.kind, "reason": case.reason, "picture": picture}
            for case, picture in zip(cases, drawn[: len(cases)], strict=True)
        ],
        "gallery": [
            {
                "item": _name(image),
                "classes": sorted({label.class_id for label in image.labels}),
                "objects": len(image.labels),
                "picture": picture,
            }
            for image, picture in zip(gallery, drawn[len(cases) :], strict=True)
        ],
    }


def _name(image: LabeledImage) -> str:
    return image.item.id if image.item.kind == "image" else f"{image.item.id}, frame {image.frame}"


def _gallery(run: Run, tally: _Tally) -> Iterator[LabeledImage]:
    """Images and frames spread evenly over the run."""
    wanted = set(np.linspace(0, max(tally.images - 1, 0), min(GALLERY, tally.images)).round().astype(int).tolist())
    first = 0
    for unit in run.done_units():
        numbers = range(first, first + unit.frame_stop - unit.frame_start)
        first = numbers.stop
        if not wanted.isdisjoint(numbers):
            yield from (image for n, image in zip(numbers, run.unit_images(unit), strict=True) if n in wanted)


def draw_all(wanted: Sequence[tuple[LabeledImage, Sequence[Label]]], names: Sequence[str]) -> list[str | None]:
    """A small JPEG with its labels for each, as a data URI; None where the photo is not what it was any more."""
    drawn: dict[int, str | None] = {}
    of_item: dict[MediaItem, list[int]] = defaultdict(list)
    for number, (image, _) in enumerate(wanted):
        of_item[image.item].append(number)
    for item, numbers in of_item.items():
        frames = {wanted[number][0].frame for number in numbers}
        for index, pixels in _read(item, frames):
            for number in (n for n in numbers if wanted[n][0].frame == index):
                drawn[number] = _jpeg(pixels, wanted[number][1], names)
    return [drawn.get(number) for number in range(len(wanted))]


def _read(item: MediaItem, frames: set[int]) -> Iterator[tuple[int, Pixels]]:
    """(number, pixels) of the wanted frames of a video, or the one of a photo; fewer where the file has gone."""
    try:
        if item.kind == "image":
            yield 0, decode_image(item.path)
            return
        for picture in video.pictures(item):
            if picture.index in frames:
                yield picture.index, picture.pixels()
            if picture.index >= max(frames):
                return
    except (UndecodableError, OSError):
        return


def _jpeg(pixels: Pixels, labels: Sequence[Label], names: Sequence[str]) -> str | None:
    if any(label.rle.size_hw != pixels.shape[:2] for label in labels):
        return None  # the file is another picture now
    jpeg = io.BytesIO()
    Image.fromarray(draw_labels(pixels, labels, names, PICTURE_PX)).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"

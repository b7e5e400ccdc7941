"""One HTML page about a run, with everything in it: it opens without a network, without this program, and at once.

Counts are of the whole run; pictures are samples. The candidates that the sliders recount are embedded as numbers
(score, presence, image), as they stand once everything but score and presence has been decided; of a very large run
those of a spread sample of images, and the page says so.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml

from sam3label.concepts.concept_list import dump_concepts
from sam3label.core.colors import as_hex, class_color
from sam3label.core.files import write_whole
from sam3label.core.records import USES, ConceptList
from sam3label.review.reasons import EXPLAINED, Case, cases, worst_first
from sam3label.review.survey import survey_run
from sam3label.run.reader import Run
from sam3label.show import report_pictures
from sam3label.show.lettering import Fonts
from sam3label.show.report_counts import DECIDERS, PRESENCE_BINS, SCORE_BINS, SIZE_EDGES, ReportCounts, tally_run

if TYPE_CHECKING:
    from sam3label.quality.mistakes import Mistakes

CASES_PER_KIND = 6
MAX_FAILURES = 500  # rows
MAX_TOGETHER = 25  # classes in the co-occurrence table

OnProgress = Callable[[int, int], None]  # steps done, steps in all
T = TypeVar("T")


def write_report(
    run: Run,
    path: str | Path,
    on_progress: OnProgress = lambda done, total: None,
    mistakes: Mistakes | None = None,
) -> None:
    """Write the page; with `mistakes` also where run and truth disagree, as `evaluate_run` finds it.

    Raises `OutputError` when the page cannot be written.
    """
    write_whole(path, render(collect(run, ", ".join(map(str, run.folders)), on_progress, mistakes)))


def render(data: Mapping[str, Any]) -> str:
    """Return the page as one string: the template with the data as JSON in it."""
    template = files("sam3label.show").joinpath("report.html").read_text(encoding="utf-8")
    # "<" could end the script element that holds the data; JSON reads the escape as the same character
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return template.replace("@TITLE@", html.escape(str(data["title"]))).replace("@DATA@", embedded)


def collect(
    run: Run,
    title: str,
    on_progress: OnProgress = lambda done, total: None,
    mistakes: Mistakes | None = None,
) -> dict[str, Any]:
    """Return everything the page shows, as JSON values. Walks the run to survey, to judge and to count it."""
    steps = _Steps(on_progress, len(run))
    worst = worst_first(steps.each(_open_cases(run)), CASES_PER_KIND)
    tally = tally_run(run, steps.one)
    pictures = {
        "cases": [*report_pictures.of_cases(run, worst)],
        "gallery": [*report_pictures.gallery(run, tally.photos, tally.images - tally.photos)],
        "mistakes": [*report_pictures.of_mistakes(run, mistakes)] if mistakes else [],
    }
    steps.draw(sum(map(len, pictures.values())))
    drawn = iter(report_pictures.draw_all([*chain(*pictures.values())], run.concepts.names, steps.one))
    failures = run.failures()
    return {
        "title": title,
        "info": _info(run),
        "totals": _totals(run, tally),
        "classes": [_class(run.concepts, tally, class_id) for class_id in range(len(run.concepts.concepts))],
        "concepts": yaml.safe_load(dump_concepts(run.concepts)),
        "sizes": [f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+" for low, high in pairwise(SIZE_EDGES)],
        "embedded": tally.embedded.to_json(len(run.concepts.concepts)),
        "together": _together(run.concepts, tally),
        "deciders": _deciders(run, tally),
        "kinds": {kind: EXPLAINED[kind] for kind in worst},
        **{place: [next(drawn) for _ in wanted] for place, wanted in pictures.items()},
        "truth": _against_truth(mistakes) if mistakes else None,
        "lettering": Fonts().notice(run.concepts.names),
        "failures": failures[:MAX_FAILURES],
    }


def _open_cases(run: Run) -> Iterator[Case]:
    """Return what the queue has of this run, less the audit: a random sample is not suspicious."""
    return cases(run, survey_run(run, audit=0))


class _Steps:
    """Counts the steps of the work and tells how far it is, of a number that stays what it was at the start.

    Each image is looked at twice, and drawing all pictures is as much again, however many they will be.
    """

    def __init__(self, tell: OnProgress, images: int) -> None:
        self.tell, self.images, self.total = tell, images, 3 * images
        self.done, self.step = 0.0, 1.0
        tell(0, self.total)

    def draw(self, pictures: int) -> None:
        """From now on a step is one of these pictures."""
        self.step = self.images / max(1, pictures)

    def one(self) -> None:
        self.done += self.step
        self.tell(min(round(self.done), self.total), self.total)

    def each(self, values: Iterator[T]) -> Iterator[T]:
        for value in values:
            yield value
            self.one()


# ---- parts of the page


def _info(run: Run) -> list[tuple[str, str]]:
    info = {k: v for k, v in run.info.items() if not isinstance(v, dict)}
    shown = {**info, "floor": run.floor}
    return [
        (name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in shown.items() if v is not None
    ]


def _totals(run: Run, tally: ReportCounts) -> dict[str, int]:
    totals = run.totals()
    return {
        "images": tally.images,
        "failed": totals.failed,
        "waiting": len(run.coverage().waiting),
        "copies": len(run.near_copies()),
        "candidates": totals.candidates,
        "objects": sum(tally.objects.values()),
        "empty": tally.empty,
        "reviewed": tally.reviewed,
    }


def _class(concepts: ConceptList, tally: ReportCounts, class_id: int) -> dict[str, Any]:
    concept = concepts.concepts[class_id]
    nothing = np.zeros((2, PRESENCE_BINS), np.int64)
    return {
        "name": concept.name,
        "color": as_hex(class_color(class_id)),
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


def _deciders(run: Run, tally: ReportCounts) -> dict[str, Any] | None:
    """Return whose word made how many labels, and what each verifier is worth; None where the model alone decided."""
    columns = [name for name in DECIDERS if any(tally.deciders[c, name] for c in range(len(run.concepts.names)))]
    verifiers = [
        {"name": name, "uses": [{"use": use, **known[use]} for use in USES if known.get(use)]}
        for name, known in (run.note("verifiers") or {}).items()
    ]
    if set(columns) <= {"model"} and not verifiers:
        return None
    table = [[tally.deciders[c, name] for name in columns] for c in range(len(run.concepts.names))]
    return {"columns": columns, "table": table, "verifiers": verifiers, "trusted": run.verifiers}


def _against_truth(mistakes: Mistakes) -> dict[str, Any]:
    """Return how much of the truth was missed, made up or confused, and the matrix where there is one."""
    confusion = mistakes.confusion
    return {
        "compared": "masks" if mistakes.compared == "segm" else "boxes",
        "missed": len(mistakes.missed),
        "false_alarms": len(mistakes.false_alarms),
        "confused": len(mistakes.confused),
        "matrix": None if confusion is None else confusion.to_json(),
    }


def _together(concepts: ConceptList, tally: ReportCounts) -> dict[str, Any]:
    """Return images that show both of two classes, for the classes seen most."""
    classes = sorted(class_id for class_id, _ in tally.shown.most_common(MAX_TOGETHER))
    table = [[tally.shown[a] if a == b else tally.together[min(a, b), max(a, b)] for b in classes] for a in classes]
    return {"classes": classes, "table": table, "left_out": len(concepts.concepts) - len(classes)}

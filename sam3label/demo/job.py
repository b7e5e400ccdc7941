"""What `sam3label demo` does: the main job, end to end, on photos whose truth is known.

It makes synthetic photos, labels them with the demo checkpoint and a concept list it writes for the user to read,
exports COCO and YOLO, scores the labels against the truth, and draws a contact sheet.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3label.concepts.concept_list import load_concepts
from sam3label.core import masks
from sam3label.core.records import Label, LabeledImage, Rle
from sam3label.demo.shapes import write_scenes
from sam3label.errors import OutputError
from sam3label.export.write import export
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress, RunSummary
from sam3label.media.image import decode_image, megapixels
from sam3label.quality.metrics import cgf1
from sam3label.run.reader import Run, open_run
from sam3label.show.contact_sheet import contact_sheet

# class name: the phrase that says which objects it means; the concept list asks in words of its own
TRUTH = {
    "disc": "circle",
    "ring": "ring",
    "red star": "red star",
    "blue square": "blue square",
    "triangle": "triangle",
}
CONCEPTS = """\
# The concept list of the demo. Change it and run the same command again with another -o, or:
#   sam3label run {photos} -c {here} --model demo -o {runs}
names: {{0: disc, 1: ring, 2: red star, 3: blue square, 4: triangle}} # class ids, as in a YOLO data.yaml

defaults: {{conf: 0.4}} # the lowest score that becomes a label; this small model is modest

concepts:
  disc:
    prompts: [circle, disc] # synonyms: asked one by one, merged into one class
    not: [ring] # a ring taken for a disc is suppressed, and never exported as one
  ring:
    prompts: [ring, donut]

exclusive:
  - [disc, ring] # one object gets one of these classes
"""
SHEET_IMAGES = 12


@dataclass(frozen=True, slots=True)
class DemoMetrics:
    """The labels against the truth. `f1` and `mean_iou` are of masks, matched at IoU 0.5; `presence_mcc` says how well
    (image, class) pairs with objects are told from those without; `seconds` is the labelling alone."""

    f1: float
    mean_iou: float
    presence_mcc: float
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where everything is."""

    metrics: DemoMetrics
    summary: RunSummary
    photos: Path
    truth: Path
    concepts: Path
    runs: Path
    exports: Mapping[str, Path]
    contact_sheet: Path
    metrics_file: Path


def demo(
    out: str | Path,
    images: int = 24,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> DemoResult:
    """Run the demo into the folder `out`. The same seed gives the same photos and labels.

    Raises `OutputError` when `out` holds something else than an earlier demo.
    """
    folder = Path(out)
    refuse_foreign(folder)
    photos = folder / "photos"
    runs = folder / "run"
    sheet = folder / "contact_sheet.png"
    truth = make_photos(photos, images, seed, folder)
    concepts_file = folder / "concepts.yaml"
    concepts_file.write_text(
        CONCEPTS.format(**quoted(photos=photos, here=concepts_file, runs=folder / "run-2")), encoding="utf-8"
    )
    start = time.perf_counter()
    summary = label(
        [photos], load_concepts(concepts_file), runs, LabelOptions(model="demo", fresh=True), on_progress=on_progress
    )
    seconds = time.perf_counter() - start
    with open_run(runs) as labelled:
        exports = {name: folder / "datasets" / name for name in ("coco", "yolo")}
        for name, target in exports.items():
            export(labelled, name, target)
        metrics = score(labelled, truth, seconds)
        _draw(labelled, sheet)
    metrics_file = folder / "metrics.json"
    metrics_file.write_text(json.dumps(asdict(metrics), indent=2) + "\n", encoding="utf-8")
    return DemoResult(metrics, summary, photos, truth, concepts_file, runs, exports, sheet, metrics_file)


def quoted(**paths: Path) -> dict[str, str]:
    """Return paths as a shell wants them."""
    return {name: shlex.quote(str(path)) for name, path in paths.items()}


def refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file. Choose a folder with -o.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "truth.json").is_file():
        raise OutputError(f"{folder} is not empty and not an earlier demo. Choose another folder with -o.")


def make_photos(photos: Path, n: int, seed: int, folder: Path) -> Path:
    """Fresh photos, with their truth beside the folder rather than in it."""
    for old in photos.glob("scene_*.jpg"):
        old.unlink()
    try:
        return write_scenes(photos, n, seed=HELD_OUT + seed, concepts=TRUTH).replace(folder / "truth.json")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}). Choose another folder with -o.") from error


HELD_OUT = 9_000_000  # the demo checkpoint was never trained on scenes of these seeds


TruthMasks = dict[tuple[str, str], list[Rle]]  # by (item id, class name)


def score(labelled: Run, truth: Path, seconds: float, photos: Collection[str] | None = None) -> DemoMetrics:
    """Compare a run's labels with COCO truth of the same class names: of all photos, or of those of these ids."""
    objects, pairs = truth_masks(truth), []
    chosen = [image for image in labelled.images() if photos is None or image.item.id in photos]
    for image in chosen:
        for class_id, name in enumerate(labelled.concepts.names):
            found = [label.rle for label in image.labels if label.class_id == class_id]
            pairs.append(cgf1.match(masks.iou_matrix(found, objects.get((image.item.id, name), []))))
    curves = cgf1.curves(pairs)
    ious = np.concatenate([pair.found_iou for pair in pairs] or [np.zeros(0)])
    matched = ious[ious >= cgf1.IOU_THRESHOLDS[0]]
    return DemoMetrics(
        f1=round(float(curves["F1"][0]), 4),
        mean_iou=round(float(matched.mean()), 4) if len(matched) else 0.0,
        presence_mcc=round(float(curves["IL_MCC"]), 4),
        images=len(chosen),
        seconds=round(seconds, 2),
    )


def truth_masks(truth: Path) -> TruthMasks:
    """Read the masks of a COCO file that `write_scenes` wrote."""
    content = json.loads(truth.read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: TruthMasks = {}
    for annotation in content["annotations"]:
        code = annotation["segmentation"]
        rle = Rle((code["size"][0], code["size"][1]), code["counts"].encode())
        found.setdefault((files[annotation["image_id"]], names[annotation["category_id"]]), []).append(rle)
    return found


def _draw(labelled: Run, path: Path) -> None:
    """Draw a grid of labelled photos spread over the run."""
    step = max(1, len(labelled) // SHEET_IMAGES)
    chosen = [image for i, image in enumerate(labelled.images()) if i % step == 0][:SHEET_IMAGES]
    contact_sheet([_cell(image) for image in chosen], labelled.concepts.names, path)


def _cell(image: LabeledImage) -> tuple[Any, tuple[Label, ...], str]:
    return decode_image(image.item.path, megapixels(image.size_hw)), image.labels, image.item.id

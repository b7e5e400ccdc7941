"""The real consumers of COCO JSON, given the records that `coco.check` found readable."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from sam3label.core.text import count
from sam3label.validate.coco import CheckedFile, CocoFile
from sam3label.validate.photos import read_photo
from sam3label.validate.report import Consumer, Findings

EVALUATED_IMAGES = 2000
SCORED_AT_ONCE = 250  # images; COCOeval keeps every pair it has compared
PROCESSED_IMAGES = 100


def consume(file: CocoFile, checked: CheckedFile, findings: Findings) -> Iterator[Consumer]:
    """Load the file with each consumer."""
    yield _pycocotools(file, checked, findings)
    ids = list(file.names)
    if all(type(i) is int for i in ids) and sorted(ids) == list(range(len(ids))):
        yield _hugging_face(file, checked, findings)
    else:
        result = f"not meant for it: class ids are {_range(ids)}, it wants 0 to N-1 (export --format coco-zero)"
        yield Consumer(f"RT-DETR, Hugging Face RTDetrImageProcessor ({file.split})", result)


def _range(ids: list[Any]) -> str:
    whole = sorted(i for i in ids if type(i) is int)
    if len(whole) == len(ids) and whole and whole[-1] - whole[0] == len(set(whole)) - 1:
        return f"{whole[0]} to {whole[-1]}"
    return ", ".join(repr(i)[:20] for i in ids[:8]) or "none"


# --------------------------------------------------------------------------------------------------------- pycocotools


def _pycocotools(file: CocoFile, checked: CheckedFile, findings: Findings) -> Consumer:
    """Load, then score the labels against themselves: anything under 1.0 was lost on the way."""
    name = f"pycocotools ({file.split})"
    truth = [a for a in checked.readable if not a.get("iscrowd")]
    if not truth:
        return Consumer(name, "loads; no instances to score")
    kinds = ["bbox"] + (["segm"] if all(a.get("segmentation") for a in truth) else [])
    try:
        scores = {kind: _self_score(file, truth, kind) for kind in kinds}
    except Exception as error:  # the consumer's own failure, in its own words, is the finding
        findings.drops("pycocotools", f"COCOeval fails: {type(error).__name__}: {error}", str(file.path))
        return Consumer(name, "fails")
    for kind, score in scores.items():
        if score < 0.9999:
            what = f"labels scored against themselves reach {kind} AP {score:.4f} instead of 1"
            findings.drops("pycocotools", what, str(file.path))
    parts = ", ".join(f"{kind} AP {score:.4f}" for kind, score in scores.items())
    return Consumer(name, f"loads {count(len(truth), 'instance')}; against themselves {parts}")


def _self_score(file: CocoFile, truth: list[dict[str, Any]], kind: str) -> float:
    """Return the mean of AP over the first images, some at a time."""
    by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in truth:
        by_image[annotation["image_id"]].append(annotation)
    images = [image for image in file.images if image["id"] in by_image][:EVALUATED_IMAGES]
    classes = [{"id": i, "name": name} for i, name in file.names.items()]
    scores = []
    for start in range(0, len(images), SCORED_AT_ONCE):
        part = images[start : start + SCORED_AT_ONCE]
        annotations = [annotation for image in part for annotation in by_image[image["id"]]]
        scores.append(_score({"images": part, "annotations": annotations, "categories": classes}, kind))
    return float(np.mean(scores))


def _score(document: dict[str, Any], kind: str) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = {**document, "annotations": [dict(a) for a in document["annotations"]]}  # it writes into them
        truth.createIndex()
        found.dataset = {**document, "annotations": [{**a, "score": 1.0} for a in document["annotations"]]}
        found.createIndex()
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [100_000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    scored = precision[precision > -1]
    return float(np.mean(scored)) if scored.size else 1.0


# -------------------------------------------------------------------------------------------------------- Hugging Face


def _hugging_face(file: CocoFile, checked: CheckedFile, findings: Findings) -> Consumer:
    """Put photos and annotations through RTDetrImageProcessor, and count what comes out."""
    name = f"Hugging Face RTDetrImageProcessor ({file.split})"
    if file.image_root is None:
        return Consumer(name, "not tried: the photos were not found")
    from transformers import RTDetrImageProcessor

    processor = RTDetrImageProcessor()
    by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in checked.readable:
        by_image[annotation["image_id"]].append(annotation)
    given = kept = tried = 0
    for image in file.images:
        if tried == PROCESSED_IMAGES:
            break
        annotations = by_image.get(image["id"], [])
        came = _processed(processor, file, image, annotations, findings)
        if came is None:
            continue
        tried, given, kept = tried + 1, given + len(annotations), kept + came
        if came < len(annotations):
            what = "the processor left instances out"
            findings.drops("Hugging Face", what, image["file_name"], len(annotations) - came)
    return Consumer(name, f"{kept} of {count(given, 'instance')} kept in the {count(tried, 'image')} tried")


def _processed(
    processor: Any, file: CocoFile, image: dict[str, Any], annotations: list[dict[str, Any]], findings: Findings
) -> int | None:
    """Return how many instances of one photo come out; None if it could not be tried."""
    from PIL import Image

    path = (file.image_root or file.path) / image["file_name"]
    if read_photo(path) is None:
        return None
    target = {"image_id": image["id"], "annotations": annotations}
    try:
        with Image.open(path) as photo:
            output = processor(images=photo.convert("RGB"), annotations=target, return_tensors="pt")
    except Exception as error:  # the consumer's own failure, in its own words, is the finding
        what = f"the processor fails: {type(error).__name__}: {error}"
        findings.drops("Hugging Face", what, image["file_name"])
        return None
    return len(output["labels"][0]["class_labels"])

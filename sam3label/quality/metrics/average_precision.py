"""COCO average precision, computed by pycocotools itself from truth and predictions by pair.

Only the way in is ours: truth is numbered from 1 (pycocotools takes an annotation with id 0 for "not matched"), and a
prediction's area is its mask's when masks are compared, whether or not the results file gave a box as well.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3label.annotations.coco import JudgedObject, Pair, Truth
from sam3label.core import masks

Floats = npt.NDArray[np.float64]
Kind = Literal["segm", "bbox"]

_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """The twelve COCO figures by name, and AP, AP50, AP75 by category id. -1 stands for undefined."""

    overall: dict[str, float]
    by_category: dict[int, dict[str, float]]


def average_precision(
    truth: Truth, ranked: Mapping[Pair, Sequence[JudgedObject]], kind: Kind, iou: Mapping[Pair, Floats] | None = None
) -> AveragePrecision:
    """Return COCO AP over pairs of `truth`. `ranked` holds every prediction with its score, whatever the thresholds.

    `iou`, [D, G] in file order, replaces pycocotools' own overlaps: of tracks, for example.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress with print
        image_ids = dict.fromkeys(image_id for image_id, _ in truth.pairs)
        images = [{"id": i, "height": 1, "width": 1} for i in image_ids]  # asked for, used for polygons alone
        categories = [{"id": i} for i in truth.categories]
        evaluation = _SizeAwareEval(
            _coco(images, categories, _annotations(truth.pairs, truth.objects, kind)),
            _coco(images, categories, _annotations(truth.pairs, ranked, kind)),
            kind if iou is None else "bbox",
        )
        evaluation.given_iou = iou
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    overall = {name: float(value) for name, value in zip(_STATS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [T, recalls, categories], all sizes, 100 detections
    by_category = {
        category_id: {"AP": _mean(values), "AP50": _mean(values[0]), "AP75": _mean(values[5])}
        for category_id, values in zip(evaluation.params.catIds, np.moveaxis(precision, 2, 0), strict=True)
    }
    return AveragePrecision(overall, by_category)


class _SizeAwareEval(COCOeval):  # type: ignore[misc]
    """The same figures in two thirds of the time.

    Where all truth and all predictions of an image lie outside a size range, everything in it is ignored: the image
    adds neither hits nor misses to that range, and need not be matched for it.
    """

    given_iou: Mapping[Pair, Floats] | None = None

    def evaluateImg(self, imgId: int, catId: int, aRng: Sequence[float], maxDet: int) -> Any:
        key = imgId, catId
        if any(aRng[0] <= o["area"] <= aRng[1] for objects in (self._gts[key], self._dts[key]) for o in objects):
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        return None

    def computeIoU(self, imgId: int, catId: int) -> Any:
        if self.given_iou is None:
            return super().computeIoU(imgId, catId)
        found = self._dts[imgId, catId]
        best_first = np.argsort([-d["score"] for d in found], kind="mergesort")[: self.params.maxDets[-1]]
        return self.given_iou[imgId, catId][best_first] if found and self._gts[imgId, catId] else []


def _mean(values: Floats) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _coco(images: Sequence[Any], categories: Sequence[Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _annotations(
    pairs: Iterable[Pair], instances: Mapping[Pair, Sequence[JudgedObject]], kind: Kind
) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for pair in pairs:
        for instance in instances.get(pair, ()):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": pair[0],
                "category_id": pair[1],
                "iscrowd": int(instance.crowd),
                "score": instance.score,
                "area": instance.area if kind == "segm" else instance.box_area,
                "bbox": list(instance.box_xywh),
            }
            if kind == "segm" and instance.rle is not None:
                annotation["segmentation"] = masks.to_coco(instance.rle)
            annotations.append(annotation)
    return annotations

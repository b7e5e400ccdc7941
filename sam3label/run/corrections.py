"""People's corrections laid over what `decide` decided: pure, and stronger than every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sam3label.core import masks
from sam3label.core.records import Correction, Label, Source
from sam3label.run.decide import Decision, best_first


def apply_corrections(
    labels: Sequence[Label], decisions: Sequence[Decision], corrections: Sequence[Correction], names: Sequence[str]
) -> tuple[tuple[Label, ...], bool]:
    """Return labels of one image (frame) after its human decisions in order, and whether a person has reviewed it.

    What a person touched stays whatever the thresholds become; on a reviewed image nothing else stays. A correction of
    a label whose candidate is gone is kept in the store and has no effect here.
    """
    known = {d.label.id: d.label for d in decisions} | {label.id: label for label in labels}
    result = {label.id: label for label in labels}
    touched: set[str] = set()
    reviewed = False
    for one in corrections:
        if one.label_id is None:
            reviewed = True
            continue
        touched.add(one.label_id)
        corrected = _apply(result.get(one.label_id) or known.get(one.label_id), one, names)
        if corrected is None:
            result.pop(one.label_id, None)
        else:
            result[one.label_id] = corrected
    kept = (label for label in result.values() if not reviewed or label.id in touched)
    return tuple(sorted(kept, key=lambda label: (label.class_id, *best_first(label)))), reviewed


def _apply(label: Label | None, one: Correction, names: Sequence[str]) -> Label | None:
    if one.action == "deleted" or (one.class_name is not None and one.class_name not in names):
        return None
    if one.action == "added" and one.rle is not None and one.class_name is not None and one.label_id is not None:
        return _human_label(one.label_id, names.index(one.class_name), one)
    if label is None:
        return None
    source: Source = label.source if one.action == "approved" else "human"
    label = replace(label, source=source)
    if one.rle is not None or one.action == "approved":
        label = replace(label, doubt=None)
    if one.class_name is not None:
        label = replace(label, class_id=names.index(one.class_name), class_name=one.class_name)
    if one.rle is not None:
        label = replace(label, rle=one.rle, area=masks.area(one.rle), box_xywh=masks.box_xywh(one.rle))
    return label


def _human_label(label_id: str, class_id: int, one: Correction) -> Label:
    assert one.rle is not None  # Correction checks it
    box, area = masks.box_xywh(one.rle), masks.area(one.rle)
    return Label(
        label_id, class_id, 1.0, 1.0, box, area, one.rle, "", "human", one.frame, one.track_id, one.class_name or ""
    )

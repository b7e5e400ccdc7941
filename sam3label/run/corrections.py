"""People's corrections laid over what `decide` decided: pure, and stronger than every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sam3label.core import masks
from sam3label.core.records import Edit, Label, Source
from sam3label.run.decide import Decision, best_first


def apply_edits(
    labels: Sequence[Label], decisions: Sequence[Decision], edits: Sequence[Edit], names: Sequence[str]
) -> tuple[tuple[Label, ...], bool]:
    """Labels of one image (frame) after its human decisions in order, and whether a person has reviewed it.

    What a person touched stays whatever the thresholds become; on a reviewed image nothing else stays. An edit of a
    label whose candidate is gone is kept in the store and has no effect here.
    """
    known = {d.label.id: d.label for d in decisions} | {label.id: label for label in labels}
    result = {label.id: label for label in labels}
    touched: set[str] = set()
    reviewed = False
    for edit in edits:
        if edit.label_id is None:
            reviewed = True
            continue
        touched.add(edit.label_id)
        edited = _apply(result.get(edit.label_id) or known.get(edit.label_id), edit, names)
        if edited is None:
            result.pop(edit.label_id, None)
        else:
            result[edit.label_id] = edited
    kept = (label for label in result.values() if not reviewed or label.id in touched)
    return tuple(sorted(kept, key=lambda label: (label.class_id, *best_first(label)))), reviewed


def _apply(label: Label | None, edit: Edit, names: Sequence[str]) -> Label | None:
    if edit.action == "deleted" or (edit.class_name is not None and edit.class_name not in names):
        return None
    if edit.action == "added" and edit.rle is not None and edit.class_name is not None and edit.label_id is not None:
        return _human_label(edit.label_id, names.index(edit.class_name), edit)
    if label is None:
        return None
    source: Source = label.source if edit.action == "approved" else "human"
    label = replace(label, source=source)
    if edit.class_name is not None:
        label = replace(label, class_id=names.index(edit.class_name))
    if edit.rle is not None:
        label = replace(label, rle=edit.rle, area=masks.area(edit.rle), box_xywh=masks.box_xywh(edit.rle))
    return label


def _human_label(label_id: str, class_id: int, edit: Edit) -> Label:
    assert edit.rle is not None  # Edit checks it
    box, area = masks.box_xywh(edit.rle), masks.area(edit.rle)
    return Label(label_id, class_id, 1.0, 1.0, box, area, edit.rle, "", "human", edit.frame, edit.track_id)

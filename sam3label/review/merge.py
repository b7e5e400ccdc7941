"""Three-way merge of one label: as run and dataset last agreed (`then`), in the dataset (`now`), in the run (`stored`).

Only what a person changed since `then` is a decision. If the run has moved meanwhile (another dataset was pulled) and
the two changed the same thing differently, the decision pulled last stands, and the merge says that it is a conflict:
both stay in the store as rows, so neither is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sam3label.core.records import Correction, CorrectionAction
from sam3label.review.labels import shape_digest


@dataclass(frozen=True, slots=True)
class State:
    """A label as far as review goes: its class and its mask (by digest). Absent labels are None."""

    class_name: str
    shape: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Decisions to record, the label that results, and whether somebody else had decided otherwise."""

    actions: tuple[CorrectionAction, ...] = ()
    result: State | None = None
    conflict: bool = False


def stored_state(base: State | None, corrections: Iterable[Correction]) -> State | None:
    """Return a label as the run has it: the model's, then people's decisions on this label alone, in order."""
    state = base
    for correction in corrections:
        if correction.action == "deleted":
            state = None
            continue
        old = state or base
        name = correction.class_name or (old.class_name if old else None)
        shape = shape_digest(correction.rle) if correction.rle else (old.shape if old else None)
        state = State(name, shape) if name is not None and shape is not None else None
    return state


def merge(
    base: State | None,
    then: State | None,
    now: State | None,
    stored: State | None,
    *,
    vouched: bool = False,
    touched: bool = False,
) -> Merged:
    """Return what to record so that the run holds what the person wants. `base` is the model's label, if it is one.

    `vouched`: a person newly approves the label just as it is; `touched`: the run has decisions on it already.
    """
    if now == then and not vouched:
        return Merged((), stored)
    if now is None:
        if stored is None:
            return Merged()
        return Merged(("deleted",), None, conflict=stored != then)
    target = now if vouched or stored is None else _both(then, now, stored)
    conflict = _conflict(then, now, stored, vouched)
    actions = _steps(stored, target, base)
    if vouched and not actions and not touched:
        actions = ("approved",)
    return Merged(actions, target, conflict)


def _both(then: State | None, now: State, stored: State) -> State:
    """Class and mask are two decisions: what was not changed here is taken from the run."""
    if then is None:
        return now
    return State(
        now.class_name if now.class_name != then.class_name else stored.class_name,
        now.shape if now.shape != then.shape else stored.shape,
    )


def _conflict(then: State | None, now: State, stored: State | None, vouched: bool) -> bool:
    if stored is None:
        return then is not None  # somebody deleted what is wanted here
    if vouched:
        return stored not in (now, then)
    if then is None:
        return stored != now
    return _clash(then.class_name, now.class_name, stored.class_name) or _clash(then.shape, now.shape, stored.shape)


def _clash(then: str, now: str, stored: str) -> bool:
    return now != then and stored not in (then, now)


def _steps(stored: State | None, target: State, base: State | None) -> tuple[CorrectionAction, ...]:
    if stored is None and base is None:
        return ("added",)
    origin = stored or base
    assert origin is not None
    steps: list[CorrectionAction] = []
    if target.class_name != origin.class_name:
        steps.append("relabelled")
    if target.shape != origin.shape:
        steps.append("reshaped")
    if stored is None and not steps:
        steps.append("approved")  # brings a deleted label back as the model drew it
    return tuple(steps)

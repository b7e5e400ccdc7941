"""What differs between two concept lists, in a line for each class: a run's own list never changes in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sam3label.core.records import Concept, ConceptList, Tiles

_RULES = ("conf", "iou", "presence", "min_area", "max_instances", "inside", "tile", "refine", "snap")


def changes(before: ConceptList, after: ConceptList) -> list[str]:
    """Return one line for each class that is new, gone, renamed, renumbered or decided otherwise.

    >>> one, other = Concept(0, "star", ("star",)), Concept(0, "stern", ("star",), conf=0.7)
    >>> changes(ConceptList((one,)), ConceptList((other,)))
    ['class 0 star -> stern, conf 0.5 -> 0.7']
    """
    pairs = list(_pairs(before, after))
    lines = [line for old, new in pairs if (line := _line(old, new))]
    if before.exclusive != after.exclusive:
        lines.append(f"exclusive groups {_groups(before.exclusive)} -> {_groups(after.exclusive)}")
    return lines


def _pairs(before: ConceptList, after: ConceptList) -> Iterator[tuple[Concept | None, Concept | None]]:
    """Yield the same class in both lists: by its name, else by its number where neither name is in the other list."""
    old_names, new_names = {c.name: c for c in before.concepts}, {c.name: c for c in after.concepts}
    renamed = {c.id: c for c in before.concepts if c.name not in new_names}
    for new in after.concepts:
        yield old_names[new.name] if new.name in old_names else renamed.pop(new.id, None), new
    for gone in renamed.values():
        yield gone, None


def _line(old: Concept | None, new: Concept | None) -> str:
    if old is None or new is None:
        one = new or old
        assert one is not None
        what = "is new" if new else "is no longer on the list: its answers stay in the run and are not exported"
        return f"class {one.id} {one.name} {what}"
    parts = list(_differences(old, new))
    name = old.name if old.name == new.name else f"{old.name} -> {new.name}"
    return f"class {old.id} {name}{', ' if parts else ''}{', '.join(parts)}" if parts or old.name != new.name else ""


def _differences(old: Concept, new: Concept) -> Iterator[str]:
    if old.id != new.id:
        yield f"number {old.id} -> {new.id}"
    yield from _words("phrases", old.prompts, new.prompts)
    yield from _words("not", old.negatives, new.negatives)
    for field in _RULES:
        one, other = getattr(old, field), getattr(new, field)
        if one != other:
            in_words = _tile if field == "tile" else _number
            yield f"{field} {in_words(one)} -> {in_words(other)}"
    if old.ask != new.ask:
        yield "another question to the agent"
    if old.verify != new.verify:
        yield "other use of a verifier's verdicts"
    yield from _words("where", [str(c) for c in old.where], [str(c) for c in new.where])
    if old.exemplars != new.exemplars:
        both = old.exemplars and new.exemplars
        yield "other exemplars" if both else "with exemplars" if new.exemplars else "without exemplars"


def _words(what: str, old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    added, gone = [f"+{p!r}" for p in new if p not in old], [f"-{p!r}" for p in old if p not in new]
    if added or gone:
        yield f"{what} {' '.join((*added, *gone))}"
    elif tuple(old) != tuple(new):
        yield f"{what} in another order"


def _tile(value: Tiles | None) -> str:
    if value is None:
        return "off"
    size = "auto" if value.auto else "" if value.size is None else f"{value.size}"
    return f"{size} (overlap {value.overlap:g})".strip()


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return "; ".join(", ".join(group) for group in groups) or "none"

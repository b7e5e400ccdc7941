"""What a job still has to ask: all of a new photo, and of one labelled before only what its list has got since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam3label.core.records import MediaItem, Prompt, exemplar_class
from sam3label.core.text import count, one_line
from sam3label.labelling.progress import Progress
from sam3label.run.asked import Wanted
from sam3label.run.store import Store

_FEWEST = 8  # photos from which a pace is worth keeping


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be asked, by item id: keys of prompts. Items that have answered everything are not in it.

    `grown` counts, by key, the items that were labelled before; `kept` are the prompts that all of them have answered;
    `retiled` are phrases that they have answered in other tiles, or without.
    """

    asked: Mapping[str, frozenset[str]]
    grown: Mapping[str, int]
    kept: int
    retiled: frozenset[str] = frozenset()

    def sentences(self, total: int, pace: Mapping[str, float]) -> list[str]:
        """Return what a user should read before a list that has grown is asked. `total` is the length of the list."""
        if not self.grown:
            return []
        phrases = [key for key in self.grown if exemplar_class(key) is None]
        words = [repr(key) for key in phrases]
        again = sum(key in self.retiled for key in phrases)
        classes = {name for key in self.grown if (name := exemplar_class(key)) is not None}
        what = [count(len(words) - again, "new phrase")] if len(words) > again else []
        what += [f"{count(again, 'phrase')} in other tiles"] if again else []
        what += [f"new exemplars of {', '.join(map(one_line, sorted(classes)))}"] if classes else []
        listed = f" ({', '.join(words[:5])}{', ...' if len(words) > 5 else ''})" if words else ""
        images, kept = count(max(self.grown.values()), "image"), count(self.kept, "prompt")
        return [f"{' and '.join(what)}{listed} on {images}{self._time(total, pace)}; {kept} kept as answered."]

    def _time(self, total: int, pace: Mapping[str, float]) -> str:
        if not pace:
            return ""
        images = max(self.grown.values())
        now = images * pace["image"] + sum(self.grown.values()) * pace["prompt"]
        return f": about {duration(now)} instead of {duration(images * (pace['image'] + total * pace['prompt']))}"


def plan(
    store: Store,
    wanted: Wanted,
    items: Sequence[MediaItem],
    replaced: Collection[str] = (),
    broken: Collection[str] = (),
    left_out: Collection[tuple[str, int]] = (),
    *,
    tracks: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Plan:
    """Compare what the run's units were asked with what is wanted. A video counts once, however many clips it has.

    `replaced` are asked everything; `broken` only what their units before the break have not been asked. `left_out` are
    the near-copies (item id, frame) that are to stay left out; others of the run are asked everything. Where the job
    `tracks`, videos know neither tiles nor `refine`. `renamed` are classes with exemplars, by the names they had.
    """
    everything = frozenset(prompt.key for prompt in wanted.prompts)
    here, in_tracking = {item.id for item in items}, wanted.in_tracking()
    asked: dict[str, frozenset[str]] = {}
    known, whole = set[str](), set[str]()
    for unit in store.done_units():
        if unit.item.id in here and unit.item.id not in replaced:
            is_tracked = tracks and unit.item.kind == "video"
            asked_then = store.asked(unit).renamed(renamed or {})
            missing = in_tracking.missing(asked_then.in_tracking()) if is_tracked else wanted.missing(asked_then)
            known.add(unit.item.id)
            asked[unit.item.id] = asked.get(unit.item.id, frozenset()) | missing
            if unit.last or unit.item.id in broken:
                whole.add(unit.item.id)
    grown = Counter(key for item_id in sorted(known) for key in asked[item_id])
    todo = {item.id: asked[item.id] if item.id in whole else everything for item in items}
    todo |= dict.fromkeys(broken - asked.keys(), frozenset())
    kept_out = {item_id for item_id, _ in left_out}
    for item_id, frame, _ in store.skipped():
        if item_id in todo and (item_id, frame) not in left_out:
            todo[item_id] = everything
    photos = {item.id for item in items if item.kind == "image" and item.id in kept_out and item.id not in known}
    todo = {item_id: keys for item_id, keys in todo.items() if item_id not in photos}
    return Plan(
        {item_id: keys for item_id, keys in todo.items() if keys},
        {prompt.key: grown[prompt.key] for prompt in wanted.prompts if grown[prompt.key]},
        sum(not grown[key] for key in everything) if known else 0,
        frozenset(p.key for p in wanted.prompts if p.source == "phrase" and _is_retiled(store, p)),
    )


def _is_retiled(store: Store, prompt: Prompt) -> bool:
    before = [known for known in store.prompts if known.key == prompt.key]
    return bool(before) and all(known.identity != prompt.identity for known in before)


def pace_of(progress: Progress, prompts: float) -> dict[str, Any]:
    """Return seconds an image takes, and each prompt on it, from a session's figures; empty where there are too few."""
    images = progress.done
    if images < _FEWEST or not prompts or progress.frames:
        return {}
    stages = progress.stages
    image = sum(stages.get(name, 0.0) for name in ("decode", "encode", "write")) / images
    asking = sum(stages.get(name, 0.0) for name in ("heads", "post")) / images
    return {"image": image, "prompt": asking / prompts}


def duration(seconds: float) -> str:
    """Return a length of time as people say it: `40 s`, `12 min`, `1 h 10 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(1, round(seconds))} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"

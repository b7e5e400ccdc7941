"""What a job still has to ask: all of a new photo, and of one labelled before only what its list has got since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam3label.core.records import MediaItem, Prompt, exemplar_class
from sam3label.core.text import count, one_line
from sam3label.labelling.progress import Progress
from sam3label.run.asked import Wanted, without_refine
from sam3label.run.store import Store

_FEWEST = 8  # photos from which a pace is worth keeping


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be asked, by item id: keys of prompts. Items that have answered everything are not in it.

    `grown` counts, by key, the items that were labelled before; `kept` are the prompts that all of them have answered;
    `retiled` are phrases that they have answered in other tiles, or without, and `refined` prompts of which no more
    than `refine` has changed. `images` and `videos` of them are asked more, the images `pairs` prompts in all.
    """

    asked: Mapping[str, frozenset[str]]
    grown: Mapping[str, int]
    kept: int
    retiled: frozenset[str] = frozenset()
    refined: frozenset[str] = frozenset()
    images: int = 0
    videos: int = 0
    pairs: int = 0

    def sentences(self, total: int, pace: Mapping[str, float]) -> list[str]:
        """Return what a user should read before a list that has grown is asked. `total` is the length of the list."""
        if not self.grown:
            return []
        phrases = [key for key in self.grown if exemplar_class(key) is None]
        words = [repr(key) for key in phrases]
        retiled, refined = (sum(key in some for key in phrases) for some in (self.retiled, self.refined))
        new = len(words) - retiled - refined
        own = [(key, name) for key in self.grown if (name := exemplar_class(key)) is not None]
        classes, same = ({name for key, name in own if (key in self.refined) is known} for known in (False, True))
        what = [count(new, "new phrase")] if new else []
        what += [f"{count(retiled, 'phrase')} in other tiles"] if retiled else []
        what += [f"{count(refined, 'phrase')} with another refine"] if refined else []
        what += [f"exemplars of {', '.join(map(one_line, sorted(same)))} with another refine"] if same else []
        what += [f"new exemplars of {', '.join(map(one_line, sorted(classes)))}"] if classes else []
        listed = f" ({', '.join(words[:5])}{', ...' if len(words) > 5 else ''})" if words else ""
        asked = ((self.images, "image"), (self.videos, "video"))
        on, kept = " and ".join(count(number, what) for number, what in asked if number), count(self.kept, "prompt")
        return [f"{' and '.join(what)}{listed} on {on}{self._time(total, pace)}; {kept} kept as answered."]

    def _time(self, total: int, pace: Mapping[str, float]) -> str:
        if not pace or not self.images:
            return ""
        now = self.images * pace["image"] + self.pairs * pace["prompt"]
        whole = self.images * (pace["image"] + total * pace["prompt"])
        rest = " without the videos" if self.videos else ""
        return f": about {duration(now)} instead of {duration(whole)}{rest}"


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
    photo_ids = {item.id for item in items if item.kind == "image"}
    todo = {item_id: keys for item_id, keys in todo.items() if item_id not in (photo_ids & kept_out) - known}
    return Plan(
        {item_id: keys for item_id, keys in todo.items() if keys},
        {prompt.key: grown[prompt.key] for prompt in wanted.prompts if grown[prompt.key]},
        sum(not grown[key] for key in everything) if known else 0,
        *_asked_otherwise(wanted, {known.key: known for known in store.prompts}),
        sum(bool(asked[item_id]) for item_id in known & photo_ids),
        sum(bool(asked[item_id]) for item_id in known - photo_ids),
        sum(len(asked[item_id]) for item_id in known & photo_ids),
    )


def _asked_otherwise(wanted: Wanted, before: Mapping[str, Prompt]) -> tuple[frozenset[str], frozenset[str]]:
    """Return (keys of phrases in other tiles than before, keys of prompts of which no more than `refine` changed)."""
    changed = {p.key: p for p in wanted.prompts if p.key in before and p.digest != before[p.key].digest}
    refined = {k for k, p in changed.items() if without_refine(p.digest) == without_refine(before[k].digest)}
    retiled = {key for key, prompt in changed.items() if prompt.source == "phrase"} - refined
    return frozenset(retiled), frozenset(refined)


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

"""The model card of a fine-tuned checkpoint: what it was made of, how well it does, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3label.core.files import write_whole
from sam3label.core.text import count, one_line
from sam3label.flywheel.gate import Judgement

_HEAD = ("figure", "before", "after", "gain [95 %]", "calibrated, before -> after")


def write_card(folder: Path, figures: Mapping[str, Any], verdict: Judgement) -> None:
    """Write README.md into a checkpoint's folder. Raises OutputError."""
    write_whole(folder / "README.md", card(figures, verdict))


def card(figures: Mapping[str, Any], verdict: Judgement) -> str:
    """Return the model card as Markdown."""
    options = figures["options"]
    lines = [
        f"# {one_line(figures['name'])}",
        "",
        f"A SAM 3 that was fine-tuned ({options['method']}) from `{figures['base']['model']}` on "
        f"{figures['photos']} reviewed photos, by sam3label {figures['version']}, {figures['created']}.",
        f"Classes: {', '.join(map(one_line, figures['classes']))}. Corrected by people: "
        f"{', '.join(map(one_line, figures['touched'])) or 'none'}.",
        *_rehearsed(figures["rehearsed"]),
        "",
        "## Figures",
        "",
        f"On {figures['photos_held_out']} reviewed photos that it was not trained on, held out by group; intervals are "
        "95 % by bootstrap, of the difference.",
        "",
        *_rows(_HEAD, verdict.rows()),
        "",
        *_guard(verdict),
        *(["", verdict.hardly_judged] if verdict.hardly_judged else []),
    ]
    if not verdict.passes:
        lines += ["", "**Kept although it did not pass** (`--keep-anyway`):", ""]
        lines += [f"- {one_line(reason)}" for reason in verdict.against]
    lines += [
        "",
        "## Use",
        "",
        f"    sam3label run PHOTOS -c concepts.yaml --model {figures['name']}",
        "",
        "It needs the checkpoint that `finetuned.json` names; `sam3label weights convert` writes it whole. Its image "
        "encoder is another one than its base's (but with `--method heads`), which videos' tracker was not trained "
        "beside: check tracks before relying on them.",
    ]
    return "\n".join(lines) + "\n"


def _rehearsed(rehearsed: Mapping[str, Any]) -> list[str]:
    photos, phrases = rehearsed["photos"], rehearsed["phrases"]
    if not photos:
        return ["Nothing was rehearsed."]
    return [
        f"Rehearsed beside them: what the base is sure of in {count(photos, 'photo')} that nobody reviewed, to "
        f"{count(len(phrases), 'phrase')} ({', '.join(map(one_line, phrases))})."
    ]


def _guard(verdict: Judgement) -> list[str]:
    guard = verdict.guard
    if guard is None:
        return ["No class was left untouched: what else it may have forgotten was not measured."]
    low, high = guard.interval
    return [
        f"Untouched ({', '.join(map(one_line, verdict.untouched))}): its labels in {count(guard.images, 'photo')} "
        f"agree with the base's {guard.answers} by F1 {guard.f1:.3f} [{low:.3f}, {high:.3f}]."
    ]


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(one_line(cell).replace('|', '/') for cell in row)} |" for row in rows]

"""What each key of a concept list means, in one place: the reference page and the starter file read it here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sam3label.core.records import Concept


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a concept list: where it may stand, what it means, and what holds without it."""

    name: str
    meaning: str
    default: str = ""


def _default(field_name: str) -> str:
    """Return the dataclass's own default as a person writes it."""
    field = next(field for field in dataclasses.fields(Concept) if field.name == field_name)
    if field.default is None:
        return "no limit"
    return field.default if isinstance(field.default, str) else f"{field.default:g}"


KEYS = (
    Key("names", "classes and their ids: a list, or a mapping 0..N-1"),
    Key("defaults", "rules for every class that does not set them itself"),
    Key("concepts", "rules of single classes, by class name"),
    Key("exclusive", "groups of classes in which one object gets one class", "none"),
    Key("concepts.CLASS.prompts", "phrases that mean the class: synonyms, merged into it", "its name"),
    Key(
        "concepts.CLASS.not", "phrases for what is mistaken for it; suppressed where they are at least as sure", "none"
    ),
    Key("concepts.CLASS.conf", "lowest score (query x presence) of a label", _default("conf")),
    Key("concepts.CLASS.presence", "lowest presence score: is there any in this image?", _default("presence")),
    Key("concepts.CLASS.iou", "masks of one class that overlap by more than this are one object", _default("iou")),
    Key("concepts.CLASS.min_area", "smallest mask in pixels", _default("min_area")),
    Key("concepts.CLASS.max_instances", "most labels of the class per image, best first", _default("max_instances")),
    Key(
        "concepts.CLASS.inside",
        "of two masks of which one lies inside the other: keep both, or drop",
        _default("inside"),
    ),
    Key(
        "concepts.CLASS.exemplars",
        "boxes on some images, labelled reference images, or objects that get masks, in videos tracks",
        "none",
    ),
    Key("concepts.CLASS.refine", "ask for masks again, from the boxes around them (photos)", "false"),
    Key("concepts.CLASS.snap", "give such objects the box of their mask instead of the one that was given", "false"),
    Key(
        "concepts.CLASS.tile",
        "show large images in parts too: `auto`, or {size: 1024, overlap: 0.2} in pixels",
        "off",
    ),
    Key(
        "concepts.CLASS.where",
        "where the labels of other classes must be: a line or a list, such as `overlaps person.top`, `without helmet`",
        "anywhere",
    ),
    Key(
        "concepts.CLASS.ask",
        "what an agent is asked to find where no phrase says it, such as person without a helmet (`sam3label ask`)",
        "nothing",
    ),
    Key(
        "concepts.CLASS.verify",
        "what a trusted verifier's verdicts change: "
        "{presence: veto or replace, missing: {conf: 0.2}, masks: {reject_below: 0.3}}",
        "nothing",
    ),
)

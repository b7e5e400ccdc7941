"""The FiftyOne dataset of a run: its fields, what may be edited in the App and how, and the saved views of the queue.

    predictions    the model's labels; read-only, so nothing edits them by accident
    ground_truth   what a person edits; starts as a copy, with the same ids
    maybe          candidates that were left out and that a reason names; tag one `approved` to have it
    review_status  unreviewed | reviewed; "reviewed" vouches for the whole image
    reasons, gain  why to look, in words, and how much it may bring, by kind
    sync           what run and dataset last agreed on (see `labels.Sync`)

In a video dataset the first three and `sync` are on its frames (`prefix` is then "frames.").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam3label.core.colors import as_hex, class_color
from sam3label.review.fiftyone.samples import gain_field
from sam3label.review.reasons import EXPLAINED, KINDS

PREDICTIONS = "predictions"
TRUTH = "ground_truth"
MAYBE = "maybe"
STATUS = "review_status"
SYNC = "sync"
UNREVIEWED, REVIEWED = "unreviewed", "reviewed"

ATTRIBUTES = {"presence": "FloatField", "phrase": "StringField", "candidate_id": "StringField", "source": "StringField"}
LABEL_FIELDS = {
    PREDICTIONS: "what the model labelled; read-only",
    TRUTH: "the labels, for people to edit",
    MAYBE: "left-out candidates worth a look; tag one 'approved' to make it a label",
}
QUEUE = "review: all"  # the saved view that `review open` starts on
_VIEWS: dict[str, str] = {
    "all": "everything worth a look, by expected corrections",
    **{str(kind): words for kind, words in EXPLAINED.items()},
}


# ---- plain values


def views() -> list[tuple[str, str, str]]:
    """Return (name, description, gain field) of each saved view: one per kind, and the whole queue."""
    return [
        (f"review: {kind}", words, f"gain.{gain_field('total' if kind == 'all' else kind)}")
        for kind, words in _VIEWS.items()
    ]


def slug(view: str) -> str:
    """Return what addresses call a saved view."""
    return view.replace(": ", "-").replace(" ", "-")


def order(path: str) -> list[tuple[str, int]]:
    """Return how a saved view sorts, as `reasons.worst_first` does: the largest gain first, equal ones by id."""
    return [(path, -1), ("item_id", 1)]


def label_schemas(classes: Sequence[str], prefix: str) -> dict[str, Any]:
    """In-app annotation: the classes of the concept list; the model's figures are shown but not editable."""
    figures = [{"name": "confidence", "type": "float"}, {"name": "presence", "type": "float"}]
    words = [{"name": name, "type": "str"} for name in ("phrase", "source", "candidate_id")]
    return {
        prefix + TRUTH: {
            "type": "detections",
            "component": "dropdown" if len(classes) > 5 else "radio",
            "classes": list(classes),
            "attributes": [{"component": "text", "read_only": True, **a} for a in (*figures, *words)],
        },
        STATUS: {"type": "str", "component": "radio", "values": [UNREVIEWED, REVIEWED]},
    }


def sidebar(prefix: str) -> list[dict[str, Any]]:
    """Return what a reviewer needs, in the order in which it is needed; the rest stays out of the way."""
    return [
        {"name": "tags", "paths": []},
        {"name": "labels", "paths": [prefix + name for name in (TRUTH, PREDICTIONS, MAYBE)]},
        {"name": "review", "paths": [STATUS, "reasons", "gain.total", "item_id"]},
        {"name": "gain", "paths": [f"gain.{gain_field(k)}" for k in KINDS], "expanded": False},
    ]


def shown(prefix: str) -> list[str]:
    """What is drawn when the App opens: what may be edited. `predictions` would be the same masks a second time, and
    `maybe` has candidates that nobody asked for, some of them over whole photos."""
    return [prefix + TRUTH, "reasons"]


def colors(classes: Sequence[str], prefix: str) -> list[dict[str, Any]]:
    """Return the color of each class in every field of labels: the one it has in reports and sheets."""
    by_class = [{"value": name, "color": as_hex(class_color(i))} for i, name in enumerate(classes)]
    return [{"path": prefix + name, "colorByAttribute": "label", "valueColors": by_class} for name in LABEL_FIELDS]


# ---- through FiftyOne


def create(fo: Any, name: str, video: bool, classes: Sequence[str], info: dict[str, Any]) -> Any:
    """Make an empty dataset with every field. Says whose it is last: one without that is not finished."""
    dataset = fo.Dataset(name, persistent=True)
    dataset.media_type = "video" if video else "image"
    _declare(fo, dataset, video, classes)
    dataset.default_classes = list(classes)
    dataset.info["sam3label"] = info
    dataset.save()
    return dataset


def _declare(fo: Any, dataset: Any, video: bool, classes: Sequence[str]) -> None:
    """Fields (an empty first image must not leave one out), label schemas, views, sidebar."""
    prefix = "frames." if video else ""
    add = dataset.add_frame_field if video else dataset.add_sample_field
    for name, description in LABEL_FIELDS.items():
        add(name, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections, description=description)
        for attribute, kind in ATTRIBUTES.items():
            add(f"{name}.detections.{attribute}", getattr(fo, kind))
    add(SYNC, fo.DictField, description="what the run and this dataset last agreed on")
    _declare_sample_fields(fo, dataset)
    _make_read_only(dataset, f"{prefix}{PREDICTIONS}.detections")  # not the field itself: the App fails on that
    schemas = label_schemas(classes, prefix)
    dataset.set_label_schemas(schemas)
    dataset.activate_label_schemas(list(schemas))
    _save_views(fo, dataset)
    dataset.app_config.sidebar_groups = [fo.SidebarGroupDocument(**group) for group in sidebar(prefix)]
    dataset.app_config.active_fields = fo.ActiveFields(paths=shown(prefix))
    dataset.app_config.color_scheme = fo.ColorScheme(color_by="value", fields=colors(classes, prefix))


def _declare_sample_fields(fo: Any, dataset: Any) -> None:
    dataset.add_sample_field("item_id", fo.StringField, description="the run's name for this file")
    dataset.add_sample_field(STATUS, fo.StringField, description="'reviewed' vouches for every label of the image")
    dataset.add_sample_field("reasons", fo.StringField, description="why it is worth a look")
    dataset.add_sample_field("gain", fo.EmbeddedDocumentField, embedded_doc_type=fo.DynamicEmbeddedDocument)
    for kind in (*KINDS, "total"):
        dataset.add_sample_field(f"gain.{gain_field(kind)}", fo.FloatField)
    dataset.create_index("item_id", unique=True)


def _make_read_only(dataset: Any, path: str) -> None:
    field = dataset.get_field(path)
    field.read_only = True
    field.save()


def _save_views(fo: Any, dataset: Any) -> None:
    """Best first, less what is reviewed."""
    left = dataset.match(fo.ViewField(STATUS) != REVIEWED)
    for name, words, path in views():
        view = left.match(fo.ViewField(path) > 0).sort_by(order(path))
        dataset.save_view(name, view, description=words)

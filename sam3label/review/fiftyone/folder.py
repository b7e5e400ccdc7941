"""A run as a `FiftyOneDataset` folder: JSON that FiftyOne loads without this package, written without FiftyOne.

    OUT/metadata.json   fields, saved views, label schemas
    OUT/samples.json    the photos' samples (OUT/frames.json: a video's frames)
    OUT/data/           the media, under their ids

It is the dataset `push` makes: the same fields, ids and views. Loaded, corrected and exported on another machine, it
comes back as a dataset that `pull` reads.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sam3label.core.records import LabeledImage, MediaItem
from sam3label.core.whole_folder import MARKER, whole_folder
from sam3label.errors import StoreError
from sam3label.export.options import Placement
from sam3label.export.photos import Placer
from sam3label.review import reasons
from sam3label.review.fiftyone import schema
from sam3label.review.fiftyone.playable import copy_remote
from sam3label.review.fiftyone.push import VIDEO_SUFFIX, dataset_info, remember, track_object_id
from sam3label.review.fiftyone.samples import (
    FrameValues,
    ReviewDetection,
    SampleValues,
    attributes,
    done_items,
    gain_field,
    sample_values,
)
from sam3label.review.survey import Survey, survey_run
from sam3label.run.reader import Run

FIFTYONE_VERSION = "1.22.0"  # whose layout this is; newer ones migrate it while loading

Json = dict[str, Any]


def write_folder(run: Run, out: Path, audit: int | None = None, images: Placement = "hardlink") -> tuple[Path, ...]:
    """Write photos to `out`, and videos, if the run has any, to a folder beside it. Each appears whole or not at all.

    Raises `OutputError` when a folder cannot be written or is something else, `StoreError` when there is nothing yet.
    """
    if not len(run):
        raise StoreError(f"{run.folder} has no labelled image yet, so there is nothing to write.")
    state = remember(run, None, audit, keep=run.is_writable)
    whole = survey_run(run, state["audit"])
    copy_remote(run)
    made = []
    for kind, suffix in (("image", ""), ("video", VIDEO_SUFFIX)):
        if any(item.kind == kind for item, _ in done_items(run)):
            final = out.with_name(out.name + suffix)
            with whole_folder(final) as folder:
                _write(run, whole, folder, kind, dataset_info(run, state["run"]), Placer(images))
            made.append(final)
    return tuple(made)


def _write(run: Run, whole: Survey, folder: Path, kind: str, info: Json, placer: Placer) -> None:
    values = (sample_values(run, item, units, whole) for item, units in done_items(run) if item.kind == kind)
    with (folder / "samples.json").open("w", encoding="utf-8") as samples:
        if kind == "video":
            with (folder / "frames.json").open("w", encoding="utf-8") as frames:
                _stream(samples, "samples", _video_documents(values, folder, placer, frames))
        else:
            _stream(samples, "samples", (_image_document(v, folder, placer) for v in values))
    _write_json(folder / "metadata.json", _metadata(folder.name, kind == "video", run.concepts.names, info))
    _write_json(folder / MARKER, {"tool": "sam3label", "format": "fiftyone", "info": info})


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _stream(file: Any, key: str, documents: Iterable[Json]) -> None:
    """Write one document a line; the run is never held in memory."""
    file.write(f'{{"{key}": [\n')
    for i, document in enumerate(documents):
        file.write((",\n" if i else "") + json.dumps(document, ensure_ascii=False))
    file.write("\n]}\n")


# ---- samples


def _video_documents(values: Iterable[SampleValues], folder: Path, placer: Placer, frames: Any) -> Iterator[Json]:
    """Yield the videos' samples, while their frames go to a file of their own."""
    frames.write('{"frames": [\n')
    first = True
    for value in values:
        for frame in value.frames:
            document = {
                "_id": _oid(f"{value.item.id}\0{frame.frame}"),
                "_sample_id": _oid(value.item.id),
                "frame_number": frame.frame + 1,
                **_frame_fields(value.item, frame),
            }
            frames.write(("" if first else ",\n") + json.dumps(document, ensure_ascii=False))
            first = False
        yield _sample(value, folder, placer)
    frames.write("\n]}\n")


def _image_document(values: SampleValues, folder: Path, placer: Placer) -> Json:
    return {**_sample(values, folder, placer), **_frame_fields(values.item, values.frames[0])}


def _sample(values: SampleValues, folder: Path, placer: Placer) -> Json:
    filepath = values.item.path
    if placer.means != "none":
        # a folder of frames is a video file here, whose name says so
        filepath = f"data/{values.item.id}" + ("" if Path(filepath).suffix == Path(values.item.id).suffix else ".mp4")
        whole_file = replace(values.item, kind="image")  # a video goes whole, not frame by frame
        placer.place(LabeledImage(whole_file, values.size_hw), folder / filepath)
    return {
        "_id": _oid(values.item.id),
        "_media_type": values.item.kind,
        "_rand": int(_digest(values.item.id)[:13], 16) / 16**13,
        "filepath": filepath,
        "tags": values.tags,
        "metadata": {"_cls": "ImageMetadata" if values.item.kind == "image" else "VideoMetadata", **values.metadata},
        "item_id": values.item.id,
        schema.STATUS: schema.REVIEWED if values.reviewed else schema.UNREVIEWED,
        "reasons": values.words,
        "gain": {"_cls": "DynamicEmbeddedDocument", **values.gains},
    }


def _frame_fields(item: MediaItem, frame: FrameValues) -> Json:
    fields = {schema.PREDICTIONS: frame.predictions, schema.TRUTH: frame.ground_truth, schema.MAYBE: frame.maybe}
    made: Json = {
        name: {"_cls": "Detections", "detections": [_detection(item, d) for d in detections]}
        for name, detections in fields.items()
    }
    return {**made, schema.SYNC: frame.sync.packed()}


def _detection(item: MediaItem, detection: ReviewDetection) -> Json:
    track = detection.label.track_id
    instance = None if track is None else {"_id": {"$oid": track_object_id(item.id, track)}, "_cls": "Instance"}
    return {
        "_id": {"$oid": detection.id},
        "_cls": "Detection",
        "attributes": {},
        "tags": list(detection.tags),
        "label": detection.name,
        "bounding_box": list(detection.box.box),
        "mask": _packed(detection.box.mask),
        "instance": instance,
        **attributes(detection),
    }


def _packed(mask: npt.NDArray[Any]) -> Json:
    """Return an array as FiftyOne keeps it in the database: an .npy file, deflated, in extended JSON."""
    file = io.BytesIO()
    np.save(file, mask, allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(file.getvalue())).decode(), "subType": "00"}}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _oid(text: str) -> Json:
    return {"$oid": _digest(text)}


# ---- what the dataset says about itself


def _metadata(name: str, video: bool, classes: tuple[str, ...], info: Json) -> Json:
    holder = [_label_field(n, d, n == schema.PREDICTIONS) for n, d in schema.LABEL_FIELDS.items()]
    holder.append(_field(schema.SYNC, "DictField"))
    prefix = "frames." if video else ""
    schemas = schema.label_schemas(classes, prefix)
    return {
        "name": name,
        "version": FIFTYONE_VERSION,
        "media_type": "video" if video else "image",
        "info": {"sam3label": info},
        "default_classes": list(classes),
        "app_config": {
            "sidebar_groups": schema.sidebar(prefix),
            "active_fields": {"paths": schema.shown(prefix), "_cls": "ActiveFields"},
            "color_scheme": {
                "_cls": "ColorScheme",
                "id": _digest(f"colors of {name}"),
                "color_by": "value",
                "fields": schema.colors(classes, prefix),
            },
        },
        "sample_fields": _sample_fields(video) + ([] if video else holder),
        "frame_fields": [_id(), _field("frame_number", "FrameNumberField"), *holder] if video else [],
        "saved_views": [_saved_view(n, words, path) for n, words, path in schema.views()],
        "label_schemas": {k: v for k, v in schemas.items() if not k.startswith("frames.")},
        "frame_label_schemas": {k.removeprefix("frames."): v for k, v in schemas.items() if k.startswith("frames.")},
        "active_label_schemas": list(schemas),
    }


def _sample_fields(video: bool) -> list[Json]:
    kind = "VideoMetadata" if video else "ImageMetadata"
    numbers = ["frame_width", "frame_height", "total_frame_count"] if video else ["width", "height", "num_channels"]
    metadata = [_field(n, "IntField") for n in ("size_bytes", *numbers)] + [_field("mime_type", "StringField")]
    if video:
        metadata += [_field(n, "FloatField") for n in ("frame_rate", "duration")]
    gain = [_field(gain_field(k), "FloatField") for k in (*reasons.KINDS, "total")]
    return [
        _id(),
        _field("filepath", "StringField"),
        _strings("tags"),
        _field("metadata", "EmbeddedDocumentField", document=f"fiftyone.core.metadata.{kind}", fields=metadata),
        _field("item_id", "StringField"),
        _field(schema.STATUS, "StringField"),
        _field("reasons", "StringField"),
        _field(
            "gain", "EmbeddedDocumentField", fields=gain,
            document="fiftyone.core.odm.embedded_document.DynamicEmbeddedDocument",
        ),
    ]  # fmt: skip


def _label_field(name: str, description: str, read_only: bool) -> Json:
    fields = [
        _id(),
        _strings("tags"),
        _field("label", "StringField"),
        _field("bounding_box", "ListField", subfield="FloatField"),
        _field("mask", "ArrayField"),
        _field("mask_path", "StringField"),
        _field("confidence", "FloatField"),
        _field("index", "IntField"),
        _field("instance", "EmbeddedDocumentField", document="fiftyone.core.labels.Instance", fields=[_id()]),
        *(_field(n, kind) for n, kind in schema.ATTRIBUTES.items()),
    ]
    detections = _field(
        "detections", "ListField", subfield="EmbeddedDocumentField", document="fiftyone.core.labels.Detection",
        fields=fields,
    )  # fmt: skip
    return _field(
        name, "EmbeddedDocumentField", document="fiftyone.core.labels.Detections", description=description,
        fields=[_read_only(detections) if read_only else detections],
    )  # fmt: skip


def _read_only(field: Json) -> Json:
    return {**field, "read_only": True, "fields": [_read_only(f) for f in field["fields"]]}


def _id() -> Json:
    return {**_field("id", "ObjectIdField"), "db_field": "_id"}


def _strings(name: str) -> Json:
    return _field(name, "ListField", subfield="StringField")


def _field(
    name: str,
    kind: str,
    *,
    document: str | None = None,
    subfield: str | None = None,
    fields: Iterable[Mapping[str, Any]] = (),
    description: str | None = None,
) -> Json:
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "embedded_doc_type": document,
        "subfield": f"fiftyone.core.fields.{subfield}" if subfield else None,
        "fields": list(fields),
        "db_field": name,
        "description": description,
        "info": None,
        "read_only": False,
        "created_at": None,
    }


def _saved_view(name: str, words: str, path: str) -> Json:
    """Return the same stages as `schema.declare` makes through FiftyOne's API."""
    stages = [
        ("Match", [["filter", {"$expr": {"$ne": [f"${schema.STATUS}", schema.REVIEWED]}}]]),
        ("Match", [["filter", {"$expr": {"$gt": [f"${path}", 0]}}]]),
        ("SortBy", [["field_or_expr", schema.order(path)], ["reverse", False], ["create_index", True]]),
    ]
    now = {"$date": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    return {
        "_id": _oid(name),
        "name": name,
        "description": words,
        "slug": schema.slug(name),
        "view_stages": [json.dumps({"_cls": f"fiftyone.core.stages.{s}", "kwargs": k}) for s, k in stages],
        "created_at": now,
        "last_modified_at": now,
        "last_loaded_at": None,
    }

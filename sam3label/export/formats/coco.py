"""COCO JSON, in three profiles that differ in where files lie and at which number classes start.

    coco           annotations/instances_SPLIT.json, images/   classes from 1   pycocotools, Detectron2, MMDetection
    coco-zero      the same places                             classes from 0   RT-DETR, HF RTDetrImageProcessor
    coco-roboflow  SPLIT/_annotations.coco.json, photos beside classes from 1   RF-DETR (its val is called valid)

`iscrowd` is 0 throughout: crowds are dropped by every trainer named here. Run-length code holds a mask exactly, and so
do polygons along pixel edges; coco-zero has polygons, since the trainers that read it take nothing else for masks.
Records stream to disk; memory does not grow with the dataset, except that appending reads the dataset it adds to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sam3label.core.records import Doubt, Given, Label, LabeledImage
from sam3label.errors import OutputError
from sam3label.export.dataset import Outline, Sample, Target, flat, number
from sam3label.export.options import Segmentation


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a consumer looks. `{split}` is filled in; `file_name` in the JSON is relative to `images`."""

    first_id: int = 1
    json: str = "annotations/instances_{split}.json"
    images: str = "images"
    split_names: tuple[tuple[str, str], ...] = ()

    def json_path(self, folder: Path, split: str) -> Path:
        return folder / self.json.format(split=dict(self.split_names).get(split, split))

    def image_folder(self, folder: Path, split: str) -> Path:
        return folder / self.images.format(split=dict(self.split_names).get(split, split))


COCO = Profile()
COCO_ZERO = Profile(first_id=0)
COCO_ROBOFLOW = Profile(json="{split}/_annotations.coco.json", images="{split}", split_names=(("val", "valid"),))


def _given(given: Given, doubt: Doubt | None) -> dict[str, Any]:
    """Return what a dataset said of an object before it got a mask, and how sure its mask is."""
    said: dict[str, Any] = {"given_id": given.id, "attributes": dict(given.attributes)}
    said["stability"] = round(given.stability, 6)
    return said | ({} if doubt is None else {"doubt": doubt})


def write_coco(target: Target, samples: Iterable[Sample], profile: Profile = COCO) -> None:
    """Write one JSON per split, and the photos. Ids are contiguous from 1 in each JSON, in the order of `samples`."""
    with ExitStack() as stack:
        parts = {s: stack.enter_context(_Part(target, profile.json_path(target.folder, s))) for s in target.splits}
        for sample in samples:
            parts[sample.split].add(sample.image)
            name = sample.image.item.id
            target.placer.place(sample.image, profile.image_folder(target.folder, sample.split) / name)
        for part in parts.values():
            part.finish()


def read_classes(folder: Path, profile: Profile = COCO) -> dict[int, str]:
    """Return class ids and names of the dataset in `folder`; its splits must agree on them. Raises `OutputError`."""
    found: dict[Path, dict[int, str]] = {}
    for split in ("train", "val", "test"):
        path = profile.json_path(folder, split)
        if path.is_file():
            found[path] = {c["id"]: c["name"] for c in _load(path)["categories"]}
    if not found:
        raise OutputError(f"{folder} holds no {profile.json.format(split='train')}: not a dataset of this format.")
    first, classes = next(iter(found.items()))
    for path, other in found.items():
        if other != classes:
            raise OutputError(f"{path} and {first} have different classes; make them equal before appending.")
    return classes


class _Part:
    """One JSON file in the making: image and annotation records go to files of their own, joined at the end."""

    def __init__(self, target: Target, path: Path) -> None:
        self.target = target
        self.path = path
        self.stack = ExitStack()
        self.images = self.annotations = self.reviewed = 0

    def __enter__(self) -> _Part:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.image_file = self.stack.enter_context(self._spool("images"))
        self.annotation_file = self.stack.enter_context(self._spool("annotations"))
        self.before = _load(self.path) if self.target.append and self.path.exists() else None
        if self.before:
            self._take_over(self.before)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        for kind in ("images", "annotations"):
            self._spool_path(kind).unlink(missing_ok=True)

    def _spool_path(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{kind}")

    def _spool(self, kind: str) -> IO[str]:
        return self._spool_path(kind).open("w+", encoding="utf-8")

    def _take_over(self, before: Mapping[str, Any]) -> None:
        for record in before["images"]:
            self.image_file.write(_line(record))
        for record in before["annotations"]:
            self.annotation_file.write(_line(record))
        self.images = max((r["id"] for r in before["images"]), default=0)
        self.annotations = max((r["id"] for r in before["annotations"]), default=0)
        self.known = {r["file_name"] for r in before["images"]}

    def add(self, image: LabeledImage) -> None:
        if self.before and image.item.id in self.known:
            raise OutputError(
                f"the dataset already holds {image.item.id}. Appending adds new images only: leave out --append to "
                "write the dataset anew, or append to another one."
            )
        self.images += 1
        self.reviewed += image.reviewed
        height, width = image.size_hw
        record = {"id": self.images, "file_name": image.item.id, "width": width, "height": height}
        self.image_file.write(_line(record | ({"reviewed": True} if image.reviewed else {})))
        for label in image.labels:
            self.annotations += 1
            self.annotation_file.write(_line(self._annotation(label)))

    def _annotation(self, label: Label) -> dict[str, Any]:
        return {
            "id": self.annotations,
            "image_id": self.images,
            "category_id": label.class_id,
            "bbox": [number(v) for v in label.box_xywh],
            "area": label.area,
            "iscrowd": 0,
            "segmentation": segmentation(label, self.target.segmentation, self.target.outline),
            "score": round(label.score, 6),
            "source": label.source,
            "label_id": label.id,
            **({} if label.given is None else _given(label.given, label.doubt)),
        }

    def finish(self) -> None:
        """Write the JSON in a file beside and replace: with `append` the path is a link to the old dataset's file."""
        whole = self.path.with_name(f"{self.path.name}.whole")
        with whole.open("w", encoding="utf-8") as file:
            head = {
                "info": self._info(),
                "licenses": (self.before or {}).get("licenses", []),
                "categories": self._categories(),
            }
            file.write(json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}"))
            for key, records in (("images", self.image_file), ("annotations", self.annotation_file)):
                file.write(f',\n "{key}": [')
                _copy_records(records, file)
                file.write("\n ]")
            file.write("\n}\n")
        whole.replace(self.path)

    def _info(self) -> dict[str, Any]:
        info = {**((self.before or {}).get("info") or {}), **self.target.info}
        return {**info, "reviewed_images": self.reviewed + (info.get("reviewed_images") or 0)}

    def _categories(self) -> list[dict[str, Any]]:
        old = {c["id"]: c for c in (self.before or {}).get("categories", [])}
        parent = supercategory(self.target.classes.values())
        return [old.get(i, {"id": i, "name": name, "supercategory": parent}) for i, name in self.target.classes.items()]


def segmentation(label: Label, kind: Segmentation | None, outline: Outline) -> Any:
    """Return the `segmentation` value: compressed run-length code, or one closed ring per part."""
    if kind == "polygon":
        return [flat(ring) for ring in outline.polygons(label.rle)]
    return {"size": list(label.rle.size_hw), "counts": label.rle.counts.decode("ascii")}


def supercategory(names: Iterable[str]) -> str:
    """Return a parent name no class has, never "none": RF-DETR leaves out classes that are a parent, or have none."""
    taken = {n.lower() for n in names}
    return next(p for p in ("object", "sam3label", "_" * (1 + max(map(len, taken), default=0))) if p not in taken)


def _line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def _copy_records(records: IO[str], file: IO[str]) -> None:
    """Copy one record a line, with commas between: readable by people and by line tools."""
    records.flush()
    size = records.tell()
    records.seek(0)
    for line in records:
        size -= len(line.encode())
        file.write("\n  " + line[:-1] + ("," if size else ""))


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(document[k], list) for k in ("images", "annotations", "categories")):
            raise TypeError("images, annotations and categories must be lists")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{path} is not COCO JSON ({error}); nothing was changed.") from error
    _refuse_odd_records(path, document)
    return dict(document)


_NEEDED: Mapping[str, Mapping[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
_WORDS = {int: "whole number", str: "text"}


def _refuse_odd_records(path: Path, document: Mapping[str, Any]) -> None:
    """New records get the next numbers, so the old ones must have numbers."""
    for kind, needed in _NEEDED.items():
        for place, record in enumerate(document[kind]):
            for key, wanted in needed.items():
                value = record.get(key) if isinstance(record, dict) else None
                if not isinstance(value, wanted) or isinstance(value, bool):
                    raise OutputError(
                        f"{path}: {kind}[{place}] has the {key} {value!r}, where appending needs a {_WORDS[wanted]}; "
                        "nothing was changed."
                    )

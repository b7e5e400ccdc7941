"""YouTube-VIS JSON: an annotation an object, with a mask for every frame of its video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from sam3label.errors import InputError
from sam3label.validate.coco import read_json, read_mask
from sam3label.validate.photos import is_file
from sam3label.validate.pictures import DatasetImage, Kind, OpenedDataset, usable_size
from sam3label.validate.report import Findings

KIND = Kind("YouTube-VIS", "segment", lambda asked: asked.image.item.id, videos_only=True)


def find(path: Path) -> OpenedDataset | None:
    """Return the dataset of an instances.json, or of a folder of splits; None if it is none."""
    if path.is_file():
        files = [path] if path.suffix == ".json" else []
    else:
        files = sorted(p for p in path.glob("*/instances.json") if is_file(p))
    documents = [(file, read_json(file)) for file in files]
    documents = [(file, d) for file, d in documents if isinstance(d, dict) and isinstance(d.get("videos"), list)]
    if not documents:
        return None
    findings = Findings()
    classes = {i: name for file, document in documents for i, name in _classes(file, document).items()}
    pictures = (picture for file, d in documents for picture in _pictures(file, d, findings))
    return OpenedDataset(KIND, classes, pictures, findings)


def _classes(file: Path, document: dict[str, Any]) -> dict[int, str]:
    try:
        return {int(c["id"]): str(c["name"]) for c in document["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is no YouTube-VIS file: its categories need an id and a name.") from error


def _pictures(file: Path, document: dict[str, Any], findings: Findings) -> Iterator[DatasetImage]:
    names, split = _classes(file, document), file.parent.name
    objects: defaultdict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    listed = document.get("annotations")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("video_id"), int | str):
            findings.drops("every reader", "an annotation is no object, or has no video_id", repr(one)[:60])
        else:
            objects[one["video_id"]].append(one)
    for video in document["videos"]:
        frames = video.get("file_names") if isinstance(video, dict) else None
        if not isinstance(frames, list) or not isinstance(video.get("id"), int | str):
            findings.drops("every reader", "a video has no id or no file_names", repr(video)[:60])
            continue
        yield from _video(file, split, video, objects.pop(video["id"], []), names, findings)
    for rest in objects.values():
        findings.drops("every reader", "an annotation's video_id is unknown", str(rest[0].get("id")), len(rest))


def _video(
    file: Path,
    split: str,
    video: dict[str, Any],
    objects: list[dict[str, Any]],
    names: dict[int, str],
    findings: Findings,
) -> Iterator[DatasetImage]:
    frames = [str(name) for name in video["file_names"]]
    size = usable_size(video.get("height"), video.get("width"))
    whole = [one for one in objects if _is_whole(one, len(frames), findings)]
    for place, name in enumerate(frames):
        picture = DatasetImage(split, name, name, size, file.parent / "JPEGImages" / name)
        for one in whole:
            segmentation = one["segmentations"][place]
            if segmentation is None or size is None:
                continue
            if (rle := read_mask(segmentation, size)) is None:
                findings.drops("every reader", "a mask cannot be read, or is not of its video's size", name)
            else:
                picture.instances.append((_name(one, names), rle))
        yield picture


def _is_whole(one: dict[str, Any], length: int, findings: Findings) -> bool:
    """Return whether an object has an entry, if only null, for each frame of its video."""
    where = f"annotation {str(one.get('id'))[:40]}"
    if one.get("iscrowd"):
        findings.drops("every reader", "iscrowd is 1: left out", where)
    masks_of = one.get("segmentations")
    if isinstance(masks_of, list) and len(masks_of) == length:
        return True
    findings.drops("every reader", "an object has not as many segmentations as its video has frames", where)
    return False


def _name(one: dict[str, Any], names: dict[int, str]) -> str:
    category = one.get("category_id")
    return names.get(category, f"class {category}") if isinstance(category, int) else repr(category)[:20]

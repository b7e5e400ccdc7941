"""pycocotools and PIL over a COCO dataset, in a child with limits: some files kill them, or keep them busy for ever."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 5
MORE_BYTES = 1 << 30


class Child:
    """One child for many datasets; a new one when it has been killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.stdin.close()  # type: ignore[union-attr]
            self.process.wait()
            self.process.stdout.close()  # type: ignore[union-attr]

    def losses(self, root: Path, meant: int) -> list[str]:
        """What the readers lose of `meant` annotations and all photos; [] if nothing."""
        if self.process is None:
            command = [sys.executable, str(Path(__file__))]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(root), meant]) + "\n")
        self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return list(json.loads(answer))
        code = self.process.wait()
        self.__exit__()
        self.process = None
        return [f"killed ({code})"]


def _losses(root: Path, meant: int) -> list[str]:
    from pycocotools.coco import COCO

    found: list[str] = []
    try:
        coco = COCO(str(root / "annotations/instances_train.json"))
        ids = [i for image in coco.getImgIds() for i in coco.getAnnIds(imgIds=[image], iscrowd=False)]
        if len(set(ids)) != meant:
            found.append(f"{len(set(ids))} annotations")
        for one in coco.loadAnns(ids):
            found += _losses_of(coco, one)
        found += [f"{kind} AP {ap}" for kind in ("segm", "bbox") if (ap := _self_ap(coco, kind)) < 0.9999]
        names = [coco.loadCats(one["category_id"])[0]["name"] for one in coco.loadAnns(ids)]
        assert all(names)
        for image in coco.loadImgs(coco.getImgIds()):
            found += _losses_of_photo(root, image)
        for record in (*coco.dataset["images"], *coco.dataset["annotations"], *coco.dataset["categories"]):
            if not isinstance(record, dict):
                found.append("a record is no object")
    except Exception as error:  # whatever it raises ends a training
        found.append(f"{type(error).__name__}: {str(error)[:100]}")
    return found


def _losses_of(coco: Any, one: dict[str, Any]) -> list[str]:
    from pycocotools import mask

    drawn = coco.annToMask(one)
    image = coco.imgs[one["image_id"]]
    found = [] if drawn.shape == (image["height"], image["width"]) else ["a mask of another size"]
    if not drawn.any():
        return [*found, "a mask without a pixel"]
    around = mask.toBbox(mask.encode(drawn.copy(order="F")))
    overlap = mask.iou([around.tolist()], [one["bbox"]], [0])[0, 0]
    return found if overlap > 0.5 else [*found, "the box is not the mask's"]


def _losses_of_photo(root: Path, image: dict[str, Any]) -> list[str]:
    from PIL import Image

    with Image.open(root / "images" / image["file_name"]) as photo:
        photo.convert("RGB")
        upright = photo.getexif().get(274, 1) == 1
        same = photo.size == (image["width"], image["height"])
    return [] if upright and same else ["a photo turned, or of another size"]


def _self_ap(coco: Any, kind: str) -> float:
    import copy

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = COCO()
    found.dataset = copy.deepcopy(coco.dataset)
    for one in found.dataset["annotations"]:
        one["score"] = 1.0
    found.createIndex()
    evaluation = COCOeval(coco, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def _serve() -> None:
    import pycocotools.cocoeval  # noqa: F401 - before memory is limited
    from PIL import Image

    Image.init()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        root, meant = json.loads(line)
        signal.alarm(SECONDS)
        with contextlib.redirect_stdout(io.StringIO()):
            found = _losses(Path(root), meant)
        signal.alarm(0)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()

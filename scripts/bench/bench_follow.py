"""Objects that are shown once in a video, by a box or a mask, and followed: how well their masks fit over the frames.

    python scripts/bench/bench_follow.py --videos 4 --frames 60

Videos are drawn (`make_clip`), and labelled by a run of their own with the demo checkpoint. Every object that shows at
least 0.5 % of the picture in the first frame is shown there. A frame in which it is hidden counts if it is labelled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from sam3label.concepts.concept_list import concepts_from
from sam3label.core import masks
from sam3label.demo.shapes import Scene, make_clip
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.run.reader import open_run

FIRST_SEED = 34_000_000
LEAST = 0.005  # of the picture, in the first frame
SPAN = 10  # frames of a row


def shown(scene: Scene, track: int) -> Any:
    numbers = [k for k, thing in enumerate(scene.things, start=1) if thing.track == track]
    return scene.mask(numbers[0]) if numbers else np.zeros(scene.size_hw, bool)


def objects_of(scene: Scene, tracks: list[int], name: str, with_masks: bool) -> dict[str, Any]:
    annotations = []
    for track in tracks:
        rle = masks.encode(shown(scene, track))
        code = {"segmentation": {"size": list(rle.size_hw), "counts": rle.counts.decode()}} if with_masks else {}
        annotations.append({"id": track, "image_id": 1, "category_id": 1, "bbox": masks.box_xywh(rle), **code})
    height, width = scene.size_hw
    image = {"id": 1, "file_name": name, "height": height, "width": width}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def follow(scenes: tuple[Scene, ...], way: str, work: Path, options: LabelOptions) -> dict[int, dict[int, float]]:
    """Object -> frame -> IoU of its label with the truth, in frames in which it is seen or labelled."""
    folder = work / "video"
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        cv2.imwrite(str(folder / f"{number:05d}.png"), scene.image[..., ::-1])
    tracks = [thing.track for thing in scenes[0].things if shown(scenes[0], thing.track).mean() >= LEAST]
    file = work / "objects.json"
    file.write_text(json.dumps(objects_of(scenes[0], tracks, "video/00000.png", way == "mask")))
    rules = {"prompts": [], "exemplars": {"objects": str(file)}}
    label([folder], concepts_from({"names": ["thing"], "concepts": {"thing": rules}}), work / "run", options)
    found: dict[tuple[int, int], Any] = {}
    with open_run(work / "run") as run:
        for image in run.images():
            found |= {(int(one.given.id), image.frame): one.rle for one in image.labels if one.given}
    ious: dict[int, dict[int, float]] = defaultdict(dict)
    for track in tracks:
        for frame, scene in enumerate(scenes):
            truth, own = masks.encode(shown(scene, track)), found.get((track, frame))
            if masks.area(truth) or own is not None:
                ious[track][frame] = 0.0 if own is None else float(masks.iou_matrix([own], [truth])[0, 0])
    return ious


def main() -> None:
    parser = argparse.ArgumentParser(description="Objects that are shown once in a video, and followed.")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--clip-frames", type=int, default=600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = LabelOptions(model="demo", workers=0, video="track", clip_frames=arguments.clip_frames)
    rows: dict[str, dict[int, list[float]]] = {way: defaultdict(list) for way in ("box", "mask")}
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.videos):
        scenes = make_clip(seed, arguments.frames, (240, 320), arguments.objects)
        for way, row in rows.items():
            with tempfile.TemporaryDirectory() as work:
                for own in follow(scenes, way, Path(work), options).values():
                    for frame, iou in own.items():
                        row[frame // SPAN].append(iou)
    print("frames | object frames | mean mask IoU: shown by a box, by a mask")
    for span in sorted(rows["box"].keys() | rows["mask"].keys()):
        one, other = (np.mean(rows[way][span]) for way in ("box", "mask"))
        print(f"{span * SPAN} to {span * SPAN + SPAN - 1} | {len(rows['box'][span])} | {one:.3f}, {other:.3f}")
    one, other = (np.mean([iou for own in rows[way].values() for iou in own]) for way in ("box", "mask"))
    print(f"all | {sum(map(len, rows['box'].values()))} | {one:.3f}, {other:.3f}")


if __name__ == "__main__":
    main()

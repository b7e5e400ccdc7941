"""Exported datasets train: a few real steps of a YOLO and of an RT-DETR on the CPU, on scenes with known labels.

Both learn one small batch by heart, so the loss must fall; and the labels that reach the loss are counted.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from support.labelled import concept_list, label
from support.ultra import DEFAULT_CFG, SegmentationModel, YOLODataset, check_det_dataset

from sam3label.core import masks
from sam3label.core.records import LabeledImage, MediaItem
from sam3label.demo import shapes
from sam3label.export.options import Options
from sam3label.export.photos import image_name
from sam3label.export.splits import parse_splits
from sam3label.export.write import write_dataset

STEPS = 6
SCENES = 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[LabeledImage]:
    """Scenes of shapes on disk, labelled with their truth, one class per shape."""
    folder = tmp_path_factory.mktemp("scenes")
    images = []
    for seed in range(SCENES):
        scene = shapes.make_scene(seed, (96, 128))
        path = folder / f"{seed}.png"
        cv2.imwrite(str(path), scene.image[..., ::-1])
        labels = [
            label(masks.encode(scene.mask(k)), shapes.SHAPES.index(thing.shape), label_id=f"{seed}-{k}")
            for k, thing in enumerate(scene.things, 1)
        ]
        images.append(LabeledImage(MediaItem(path.name, str(path)), scene.size_hw, tuple(labels)))
    return images


def falls(losses: list[float]) -> bool:
    return all(map(math.isfinite, losses)) and losses[-1] < 0.9 * losses[0]


def test_a_yolo_trains_on_the_export(scenes: list[LabeledImage], tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = tmp_path / "set"
    summary = write_dataset(concept_list(shapes.SHAPES), scenes, "yolo", out)
    data = check_det_dataset(str(out / "data.yaml"))
    loaded = YOLODataset(img_path=data["train"], data=data, task="segment", imgsz=128, augment=False, hyp=DEFAULT_CFG)
    batch = YOLODataset.collate_fn([loaded[i] for i in range(len(loaded))])
    assert len(batch["cls"]) == summary.instances == sum(len(s.labels) for s in scenes) > SCENES
    assert sorted(batch["cls"].flatten().tolist()) == sorted(x.class_id for s in scenes for x in s.labels)
    batch["img"] = batch["img"].float() / 255
    with contextlib.redirect_stdout(io.StringIO()):
        model = SegmentationModel("yolo11n-seg.yaml", nc=data["nc"], verbose=False)
    model.args = DEFAULT_CFG
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(float(loss.detach().sum()))
    assert falls(losses), losses


def test_an_rt_detr_trains_on_the_export(scenes: list[LabeledImage], tmp_path: Path) -> None:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    torch.manual_seed(0)
    out = tmp_path / "set"
    summary = write_dataset(concept_list(shapes.SHAPES), scenes, "coco-zero", out, Options(segmentation="polygon"))
    document = json.loads((out / "annotations/instances_train.json").read_text())
    processor = RTDetrImageProcessor(size={"height": 128, "width": 128})
    photos, targets = [], []
    for record in document["images"]:
        photos.append(Image.open(out / "images" / record["file_name"]).convert("RGB"))
        own = [a for a in document["annotations"] if a["image_id"] == record["id"]]
        targets.append({"image_id": record["id"], "annotations": own})
    batch = processor(images=photos, annotations=targets, return_tensors="pt")
    seen = sum(len(x["class_labels"]) for x in batch["labels"])
    assert seen == summary.instances == sum(len(s.labels) for s in scenes) > SCENES
    assert all(0 <= int(c) < len(shapes.SHAPES) for x in batch["labels"] for c in x["class_labels"])
    for annotation in document["annotations"]:  # as RT-DETR's return_masks draws them
        rings = coco_mask.frPyObjects(annotation["segmentation"], *scenes[0].size_hw)
        assert coco_mask.area(coco_mask.merge(rings)) == annotation["area"]

    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[32, 64, 128],
        encoder_hidden_dim=64,
        encoder_ffn_dim=64,
        d_model=64,
        num_queries=30,
        decoder_in_channels=[64, 64, 64],
        decoder_ffn_dim=64,
        decoder_layers=2,
        num_labels=len(shapes.SHAPES),
    )
    model: Any = RTDetrForObjectDetection(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = [{k: v for k, v in x.items() if k in ("class_labels", "boxes")} for x in batch["labels"]]
    losses = []
    for _ in range(2 * STEPS):
        torch.manual_seed(1)  # the same denoising queries each time: the loss is then comparable
        optimizer.zero_grad()
        loss = model(pixel_values=batch["pixel_values"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert falls(losses), losses


def test_masks_reach_the_yolo_loss_whole(scenes: list[LabeledImage], tmp_path: Path) -> None:
    out = tmp_path / "set"
    options = Options(splits=parse_splits("train=1"))
    write_dataset(concept_list(shapes.SHAPES), scenes, "yolo", out, options)
    data = yaml.safe_load((out / "data.yaml").read_text()) | {"channels": 3}
    hyp = type(DEFAULT_CFG)(**{**vars(DEFAULT_CFG), "mask_ratio": 1, "overlap_mask": False})
    loaded = YOLODataset(
        img_path=str(out / "images/train"), data=data, task="segment", imgsz=128, augment=False, hyp=hyp
    )
    overlaps = []
    for item in (loaded[i] for i in range(len(loaded))):
        scene = next(s for s in scenes if image_name(s.item.id) == Path(item["im_file"]).name)
        top = (item["masks"].shape[1] - scene.size_hw[0]) // 2  # letterboxed: 96 rows in 128
        drawn = [masks.encode(m.numpy()[top : top + scene.size_hw[0]]) for m in item["masks"]]
        table = masks.iou_matrix([x.rle for x in scene.labels], drawn)
        assert len(drawn) == len(scene.labels)
        overlaps += table.max(axis=1).tolist()
    assert np.mean(overlaps) > 0.99 and min(overlaps) > 0.97

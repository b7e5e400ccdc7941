"""Boxes and points to masks, against transformers' own Sam3TrackerModel called as its documentation shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data

from sam3label.core import masks
from sam3label.core.records import Frame, Hint, MediaItem, Prompt
from sam3label.demo.shapes import make_scene
from sam3label.errors import CheckpointError
from sam3label.model.checkpoint import OWN_HEAD, Checkpoint, resolve
from sam3label.model.detector import Detector
from sam3label.model.interactive import Clicker
from sam3label.model.weights import load_video_model

TOLERANCE = 1e-4
BOXES = [(20.0, 30.0, 180.0, 220.0), (100.0, 5.5, 140.0, 60.0), (0.0, 0.0, 299.0, 299.0)]
POINTS = [[(60.0, 70.0)], [(150.0, 30.0), (20.5, 200.0)]]


def frame(name: str, pixels: np.ndarray) -> Frame:
    return Frame(MediaItem(id=name, path=name), 0, np.ascontiguousarray(pixels))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Photos of different sizes."""
    return [frame("cat", data.chelsea()), frame("cup", data.coffee()), frame("rocket", data.rocket()[:, :500])]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def clicker(checkpoint: Checkpoint) -> Clicker:
    return Clicker.load(checkpoint, Detector.load(checkpoint, device="cpu"))


@pytest.fixture(scope="module")
def library(tiny_checkpoint: Path) -> tuple[Any, Any]:
    """Sam3TrackerProcessor and Sam3TrackerModel as anyone would load them."""
    from transformers import Sam3TrackerModel, Sam3TrackerProcessor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    images = Sam3ImageProcessor.from_pretrained(tiny_checkpoint)
    return Sam3TrackerProcessor(images), Sam3TrackerModel.from_pretrained(tiny_checkpoint).eval()


def ask_library(library: tuple[Any, Any], clicker: Clicker, one: Frame, several: bool, **prompts: Any) -> Any:
    """One photo, its prompts as nested lists: logits [N, 1 or 3, h, w], IoU [N, 1 or 3] and masks [N, ., H, W]."""
    processor, model = library
    inputs = processor(images=one.pixels, return_tensors="pt", **prompts)
    inputs["pixel_values"] = clicker.detector.preprocess([one])  # its own are up to one grey level apart on a CPU
    sizes = inputs.pop("original_sizes")
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=several)
    whole = processor.post_process_masks(outputs.pred_masks, sizes)[0]
    return outputs.pred_masks[0], outputs.iou_scores[0], whole


def agree(clicker: Clicker, one: Frame, hints: Sequence[Hint], expected: Any) -> None:
    """Compare logits, IoU, and masks at the photo's size; of three masks, the one that is surest."""
    logits, ious, whole = expected
    rows, best = torch.arange(len(hints)), ious.argmax(1)
    with torch.inference_mode():
        grid = clicker.detector.encode_grid(clicker.detector.preprocess([one]))
        answer = clicker.ask(clicker.features(grid), [one.size_hw], [hints])
    assert (answer.masks - logits[rows, best]).abs().max() < TOLERANCE
    assert (answer.ious - ious[rows, best]).abs().max() < TOLERANCE
    (found,) = clicker.masks([one], [hints])
    for place, clicked in enumerate(found):
        mask = whole[place, best[place]].numpy()
        own = masks.decode(clicked.instance.rle) if clicked.instance else np.zeros(one.size_hw, bool)
        assert (own != mask).sum() <= 1e-4 * mask.size
        assert 0 <= clicked.stability <= 1


def test_boxes_are_answered_as_the_library_does(clicker: Clicker, library: Any, frames: list[Frame]) -> None:
    for one in frames:
        expected = ask_library(library, clicker, one, False, input_boxes=[[list(box) for box in BOXES]])
        assert 0 < expected[2].float().mean() < 1
        agree(clicker, one, [Hint(box) for box in BOXES], expected)


def test_one_point_takes_the_surest_of_three_masks(clicker: Clicker, library: Any, frames: list[Frame]) -> None:
    points = [[60.0, 70.0], [200.0, 150.5], [3.0, 290.0]]
    for one in frames:
        expected = ask_library(library, clicker, one, True, input_points=[[[point] for point in points]])
        assert expected[0].shape[1] == 3
        agree(clicker, one, [Hint(points=((x, y, True),)) for x, y in points], expected)


def test_several_points_and_those_that_are_not_on_it(clicker: Clicker, library: Any, frames: list[Frame]) -> None:
    points, signs = [[[60.0, 70.0], [150.0, 30.0]], [[20.5, 200.0], [90.0, 90.0]]], [[1, 0], [1, 1]]
    hints = [
        Hint(points=tuple((x, y, bool(sign)) for (x, y), sign in zip(own, on, strict=True)))
        for own, on in zip(points, signs, strict=True)
    ]
    for one in frames:
        expected = ask_library(library, clicker, one, False, input_points=[points], input_labels=[signs])
        agree(clicker, one, hints, expected)


def test_a_box_with_a_point(clicker: Clicker, library: Any, frames: list[Frame]) -> None:
    points = [[[60.0, 70.0]], [[120.0, 30.0]], [[150.0, 150.0]]]
    hints = [Hint(box, ((*own[0], True),)) for box, own in zip(BOXES, points, strict=True)]
    expected = ask_library(
        library,
        clicker,
        frames[0],
        False,
        input_boxes=[[list(box) for box in BOXES]],
        input_points=[points],
        input_labels=[[[1], [1], [1]]],
    )
    agree(clicker, frames[0], hints, expected)


def test_hints_of_all_forms_and_photos_of_all_sizes_go_together(
    clicker: Clicker, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a hint depends on no other, and a photo is encoded once; one without hints not at all."""
    hints = [
        [Hint(BOXES[0]), Hint(points=((60.0, 70.0, True),)), *[Hint(box) for box in BOXES[1:]] * 5],
        [],
        [Hint(points=((10.0, 20.0, True), (200.0, 100.0, False))), Hint(BOXES[2], ((150.0, 150.0, True),))],
    ]
    encoded: list[int] = []
    backbone = clicker.detector.model.vision_encoder.backbone
    hook = backbone.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    together = clicker.masks(frames, hints)
    assert sum(encoded) == 2
    hook.remove()
    alone = [[clicker.masks([one], [[hint]])[0][0] for hint in own] for one, own in zip(frames, hints, strict=True)]
    assert [len(own) for own in together] == [12, 0, 2]
    for many, single in zip(together, alone, strict=True):
        for a, b in zip(many, single, strict=True):
            assert a.iou == pytest.approx(b.iou, abs=TOLERANCE)
            assert (a.instance is None) == (b.instance is None)
            if a.instance and b.instance:
                assert abs(a.instance.area - b.instance.area) <= 1e-4 * frames[0].pixels.size


def test_phrases_and_boxes_share_one_encoding(clicker: Clicker, frames: list[Frame]) -> None:
    detector, prompts = clicker.detector, [Prompt("red hat", "red hat")]
    with torch.inference_mode():
        grid = detector.encode_grid(detector.preprocess(frames[:1]))
        shared = detector.look(detector.state_of_grid(grid), prompts, 0.1)[0]
        own = detector.look(detector.encode_images(detector.preprocess(frames[:1])), prompts, 0.1)[0]
    assert torch.equal(shared.masks, own.masks)
    (clicked,) = clicker.masks_of_grid(grid, [frames[0].size_hw], [[Hint(BOXES[0])]])
    assert clicked == clicker.masks(frames[:1], [[Hint(BOXES[0])]])[0]


def test_a_hint_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="got neither"):
        Hint(points=((1.0, 2.0, False),))
    with pytest.raises(ValueError, match="x1 < x2"):
        Hint((10.0, 0.0, 10.0, 5.0))


def test_a_detector_alone_cannot_be_clicked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    config = json.loads((tiny_checkpoint / "config.json").read_text())["detector_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tiny_checkpoint / "model.safetensors")
    prefix = "detector_model."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file(own, tmp_path / "model.safetensors", metadata={"format": "pt"})
    alone = resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="boxes and points"):
        Clicker.load(alone, Detector.load(alone, device="cpu"))


# ---- a head of a checkpoint's own, as the demo has


def test_the_demos_own_head_knows_boxes_and_leaves_tracking_alone() -> None:
    demo = resolve("demo")
    clicker = Clicker.load(demo, Detector.load(demo, device="cpu"))
    weights = load_file(demo.folder / "model.safetensors")
    video = load_video_model(demo)
    for part in ("tracker_model", "tracker_neck"):
        there = getattr(video, part).state_dict()
        assert all(torch.equal(there[name], weights[f"{part}.{name}"].float()) for name in there)
    own = load_file(demo.folder / OWN_HEAD)
    asked = {"tracker_model": clicker.model.state_dict(), "tracker_neck": clicker.neck.state_dict()}
    for name, value in own.items():
        part, _, inner = name.partition(".")
        assert torch.equal(asked[part][inner], value.float()), name
    overlaps = []
    for seed in range(31_000_000, 31_000_008):
        scene = make_scene(seed, (240, 320))
        truth = [masks.encode(scene.mask(number)) for number in range(1, len(scene.things) + 1)]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(masks.box_xywh, truth)]
        (found,) = clicker.masks([frame("scene", scene.image)], [[Hint(box) for box in boxes]])
        for clicked, rle in zip(found, truth, strict=True):
            assert clicked.instance is not None
            overlaps.append(float(masks.iou_matrix([clicked.instance.rle], [rle])[0, 0]))
    assert len(overlaps) > 20 and np.mean(overlaps) > 0.8


def test_a_head_that_does_not_fit_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for file in tiny_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"tracker_model.mask_decoder.other": torch.zeros(3)}, tmp_path / OWN_HEAD)
    odd = resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not fit the tracker beside it .tracker_model.mask_decoder.other."):
        Clicker.load(odd, Detector.load(odd, device="cpu"))

"""Training: each loss against a hand-computed value, the forward pass against the library, learning that is real."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import exam
import lessons
import numpy as np
import pytest
import torch
from lessons import Question
from torch import Tensor
from transformers import Sam3Config, Sam3Model, Sam3Processor

from sam3label.demo.shapes import COLORS, SHAPES, SYNONYMS, Scene, make_scene
from sam3label.train import losses
from sam3label.train.detector import (
    PAD,
    Batch,
    LossWeights,
    Recipe,
    Trainer,
    autocast,
    forward,
    learning_rate_factor,
    loss_parts,
    pick_masked,
)

SIDE, CELLS = 64, 32
WORDS = ["<pad>", "<bos>", "<eos>", lessons.VISUAL, *COLORS, *SHAPES, "shape"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- losses


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_overlap_of_two_boxes_sharing_a_quarter() -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 3.0])
    iou, giou = losses.box_overlap(a, b)
    assert float(iou) == pytest.approx(1 / 7)
    assert float(giou) == pytest.approx(1 / 7 - 2 / 9)  # the hull is 9, the union 7


def test_overlap_of_two_boxes_apart_is_negative_giou() -> None:
    iou, giou = losses.box_overlap(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
    assert float(iou) == 0.0
    assert float(giou) == pytest.approx(-0.5)  # half of the hull of 4 is empty


def test_matching_cost_weighs_class_2_box_5_giou_2() -> None:
    box, far = [0.5, 0.5, 0.2, 0.2], [0.5, 0.7, 0.2, 0.2]
    cost = losses.matching_cost(torch.tensor([[logit(0.7)]]), torch.tensor([[box]]), torch.tensor([[box, far]]))
    assert cost.shape == (1, 1, 2)
    assert float(cost[0, 0, 0]) == pytest.approx(-2 * 0.7 - 2 * 1.0, abs=1e-5)
    # the second touches the first from below: IoU 0, the hull is exactly filled, so GIoU 0
    assert float(cost[0, 0, 1]) == pytest.approx(-2 * 0.7 + 5 * 0.2, abs=1e-5)


def test_hungarian_takes_the_cheapest_whole_and_ignores_padding() -> None:
    cost = torch.tensor([[[1.0, 0.0, -9.0], [2.0, 3.0, -9.0], [9.0, 9.0, -9.0]], [[0.0] * 3] * 3])
    matches = losses.hungarian(cost, torch.tensor([2, 0]))
    # query 0 is nearest to both, yet 0->1 and 1->0 is cheaper (2) than 0->0 and 1->1 (4)
    assert list(zip(*(x.tolist() for x in (matches.row, matches.query, matches.target)), strict=True)) == [
        (0, 0, 1),
        (0, 1, 0),
    ]


def test_hungarian_with_copies_gives_a_target_several_queries() -> None:
    cost = torch.tensor([[[1.0], [5.0], [2.0], [9.0]]])
    matches = losses.hungarian(cost, torch.tensor([1]), copies=2)
    assert sorted(matches.query.tolist()) == [0, 2]
    assert matches.target.tolist() == [0, 0]


def matched(row: int, query: int) -> losses.Matches:
    return losses.Matches(torch.tensor([row]), torch.tensor([query]), torch.tensor([0]))


def test_classification_is_focal_towards_the_iou() -> None:
    logits = torch.tensor([[logit(0.6), logit(0.2)], [logit(0.9), logit(0.9)]])
    present = torch.tensor([True, False])
    value = losses.classification_loss(logits, matched(0, 0), torch.tensor([0.8]), present)
    positive = (0.8 - 0.6) ** 2 * -(0.8 * math.log(0.6) + 0.2 * math.log(0.4))
    negative = 0.2**2 * -math.log(0.8)
    assert float(value) == pytest.approx(positive + negative, rel=1e-5)  # the row without objects does not count
    hard = losses.classification_loss(logits, matched(0, 0), torch.tensor([0.8]), present, iou_aware=0.0)
    assert float(hard) == pytest.approx(0.4**2 * -math.log(0.6) + negative, rel=1e-5)


def test_presence_is_cross_entropy_over_all_rows() -> None:
    value = losses.presence_loss(torch.tensor([logit(0.8), logit(0.3)]), torch.tensor([True, False]))
    assert float(value) == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)


def test_box_losses_of_a_shifted_box() -> None:
    distance, giou, iou = losses.box_losses(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]))
    assert float(distance) == pytest.approx(0.1)
    assert float(iou[0]) == pytest.approx(1 / 3)
    assert float(giou) == pytest.approx(1 - 1 / 3)  # side by side: the hull is the union


def test_box_losses_of_nothing_are_zero() -> None:
    distance, giou, iou = losses.box_losses(torch.zeros(0, 4), torch.zeros(0, 4))
    assert float(distance) == float(giou) == 0.0 and iou.shape == (0,)


def test_mask_focal_loss_of_two_cells() -> None:
    value = losses.mask_focal_loss(torch.tensor([[[logit(0.9), logit(0.4)]]]), torch.tensor([[[1.0, 0.0]]]))
    expected = (0.25 * 0.1**2 * -math.log(0.9) + 0.75 * 0.4**2 * -math.log(0.6)) / 2
    assert float(value[0]) == pytest.approx(expected, rel=1e-5)


def pull_at_the_edge(alpha: float) -> float:
    """Where a cell's logit of 0 should go if the cell is in the mask every other time."""
    edge = torch.zeros(1, requires_grad=True)
    cells = edge.expand(2)[:, None, None]
    losses.mask_focal_loss(cells, torch.tensor([[[1.0]], [[0.0]]]), alpha).sum().backward()
    assert edge.grad is not None
    return -float(edge.grad)


def test_mask_edges_are_learned_where_a_cell_is_as_often_in_as_out() -> None:
    assert pull_at_the_edge(LossWeights().mask_alpha) == 0.0
    assert pull_at_the_edge(0.25) < -0.1


def test_dice_loss_of_two_cells() -> None:
    value = losses.dice_loss(torch.tensor([[[logit(0.9), logit(0.4)]]]), torch.tensor([[[1.0, 0.0]]]))
    assert float(value[0]) == pytest.approx(1 - (2 * 0.9 + 1) / (1.3 + 1 + 1))


def test_apart_loss_counts_only_the_cells_of_other_instances() -> None:
    logits = torch.tensor([[[logit(0.9), logit(0.5), logit(0.2)]]]).expand(2, -1, -1)
    value = losses.apart_loss(logits, torch.tensor([[[0.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]]))
    assert value.tolist() == pytest.approx([-(math.log(0.5) + math.log(0.8)) / 2, 0.0])


def test_cells_are_sure_of_their_instance_by_the_distance_to_its_mean() -> None:
    embedding = torch.tensor([[[0.0, 2.0, 9.0]], [[0.0, 0.0, 9.0]], [[0.0, 0.0, 9.0]], [[0.0, 0.0, 9.0]]])
    masks = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 0.4]]])  # the last covers no cell by half
    # the two means lie 2 apart in 4 channels: logits 0 and -4 / (2 * 2)
    assert float(losses.nearest_mean_loss(embedding, masks)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(losses.nearest_mean_loss(embedding, masks[:1])) == 0


def test_semantic_loss_measures_overlap_only_where_there_is_something() -> None:
    logits = torch.tensor([[[logit(0.9), logit(0.4)]], [[logit(0.5), logit(0.5)]]])
    entropy, dice = losses.semantic_loss(logits, torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]))
    assert float(entropy) == pytest.approx(-(math.log(0.9) + math.log(0.6) + 2 * math.log(0.5)) / 4)
    assert float(dice) == pytest.approx(1 - 2.8 / 3.3)
    _, nothing = losses.semantic_loss(logits[1:], torch.zeros(1, 1, 2))
    assert float(nothing) == 0.0


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    assert learning_rate_factor(0, 10, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(50, 10, 0.0) == 1.0
    assert learning_rate_factor(50, 10, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(50, 10, 1.0) == pytest.approx(0.0)


# ---- a detector small enough to learn in seconds


def config() -> Sam3Config:
    block: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "dropout": 0.0}
    vit = {
        "model_type": "sam3_vit_model", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": SIDE, "pretrain_image_size": SIDE, "patch_size": 8, "window_size": 4,
        "global_attn_indexes": [1],
    }  # fmt: skip
    return Sam3Config(
        vision_config={
            "backbone_config": vit, "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64,
            "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 8,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        geometry_encoder_config={**block, "num_layers": 1, "roi_size": 2},
        detr_encoder_config={**block, "num_layers": 1},
        detr_decoder_config={**block, "num_layers": 2, "num_queries": 9},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
    )  # fmt: skip


def tokenize(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
    rows = [[1, *(WORDS.index(word) for word in phrase.split()), 2] for phrase in phrases]
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, (ids != 0).long()


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "demo_weights" / "train_detector.py"
    spec = importlib.util.spec_from_file_location("train_demo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_detector(seed: int = 0) -> Sam3Model:
    torch.manual_seed(seed)
    model = Sam3Model(config())
    script().start_well(model)
    return model


def sheets(count: int = 4) -> list[exam.Sheet]:
    """Scenes of one to three objects, each asked for by its name and for a kind that is not there."""
    made: list[exam.Sheet] = []
    seed = 0
    while len(made) < count:
        scene = make_scene(seed, (SIDE, SIDE), objects=2)
        seed += 1
        if len(scene.things) == 2 and min((scene.index == k).sum() for k in (1, 2)) > 150:
            names = sorted({thing.name for thing in scene.things})
            asked = [Question(n, answer=tuple(i for i, t in enumerate(scene.things) if t.name == n)) for n in names]
            absent = next(f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in names)
            box = Question(lessons.VISUAL, ((0, 1),), tuple(
                i for i, thing in enumerate(scene.things) if thing.name == scene.things[0].name
            ))  # fmt: skip
            made.append(exam.Sheet(scene, lessons.to_sample(scene, SIDE, CELLS), (*asked, Question(absent), box)))
    return made


def batch_of(some: Sequence[exam.Sheet]) -> Batch:
    return lessons.collate([(sheet.sample, sheet.questions) for sheet in some], tokenize)


def test_forward_by_parts_is_the_library_with_the_geometry_token() -> None:
    model = small_detector().eval()
    batch = batch_of(sheets(2))
    with torch.no_grad():
        mine = forward(model, batch, torch.arange(len(batch)))
        theirs = model(
            pixel_values=batch.pixels[batch.image_of],
            input_ids=batch.token_ids[batch.phrase_of],
            attention_mask=batch.token_mask[batch.phrase_of],
            input_boxes=batch.exemplars,
            input_boxes_labels=batch.exemplar_labels,
        )
    assert (batch.exemplar_labels == PAD).any() and (batch.exemplar_labels == 1).any()
    torch.testing.assert_close(mine.logits[-1], theirs.pred_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.corners(mine.boxes[-1]), theirs.pred_boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.presence[-1], theirs.presence_logits[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.masks[:, 0], theirs.pred_masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.semantic, theirs.semantic_seg[:, 0], atol=1e-4, rtol=1e-4)


def test_only_pairs_with_objects_go_through_the_mask_head() -> None:
    batch = batch_of(sheets(4))
    masked = pick_masked(batch, 5, torch.Generator().manual_seed(0))
    assert 0 < len(masked) <= 5
    assert all(len(batch.targets[int(pair)]) for pair in masked)
    assert len({int(batch.image_of[pair]) for pair in masked}) <= 2
    outputs = forward(small_detector(), batch, masked)
    assert outputs.masks.shape == (len(masked), 1, 9, CELLS, CELLS)
    assert outputs.logits.shape == (2, len(batch), 9)


def test_every_loss_reaches_the_weights_it_should_teach() -> None:
    model, batch = small_detector(), batch_of(sheets(2))
    recipe = Recipe(precision="fp32")
    trainer = Trainer(model, recipe)
    before = {name: value.clone() for name, value in model.named_parameters()}
    numbers = trainer.step(batch, 0.0)
    trainer.step(batch, 0.0)  # the box head's last layer starts at zero: what is below it moves from the second step
    assert set(numbers) == {
        "classification", "presence", "box", "giou", "mask_focal", "mask_dice", "mask_apart", "cells",
        "semantic", "fused", "total",
    }  # fmt: skip
    assert numbers["total"] == pytest.approx(sum(v for k, v in numbers.items() if k != "total"), rel=1e-5)
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    # what the detector never uses: the half-scale neck level, the third stage of the mask head, CLIP's own projection
    unused = ("fpn_layers.3", "pixel_decoder.conv_layers.2", "pixel_decoder.norms.2", "text_encoder.text_projection")
    assert {name for name in still if not any(part in name for part in unused)} == set()


def test_seeing_and_fusing_are_trained_before_any_query() -> None:
    train_demo = script()
    recipe = Recipe(precision="fp32", look_until=0.2, fusion_until=0.4)
    trainer = Trainer(train_demo.fresh_detector(train_demo.tokenizer(), 0), recipe, train_demo.DenseHeads(64))
    room = lessons.Classroom(train_demo.tokenize_with(train_demo.tokenizer()), 128, 64, seed=0, window=4)
    seeing = {"dense", "dense_box", "dense_cells", "objects", "total"}
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert set(trainer.step(room.pictures(0, count=4), 0.1)) == seeing
    moved = {n.split(".")[0] for n, value in trainer.model.named_parameters() if not torch.equal(value, before[n])}
    assert moved == {"vision_encoder"}
    assert set(trainer.step(room.batch(1, plain=1, canvases=1), 0.3)) == {*seeing, "fused"}
    assert {"box", "mask_dice", "presence"} < set(trainer.step(room.batch(2, plain=1, canvases=1), 0.5))


def test_the_same_batch_number_gives_the_same_batch_wherever_training_started() -> None:
    went_on = lessons.Classroom(tokenize_letters, SIDE, CELLS, seed=3, window=6)
    went_on.batch(4)
    resumed = lessons.Classroom(tokenize_letters, SIDE, CELLS, seed=3, window=6)
    first, again = went_on.batch(9, plain=2, canvases=2), resumed.batch(9, plain=2, canvases=2)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.exemplars, again.exemplars)
    assert [t.tolist() for t in first.targets] == [t.tolist() for t in again.targets]


def test_half_of_the_scenes_are_video_frames_and_references_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries: list[Scene] = []
    canvas_sample = lessons.canvas_sample

    def watched(rng: lessons.Rng, target: Scene, library: Sequence[Scene], side: int, cells: int) -> lessons.Sample:
        libraries.extend(library)
        return canvas_sample(rng, target, library, side, cells)

    monkeypatch.setattr(lessons, "canvas_sample", watched)
    room = lessons.Classroom(tokenize_letters, SIDE, CELLS, seed=3, window=120)
    room.batch(0, plain=1, canvases=3)
    moving = [scene for scene in room.scenes.values() if any(thing.track for thing in scene.things)]
    assert 0.4 < len(moving) / len(room.scenes) < 0.65
    assert len(libraries) > 60 and not any(thing.track for scene in libraries for thing in scene.things)


def tokenize_letters(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(phrases), 40, dtype=torch.long)
    for row, phrase in enumerate(phrases):
        ids[row, : len(phrase)] = torch.tensor([ord(letter) for letter in phrase])
    return ids, (ids != 0).long()


def test_a_batch_without_any_object_trains_presence_and_scores_alone() -> None:
    sheet = sheets(1)[0]
    batch = lessons.collate([(sheet.sample, (Question("purple star"),))], tokenize)
    trainer = Trainer(small_detector(), Recipe(precision="fp32"))
    numbers = trainer.step(batch, 0.0)
    assert numbers["presence"] > 0
    assert numbers["box"] == numbers["classification"] == 0.0
    assert "mask_dice" not in numbers
    assert math.isfinite(numbers["total"])


def test_masks_are_compared_enlarged_where_the_truth_is_finer_than_their_cells() -> None:
    sheet = next(one for one in sheets(4) if len(one.questions[0].answer) == 1)
    fine = lessons.to_sample(sheet.scene, SIDE, SIDE)
    batch = lessons.collate([(fine, sheet.questions[:1])], tokenize)
    outputs = forward(small_detector(), batch, torch.tensor([0]))
    assert outputs.masks.shape[-1] == CELLS == batch.instance_masks[0].shape[-1] // 2

    def edge_within_a_cell(inside: float) -> float:
        """Dice loss where the truth covers half of a column of cells, and the logit of that column is `inside`."""
        truth = torch.zeros(SIDE, SIDE)
        truth[:, : SIDE // 2 + 1] = 1  # one fine column beyond the border of two cells
        logits = torch.full((CELLS, CELLS), -9.0)
        logits[:, : CELLS // 2] = 9.0
        logits[:, CELLS // 2] = inside
        drawn = replace(outputs, masks=logits.expand_as(outputs.masks))
        asked = replace(batch, instance_masks=(truth.expand_as(batch.instance_masks[0]),))
        return float(loss_parts(drawn, asked, torch.tensor([0]), LossWeights(), copies=1)["mask_dice"].detach())

    assert edge_within_a_cell(0.0) < min(edge_within_a_cell(-9.0), edge_within_a_cell(9.0))


def test_one_to_many_adds_box_losses_of_further_queries() -> None:
    model, batch = small_detector(), batch_of(sheets(2))
    masked = pick_masked(batch, 4, torch.Generator().manual_seed(0))
    parts = loss_parts(forward(model, batch, masked), batch, masked, LossWeights(one_to_many=1.0), copies=3)
    assert float(parts["one_to_many"].detach()) > float((parts["box"] + parts["giou"]).detach())


def test_anchors_settle_which_of_two_equal_queries_answers() -> None:
    model, batch = small_detector(), batch_of(sheets(1))
    masked = pick_masked(batch, 4, torch.Generator().manual_seed(0))
    outputs = forward(model, batch, masked)
    grid = outputs.anchors[0]
    assert torch.allclose(grid[:, 0].unique(), torch.tensor([1 / 6, 1 / 2, 5 / 6]), atol=1e-5)
    pair = next(p for p, target in enumerate(batch.targets) if len(target) == 1)
    center = batch.instance_boxes[0][batch.targets[pair][0], :2]
    alike = replace(
        outputs,
        boxes=torch.full_like(outputs.boxes, 0.5),
        logits=torch.zeros_like(outputs.logits).requires_grad_(),
    )
    loss_parts(alike, batch, masked, LossWeights(anchor=5.0), copies=1)["classification"].backward()
    assert alike.logits.grad is not None
    pulled_up = int(alike.logits.grad[-1, pair].argmin())  # the one query that is told to answer
    assert pulled_up == int((grid - center).abs().sum(-1).argmin())


def test_bf16_autocast_trains_close_to_fp32() -> None:
    batch = batch_of(sheets(2))
    totals = [
        Trainer(small_detector(), Recipe(precision=precision)).step(batch, 0.0)["total"]
        for precision in ("fp32", "bf16")
    ]
    assert totals[0] != totals[1]
    assert totals[1] == pytest.approx(totals[0], rel=0.02)


def test_auto_precision_is_fp32_where_bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with autocast(torch.device("cpu"), "auto"):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(torch.device("cpu"), "bf16"):
        assert torch.is_autocast_enabled("cpu")


def test_resuming_continues_the_same_loss_curve(tmp_path: Path) -> None:
    some = sheets(4)
    batches = [batch_of(some[i : i + 2]) for i in (0, 1, 2, 0, 1, 2)]
    whole = Trainer(small_detector(), Recipe(precision="fp32", mask_pairs=2))
    expected = [whole.step(batch, i / 6)["total"] for i, batch in enumerate(batches)]
    first = Trainer(small_detector(), Recipe(precision="fp32", mask_pairs=2))
    for i in range(3):
        first.step(batches[i], i / 6)
    torch.save(first.state(), tmp_path / "state.pt")
    second = Trainer(small_detector(seed=5), Recipe(precision="fp32", mask_pairs=2))
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step(batches[i], i / 6)["total"] for i in range(3, 6)] == expected[3:]
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(value, second.averaged.state_dict()[name]), name


def test_overfits_four_scenes_to_a_perfect_score() -> None:
    paper = sheets(4)
    batch = batch_of(paper)
    trainer = Trainer(small_detector(), Recipe(precision="fp32", learning_rate=2e-3, warmup_steps=20, average=0.95))
    before = exam.examine(trainer.averaged, tokenize, paper)["f1"]
    steps, result = 600, {"f1": 0.0, "presence_mcc": 0.0}
    for step in range(steps):
        trainer.step(batch, step / steps)
        if step % 50 == 49:
            result = exam.examine(trainer.averaged, tokenize, paper)
            print(step, result)
            if result["f1"] == result["presence_mcc"] == 1.0:
                break
    assert before < 0.5
    assert result["f1"] == 1.0
    assert result["presence_mcc"] == 1.0
    assert result["mean_iou"] > 0.75


# ---- the examination


def test_score_counts_each_target_once() -> None:
    target = np.zeros((1, 8, 8), bool)
    target[0, :4, :4] = True
    half = target.copy()
    half[0, :, 2:] = False
    assert exam.score(np.concatenate([target, target]), target) == (1, [1.0])
    assert exam.score(half, target) == (1, [0.5])
    half[0, 3] = False
    assert exam.score(half, target) == (0, [])
    assert exam.score(np.zeros((0, 8, 8), bool), target) == (0, [])


def test_doubles_of_a_better_answer_can_be_left_out() -> None:
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :3], masks[1, :2], masks[2, 3] = True, True, True  # the second lies in the first: IoU 2/3
    assert len(exam.without_doubles(masks, 1.0)) == 3
    assert len(exam.without_doubles(masks, 0.7)) == 3
    assert np.array_equal(exam.without_doubles(masks, 0.6), masks[[0, 2]])


def test_matthews_correlation() -> None:
    assert exam.matthews([(True, True), (False, False)]) == 1.0
    assert exam.matthews([(True, False), (False, True)]) == -1.0
    assert exam.matthews([(True, True), (True, True)]) == 0.0
    mixed = [(True, True)] * 3 + [(True, False)] + [(False, True)] + [(False, False)] * 2
    assert exam.matthews(mixed) == pytest.approx((3 * 2 - 1) / math.sqrt(4 * 4 * 3 * 3))


def test_examination_sheets_are_the_same_every_time_and_about_40_percent_negative() -> None:
    first, again = exam.sheets("words", 40, SIDE, CELLS), exam.sheets("words", 40, SIDE, CELLS)
    assert [sheet.questions for sheet in first] == [sheet.questions for sheet in again]
    questions = [question for sheet in first for question in sheet.questions]
    assert 0.33 < np.mean([not question.answer for question in questions]) < 0.47


# ---- the checkpoint's layout


def test_tokenizer_knows_its_words_and_spells_the_others() -> None:
    words = script().tokenizer()
    for word in (*COLORS, *SHAPES, *SYNONYMS, "shape", "object", "visual"):
        assert words.tokenize(word) == [f"{word}</w>"]
    unknown = words.tokenize("zebu qzx")
    assert len(unknown) > 2 and words.unk_token not in unknown
    assert words("Red  CIRCLE").input_ids == words("red circle").input_ids
    assert len(words) < 1200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exported_checkpoint_loads_whole_in_the_hub_layout(tmp_path: Path) -> None:
    train_demo = script()
    words = train_demo.tokenizer()
    model = train_demo.fresh_detector(words, seed=3)
    train_demo.export(model, words, tmp_path)
    loaded, report = Sam3Model.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert loaded.config.model_type == "sam3" and (tmp_path / "config.json").read_text().count("sam3_video")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=2e-3, rtol=2e-3)
    processor = Sam3Processor.from_pretrained(tmp_path)
    assert processor(text="red circle", return_tensors="pt").input_ids.shape == (1, 32)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10e6

"""Training SAM 3's detector: outputs of every decoder layer, the losses on them, and a trainer that resumes exactly.

Works on any `Sam3Model`, from the demo checkpoint to the full size. The prompt has the official form: the geometry
encoder's CLS token always follows the phrase's tokens, and box exemplars come before it.

Shape legend: B images, P image-prompt pairs, U distinct phrases, K exemplar boxes (padded), N_b instances of image b,
L decoder layers, Q queries, C channels, h x w image tokens, H x W mask cells, S pairs that go through the mask head.
"""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3label.train import losses

if TYPE_CHECKING:
    from transformers import Sam3Model

PAD = -10  # the label of a box that is only there to fill the row

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's images, prompts and truth. Boxes are cxcywh in [0, 1]; masks are the visible part of each instance."""

    pixels: Tensor  # [B, 3, height, width], normalised
    token_ids: Tensor  # [U, length]
    token_mask: Tensor  # [U, length]
    image_of: Tensor  # [P]
    phrase_of: Tensor  # [P]
    exemplars: Tensor  # [P, K, 4]
    exemplar_labels: Tensor  # [P, K]: 1 like this, 0 not like this, -10 padding
    instance_boxes: tuple[Tensor, ...]  # B times [N_b, 4]
    instance_masks: tuple[Tensor, ...]  # B times [N_b, Y, X] in [0, 1], as fine as the truth is known
    targets: tuple[Tensor, ...]  # P times the instances of its image that the prompt asks for
    attributes: tuple[Tensor, ...] = ()  # B times [N_b, A] class numbers, for an auxiliary head; else empty

    def __len__(self) -> int:
        return int(self.image_of.numel())

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        moved = {name: _move(getattr(self, name), device) for name in self.__slots__}
        return Batch(**moved)

    def present(self) -> Tensor:
        """Return whether each pair has anything to find, bool [P]."""
        return torch.tensor([bool(len(target)) for target in self.targets], device=self.pixels.device)


def _move(value: Any, device: torch.device) -> Any:
    return tuple(item.to(device) for item in value) if isinstance(value, tuple) else value.to(device)


@dataclass(frozen=True, slots=True)
class Fused:
    """Images that have seen their prompts: what the decoder and the mask head start from."""

    grid: Tensor  # [B, width of the ViT, h, w]
    features: Tensor  # [B, C, h, w], the neck at the scale of the image tokens
    prompt: Tensor  # [P, tokens, C], phrase, exemplars and CLS
    prompt_mask: Tensor  # [P, tokens], true for real ones
    tokens: Tensor  # [P, h * w, C], the DETR encoder's output
    place: Tensor  # [P, h * w, C], position encoding
    spatial_shapes: Tensor  # [1, 2]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the losses look at, float32."""

    fused: Fused
    logits: Tensor  # [L, P, Q]
    boxes: Tensor  # [L, P, Q, 4] cxcywh
    anchors: Tensor  # [P, Q, 2], the centres that the queries start from
    presence: Tensor  # [L, P]
    masks: Tensor  # [S, M, Q, H, W] logits of the pairs that went through the mask head, by the last M layers' queries
    semantic: Tensor  # [S, H, W] logits
    cells: Tensor  # [S, C, H, W], what the mask head tells mask cells apart by


def fuse(model: Sam3Model, batch: Batch) -> Fused:
    """Encode images and prompts and let each pair's image tokens see its prompt."""
    grid, features = look(model, batch.pixels)
    neck = model.vision_encoder.neck
    place = neck.position_encoding(features.shape, features.device, features.dtype)
    place = place.expand(len(features), -1, -1, -1)
    prompt, prompt_mask = _prompt_tokens(model, batch, features, place)
    encoded = model.detr_encoder(
        vision_features=[features[batch.image_of]],
        text_features=prompt,
        vision_pos_embeds=[place[batch.image_of]],
        text_mask=prompt_mask,
    )
    return Fused(
        grid, features, prompt, prompt_mask,
        encoded.last_hidden_state, encoded.pos_embeds_flattened, encoded.spatial_shapes,
    )  # fmt: skip


def forward(model: Sam3Model, batch: Batch, masked: Tensor, mask_layers: int = 1) -> Outputs:
    """Run the detector by its parts, the mask head only for the pairs `masked` (int64 [S]).

    Masks are drawn for the queries of the last `mask_layers` decoder layers; only the last counts outside training.
    """
    fused = fuse(model, batch)
    decoded = model.detr_decoder(
        vision_features=fused.tokens,
        text_features=fused.prompt,
        vision_pos_encoding=fused.place,
        text_mask=fused.prompt_mask,
        spatial_shapes=fused.spatial_shapes,
    )
    queries = decoded.intermediate_hidden_states
    logits = model.dot_product_scoring(queries, fused.prompt, fused.prompt_mask).squeeze(-1)
    offsets = model.detr_decoder.box_head(queries).float()
    masks, semantic, cells = _mask_head(model, fused, queries[-mask_layers:], batch.image_of, masked)
    return Outputs(
        fused=fused,
        logits=logits.float(),
        boxes=(torch.logit(decoded.reference_boxes.float(), eps=1e-3) + offsets).sigmoid(),
        anchors=decoded.reference_boxes[0, ..., :2].float(),
        presence=decoded.presence_logits.squeeze(-1).float(),
        masks=masks.float(),
        semantic=semantic.float(),
        cells=cells.float(),
    )


def look(model: Sam3Model, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ViT's output as a map [B, width of the ViT, h, w] and the neck's at the same scale [B, C, h, w]."""
    patch = model.config.vision_config.backbone_config.patch_size
    tokens = model.vision_encoder.backbone(pixels).last_hidden_state
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    grid: Tensor = tokens.transpose(1, 2).reshape(len(pixels), -1, rows, columns)
    return grid, model.vision_encoder.neck.fpn_layers[-2](grid)  # the last level, of half scale, is never used


def _prompt_tokens(model: Sam3Model, batch: Batch, features: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return phrase, exemplar and CLS tokens of each pair: [P, tokens, C] and the mask of the real ones."""
    text = model.get_text_features(input_ids=batch.token_ids, attention_mask=batch.token_mask).pooler_output
    shown = (batch.exemplar_labels != PAD).any(1)
    # pairs without exemplars share one geometry row per image: the CLS token depends on the image alone
    row_of = batch.image_of.clone()
    row_of[shown] = len(features) + torch.arange(int(shown.sum()), device=row_of.device)
    count = len(features)
    blank = batch.exemplars.new_zeros((count, *batch.exemplars.shape[1:]))
    no_labels = batch.exemplar_labels.new_full((count, batch.exemplar_labels.shape[1]), PAD)
    labels = torch.cat([no_labels, batch.exemplar_labels[shown]])
    image_of = torch.cat([torch.arange(count, device=row_of.device), batch.image_of[shown]])
    with torch.autocast(features.device.type, enabled=False):  # RoIAlign does not know bfloat16; this part is small
        geometry = model.geometry_encoder(
            box_embeddings=torch.cat([blank, batch.exemplars[shown]]),
            box_mask=labels != PAD,
            box_labels=labels.clamp(min=0),
            img_feats=(features[image_of].float(),),
            img_pos_embeds=(place[image_of].float(),),
        )
    prompt = torch.cat([text[batch.phrase_of], geometry.last_hidden_state[row_of]], dim=1)
    mask = torch.cat([batch.token_mask[batch.phrase_of].bool(), geometry.attention_mask[row_of].bool()], dim=1)
    return prompt, mask


def _mask_head(
    model: Sam3Model, fused: Fused, queries: Tensor, image_of: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Instance and semantic logits of S pairs, and their cells' embedding; fine levels only of the images needed."""
    layers, _, count, _ = queries.shape
    if not len(masked):
        none = queries.new_zeros(0, 1, 1, 1)
        return none[..., None].expand(0, layers, count, 1, 1), none[:, 0], none
    images, place = torch.unique(image_of[masked], return_inverse=True)
    levels = [layer(fused.grid[images])[place] for layer in model.vision_encoder.neck.fpn_layers[:-2]]
    seen: list[Tensor] = []
    hook = model.mask_decoder.instance_projection.register_forward_hook(lambda *call: seen.append(call[-1]))
    head = model.mask_decoder(
        decoder_queries=queries[:, masked].transpose(0, 1).flatten(1, 2),  # a mask is one product per query
        backbone_features=[*levels, fused.features[image_of[masked]]],
        encoder_hidden_states=fused.tokens[masked],
        prompt_features=fused.prompt[masked],
        prompt_mask=fused.prompt_mask[masked],
    )
    hook.remove()
    return head.pred_masks.unflatten(1, (layers, count)), head.semantic_seg.squeeze(1), seen[0]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each loss counts. The defaults suit small models trained from scratch.

    The published recipe for the full size has classification 20, presence 20, masks 200 and 10, semantic 20 and 30,
    with other normalisations.
    """

    classification: float = 4.0
    iou_aware: float = 0.0  # how much a query's score should tell how well it is placed
    presence: float = 3.0
    box: float = 5.0
    giou: float = 2.0
    mask_focal: float = 20.0
    mask_alpha: float = 0.5  # share of a mask's own cells in it; at the published 0.25 masks stop short of unsure cells
    mask_dice: float = 3.0
    mask_apart: float = 4.0  # the cells of the prompt's other instances: few, and what keeps two instances apart
    cells: float = 3.0  # each cell's embedding is nearest to the mean of its own instance
    semantic_entropy: float = 4.0
    semantic_dice: float = 2.0
    fused: float = 6.0  # the same question asked of the encoder's tokens, for every pair
    one_to_many: float = 0.0
    anchor: float = 0.0  # in the matching, of how far a target is from where the query starts: settles ties alike


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train. `precision` auto is bf16 where the device multiplies it fast (CUDA, CPUs with AMX)."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup_steps: int = 200
    look_until: float = 0.0  # progress up to which only the image features are trained, by the auxiliary module
    fusion_until: float = 0.0  # progress up to which only images and prompts are fused, before any query learns
    mask_pairs: int = 12  # at most so many pairs of a step go through the mask head
    one_to_many_copies: int = 4
    average: float = 0.999  # of the moving average of the weights that is evaluated and exported
    precision: Precision = "auto"
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)


def pick_masked(batch: Batch, limit: int, generator: torch.Generator) -> Tensor:
    """Return at most `limit` pairs that have something to find, from at most half as many images: int64 [S].

    By chance, the more instances the likelier: to tell instances apart is what masks take longest to learn.
    """
    positive = torch.tensor([i for i, target in enumerate(batch.targets) if len(target)], dtype=torch.long)
    if len(positive):
        odds = torch.tensor([float(len(batch.targets[i])) for i in positive.tolist()])
        positive = positive[torch.multinomial(odds, len(positive), generator=generator)]
    images: dict[int, None] = {}
    for pair in positive.tolist():
        images.setdefault(int(batch.image_of[pair]))
    wanted = set(list(images)[: max(1, limit // 2)])
    chosen = [pair for pair in positive.tolist() if int(batch.image_of[pair]) in wanted][:limit]
    return torch.tensor(sorted(chosen), dtype=torch.long, device=batch.pixels.device)


def loss_parts(outputs: Outputs, batch: Batch, masked: Tensor, weights: LossWeights, copies: int) -> dict[str, Tensor]:
    """Return the weighted losses by name, to be summed. Box and score losses are sums over the decoder layers."""
    layers, pairs, queries = outputs.logits.shape
    counts = torch.tensor([len(target) for target in batch.targets], device=outputs.logits.device)
    truth = _padded_boxes(batch, int(counts.max()) if pairs else 0)
    rows = layers * pairs  # every decoder layer answers for itself
    logits, boxes = outputs.logits.reshape(rows, queries), outputs.boxes.reshape(rows, queries, 4)
    cost = losses.matching_cost(logits.detach(), boxes.detach(), truth.repeat(layers, 1, 1))
    if weights.anchor:
        away = torch.cdist(outputs.anchors.detach(), truth[..., :2], p=1)
        cost = cost + weights.anchor * away.repeat(layers, 1, 1)
    matches = losses.hungarian(cost, counts.repeat(layers))
    wanted = truth[matches.row % max(pairs, 1), matches.target]
    distance, giou, iou = losses.box_losses(boxes[matches.row, matches.query], wanted)
    present = batch.present().repeat(layers)
    parts = {
        "classification": weights.classification
        * layers
        * losses.classification_loss(logits, matches, iou, present, weights.iou_aware),
        "presence": weights.presence * layers * losses.presence_loss(outputs.presence.flatten(), present),
        "box": weights.box * layers * distance,
        "giou": weights.giou * layers * giou,
        **_mask_parts(outputs, batch, masked, matches, weights),
    }
    if weights.one_to_many:
        many = losses.hungarian(cost, counts.repeat(layers), copies)
        wanted = truth[many.row % max(pairs, 1), many.target]
        distance, giou, _ = losses.box_losses(boxes[many.row, many.query], wanted)
        parts["one_to_many"] = weights.one_to_many * layers * (weights.box * distance + weights.giou * giou)
    return parts


def _padded_boxes(batch: Batch, most: int) -> Tensor:
    """Return the target boxes of each pair, [P, T, 4], filled up with a centre box that the counts leave out."""
    truth = torch.full((len(batch), most, 4), 0.5, device=batch.pixels.device)
    for pair, target in enumerate(batch.targets):
        truth[pair, : len(target)] = batch.instance_boxes[int(batch.image_of[pair])][target]
    return truth


def _mask_parts(
    outputs: Outputs, batch: Batch, masked: Tensor, matches: losses.Matches, weights: LossWeights
) -> dict[str, Tensor]:
    if not len(masked):
        return {}
    layers, pairs = outputs.presence.shape
    drawn = outputs.masks.shape[1]
    first = (layers - drawn) * pairs  # rows of the layers whose queries have masks
    slot_of = {pair: s for s, pair in enumerate(masked.tolist())}
    mine = [m for m, row in enumerate(matches.row.tolist()) if row >= first and row % pairs in slot_of]
    slots = [slot_of[int(matches.row[m]) % pairs] for m in mine]
    layer = [(int(matches.row[m]) - first) // pairs for m in mine]
    asked = [batch.instance_masks[int(batch.image_of[pair])][batch.targets[int(pair)]] for pair in masked]
    truth = [asked[s] for s in slots]
    wanted = torch.stack([masks[matches.target[m]] for masks, m in zip(truth, mine, strict=True)])
    others = torch.stack([masks.sum(0).clamp(max=1) for masks in truth]) - wanted
    predicted = _enlarged(outputs.masks[slots, layer, matches.query[mine]], wanted.shape[-2:])
    nearest = [
        losses.nearest_mean_loss(cells, F.adaptive_avg_pool2d(masks, cells.shape[-2:]))
        for cells, masks in zip(outputs.cells, asked, strict=True)
    ]
    union = torch.stack([_union(batch, int(pair), outputs.semantic.shape[-2:]) for pair in masked])
    entropy, dice = losses.semantic_loss(outputs.semantic, union)
    return {
        "mask_focal": weights.mask_focal * losses.mask_focal_loss(predicted, wanted, weights.mask_alpha).mean(),
        "mask_dice": weights.mask_dice * losses.dice_loss(predicted, wanted).mean(),
        "mask_apart": weights.mask_apart * losses.apart_loss(predicted, others).mean(),
        "cells": weights.cells * torch.stack(nearest).mean(),
        "semantic": weights.semantic_entropy * entropy + weights.semantic_dice * dice,
    }


def _enlarged(logits: Tensor, size: torch.Size) -> Tensor:
    """Enlarge mask logits to the truth's size, [M, H, W], as for a photo: edges may lie within cells."""
    return F.interpolate(logits[None], (size[0], size[1]), mode="bilinear", align_corners=False)[0]


def _union(batch: Batch, pair: int, size: torch.Size) -> Tensor:
    """Return where any target of the pair is, [size], in [0, 1]."""
    masks = batch.instance_masks[int(batch.image_of[pair])][batch.targets[pair]]
    if not len(masks):
        return torch.zeros(size, device=batch.pixels.device)
    whole = masks.sum(0).clamp(max=1)
    return whole if whole.shape == size else F.adaptive_avg_pool2d(whole[None], (size[0], size[1]))[0]


class FusedHead(nn.Module):
    """Asks each image token after fusion whether the prompt's objects cover it. For training only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, 1)

    def forward(self, fused: Fused, batch: Batch) -> Tensor:
        """Cross-entropy plus dice on [P, h, w]: it teaches which words go with which pixels before any query learns."""
        size = fused.features.shape[-2:]
        logits = self.linear(self.norm(fused.tokens.float())).reshape(len(batch), *size)
        truth = torch.stack([_union(batch, pair, size) for pair in range(len(batch))])
        entropy, dice = losses.semantic_loss(logits, truth)
        return entropy + 0.5 * dice


def learning_rate_factor(step: int, warmup_steps: int, progress: float) -> float:
    """Return a linear warm-up over steps, then a half cosine to zero over `progress` 0..1 (of steps or of time)."""
    rise = min(1.0, (step + 1) / max(1, warmup_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def fast_bf16(device: torch.device) -> bool:
    """Return whether this device multiplies bfloat16 in hardware: CUDA, or a CPU with AMX."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())


class Trainer:
    """One model in training. `step` does one update; `state` and `load` make a resumed run continue bit for bit.

    `auxiliary` is a module with parameters of its own that returns further losses by name, given image features,
    batch and progress; it is trained along and never exported.
    """

    def __init__(self, model: Sam3Model, recipe: Recipe, auxiliary: nn.Module | None = None) -> None:
        self.model = model.train()
        self.recipe = recipe
        self.fused = FusedHead(model.config.detr_encoder_config.hidden_size).to(model.device)
        self.auxiliary = auxiliary
        self.steps = 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        if model.device.type == "cpu" and recipe.precision != "fp32":
            _attend_in_fp32(model)
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.parts = nn.ModuleList([model, self.fused, *([auxiliary] if auxiliary is not None else [])])
        self.optimizer = torch.optim.AdamW(_groups(self.parts, recipe), lr=recipe.learning_rate, betas=(0.9, 0.98))

    def step(self, batch: Batch, progress: float) -> dict[str, float]:
        """Train on one batch at this share of the whole training (0..1). Returns each loss by name, "total" too."""
        recipe = self.recipe
        rate = recipe.learning_rate * learning_rate_factor(self.steps, recipe.warmup_steps, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        masked = pick_masked(batch, recipe.mask_pairs, self.generator)
        parts = self._losses(batch, masked, progress)
        total = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.parts.parameters(), recipe.clip)
        self.optimizer.step()
        self.steps += 1
        self._average()
        return {name: float(value.detach()) for name, value in parts.items()} | {"total": float(total.detach())}

    def _losses(self, batch: Batch, masked: Tensor, progress: float) -> dict[str, Tensor]:
        recipe = self.recipe
        parts: dict[str, Tensor] = {}
        with autocast(self.model.device, recipe.precision):
            if progress < recipe.look_until:
                features = look(self.model, batch.pixels)[1]
            elif progress < recipe.fusion_until:
                fused = fuse(self.model, batch)
            else:
                layers = self.model.config.detr_decoder_config.num_layers
                outputs = forward(self.model, batch, masked, mask_layers=layers)
                fused = outputs.fused
        if progress >= recipe.look_until:
            features = fused.features
            parts["fused"] = recipe.weights.fused * self.fused(fused, batch)
        if progress >= max(recipe.look_until, recipe.fusion_until):
            parts |= loss_parts(outputs, batch, masked, recipe.weights, recipe.one_to_many_copies)
        if self.auxiliary is not None:
            parts |= self.auxiliary(features.float(), batch, progress)
        return parts

    def _average(self) -> None:
        keep = min(self.recipe.average, (1 + self.steps) / (10 + self.steps))
        mine, theirs = list(self.averaged.parameters()), list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(mine, theirs, 1 - keep)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, fit for `torch.save`."""
        return {
            "steps": self.steps,
            "parts": self.parts.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned. The model, recipe and auxiliary must be made the same way."""
        self.steps = int(state["steps"])
        self.parts.load_state_dict(state["parts"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where asked or, for "auto", where it is fast; float32 otherwise."""
    if precision == "fp32" or (precision == "auto" and not fast_bf16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _attend_in_fp32(model: Sam3Model) -> None:
    """Keep attention out of autocast: on CPUs its backward pass is several times slower in bfloat16."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register("sdpa_fp32", _fp32_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa_fp32", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "sdpa_fp32"


def _fp32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = attention_mask if attention_mask is None or attention_mask.dtype == torch.bool else attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        mixed: Tensor = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **rest)[0]
    return mixed, None


def _groups(parts: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices only: biases, norms and embeddings of positions are left free."""
    matrices = [p for p in parts.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in parts.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]

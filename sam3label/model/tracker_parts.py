"""SAM 3's tracker by its parts, many objects at a time: features, memory attention, mask heads, memory encoder.

The modules are `transformers`' Sam3TrackerVideoModel's, with the same weights; its session, which holds every frame and
runs one object after the other, is not used.

Shape legend: N objects, D width, M memory width, g x g cells of a frame, S = g * g, h x w = 4g x 4g mask logits,
L tokens of an object's memory, F frames of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.model.recall import Sizes

ABSENT = -1024.0  # mask logits of an object that is not seen
SURE, UNSURE = 10.0, -10.0  # logits of what is known


@dataclass(frozen=True, slots=True)
class FrameFeatures:
    """What the tracker reads of a frame: [1, D/8, 4g, 4g], [1, D/4, 2g, 2g], tokens and their places [S, 1, D]."""

    fine: Tensor
    middle: Tensor
    tokens: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """What the mask decoder says of N objects: logits [N, h, w], pointers [N, D], and [N] of score logits and IoU."""

    masks: Tensor
    pointers: Tensor
    scores: Tensor
    ious: Tensor


@dataclass(frozen=True, slots=True)
class Recalled:
    """The memory of one object: spatial ones [S, M] with their ranks (0: conditioning), pointers [D] with distances."""

    memories: Sequence[tuple[int, Tensor]]
    pointers: Sequence[tuple[int, Tensor]]

    @property
    def form(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What objects must share to be attended to together."""
        return tuple(rank for rank, _ in self.memories), tuple(distance for distance, _ in self.pointers)


class TrackerParts:
    """The modules of a loaded Sam3VideoModel that track."""

    def __init__(self, video: Any) -> None:
        self.model = video.tracker_model
        self.neck = video.tracker_neck
        config = video.config.tracker_config
        self.config = config
        self.grid: int = self.model.backbone_feature_sizes[-1][0]
        self.mask_side: int = self.model.prompt_encoder.mask_input_size[0]  # h = w
        self.sizes = Sizes(config.num_maskmem, config.max_object_pointers_in_encoder, config.max_cond_frame_num)
        self._memory_places: Tensor | None = None

    # ---- a frame

    def features(self, grid: Tensor) -> FrameFeatures:
        """Return the features of a frame from the image encoder's [1, V, g, g]."""
        levels, places = self.neck(grid.float())
        decoder = self.model.mask_decoder
        fine, middle, coarse = decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2]
        return FrameFeatures(fine, middle, _tokens(coarse), _tokens(places[2]))

    def as_map(self, tokens: Tensor) -> Tensor:
        """Reshape [S, N, D] to [N, D, g, g]."""
        return tokens.permute(1, 2, 0).reshape(tokens.shape[1], -1, self.grid, self.grid)

    # ---- tracking

    def track(self, features: FrameFeatures, objects: Sequence[Recalled], most_pointers: int) -> Heads:
        """Find objects in a frame by what is remembered of them, all of one form, with at most so many pointers."""
        memory, places, pointers = self._memory(objects, most_pointers)
        n = len(objects)
        attended = self.model.memory_attention(
            current_vision_features=features.tokens.expand(-1, n, -1),
            current_vision_position_embeddings=features.places.expand(-1, n, -1),
            memory=memory,
            memory_posision_embeddings=places.expand(-1, n, -1),
            num_object_pointer_tokens=pointers,
        )  # [1, N, S, D]
        seen = self.as_map(attended[0].transpose(0, 1))
        return self._heads(features, seen, None, self._several_masks())

    def _several_masks(self) -> bool:
        """Return whether a tracked object's mask is the best of three. Memory alone counts as a prompt of no points."""
        config = self.config
        several = config.multimask_output_in_sam and config.multimask_output_for_tracking
        return bool(several and config.multimask_min_pt_num <= 0 <= config.multimask_max_pt_num)

    def _memory(self, objects: Sequence[Recalled], most_pointers: int) -> tuple[Tensor, Tensor, int]:
        """Return tokens [L, N, M] of the objects' memories, their places [L, 1, M], and how many are pointers'."""
        ranks, distances = objects[0].form
        memory = [torch.stack([one.memories[k][1] for one in objects], 1).float() for k in range(len(ranks))]
        when = self.model.memory_temporal_positional_encoding
        places = [self.memory_places() + when[rank - 1] for rank in ranks]
        if distances:
            tokens = torch.stack([torch.stack([p for _, p in one.pointers]) for one in objects], 1)  # [F, N, D]
            split = max(tokens.shape[2] // self.model.mem_dim, 1)
            tokens = tokens.reshape(*tokens.shape[:2], split, -1).transpose(1, 2).flatten(0, 1)  # [F * split, N, M]
            memory.append(tokens.float())
            places.append(self._pointer_places(distances, most_pointers).repeat_interleave(split, 0))
        return torch.cat(memory), torch.cat(places), len(memory[-1]) if distances else 0

    def memory_places(self) -> Tensor:
        """Return where the cells of a memory lie, [S, 1, M]: the same for all."""
        if self._memory_places is None:
            encoder = self.model.memory_encoder
            shape = torch.Size((1, self.model.mem_dim, self.grid, self.grid))
            like = encoder.projection.weight
            self._memory_places = _tokens(encoder.position_encoding(shape, like.device, torch.float32))
        return self._memory_places

    def _pointer_places(self, distances: Sequence[int], most: int) -> Tensor:
        """Encoded distances [F, 1, M]."""
        from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import get_1d_sine_pe

        device = self.model.no_object_pointer.device
        if not self.config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros((len(distances), 1, self.model.mem_dim), device=device)
        share = torch.tensor(distances, device=device, dtype=torch.float32) / float(most - 1)
        sine = get_1d_sine_pe(share, dim=self.model.hidden_dim)
        places: Tensor = self.model.temporal_positional_encoding_projection_layer(sine)
        return places[:, None]

    def _heads(self, features: FrameFeatures, seen: Tensor, prompt: Tensor | None, several: bool) -> Heads:
        """Return the mask decoder's answer for [N, D, g, g] seen of N objects, and a mask prompt [N, 1, h, w]."""
        model, n = self.model, len(seen)
        sparse, dense = model.prompt_encoder(
            input_points=seen.new_zeros((n, 1, 1, 2)),
            input_labels=-torch.ones((n, 1, 1), dtype=torch.int32, device=seen.device),
            input_boxes=None,
            input_masks=prompt,
        )
        masks, ious, tokens, scores = model.mask_decoder(
            image_embeddings=seen,
            image_positional_embeddings=model.get_image_wide_positional_embeddings().repeat(n, 1, 1, 1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=[features.fine, features.middle],
        )  # [N, 1, K, h, w], [N, 1, K], [N, 1, 1 or K, D], [N, 1, 1]
        best = ious[:, 0].argmax(1)
        rows = torch.arange(n, device=seen.device)
        appears = scores[:, 0] > 0  # [N, 1]
        mask = torch.where(appears[..., None], masks[rows, 0, best], ABSENT)
        token = tokens[rows, 0, best] if tokens.shape[2] > 1 else tokens[:, 0, 0]
        there = appears.to(token.dtype)
        pointers = there * model.object_pointer_proj(token) + (1 - there) * model.no_object_pointer
        return Heads(mask, pointers, scores[:, 0, 0], ious[rows, 0, best])

    # ---- what a mask that is given is remembered by

    def pointer_of(self, features: FrameFeatures, mask: Tensor, single: bool) -> Tensor:
        """Return pointers [N, D] of objects given by their masks [N, 1, X, X] of 0 to 1, X = 4h or the image's side.

        `single`: of the single-mask token, else of the best of the three.
        """
        prompt = self.model.mask_downsample(mask)
        if prompt.shape[-1] != self.mask_side:
            prompt = shrink(prompt, self.mask_side)
        pixels = self.as_map(features.tokens).expand(len(mask), -1, -1, -1)
        pointers = self._heads(features, pixels, prompt, several=not single).pointers
        there = mask.flatten(1).gt(0).any(1, keepdim=True).to(pointers.dtype)
        known: Tensor = there * pointers + (1 - there) * self.model.no_object_pointer
        return known

    def memory_of(self, features: FrameFeatures, mask: Tensor, appears: Tensor) -> Tensor:
        """Return spatial memories [N, S, M] in bf16 of masks [N, 1, 4h, 4w] of 0 to 1; `appears` bool [N]."""
        scaled = mask * self.config.sigmoid_scale_for_mem_enc + self.config.sigmoid_bias_for_mem_enc
        memory, _ = self.model.memory_encoder(self.as_map(features.tokens), scaled)
        hidden = self.model.occlusion_spatial_embedding_parameter
        if hidden is not None:
            memory = memory + (~appears)[:, None, None, None].float() * hidden[..., None, None]
        kept: Tensor = memory.to(torch.bfloat16).flatten(2).transpose(1, 2)
        return kept

    @property
    def memory_side(self) -> int:
        """The side of the masks that are remembered, 4h: 1,152 of the real model."""
        return 4 * self.mask_side

    @property
    def image_side(self) -> int:
        """The side of the frames that the model sees: 1,008 of the real model."""
        return int(self.model.image_size)


def enlarge(masks: Tensor, side: int) -> Tensor:
    """Resize [N, 1, a, b] to [N, 1, side, side], bilinear."""
    return F.interpolate(masks.float(), (side, side), mode="bilinear", align_corners=False)


def shrink(masks: Tensor, *side: int) -> Tensor:
    """Resize [N, 1, a, b] to `side`, one or two numbers, bilinear with antialiasing."""
    size = (side[0], side[-1])
    return F.interpolate(masks.float(), size, mode="bilinear", align_corners=False, antialias=True)


def _tokens(features: Tensor) -> Tensor:
    """Reshape [1, D, g, g] to [S, 1, D]."""
    return features.flatten(2).permute(2, 0, 1)

"""SAM 3's tracker by its parts, many objects at a time: features, memory attention, mask heads, memory encoder.

The modules are `transformers`' Sam3TrackerVideoModel's, with the same weights; its session, which holds every frame and
runs one object after the other, is not used.

Shape legend: N objects, D width, M memory width, g x g cells of a frame, S = g * g, h x w = 4g x 4g mask logits,
L tokens of an object's memory, F frames of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.model.device import rows_of, send
from sam3label.model.recall import Sizes

AT_ONCE = 16  # objects in one pass of memory attention, and of the mask heads
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

    @staticmethod
    def joined(parts: Sequence[Heads]) -> Heads:
        """Return the answers for several lots of objects, end to end."""
        return Heads(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Heads)))


@dataclass(frozen=True, slots=True)
class Recalled:
    """The memory of one object: spatial ones [S, M] with their ranks (0: conditioning), pointers [D] with distances."""

    memories: Sequence[tuple[int, Tensor]]
    pointers: Sequence[tuple[int, Tensor]]

    @property
    def counts(self) -> tuple[int, int]:
        """How many memories and pointers: what objects must share to be attended to together."""
        return len(self.memories), len(self.pointers)


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
        """Find objects in a frame by what is remembered of them, in the order given; `most_pointers` can be of each.

        Those of which equally much is remembered see it together, and all are then answered for together.
        """
        alike = list(_alike(objects))
        seen = torch.cat([self._attended(features, [objects[row] for row in rows], most_pointers) for rows in alike])
        if len(alike) > 1:
            seen = rows_of(seen, np.argsort(np.concatenate(alike)))
        lots = [seen[start : start + AT_ONCE] for start in range(0, len(seen), AT_ONCE)]
        return Heads.joined([self._heads(features, lot, None, self._several_masks()) for lot in lots])

    def _attended(self, features: FrameFeatures, objects: Sequence[Recalled], most_pointers: int) -> Tensor:
        """Return what the frame looks like with equally many memories of each object in mind, [N, D, g, g]."""
        memory, places, pointers = self._memory(objects, most_pointers)
        n = len(objects)
        attended = self.model.memory_attention(
            current_vision_features=features.tokens.expand(-1, n, -1),
            current_vision_position_embeddings=features.places.expand(-1, n, -1),
            memory=memory,
            memory_posision_embeddings=places.expand(-1, n, -1),
            num_object_pointer_tokens=pointers,
        )  # [1, N, S, D]
        return self.as_map(attended[0].transpose(0, 1))

    def _several_masks(self) -> bool:
        """Return whether a tracked object's mask is the best of three. Memory alone counts as a prompt of no points."""
        config = self.config
        several = config.multimask_output_in_sam and config.multimask_output_for_tracking
        return bool(several and config.multimask_min_pt_num <= 0 <= config.multimask_max_pt_num)

    def _memory(self, objects: Sequence[Recalled], most_pointers: int) -> tuple[Tensor, Tensor, int]:
        """Return tokens [L, N, M] of the objects' memories, their places [L, N or 1, M], how many are pointers'."""
        n, (frames, pointers) = len(objects), objects[0].counts
        kept = torch.stack([one.memories[k][1] for k in range(frames) for one in objects])  # [F * N, S, M]
        memory = [kept.view(frames, n, *kept.shape[1:]).transpose(1, 2).flatten(0, 1).float()]
        places = [self._spatial_places(_numbers([one.memories for one in objects]))]
        if pointers:
            tokens = torch.stack([one.pointers[k][1] for k in range(pointers) for one in objects])  # [F * N, D]
            split = max(tokens.shape[1] // self.model.mem_dim, 1)
            tokens = tokens.view(pointers, n, split, -1).transpose(1, 2).flatten(0, 1)  # [F * split, N, M]
            memory.append(tokens.float())
            distances = _numbers([one.pointers for one in objects])
            places.append(self._pointer_places(distances, most_pointers).repeat_interleave(split, 0))
        own = max(place.shape[1] for place in places)
        places = [place.expand(-1, own, -1) for place in places]
        return torch.cat(memory), torch.cat(places), len(memory[-1]) if pointers else 0

    def _spatial_places(self, ranks: npt.NDArray[np.int64]) -> Tensor:
        """Return where and how long ago the cells of memories [F, N or 1] lie: [F * S, N or 1, M]."""
        when = self.model.memory_temporal_positional_encoding.flatten(1)  # [ranks, M], the last for rank 0
        own = when[send((ranks - 1) % len(when), when.device)]  # [F, N or 1, M]
        places: Tensor = (self.memory_places() + own[:, None]).flatten(0, 1)
        return places

    def memory_places(self) -> Tensor:
        """Return where the cells of a memory lie, [S, 1, M]: the same for all."""
        if self._memory_places is None:
            encoder = self.model.memory_encoder
            shape = torch.Size((1, self.model.mem_dim, self.grid, self.grid))
            like = encoder.projection.weight
            self._memory_places = _tokens(encoder.position_encoding(shape, like.device, torch.float32))
        return self._memory_places

    def _pointer_places(self, distances: npt.NDArray[np.int64], most: int) -> Tensor:
        """Return the distances [F, N or 1] encoded, [F, N or 1, M]."""
        from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import get_1d_sine_pe

        device = self.model.no_object_pointer.device
        if not self.config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros((*distances.shape, self.model.mem_dim), device=device)
        share = send(distances.astype(np.float32), device).flatten() / float(most - 1)
        sine = get_1d_sine_pe(share, dim=self.model.hidden_dim)
        places: Tensor = self.model.temporal_positional_encoding_projection_layer(sine)
        return places.view(*distances.shape, -1)

    def _heads(self, features: FrameFeatures, seen: Tensor, prompt: Tensor | None, several: bool) -> Heads:
        """Return the mask decoder's answer for [N, D, g, g] seen of N objects, and a mask prompt [N, 1, h, w]."""
        model, n = self.model, len(seen)
        sparse, dense = model.prompt_encoder(
            input_points=seen.new_zeros((n, 1, 1, 2)),
            input_labels=-torch.ones((n, 1, 1), dtype=torch.int32, device=seen.device),
            input_boxes=None,
            input_masks=prompt,
        )
        with torch.autocast(seen.device.type, enabled=False):  # bf16 would make neighbours equal, and borders rough
            masks, ious, tokens, scores = model.mask_decoder(
                image_embeddings=seen.float(),
                image_positional_embeddings=model.get_image_wide_positional_embeddings().float().repeat(n, 1, 1, 1),
                sparse_prompt_embeddings=sparse.float(),
                dense_prompt_embeddings=dense.float(),
                multimask_output=several,
                high_resolution_features=[features.fine.float(), features.middle.float()],
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


def _alike(objects: Sequence[Recalled]) -> Iterator[list[int]]:
    """Yield rows of objects that can be attended to together, some at a time."""
    by_counts: dict[tuple[int, int], list[int]] = {}
    for row, one in enumerate(objects):
        by_counts.setdefault(one.counts, []).append(row)
    for rows in by_counts.values():
        for start in range(0, len(rows), AT_ONCE):
            yield rows[start : start + AT_ONCE]


def _numbers(recalled: Sequence[Sequence[tuple[int, Tensor]]]) -> npt.NDArray[np.int64]:
    """Return the ranks or distances of N objects' F memories or pointers, [F, N], or [F, 1] where all share them."""
    numbers = np.array([[number for number, _ in own] for own in recalled], np.int64).T
    return numbers[:, :1] if (numbers == numbers[:, :1]).all() else numbers


def _tokens(features: Tensor) -> Tensor:
    """Reshape [1, D, g, g] to [S, 1, D]."""
    return features.flatten(2).permute(2, 0, 1)

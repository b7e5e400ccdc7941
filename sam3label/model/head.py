"""SAM 3's detector head by its parts, with everything that does not depend on the phrase done once per image.

Same numbers as `transformers`' Sam3Model, to rounding, with less work:

- the first encoder layer attends within the image before it sees a phrase: shared by all phrases of an image
- masks only for pairs and queries that are wanted
- the mask head's nearest upsampling and 3x3 convolution are one transposed convolution, its skip connections are
  convolved once per image, and its last projection is folded into the query's embedding
- coordinates are Python integers and position encodings constants, so that scoring is one graph without host syncs

Shape legend: B images, P pairs (image, phrase), Q queries, S = h x w tokens of an image, T tokens of a prompt, D width,
N boxes, R pairs whose masks are wanted, K masks, 4h x 4w their logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageState:
    """Holds what the head needs of B encoded images."""

    tokens: Tensor  # [B, S, D] after the first encoder layer's self-attention
    coarse: Tensor  # [B, D, h, w] image features, for exemplar boxes
    middle: Tensor  # [B, D, 2h, 2w]
    fine: Tensor  # [B, D, 4h, 4w]
    summary: Tensor | None  # [B, 1, D] the geometry encoder's token for an image without boxes; None: not used
    grid: Tensor | None = None  # [B, V, h, w] the image encoder's answer, for the tracker half; None: not known

    def of(self, image: int) -> ImageState:
        """Return the state of one of the images, [1, ...]."""
        row = slice(image, image + 1)
        summary, grid = (None if one is None else one[row] for one in (self.summary, self.grid))
        return ImageState(self.tokens[row], self.coarse[row], self.middle[row], self.fine[row], summary, grid)

    @staticmethod
    def joined(states: Sequence[ImageState]) -> ImageState:
        """Return the states of several images, end to end."""
        return ImageState(
            torch.cat([state.tokens for state in states]),
            torch.cat([state.coarse for state in states]),
            torch.cat([state.middle for state in states]),
            torch.cat([state.fine for state in states]),
            _joined([state.summary for state in states]),
            _joined([state.grid for state in states]),
        )

    def used_in(self, stream: torch.cuda.Stream) -> None:
        """Keep this memory, made in another stream, until `stream` is done with it."""
        for tensor in (self.tokens, self.coarse, self.middle, self.fine, self.summary, self.grid):
            if tensor is not None:
                tensor.record_stream(stream)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


@dataclass(frozen=True, slots=True)
class PairScores:
    """Holds the answer for P pairs, masks aside. All float32."""

    logits: Tensor  # [P, Q]
    presence_logits: Tensor  # [P]
    boxes_xyxy: Tensor  # [P, Q, 4] in [0, 1]
    queries: Tensor  # [P, Q, D]
    memory: Tensor  # [P, S, D] image tokens that have seen the prompt

    @property
    def scores(self) -> Tensor:
        """Return [P, Q]: the query's score times the presence, both in [0, 1]."""
        return self.logits.sigmoid() * self.presence_logits.sigmoid()[:, None]

    def first(self, count: int) -> PairScores:
        """Return the answers to the first so many pairs."""
        return PairScores(*(getattr(self, field.name)[:count] for field in fields(PairScores)))

    @staticmethod
    def joined(chunks: Sequence[PairScores]) -> PairScores:
        """Return the answers for several chunks of pairs, end to end."""
        names = [field.name for field in fields(PairScores)]
        return PairScores(*(torch.cat([getattr(chunk, name) for chunk in chunks]) for name in names))


class Head:
    """Computes everything of a Sam3Model after the image and text encoders. Holds no state but folded weights."""

    def __init__(self, model: Any) -> None:
        config = model.config.vision_config
        self.grid = config.image_size // config.backbone_config.patch_size  # h = w
        self.geometry = model.geometry_encoder
        self.encoder = model.detr_encoder
        self.decoder = model.detr_decoder
        self.scoring = model.dot_product_scoring
        self.masker = model.mask_decoder
        weight = self.masker.instance_projection.weight
        self.position = self._position(model.vision_encoder.neck.position_encoding, weight)  # [1, D, h, w]
        convolutions = self.masker.pixel_decoder.conv_layers
        self.upsample = [_upsample_weight(convolution.weight.detach()) for convolution in convolutions[:2]]
        self.project = weight.detach()[:, :, 0, 0]  # [D, D]
        with torch.no_grad():  # every pair starts from the same boxes [1, Q, 4]
            self.boxes = self.decoder.reference_points.weight.sigmoid()[None]
            self.placed = self._place(self.boxes)
            unplaced = self.geometry.final_proj(self.geometry.cls_embed.weight)
            self.no_boxes = self.geometry.prompt_layer_norm(unplaced)[None]  # [1, 1, D], before it sees an image

    def keep_cast(self, dtype: torch.dtype) -> None:
        """Keep the weights that mixed precision would cast at every call as it casts them: to the same numbers.

        What it computes in float32 stays: scores, boxes, presence, and the last product of the masks.
        """
        decoder, masker = self.decoder, self.masker
        exact = {*masker.mask_embedder.modules(), masker.instance_projection}
        roots = [self.encoder, *decoder.layers, decoder.ref_point_head, self.geometry, masker]
        roots += [decoder.box_rpb_embed_x, decoder.box_rpb_embed_y]
        for part in (part for root in roots for part in root.modules()):
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and part not in exact:
                part.to(dtype)
        self.upsample = [weight.to(dtype) for weight in self.upsample]

    def _position(self, encoding: Any, like: Tensor) -> Tensor:
        shape = torch.Size((1, like.shape[0], self.grid, self.grid))
        position: Tensor = encoding(shape, like.device, torch.float32)
        return position

    def prepare(self, fine: Tensor, middle: Tensor, coarse: Tensor, with_summary: bool) -> ImageState:
        """Return the state of B images, made of the neck's three levels, finest first."""
        position = _tokens(self.position)
        layer = self.encoder.layers[0]
        tokens = _tokens(coarse)
        normal = layer.layer_norm1(tokens)
        placed = normal + position
        tokens = tokens + layer.self_attn(query=placed, key=placed, value=normal)[0]
        summary = self._summary(coarse) if with_summary else None
        return ImageState(tokens, coarse, middle, fine, summary)

    def _summary(self, coarse: Tensor) -> Tensor:
        """Return what the geometry encoder says of images [B, D, h, w] without boxes: [B, 1, D].

        Its own way with no box at all would have the host wait for the device, twice, where images are encoded ahead.
        """
        geometry = self.geometry
        token = self.no_boxes.expand(len(coarse), -1, -1)
        features, position = _tokens(coarse), _tokens(self.position)
        for layer in geometry.layers:
            token = layer(prompt_feats=token, vision_feats=features, vision_pos_encoding=position, prompt_mask=None)
        summary: Tensor = geometry.output_layer_norm(token)
        return summary

    def encode_boxes(
        self, coarse: Tensor, boxes_cxcywh: Tensor, labels: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return prompt tokens [P, N + 1, D] and validity [P, N + 1] of boxes [P, N, 4] in [0, 1], labels 1 or 0."""
        position = self.position.expand(len(coarse), -1, -1, -1)
        output = self.geometry(
            box_embeddings=boxes_cxcywh,
            box_mask=valid,
            box_labels=labels,
            img_feats=(coarse,),
            img_pos_embeds=(position,),
        )
        return output.last_hidden_state, output.attention_mask.bool()

    def score(self, tokens: Tensor, prompt: Tensor, valid: Tensor) -> PairScores:
        """Score P pairs: image tokens [P, S, D] (gathered from `ImageState`), prompt [P, T, D], its validity [P, T]."""
        memory = self._encode(tokens, prompt, valid)
        queries, boxes, presence = self._decode(memory, prompt, valid)
        with torch.autocast(queries.device.type, enabled=False):
            logits = self.scoring(queries[None], prompt.float(), valid)[0, ..., 0]
        centre, size = boxes[..., :2], boxes[..., 2:]
        boxes_xyxy = torch.cat((centre - 0.5 * size, centre + 0.5 * size), -1)
        return PairScores(logits, presence, boxes_xyxy, queries, memory)

    def _encode(self, tokens: Tensor, prompt: Tensor, valid: Tensor) -> Tensor:
        mask = _attention_mask(valid, tokens.shape[1])
        position = _tokens(self.position)
        for number, layer in enumerate(self.encoder.layers):
            if number > 0:
                tokens = layer(tokens, prompt, position, mask)
                continue
            seen = layer.cross_attn(query=layer.layer_norm2(tokens), key=prompt, value=prompt, attention_mask=mask)[0]
            tokens = tokens + seen
            tokens = tokens + layer.mlp(layer.layer_norm3(tokens))
        return tokens

    def _decode(self, memory: Tensor, prompt: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [P, Q, D], boxes (cx, cy, w, h) [P, Q, 4] and presence logits [P] after the last layer."""
        decoder, pairs = self.decoder, len(memory)
        boxes, (query_position, bias) = self.boxes, self.placed
        start = torch.cat((decoder.presence_token.weight, decoder.query_embed.weight))
        hidden = start.expand(pairs, -1, -1)  # the presence token first
        mask = _attention_mask(valid, hidden.shape[1])
        position = _tokens(self.position)
        for number, layer in enumerate(decoder.layers):
            if number > 0:
                query_position, bias = self._place(boxes)
            hidden = layer(
                hidden,
                query_pos=query_position,
                text_features=prompt,
                vision_features=memory,
                vision_pos_encoding=position,
                text_cross_attn_mask=mask,
                vision_cross_attn_mask=bias,
            )
            with torch.autocast(hidden.device.type, enabled=False):  # boxes in bf16 would be several pixels off
                queries = decoder.output_layer_norm(hidden[:, 1:].float())
                boxes = (decoder.box_head(queries) + _inverse_sigmoid(boxes)).sigmoid()
        with torch.autocast(hidden.device.type, enabled=False):
            presence = decoder.presence_head(decoder.presence_layer_norm(hidden[:, 0].float()))[:, 0]
        limit = decoder.clamp_presence_logit_max_val
        return queries, boxes, presence.clamp(-limit, limit)

    def _place(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a decoder layer reads of boxes (cx, cy, w, h) [P, Q, 4]: positions [P, Q, D], attention bias."""
        return self.decoder.ref_point_head(self.decoder.position_encoding.encode_boxes(boxes)), self._box_bias(boxes)

    def _box_bias(self, boxes: Tensor) -> Tensor:
        """Return the attention bias [P, heads, 1 + Q, S]: from signed log distances of grid lines to a box's edges.

        The presence token has no box and no bias.
        """
        centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
        edges = torch.stack((centre - half, centre + half), -1)  # [P, Q, xy, 2]
        lines = torch.arange(self.grid, device=boxes.device, dtype=boxes.dtype) / self.grid
        distance = 8 * (lines[:, None] - edges.transpose(0, 2)[..., None, :])  # [xy, Q, P, grid, 2]
        distance = distance.sign() * torch.log2(distance.abs() + 1.0) / math.log2(8)
        across, down = (
            F.pad(embed(one).permute(1, 3, 0, 2), (0, 0, 1, 0))  # [P, heads, 1 + Q, grid]
            for embed, one in zip((self.decoder.box_rpb_embed_x, self.decoder.box_rpb_embed_y), distance, strict=True)
        )
        bias: Tensor = down[..., None] + across[..., None, :]
        return bias.flatten(3)

    def skips(self, state: ImageState, images: slice) -> tuple[Tensor, Tensor]:
        """Return the mask head's skip connections of some images, convolved: [B', D, 2h, 2w] and [B', D, 4h, 4w]."""
        first, second = self.masker.pixel_decoder.conv_layers[:2]
        return first(state.middle[images]), second(state.fine[images])

    def masks(
        self,
        memory: Tensor,
        prompt: Tensor,
        valid: Tensor,
        queries: Tensor,
        skips: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return float32 mask logits [R, Q', 4h, 4w] of chosen queries [R, Q', D] of R pairs, all gathered by pair."""
        masker = self.masker
        mask = _attention_mask(valid, memory.shape[1])
        normal = masker.prompt_cross_attn_norm(memory)
        memory = memory + masker.prompt_cross_attn(query=normal, key=prompt, value=prompt, attention_mask=mask)[0]
        pixels = memory.transpose(1, 2).reshape(len(memory), -1, self.grid, self.grid)
        for weight, skip, norm in zip(self.upsample, skips, masker.pixel_decoder.norms, strict=False):
            pixels = F.relu(norm(F.conv_transpose2d(pixels, weight, stride=2, padding=1) + skip))
        with torch.autocast(pixels.device.type, enabled=False):  # bf16 would make neighbours equal, and borders rough
            embedding = masker.mask_embedder(queries.float())
            shift = embedding @ masker.instance_projection.bias
            logits: Tensor = (embedding @ self.project) @ pixels.float().flatten(2) + shift[..., None]
        return logits.reshape(*logits.shape[:2], *pixels.shape[2:])


def _tokens(features: Tensor) -> Tensor:
    """Reshape [B, D, h, w] to [B, S, D]."""
    return features.flatten(2).transpose(1, 2)


def _attention_mask(valid: Tensor, queries: int) -> Tensor:
    """Return the prompts' validity as bool [P, 1, queries, T], without copies."""
    return valid[:, None, None, :].expand(-1, 1, queries, -1)


def _inverse_sigmoid(value: Tensor, margin: float = 1e-3) -> Tensor:
    value = value.clamp(0, 1)
    return torch.log(value.clamp(min=margin) / (1 - value).clamp(min=margin))


def _upsample_weight(weight: Tensor) -> Tensor:
    """Return a 3x3 kernel [out, in, 3, 3] after nearest x2 upsampling as a stride-2 transposed one [in, out, 4, 4].

    Each output pixel sees three upsampled pixels a side, which are copies of two: the taps on copies add up.
    """
    for axis in (2, 3):
        first, second, third = weight.unbind(axis)
        weight = torch.stack((third, second + third, first + second, first), axis)
    return weight.transpose(0, 1).contiguous()

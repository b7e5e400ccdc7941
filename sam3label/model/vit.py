"""Runs the image encoder's layers with the library's weights and numbers, and fewer copies and products.

- queries, keys and values are one matrix product, and are turned by their positions in one go
- windows are cut without padding, where they divide the grid, and put back with one copy

Shape legend: B images, h x w their grid of tokens, W windows of S tokens, N heads, D width, C = D / N.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def join_products(backbone: Any) -> None:
    """Replace the layers of a `Sam3ViTModel` by `Layer`, once their rotary tables are fixed and all weights moved."""
    grid = backbone.config.image_size // backbone.config.patch_size
    for number, layer in enumerate(backbone.layers):
        if layer.window_size == 0 or grid % layer.window_size == 0:
            backbone.layers[number] = Layer(layer, grid)


class Layer(nn.Module):
    """Computes a layer of the image encoder: [B, h, w, D] to the same."""

    def __init__(self, layer: Any, grid: int) -> None:
        super().__init__()
        attention = layer.attention
        self.side = layer.window_size or grid
        self.heads, self.scaling = attention.num_attention_heads, attention.scaling
        self.layer_norm1, self.layer_norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp
        self.rotary_emb, self.o_proj = layer.rotary_emb, attention.o_proj
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.weight = _frozen(torch.cat([part.weight for part in parts]))
        self.bias = _frozen(torch.cat([part.bias for part in parts]))

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        hidden = hidden + self._attend(self.layer_norm1(hidden))
        mixed: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return mixed

    def _attend(self, hidden: Tensor) -> Tensor:
        shape = hidden.shape
        tokens = self._cut(hidden)  # [W, S, D]
        joined = F.linear(tokens, self.weight, self.bias)
        joined = joined.view(*tokens.shape[:2], 3, self.heads, -1)  # [W, S, 3, N, C]
        query, key = self._turn(joined[:, :, :2]).permute(2, 0, 3, 1, 4).unbind()
        value = joined[:, :, 2].transpose(1, 2)
        seen = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)  # [W, N, S, C]
        return self._put_back(self.o_proj(seen.transpose(1, 2).flatten(2)), shape)

    def _turn(self, queries_and_keys: Tensor) -> Tensor:
        """Turn [W, S, 2, N, C] by their positions, in float32."""
        cos, sin = self.rotary_emb(queries_and_keys, None)
        cos, sin = cos[..., None, None, :], sin[..., None, None, :]  # [1, S, 1, 1, C]
        before = queries_and_keys.float()
        first, second = before[..., ::2], before[..., 1::2]
        turned: Tensor = before * cos + torch.stack((-second, first), -1).flatten(-2) * sin
        return turned.type_as(queries_and_keys)

    def _cut(self, hidden: Tensor) -> Tensor:
        """[B, h, w, D] -> [W, S, D]."""
        if self.side == hidden.shape[1]:
            return hidden.flatten(1, 2)
        batch, down, across, width = hidden.shape
        windows = hidden.view(batch, down // self.side, self.side, across // self.side, self.side, width)
        return windows.transpose(2, 3).reshape(-1, self.side * self.side, width)

    def _put_back(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """[W, S, D] -> [B, h, w, D]."""
        if self.side == shape[1]:
            return tokens.view(shape)
        across, down = shape[2] // self.side, shape[1] // self.side
        windows = tokens.view(shape[0], down, across, self.side, self.side, shape[3])
        return windows.transpose(2, 3).reshape(shape)


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)

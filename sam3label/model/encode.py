"""Turns pictures and phrases into what the head reads: each image once, each phrase once per run.

Shape legend: B images of H x W pixels, X the model's input side, T prompt tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.core.records import Frame, Prompt
from sam3label.errors import ConfigError
from sam3label.model.device import Compute
from sam3label.model.head import Head, ImageState
from sam3label.model.memory import Batches
from sam3label.model.phrases import as_read

PREPROCESSING = "bilinear antialiased, rounded to 8 bits, mean 0.5, std 0.5"
VISUAL = "visual"  # what the model was trained to read when boxes come without words
_PHRASES_AT_ONCE = 64
AT_ONCE = 64 << 20  # pixels of a photo that are resized as a whole
_TEXTS_KEPT = 64  # lists of prompts: a run has one, or one for each class that has canvases


class ImageEncoder:
    """Encodes images for any number of prompts. `with_summary`: each image also says that it has no boxes."""

    def __init__(self, model: Any, head: Head, compute: Compute, with_summary: bool) -> None:
        self.side: int = model.config.vision_config.image_size
        self.backbone = model.vision_encoder.backbone
        self._neck = model.vision_encoder.neck.fpn_layers[:3]
        self._head, self._compute, self._with_summary = head, compute, with_summary

    def preprocess(self, frames: Sequence[Frame], filled_to: int = 0) -> Tensor:
        """Return float32 [B, 3, X, X] on the device: resized without keeping the aspect, as the model was trained.

        Fewer frames than `filled_to` are followed by gray ones.
        """
        arrays = (np.require(frame.pixels, requirements=["C", "W"]) for frame in frames)  # what torch can share
        images = [self._resize(torch.from_numpy(array)) for array in arrays]
        if (missing := filled_to - len(images)) > 0:
            images.append(images[0].new_zeros((missing, *images[0].shape[1:])))
        return torch.cat(images)

    def _resize(self, pixels: Tensor) -> Tensor:
        return shrink(pixels, self.side, self._compute.device).round_().sub_(127.5).mul_(1 / 127.5)

    def encode(self, pixels: Tensor) -> ImageState:
        """Encode preprocessed images [B, 3, X, X]."""
        return self.state_of_grid(self.grid(pixels))

    def grid(self, pixels: Tensor) -> Tensor:
        """Return the image encoder's answer [B, V, h, w] to preprocessed images, which the tracker reads too."""
        with self._compute.precision():
            features = self.backbone(pixels.to(self._compute.dtype)).last_hidden_state
        cells: Tensor = features.transpose(1, 2).unflatten(2, (self._head.grid, self._head.grid))
        return cells

    def state_of_grid(self, grid: Tensor) -> ImageState:
        """Return the state of images, made of the image encoder's answer, which it keeps."""
        with self._compute.precision():
            return replace(self._state_of([layer(grid) for layer in self._neck]), grid=grid)

    def _state_of(self, levels: Sequence[Tensor]) -> ImageState:
        """Return the images' state, made of the neck's levels: [B, D, 4h, 4w], [B, D, 2h, 2w], [B, D, h, w]."""
        fine, middle, coarse = levels
        kept = self._compute.dtype if self._compute.mixed else torch.float32
        return self._head.prepare(fine.to(kept), middle.to(kept), coarse.float(), self._with_summary)


def shrink(pixels: Tensor, side: int, device: torch.device, at_once: int = AT_ONCE) -> Tensor:
    """Resize uint8 [H, W, 3] to float32 [1, 3, side, side], bilinear with antialiasing.

    A photo of more than `at_once` pixels goes band by band, first across and then down, as the resizing itself does:
    its floats would take twelve bytes a pixel.
    """
    height, width = pixels.shape[:2]

    def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def floats(part: Tensor) -> Tensor:
        return part.to(device, non_blocking=True).permute(2, 0, 1)[None].float()

    if height * width <= at_once:
        return resized(floats(pixels), (side, side))
    rows = max(1, at_once // width)
    bands = (pixels[top : top + rows] for top in range(0, height, rows))
    across = torch.cat([resized(floats(band), (band.shape[0], side)) for band in bands], dim=2)
    return resized(across, (side, side))


@dataclass(frozen=True, slots=True)
class Texts:
    """Holds the words of N prompts, padded: features [N, T, D] and validity [N, T]."""

    features: Tensor
    valid: Tensor


class PhraseEncoder:
    """Encodes each phrase once. `features` holds what it has encoded: phrase -> [T, D], its valid tokens only."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, batches: Batches) -> None:
        self._model, self._tokenizer, self._device, self._batches = model, tokenizer, device, batches
        self._context: int = model.config.text_config.max_position_embeddings
        self.features: dict[str, Tensor] = {}
        self._texts: dict[tuple[tuple[str, ...], int], Texts] = {}

    def encode(self, phrases: Sequence[str]) -> None:
        """Encode the phrases not seen before. Raises ConfigError naming every phrase the model cannot take whole."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self.features]
        if not new:
            return
        tokens = self._tokenize(new)
        self._model.text_encoder.to(self._device)  # 1.4 GB at full size that are of use only now
        self._encode(tokens)
        if self._device.type == "cuda":
            self._model.text_encoder.to("cpu")

    def _encode(self, tokens: Mapping[str, list[int]]) -> None:
        new = list(tokens)
        for start in range(0, len(new), _PHRASES_AT_ONCE):
            names = new[start : start + _PHRASES_AT_ONCE]
            batch = [tokens[name] for name in names]
            padded = self._tokenizer.pad({"input_ids": batch}, padding="max_length", max_length=self._context)
            ids = torch.tensor(padded["input_ids"], device=self._device)
            valid = torch.tensor(padded["attention_mask"], device=self._device)
            features = self._model.get_text_features(input_ids=ids, attention_mask=valid).pooler_output.float()
            self.features.update((name, features[i, : len(batch[i])]) for i, name in enumerate(names))

    def _tokenize(self, phrases: Sequence[str]) -> dict[str, list[int]]:
        texts = {phrase: as_read(phrase) for phrase in phrases}
        if empty := [repr(phrase) for phrase, text in texts.items() if not text]:
            raise ConfigError(f"the model reads no word in the phrase {', '.join(empty)}: write it as plain text.")
        ids = self._tokenizer(list(texts.values()))["input_ids"] if texts else []
        tokens = dict(zip(texts, ids, strict=True))
        long = [f"{phrase!r} ({len(own)})" for phrase, own in tokens.items() if len(own) > self._context]
        if long:
            raise ConfigError(
                f"the model reads at most {self._context} tokens of a phrase, start and end included: "
                f"shorten {', '.join(long)}."
            )
        return tokens

    def texts(self, prompts: Sequence[Prompt]) -> Texts:
        """Return the words of the prompts, encoded where they were not yet. Raises ConfigError as `encode`.

        Padded to the longest; where shapes are fixed, to the longest that the model can read.
        """
        phrases = tuple(prompt.text or VISUAL for prompt in prompts)
        self.encode(phrases)
        length = self._context if self._batches.fixed else max(len(self.features[phrase]) for phrase in phrases)
        if (phrases, length) not in self._texts:
            if len(self._texts) == _TEXTS_KEPT:
                self._texts.clear()
            self._texts[phrases, length] = self._padded([self.features[phrase] for phrase in phrases], length)
        return self._texts[phrases, length]

    def _padded(self, rows: Sequence[Tensor], length: int) -> Texts:
        features = torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        return Texts(features, torch.arange(length, device=self._device) < lengths[:, None])

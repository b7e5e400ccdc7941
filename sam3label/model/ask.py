"""Puts questions to encoded images: words, and exemplars where there are any, into scores.

Shape legend: B images, P pairs (image, prompt), Q queries, T prompt tokens, N boxes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.core.records import BoxPrompt, Prompt
from sam3label.model.device import Coming, Compute, bring
from sam3label.model.encode import Texts
from sam3label.model.head import Head, ImageState, PairScores
from sam3label.model.memory import Batches

_TOKENS = 8  # where shapes are fixed, prompts are a multiple of so many tokens long


@dataclass(frozen=True, slots=True)
class ReferenceTokens:
    """Holds exemplars for one prompt from other images, as `Detector.encode_references` made them: each [N, D]."""

    tokens: tuple[Tensor, ...]


Exemplar = BoxPrompt | ReferenceTokens


@dataclass(frozen=True, slots=True)
class Pair:
    """Holds one question: prompt number `prompt` on image number `image` of those encoded together."""

    image: int
    prompt: int
    exemplar: Exemplar | None


def pairs_of(prompts: Sequence[Prompt], exemplars: Sequence[Mapping[str, Exemplar | None]]) -> list[Pair]:
    """Return what is asked of images: every prompt, but those without words only where they have an exemplar."""
    return [
        Pair(image, number, exemplar)
        for image, given in enumerate(exemplars)
        for number, prompt in enumerate(prompts)
        if (exemplar := given.get(prompt.key)) is not None or (prompt.text is not None and prompt.key not in given)
    ]


@dataclass(frozen=True, slots=True)
class Scored:
    """Holds a chunk of pairs: the answer and its prompts on the device, and the scores, which come to the host.

    On the device rows that nobody asked for may follow, which fill up the chunk.
    """

    pairs: Sequence[Pair]

    answer: PairScores
    prompt: Tensor
    valid: Tensor
    coming: Coming

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Return the scores [P, Q]. Wait until they have come, as `presence` does."""
        return self.coming.numpy()[: len(self.pairs), :-1]

    @property
    def presence(self) -> npt.NDArray[np.float32]:
        """Return the presence of each prompt [P]."""
        return self.coming.numpy()[: len(self.pairs), -1]


class Asker:
    """Puts pairs to the head. `scorer` is `Head.score`, compiled or not."""

    def __init__(self, head: Head, compute: Compute, batches: Batches) -> None:
        self._head, self._compute, self._batches = head, compute, batches
        self.scorer = head.score

    def score(self, state: ImageState, pairs: Sequence[Pair], texts: Texts) -> Scored:
        """Return the scores of pairs. The host waits for nothing until it reads them: once for a chunk of pairs."""
        filled = [*pairs, *[pairs[-1]] * (self._batches.filled("pairs", len(pairs)) - len(pairs))]
        images, numbers = self._compute.send(np.array([(pair.image, pair.prompt) for pair in filled]).T.copy())
        with self._compute.precision():
            prompt, valid = self._prompts(state, images, numbers, filled, texts)
            answer = self.scorer(state.tokens[images], prompt, valid)
        scores = torch.cat((answer.scores, answer.presence_logits.sigmoid()[:, None]), 1)
        return Scored(pairs, answer, prompt, valid, bring(scores))

    def _prompts(
        self, state: ImageState, images: Tensor, numbers: Tensor, pairs: Sequence[Pair], texts: Texts
    ) -> tuple[Tensor, Tensor]:
        """Return tokens [P, T, D] and validity [P, T] of each pair's words and exemplars."""
        prompt, valid = texts.features[numbers], texts.valid[numbers]
        geometry = self._geometry(state, images, pairs)
        if geometry is not None:
            prompt, valid = torch.cat((prompt, geometry[0]), 1), torch.cat((valid, geometry[1]), 1)
        if self._batches.fixed and (missing := -prompt.shape[1] % _TOKENS):
            prompt, valid = F.pad(prompt, (0, 0, 0, missing)), F.pad(valid, (0, missing))
        return prompt, valid

    def _geometry(self, state: ImageState, images: Tensor, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor] | None:
        """Return tokens [P, N + 1, D] and validity of each pair's exemplars; the image's summary where it has none."""
        boxed = {row: pair.exemplar for row, pair in enumerate(pairs) if isinstance(pair.exemplar, BoxPrompt)}
        referred = {row: pair.exemplar for row, pair in enumerate(pairs) if isinstance(pair.exemplar, ReferenceTokens)}
        if state.summary is None and not boxed and not referred:
            return None
        device = self._compute.device
        counts = [len(boxes.positive) for boxes in boxed.values()]
        most = max([0, *counts, *(sum(map(len, reference.tokens)) for reference in referred.values())])
        tokens = state.tokens.new_zeros((len(pairs), most + 1, state.tokens.shape[2]))
        valid = torch.zeros((len(pairs), most + 1), dtype=torch.bool, device=device)
        if state.summary is not None:
            tokens[:, :1], valid[:, :1] = state.summary[images], True
        if boxed:
            rows = self._compute.send(np.array(list(boxed)))
            encoded, known = self._head.encode_boxes(state.coarse[images[rows]], *self._padded(list(boxed.values())))
            tokens[rows, : encoded.shape[1]], valid[rows, : encoded.shape[1]] = encoded.float(), known
        for row, reference in referred.items():
            joined = torch.cat(reference.tokens)
            tokens[row, 1 : len(joined) + 1], valid[row, 1 : len(joined) + 1] = joined, True
        return tokens, valid

    def encode_references(self, coarse: Tensor, boxes: Sequence[BoxPrompt]) -> list[Tensor]:
        """Return the tokens [N, D] of N boxes on each image, of its coarse features [B, D, h, w]."""
        with self._compute.precision():
            encoded, _ = self._head.encode_boxes(coarse, *self._padded(boxes))
        # the boxes come first, then the image's own token, then padding
        return [row[: len(own.positive)].float() for row, own in zip(encoded, boxes, strict=True)]

    def _padded(self, prompts: Sequence[BoxPrompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (cx, cy, w, h) [P, N, 4], labels [P, N] and validity [P, N], short rows padded."""
        most = max(len(prompt.positive) for prompt in prompts)
        boxes = np.zeros((len(prompts), most, 4), np.float32)
        labels = np.zeros((len(prompts), most), np.int64)
        valid = np.zeros((len(prompts), most), np.bool_)
        for row, prompt in enumerate(prompts):
            count = len(prompt.positive)
            start, stop = prompt.boxes_xyxy[:, :2], prompt.boxes_xyxy[:, 2:]
            boxes[row, :count] = np.concatenate(((start + stop) / 2, stop - start), 1)
            labels[row, :count], valid[row, :count] = prompt.positive, True
        return self._compute.send(boxes), self._compute.send(labels), self._compute.send(valid)

"""SAM 3 as a detector: images and phrases in, candidates out. Each image is encoded once, each phrase once per run.

Shape legend: B images of H x W pixels, X the model's input side, P pairs (image, prompt), Q queries, T prompt tokens,
D width, S image tokens, N boxes, K kept masks of h x w logits.

What is exact: with `prompt_style="transformers"` logits, boxes and presence are those of `Sam3Processor` and
`Sam3Model` called once per phrase; with "official" those of the same model given one padded box, which is the form the
model was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.core.records import BoxPrompt, Candidate, Frame, MediaItem, Prompt, Source, candidate_id
from sam3label.errors import ConfigError
from sam3label.model import mask_runs
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.clock import StageClock
from sam3label.model.device import Stage, batch_sizes, is_out_of_memory, pick_device, pick_dtype
from sam3label.model.encode_ahead import Ahead
from sam3label.model.head import Head, ImageState, PairScores
from sam3label.model.phrases import as_read
from sam3label.model.weights import fix_rotary_tables, load_model, load_tokenizer, reuse_buffers

PREPROCESSING = "bilinear antialiased, rounded to 8 bits, mean 0.5, std 0.5"
VISUAL = "visual"  # what the model was trained to read when boxes come without words
_PHRASES_AT_ONCE = 64
_TOO_SMALL = (
    "the memory of {} does not hold the model's work on even one image: free some, use --dtype bf16, "
    "or another --device."
)

PromptStyle = Literal["official", "transformers"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReferenceTokens:
    """Exemplars for one prompt from other images, as `Detector.encode_references` made them: each [N, D]."""

    tokens: tuple[Tensor, ...]


Exemplar = BoxPrompt | ReferenceTokens


@dataclass(frozen=True, slots=True)
class Detection:
    """What the model saw on one frame. `presence` [P] in the order of the prompts, NaN where one was not asked."""

    presence: npt.NDArray[np.float32]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one prompt found on one image, on the device: scores [K], float32 mask logits [K, h, w], boxes [K, 4].

    Boxes are (x1, y1, x2, y2) in [0, 1]. A prompt that was not asked has presence NaN and found nothing.
    """

    presence: float
    scores: Tensor
    masks: Tensor
    boxes_xyxy: Tensor


@dataclass(frozen=True, slots=True)
class _Pair:
    """One question: prompt number `prompt` on image number `image` of those encoded together."""

    image: int
    prompt: int
    exemplar: Exemplar | None


class Detector:
    """A loaded SAM 3 detector. Made by `Detector.load`; one per process and device."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        identity: str,
        device: torch.device,
        dtype: torch.dtype,
        prompt_style: PromptStyle = "official",
        vram_gb: float | None = None,
    ) -> None:
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self.device, self.dtype, self.prompt_style = device, dtype, prompt_style
        self.image_size: int = model.config.vision_config.image_size
        self.head = Head(model)
        self.clock = StageClock(device)  # of `detect`: encode, heads, post
        self._phrases: dict[str, Tensor] = {}  # phrase -> [T, D], its valid tokens only
        self._backbone, self._scorer = model.vision_encoder.backbone, self.head.score
        self._ahead = Ahead(device, self._encoded)
        self._sizes = batch_sizes(model.config, device, dtype, vram_gb)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        prompt_style: PromptStyle = "official",
        vram_gb: float | None = None,
        compiled: bool = False,
    ) -> Detector:
        """Load the detector's weights, all of them or none.

        `dtype`: "fp32", "bf16" (image encoder in bf16, head in mixed precision on CUDA) or "auto" (bf16 on CUDA).
        `vram_gb` bounds the memory that batch sizes are chosen for. `compiled`: see `compile`. Raises CheckpointError,
        ConfigError.
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)
        model = load_model(checkpoint).to(where)
        model.vision_encoder.to(precision)
        fix_rotary_tables(model)
        reuse_buffers(model)
        detector = cls(model, load_tokenizer(checkpoint), checkpoint.identity, where, precision, prompt_style, vram_gb)
        if compiled:
            detector.compile()
        return detector

    @torch.inference_mode()
    def compile(self, backend: str = "inductor") -> None:
        """Have torch compile the image encoder and the scoring of pairs, and try both. Same answers, to rounding.

        Takes minutes; worth it for thousands of images. Raises ConfigError where torch cannot compile.
        """
        self._backbone = torch.compile(self._backbone, backend=backend)
        self._scorer = torch.compile(self.head.score, backend=backend, fullgraph=True)
        grey = np.full((self.image_size, self.image_size, 3), 128, np.uint8)
        frames = [Frame(MediaItem(id="", path=""), 0, grey)] * self.image_batch
        try:
            self.detect(frames, [Prompt(VISUAL, VISUAL)], floor=1.0)
        except ConfigError:
            raise
        except Exception as error:  # the compilers it calls fail in their own ways
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"torch cannot compile the model here ({reason}). Leave out --compile, or install a C++ compiler."
            ) from error

    @property
    def queries(self) -> int:
        """The most instances the model can find of one prompt in one image."""
        return int(self.model.config.detr_decoder_config.num_queries)

    @property
    def image_batch(self) -> int:
        """Images encoded together; falls when memory runs out."""
        return self._sizes["images"]

    def describe(self) -> dict[str, Any]:
        """Everything here that changes the numbers, for a run's fingerprint."""
        return {
            "checkpoint": self.identity,
            "image_size": self.image_size,
            "dtype": "bf16" if self.dtype == torch.bfloat16 else "fp32",
            "prompt_style": self.prompt_style,
            "preprocessing": PREPROCESSING,
        }

    # ---- phrases

    @torch.inference_mode()
    def encode_phrases(self, phrases: Sequence[str]) -> None:
        """Encode the phrases not seen before. Raises ConfigError naming every phrase the model cannot take whole."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._phrases]
        tokens = self._tokenize(new)
        for start in range(0, len(new), _PHRASES_AT_ONCE):
            names = new[start : start + _PHRASES_AT_ONCE]
            batch = [tokens[name] for name in names]
            padded = self.tokenizer.pad({"input_ids": batch}, padding="max_length", max_length=self._context)
            ids = torch.tensor(padded["input_ids"], device=self.device)
            valid = torch.tensor(padded["attention_mask"], device=self.device)
            features = self.model.get_text_features(input_ids=ids, attention_mask=valid).pooler_output.float()
            self._phrases.update((name, features[i, : len(batch[i])]) for i, name in enumerate(names))

    @property
    def _context(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _tokenize(self, phrases: Sequence[str]) -> dict[str, list[int]]:
        texts = {phrase: as_read(phrase) for phrase in phrases}
        if empty := [repr(phrase) for phrase, text in texts.items() if not text]:
            raise ConfigError(f"the model reads no word in the phrase {', '.join(empty)}: write it as plain text.")
        ids = self.tokenizer(list(texts.values()))["input_ids"] if texts else []
        tokens = dict(zip(texts, ids, strict=True))
        long = [f"{phrase!r} ({len(ids)})" for phrase, ids in tokens.items() if len(ids) > self._context]
        if long:
            raise ConfigError(
                f"the model reads at most {self._context} tokens of a phrase, start and end included: "
                f"shorten {', '.join(long)}."
            )
        return tokens

    def _texts(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Phrase features [prompts, T, D] and their validity, T the longest phrase."""
        rows = [self._phrases[prompt.text or VISUAL] for prompt in prompts]
        longest = max(len(row) for row in rows)
        features = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return features, torch.arange(longest, device=self.device) < lengths[:, None]

    # ---- images

    def preprocess(self, frames: Sequence[Frame]) -> Tensor:
        """float32 [B, 3, X, X] on the device: resized without keeping the aspect, as the model was trained."""
        arrays = (np.require(frame.pixels, requirements=["C", "W"]) for frame in frames)  # what torch can share
        return torch.cat([self._resize(torch.from_numpy(array)) for array in arrays])

    def _resize(self, pixels: Tensor) -> Tensor:
        image = pixels.to(self.device, non_blocking=True).permute(2, 0, 1)[None].float()
        size = (self.image_size, self.image_size)
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        return image.round_().sub_(127.5).mul_(1 / 127.5)

    def encode_images(self, pixels: Tensor) -> ImageState:
        """Encode preprocessed images [B, 3, X, X] once, for any number of prompts."""
        return self.state_of_grid(self.encode_grid(pixels))

    def encode_grid(self, pixels: Tensor) -> Tensor:
        """The image encoder's answer [B, V, h, w] to preprocessed images, which the tracker reads too."""
        with self.precision():
            features = self._backbone(pixels.to(self.dtype)).last_hidden_state
        grid: Tensor = features.transpose(1, 2).unflatten(2, (self.head.grid, self.head.grid))
        return grid

    def state_of_grid(self, grid: Tensor) -> ImageState:
        """The state of images from the image encoder's answer."""
        with self.precision():
            return self._state_of([layer(grid) for layer in self.model.vision_encoder.neck.fpn_layers[:3]])

    def _state_of(self, levels: Sequence[Tensor]) -> ImageState:
        """The state of images from the neck's levels, finest first: [B, D, 4h, 4w], [B, D, 2h, 2w], [B, D, h, w]."""
        fine, middle, coarse = levels
        kept = torch.bfloat16 if self._mixed else torch.float32
        return self.head.prepare(
            fine.to(kept), middle.to(kept), coarse.float(), with_summary=self.prompt_style == "official"
        )

    @property
    def _mixed(self) -> bool:
        return self.dtype == torch.bfloat16 and self.device.type == "cuda"

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Mixed precision for the head where the image encoder is bf16 on CUDA; full precision otherwise, no TF32."""
        if self.device.type != "cuda":
            yield
        elif self._mixed:
            with torch.autocast("cuda", torch.bfloat16):
                yield
        else:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                yield

    # ---- detection

    @torch.inference_mode()
    def detect(
        self,
        frames: Sequence[Frame],
        prompts: Sequence[Prompt],
        floor: float = 0.1,
        exemplars: Sequence[Mapping[str, Exemplar | None]] | None = None,
    ) -> list[Detection]:
        """Ask every prompt of every frame; one Detection per frame, in order.

        `exemplars`, one mapping per frame from prompt key, are added to the prompt's words; None leaves the prompt out.
        A prompt without words is asked only where it has exemplars. Candidates have score >= `floor` and at least one
        pixel, in the order of prompts, then queries. Raises ConfigError when even one image does not fit into memory.
        """
        exemplars = exemplars if exemplars is not None else [{}] * len(frames)
        if not prompts:
            return [Detection(np.empty(0, np.float32), ()) for _ in frames]
        self.encode_phrases([prompt.text or VISUAL for prompt in prompts])
        texts = self._texts(prompts)
        detections: list[Detection] = []

        def encode(part: slice) -> tuple[slice, ImageState]:
            return part, self._ahead.take(frames[part]) or self._encoded(frames[part])

        for part, state in self._halving(len(frames), "images", encode):
            detections += self._answer(frames[part], state, prompts, texts, exemplars[part], floor)
        return detections

    @torch.inference_mode()
    def encode_ahead(self, frames: Sequence[Frame]) -> None:
        """Encode what `detect` will be given later, on CUDA beside its other work. Answers do not depend on it."""
        self._ahead.begin(frames[: self.image_batch])

    def _encoded(self, frames: Sequence[Frame]) -> ImageState:
        with self.clock("encode"):
            return self.encode_images(self.preprocess(frames))

    @torch.inference_mode()
    def look(
        self,
        state: ImageState,
        prompts: Sequence[Prompt],
        threshold: float,
        exemplars: Mapping[str, Exemplar | None] = MappingProxyType({}),
    ) -> list[Seen]:
        """Ask every prompt of one encoded image; one entry per prompt, of its queries scoring over `threshold`.

        `exemplars` as of `detect`, for this image.
        """
        if not prompts:
            return []
        self.encode_phrases([prompt.text or VISUAL for prompt in prompts])
        texts, skips = self._texts(prompts), _Skips(self.head, state)
        pairs = list(_questions(prompts, [exemplars]))
        seen = {number: Seen(math.nan, *self._nothing()) for number in range(len(prompts))}

        def score(part: slice) -> tuple[Sequence[_Pair], _Scored]:
            return pairs[part], self._score(state, pairs[part], texts)

        for chunk, scored in self._halving(len(pairs), "pairs", score):
            row, query = np.nonzero(scored.scores > threshold)
            scores, masks, boxes = self._nothing()
            if len(row):
                masks = self._masks(scored, row, query, skips, 0)
                at = torch.from_numpy(row), torch.from_numpy(query)
                scores, boxes = scored.answer.scores[at], scored.answer.boxes_xyxy[at]
            for place, (pair, presence) in enumerate(zip(chunk, scored.presence, strict=True)):
                own = torch.from_numpy(row == place).to(self.device)
                seen[pair.prompt] = Seen(float(presence), scores[own], masks[own], boxes[own])
        return list(seen.values())

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, masks and boxes of no candidate."""
        sides = (0,), (0, 4 * self.head.grid, 4 * self.head.grid), (0, 4)
        scores, masks, boxes = (torch.empty(side, device=self.device) for side in sides)
        return scores, masks, boxes

    @torch.inference_mode()
    def encode_references(self, frames: Sequence[Frame], boxes: Sequence[BoxPrompt]) -> list[Tensor]:
        """The tokens [N, D] of N boxes on each image, for `ReferenceTokens`: to be shown with any other image."""

        def encode(part: slice) -> list[Tensor]:
            coarse, own = self.encode_images(self.preprocess(frames[part])).coarse, boxes[part]
            counts = [len(prompt.positive) for prompt in own]
            with self.precision():
                encoded, _ = self.head.encode_boxes(coarse, *_padded_boxes(own, max(counts), self.device))
            # the boxes come first, then the image's own token, then padding
            return [row[:count].float() for row, count in zip(encoded, counts, strict=True)]

        return [tokens for part in self._halving(len(frames), "images", encode) for tokens in part]

    def _answer(
        self,
        frames: Sequence[Frame],
        state: ImageState,
        prompts: Sequence[Prompt],
        texts: tuple[Tensor, Tensor],
        exemplars: Sequence[Mapping[str, Exemplar | None]],
        floor: float,
    ) -> list[Detection]:
        pairs = list(_questions(prompts, exemplars))
        presence = np.full((len(frames), len(prompts)), np.nan, np.float32)
        candidates: list[list[Candidate]] = [[] for _ in frames]

        def score(part: slice) -> tuple[Sequence[_Pair], _Scored]:
            with self.clock("heads"):
                return pairs[part], self._score(state, pairs[part], texts)

        skips = _Skips(self.head, state)
        for chunk, scored in self._halving(len(pairs), "pairs", score):
            presence[[p.image for p in chunk], [p.prompt for p in chunk]] = scored.presence
            for rows in _by_image(chunk, scored.scores.max(1) >= floor):
                image = chunk[rows[0]].image
                found = self._instances(scored, rows, floor, frames[image].size_hw, skips, image)
                candidates[image] += _candidates(frames[image], prompts, chunk, scored, found)
        return [Detection(row, tuple(own)) for row, own in zip(presence, candidates, strict=True)]

    def _score(self, state: ImageState, pairs: Sequence[_Pair], texts: tuple[Tensor, Tensor]) -> _Scored:
        """Score pairs and bring the scores to the host: the one sync of a chunk of pairs."""
        images = torch.tensor([pair.image for pair in pairs], device=self.device)
        numbers = torch.tensor([pair.prompt for pair in pairs], device=self.device)
        with self.precision():
            prompt, valid = texts[0][numbers], texts[1][numbers]
            geometry = self._geometry(state, images, pairs)
            if geometry is not None:
                prompt, valid = torch.cat((prompt, geometry[0]), 1), torch.cat((valid, geometry[1]), 1)
            answer = self._scorer(state.tokens[images], prompt, valid)
        host = torch.cat((answer.scores, answer.presence_logits.sigmoid()[:, None]), 1).cpu().numpy()
        return _Scored(answer, prompt, valid, host[:, :-1], host[:, -1])

    def _geometry(self, state: ImageState, images: Tensor, pairs: Sequence[_Pair]) -> tuple[Tensor, Tensor] | None:
        """Tokens [P, N + 1, D] and validity of each pair's exemplars; the image's summary where it has none."""
        boxed = {row: pair.exemplar for row, pair in enumerate(pairs) if isinstance(pair.exemplar, BoxPrompt)}
        referred = {row: pair.exemplar for row, pair in enumerate(pairs) if isinstance(pair.exemplar, ReferenceTokens)}
        if state.summary is None and not boxed and not referred:
            return None
        counts = [len(boxes.positive) for boxes in boxed.values()]
        most = max([0, *counts, *(sum(map(len, reference.tokens)) for reference in referred.values())])
        tokens = state.tokens.new_zeros((len(pairs), most + 1, state.tokens.shape[2]))
        valid = torch.zeros((len(pairs), most + 1), dtype=torch.bool, device=self.device)
        if state.summary is not None:
            tokens[:, :1], valid[:, :1] = state.summary[images], True
        if boxed:
            rows = torch.tensor(list(boxed), device=self.device)
            padded = _padded_boxes(list(boxed.values()), max(counts), self.device)
            encoded, known = self.head.encode_boxes(state.coarse[images[rows]], *padded)
            tokens[rows, : encoded.shape[1]], valid[rows, : encoded.shape[1]] = encoded.float(), known
        for row, reference in referred.items():
            joined = torch.cat(reference.tokens)
            tokens[row, 1 : len(joined) + 1], valid[row, 1 : len(joined) + 1] = joined, True
        return tokens, valid

    def _instances(
        self, scored: _Scored, rows: list[int], floor: float, size_hw: tuple[int, int], skips: _Skips, image: int
    ) -> list[tuple[int, int, mask_runs.Instance]]:
        """(row, query, instance) of every kept query of rows of one image, empty masks left out."""
        found: list[tuple[int, int, mask_runs.Instance]] = []

        def masks(part: slice) -> list[tuple[int, int, mask_runs.Instance]]:
            row, query = np.nonzero(scored.scores[rows[part]] >= floor)
            row = np.asarray(rows[part])[row]
            with self.clock("heads"):
                logits = self._masks(scored, row, query, skips, image)
            with self.clock("post"):
                instances = mask_runs.instances(logits, size_hw)
            return [(int(r), int(q), i) for r, q, i in zip(row, query, instances, strict=True) if i is not None]

        for part in self._halving(len(rows), "masks", masks):
            found += part
        return found

    def _masks(
        self, scored: _Scored, row: npt.NDArray[np.intp], query: npt.NDArray[np.intp], skips: _Skips, image: int
    ) -> Tensor:
        """Mask logits [K, h, w] of the queries `query` of the pairs `row`, rows ascending."""
        unique, place, counts = np.unique(row, return_inverse=True, return_counts=True)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.zeros((len(unique), counts.max()), np.int64)  # short rows repeat query 0; those are not taken
        chosen[place, slot] = query
        pairs = torch.from_numpy(unique).to(self.device)
        queries = scored.answer.queries[pairs[:, None], torch.from_numpy(chosen).to(self.device)]
        with self.precision():
            logits = self.head.masks(
                scored.answer.memory[pairs], scored.prompt[pairs], scored.valid[pairs], queries, skips.of(image)
            )
        if counts.min() == counts.max():
            return logits.flatten(0, 1)
        return logits[torch.from_numpy(place).to(self.device), torch.from_numpy(slot).to(self.device)]

    def _halving(self, count: int, stage: Stage, work: Callable[[slice], T]) -> Iterator[T]:
        """`work` over 0..count in slices of the stage's batch size, which is halved when memory runs out."""
        start = 0
        while start < count:
            stop = min(start + self._sizes[stage], count)
            try:
                result = work(slice(start, stop))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if stop - start == 1:
                    raise ConfigError(_TOO_SMALL.format(self.device)) from error
                self._sizes[stage] = (stop - start) // 2
            else:
                yield result
                start = stop
                continue
            if self.device.type == "cuda":  # outside the handler, whose traceback keeps the tensors alive
                torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Scored:
    """A chunk of pairs: the answer and its prompts on the device, scores [P, Q] and presence [P] on the host."""

    answer: PairScores
    prompt: Tensor
    valid: Tensor
    scores: npt.NDArray[np.float32]
    presence: npt.NDArray[np.float32]


class _Skips:
    """The mask head's convolved skip connections of the image at hand: many of its pairs share them."""

    def __init__(self, head: Head, state: ImageState) -> None:
        self._head, self._state = head, state
        self._image, self._value = -1, (torch.empty(0), torch.empty(0))

    def of(self, image: int) -> tuple[Tensor, Tensor]:
        if image != self._image:
            self._image, self._value = image, self._head.skips(self._state, slice(image, image + 1))
        return self._value


def _questions(prompts: Sequence[Prompt], exemplars: Sequence[Mapping[str, Exemplar | None]]) -> Iterator[_Pair]:
    """What is asked of images with these exemplars, image by image."""
    for image, given in enumerate(exemplars):
        for number, prompt in enumerate(prompts):
            exemplar = given.get(prompt.key)
            if exemplar is not None or (prompt.text is not None and prompt.key not in given):
                yield _Pair(image, number, exemplar)


def _by_image(pairs: Sequence[_Pair], wanted: npt.NDArray[np.bool_]) -> Iterator[list[int]]:
    """The wanted rows of a chunk of pairs, image by image."""
    images = np.array([pair.image for pair in pairs])
    for image in np.unique(images[wanted]):
        yield np.flatnonzero(wanted & (images == image)).tolist()


def _candidates(
    frame: Frame,
    prompts: Sequence[Prompt],
    pairs: Sequence[_Pair],
    scored: _Scored,
    found: Sequence[tuple[int, int, mask_runs.Instance]],
) -> Iterator[Candidate]:
    for row, query, instance in found:
        prompt = prompts[pairs[row].prompt]
        yield Candidate(
            id=candidate_id(frame.item.id, frame.index, prompt.identity, query),
            item_id=frame.item.id,
            frame=frame.index,
            prompt=prompt.key,
            score=float(scored.scores[row, query]),
            presence=float(scored.presence[row]),
            box_xywh=instance.box_xywh,
            area=instance.area,
            rle=instance.rle,
            source=_source(prompt, pairs[row].exemplar),
        )


def _source(prompt: Prompt, exemplar: Exemplar | None) -> Source:
    if exemplar is None:
        return prompt.source
    return "exemplar" if prompt.text is None else "both"


def _padded_boxes(prompts: Sequence[BoxPrompt], most: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (cx, cy, w, h) [P, N, 4], labels [P, N] and validity [P, N], short rows padded."""
    boxes = np.zeros((len(prompts), most, 4), np.float32)
    labels = np.zeros((len(prompts), most), np.int64)
    valid = np.zeros((len(prompts), most), np.bool_)
    for row, prompt in enumerate(prompts):
        count = len(prompt.positive)
        start, stop = prompt.boxes_xyxy[:, :2], prompt.boxes_xyxy[:, 2:]
        boxes[row, :count] = np.concatenate(((start + stop) / 2, stop - start), 1)
        labels[row, :count], valid[row, :count] = prompt.positive, True
    return tuple(torch.from_numpy(value).to(device) for value in (boxes, labels, valid))  # type: ignore[return-value]

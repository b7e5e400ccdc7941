"""SAM 3 as a detector: images and phrases in, candidates out. Each image is encoded once, each phrase once per run.

    encode: pictures and phrases -> ask: pairs (image, prompt) -> read_off: masks of what scored over the floor

Shape legend: B images of H x W pixels, X the model's input side, P pairs (image, prompt), Q queries, D width,
N boxes, K kept masks of h x w logits.

What is exact: with `prompt_style="transformers"` logits, boxes and presence are those of `Sam3Processor` and
`Sam3Model` called once per phrase; with "official" those of the same model given one padded box, which is the form the
model was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3label.core.records import BoxPrompt, Candidate, Frame, MediaItem, Prompt
from sam3label.core.saturation import enough
from sam3label.errors import ConfigError
from sam3label.model.ask import Asker, Exemplar, Scored, pairs_of
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.clock import StageClock
from sam3label.model.device import NAMES, Compute, pick_device, pick_dtype
from sam3label.model.encode import PREPROCESSING, VISUAL, ImageEncoder, PhraseEncoder, Texts
from sam3label.model.encode_ahead import Ahead
from sam3label.model.head import Head, ImageState, PairScores
from sam3label.model.image_size import EncoderShape
from sam3label.model.in_steps import one_ahead
from sam3label.model.mask_runs import Upsampling
from sam3label.model.memory import Batches, batch_sizes, footprint
from sam3label.model.read_off import MaskReader, Skips, candidate
from sam3label.model.vit import join_products
from sam3label.model.weights import fix_rotary_tables, load_model, load_tokenizer, reuse_buffers

PromptStyle = Literal["official", "transformers"]
LOOK_GRID = 4  # cells a side in which near-copies are compared
BEGUN = 4  # chunks of pairs that are scored before they are read, on CUDA: up to 28 prompts; each holds memory


@dataclass(frozen=True, slots=True)
class Detection:
    """Holds what was seen on one frame: `presence` [P] in the order of the prompts, NaN where one was not asked.

    `full` has the keys of prompts whose answers ran out of room, in the closest views that were taken: those over the
    floor nearly reach the number that the model can give, with and without a pixel. `grid` [1, V, h, w] is the image
    encoder's answer, where it was to be kept for the tracker half.
    """

    presence: npt.NDArray[np.float32]
    candidates: tuple[Candidate, ...]
    full: tuple[str, ...] = ()
    grid: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Looking:
    """Holds a look at an encoded image that was begun, for `Detector.seen`: chunks of pairs, which are there once.

    On CUDA the first `BEGUN` are under way.
    """

    state: ImageState
    prompts: int
    chunks: Iterator[Scored]


@dataclass(frozen=True, slots=True)
class Seen:
    """Holds what one prompt found on one image, on the device: scores [K], float32 mask logits [K, h, w], boxes [K, 4].

    Boxes are (x1, y1, x2, y2) in [0, 1]. A prompt that was not asked has presence NaN and found nothing.
    """

    presence: float
    scores: Tensor
    masks: Tensor
    boxes_xyxy: Tensor


class Detector:
    """Finds objects on frames with a loaded SAM 3. `Detector.load` makes it; one per process and device is enough."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        identity: str,
        compute: Compute,
        prompt_style: PromptStyle = "official",
        vram_gb: float | None = None,
        single: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self.compute, self.prompt_style = compute, prompt_style
        self.head = Head(model)
        if compute.mixed:
            self.head.keep_cast(compute.dtype)
        self.clock = StageClock(compute.device)  # of `detect`: encode, heads, post
        sizes = batch_sizes(model.config, compute.device, compute.dtype, vram_gb) | ({"images": 1} if single else {})
        self.batches = Batches(compute.device, sizes, fixed=compute.device.type == "cuda", release=self._let_go)
        self.images = ImageEncoder(model, self.head, compute, with_summary=prompt_style == "official")
        self.phrases = PhraseEncoder(model, tokenizer, compute.device, self.batches)
        self.asker = Asker(self.head, compute, self.batches)
        self.upsampling = Upsampling()
        self.reader = MaskReader(self.head, compute, self.batches, self.upsampling)
        self._ahead = Ahead(compute.device, self._encoded)
        self.thresholds: dict[str, float] = {}  # of the checkpoint's authors, where they are not SAM 3's
        self.size_note = ""  # on the cost of an input side that is not the checkpoint's own
        self._looked: list[tuple[Frame, ImageState]] = []  # what `looks` has encoded, image by image

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: str = "auto",
        dtype: str = "auto",
        prompt_style: PromptStyle = "official",
        vram_gb: float | None = None,
        compiled: bool = False,
        single: bool = False,
    ) -> Detector:
        """Load the detector's weights, all of them or none.

        `dtype`: "fp32", "bf16" or "fp16" (the image encoder's; then the head computes in mixed precision on CUDA), or
        "auto" (bf16 on CUDA, fp16 where the card has none). `vram_gb` is the most memory of a CUDA device to take.
        `compiled`: see `compile`. `single`: for one image at a time. Raises CheckpointError, ConfigError.
        """
        where = pick_device(device)
        compute = Compute(where, pick_dtype(dtype, where))
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
        detector = cls.of_model(model, tokenizer, checkpoint.identity, compute, prompt_style, vram_gb, single)
        detector.thresholds = checkpoint.thresholds
        if checkpoint.image_size is not None:
            detector.size_note = detector.cost_of_size(checkpoint)
        if compiled:
            detector.compile()
        return detector

    @classmethod
    def of_model(
        cls,
        model: Any,
        tokenizer: Any,
        identity: str,
        compute: Compute,
        prompt_style: PromptStyle = "official",
        vram_gb: float | None = None,
        single: bool = False,
    ) -> Detector:
        """Make a detector of the library's model, which becomes its own: cast, moved and rearranged."""
        model.vision_encoder.to(compute.dtype)  # before the move: float32 would take twice the memory there
        for name, part in model.named_children():
            part.to("cpu" if name == "text_encoder" else compute.device)
        fix_rotary_tables(model)
        join_products(model.vision_encoder.backbone)
        reuse_buffers(model)
        return cls(model, tokenizer, identity, compute, prompt_style, vram_gb, single)

    @torch.inference_mode()
    def compile(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Have torch compile the image encoder and the scoring of pairs, and try both. Same answers, to rounding.

        Takes minutes; worth it for thousands of images. Shapes are fixed from then on, so that nothing is compiled in
        the middle of a run. Raises ConfigError where torch cannot compile.
        """
        self.images.backbone = torch.compile(self.images.backbone, backend=backend, dynamic=False)
        self.asker.scorer = torch.compile(self.head.score, backend=backend, fullgraph=True, dynamic=False)
        self.batches.fixed = True
        gray = np.full((self.image_size, self.image_size, 3), 128, np.uint8)
        frames = [Frame(MediaItem(id="", path=""), 0, gray)] * self.image_batch
        prompts = -(-(self.batches["pairs"] + 1) // len(frames))  # pairs for a whole chunk, and some that are left
        try:
            self.detect(frames, [Prompt(VISUAL, VISUAL)] * prompts, floor=1.0)
        except ConfigError:
            raise
        except Exception as error:  # the compilers it calls fail in their own ways
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"torch cannot compile the model here ({reason}). Leave out --compile, or install a C++ compiler."
            ) from error

    @property
    def device(self) -> torch.device:
        """Return where the model computes."""
        return self.compute.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision that the image encoder computes in."""
        return self.compute.dtype

    @property
    def image_size(self) -> int:
        """Return the side of the model's input, in pixels."""
        return self.images.side

    def cost_of_size(self, checkpoint: Checkpoint) -> str:
        """Say what this input side costs, beside the checkpoint's own."""
        shape, side = EncoderShape.of(checkpoint.config), self.image_size
        work = shape.operations(side) / shape.operations(shape.side)
        memory = sum(footprint(self.model.config, self.dtype).values()) / 1e9
        return (
            f"images are shown to the model at {side} x {side} pixels instead of {shape.side} x {shape.side}: "
            f"{work:.2g} times the work to encode each, and about {memory:.2g} GB instead of "
            f"{memory * (shape.side / side) ** 2:.2g} for one image with one phrase, beside the weights"
        )

    @property
    def queries(self) -> int:
        """Return how many instances of one prompt the model can find in one image at most."""
        return int(self.model.config.detr_decoder_config.num_queries)

    @property
    def image_batch(self) -> int:
        """Return how many images are encoded together: fewer once memory ran out."""
        return self.batches["images"]

    def precision(self) -> AbstractContextManager[None]:
        """Return the context in which the head computes: its precision."""
        return self.compute.precision()

    def describe(self) -> dict[str, Any]:
        """Return everything here that changes the numbers, by name, for a run's fingerprint."""
        return {
            "checkpoint": self.identity,
            "image_size": self.image_size,
            "dtype": NAMES[self.dtype],
            "prompt_style": self.prompt_style,
            "preprocessing": PREPROCESSING,
        }

    # ---- encode

    @torch.inference_mode()
    def encode_phrases(self, phrases: Sequence[str]) -> None:
        """Encode the phrases not seen before. Raises ConfigError naming every phrase the model cannot take whole."""
        self.phrases.encode(phrases)

    def preprocess(self, frames: Sequence[Frame]) -> Tensor:
        """Return pictures as the model takes them, float32 [B, 3, X, X] on the device, resized without their aspect."""
        return self.images.preprocess(frames)

    def encode_images(self, pixels: Tensor) -> ImageState:
        """Encode preprocessed images [B, 3, X, X] once, for any number of prompts."""
        return self.images.encode(pixels)

    def encode_grid(self, pixels: Tensor) -> Tensor:
        """Return the image encoder's answer [B, V, h, w] to preprocessed images, which the tracker reads too."""
        return self.images.grid(pixels)

    def state_of_grid(self, grid: Tensor) -> ImageState:
        """Return the state of images, made of the image encoder's answer."""
        return self.images.state_of_grid(grid)

    @torch.inference_mode()
    def encode_ahead(self, frames: Sequence[Frame]) -> None:
        """Encode frames that `detect` will be given next, on CUDA beside its other work. No answer depends on it."""
        self._ahead.begin(frames[: self.image_batch])

    def _encoded(self, frames: Sequence[Frame]) -> ImageState:
        with self.clock("encode"):
            return self.encode_images(self.images.preprocess(frames, self.batches.filled("images", len(frames))))

    def _let_go(self) -> None:
        self._ahead.forget()

    @torch.inference_mode()
    def looks(self, frames: Sequence[Frame]) -> list[npt.NDArray[np.float16]]:
        """Encode images, and return what tells near-copies: features [cells, D] of each, of length 1 a cell.

        `detect` of any of these very frames does not encode them again, until the next call.
        """
        self._looked.clear()
        looks: list[npt.NDArray[np.float16]] = []

        def encode(part: slice) -> tuple[slice, ImageState]:
            return part, self._ahead.take(frames[part]) or self._encoded(frames[part])

        for part, state in self.batches.each(len(frames), "images", encode):
            coarse = state.coarse[: len(frames[part])]  # without what fills up the batch
            cells = F.normalize(F.adaptive_avg_pool2d(coarse, LOOK_GRID).flatten(2), dim=1).transpose(1, 2)
            looks += list(cells.to(torch.float16).cpu().numpy())
            self._looked += [(frame, state.of(number)) for number, frame in enumerate(frames[part])]
        return looks

    def _looked_at(self, frames: Sequence[Frame]) -> ImageState | None:
        """Return the state of frames that were all among the last `looks`."""
        states = [state for one in frames for frame, state in self._looked if frame is one]
        return ImageState.joined(states) if states and len(states) == len(frames) else None

    @torch.inference_mode()
    def encode_references(self, frames: Sequence[Frame], boxes: Sequence[BoxPrompt]) -> list[Tensor]:
        """Return tokens [N, D] of N boxes on each image, for `ReferenceTokens`: any other image can be shown them."""

        def encode(part: slice) -> list[Tensor]:
            return self.asker.encode_references(self._encoded(frames[part]).coarse[: len(boxes[part])], boxes[part])

        return [tokens for part in self.batches.each(len(frames), "images", encode) for tokens in part]

    # ---- ask and read off

    @torch.inference_mode()
    def detect(
        self,
        frames: Sequence[Frame],
        prompts: Sequence[Prompt],
        floor: float = 0.1,
        exemplars: Sequence[Mapping[str, Exemplar | None]] | None = None,
        keep_grids: bool = False,
    ) -> list[Detection]:
        """Ask every prompt of every frame, and return one Detection per frame, in order.

        `exemplars`, one mapping per frame from prompt key, are added to the prompt's words; None leaves the prompt out.
        A prompt without words is asked only where it has exemplars. Candidates have score >= `floor` and at least one
        pixel, in the order of prompts, then queries. `keep_grids` keeps what the image encoder said of each frame, for
        `Clicker.masks`. Raises ConfigError when even one image does not fit into memory.
        """
        exemplars = exemplars if exemplars is not None else [{}] * len(frames)
        nothing = Detection(np.empty(0, np.float32), ())
        if not prompts and not keep_grids:
            return [nothing for _ in frames]
        texts = self.phrases.texts(prompts) if prompts else None
        detections: list[Detection] = []

        def encode(part: slice) -> tuple[slice, ImageState]:
            known = self._looked_at(frames[part]) or self._ahead.take(frames[part])
            return part, known or self._encoded(frames[part])

        for part, state in self.batches.each(len(frames), "images", encode):
            own = frames[part]
            found = self._answer(own, state, prompts, texts, exemplars[part], floor) if texts else [nothing] * len(own)
            detections += [replace(one, grid=state.of(n).grid) for n, one in enumerate(found)] if keep_grids else found
        return detections

    @torch.inference_mode()
    def encode_frame(self, frame: Frame) -> ImageState:
        """Encode one image, for any number of `detect_in`."""
        return self._encoded([frame])

    @torch.inference_mode()
    def detect_in(self, frame: Frame, state: ImageState, prompts: Sequence[Prompt], floor: float = 0.1) -> Detection:
        """Ask prompts of an image that is encoded already: what `detect` would return of it."""
        return self._answer([frame], state, prompts, self.phrases.texts(prompts), [{}], floor)[0]

    def _answer(
        self,
        frames: Sequence[Frame],
        state: ImageState,
        prompts: Sequence[Prompt],
        texts: Texts,
        exemplars: Sequence[Mapping[str, Exemplar | None]],
        floor: float,
    ) -> list[Detection]:
        pairs = pairs_of(prompts, exemplars)
        presence = np.full((len(frames), len(prompts)), np.nan, np.float32)
        found: list[list[Candidate]] = [[] for _ in frames]
        full: list[list[str]] = [[] for _ in frames]

        def score(part: slice) -> Scored:
            with self.clock("heads"):
                return self.asker.score(state, pairs[part], texts)

        reading = self.reader.reading(state, [frame.size_hw for frame in frames], self.clock)
        for scored in one_ahead(self.batches.each(len(pairs), "pairs", score)):
            presence[[p.image for p in scored.pairs], [p.prompt for p in scored.pairs]] = scored.presence
            reading.take(scored, floor)
            for row in np.flatnonzero((scored.scores >= floor).sum(axis=1) >= enough(self.queries)).tolist():
                pair = scored.pairs[row]
                full[pair.image].append(prompts[pair.prompt].key)
        for query, instance in reading.found():
            image, prompt = query.pair.image, prompts[query.pair.prompt]
            found[image].append(candidate(frames[image], prompt, query, instance))
        return [Detection(row, tuple(own), tuple(keys)) for row, own, keys in zip(presence, found, full, strict=True)]

    @torch.inference_mode()
    def scores(
        self,
        frames: Sequence[Frame],
        prompts: Sequence[Prompt],
        exemplars: Sequence[Mapping[str, Exemplar | None]] | None = None,
    ) -> PairScores:
        """Return the head's whole answer to every prompt of every frame, image by image, in the order of the prompts.

        For those who look into the model: `detect` is this, and the masks of what is over the floor.
        """
        pairs = pairs_of(prompts, exemplars if exemplars is not None else [{}] * len(frames))
        texts, state = self.phrases.texts(prompts), self.encode_images(self.preprocess(frames))
        chunks = self.batches.each(len(pairs), "pairs", lambda part: self.asker.score(state, pairs[part], texts))
        return PairScores.joined([scored.answer.first(len(scored.scores)) for scored in chunks])

    @torch.inference_mode()
    def look(
        self,
        state: ImageState,
        prompts: Sequence[Prompt],
        threshold: float,
        exemplars: Mapping[str, Exemplar | None] = MappingProxyType({}),
    ) -> list[Seen]:
        """Ask every prompt of one encoded image, and return per prompt its queries that score over `threshold`.

        `exemplars` as of `detect`, for this image.
        """
        return self.seen(self.ask(state, prompts, exemplars), threshold)

    @torch.inference_mode()
    def ask(self, state: ImageState, prompts: Sequence[Prompt], exemplars: Mapping[str, Exemplar | None]) -> Looking:
        """Begin what `look` does, which `seen` ends. Waits for nothing but the library's encoding of exemplars."""
        if not prompts:
            return Looking(state, 0, iter(()))
        texts, pairs = self.phrases.texts(prompts), pairs_of(prompts, [exemplars])

        def score(part: slice) -> Scored:
            return self.asker.score(state, pairs[part], texts)

        chunks = self.batches.each(len(pairs), "pairs", score)
        begun = list(islice(chunks, BEGUN if self.device.type == "cuda" else 0))
        return Looking(state, len(prompts), chain(begun, chunks))

    @torch.inference_mode()
    def seen(self, asked: Looking, threshold: float) -> list[Seen]:
        """Return per prompt its queries that score over `threshold`, where that has not been asked before."""
        skips = Skips(self.head, self.compute, asked.state)
        seen = {number: Seen(math.nan, *self._nothing()) for number in range(asked.prompts)}
        for scored in asked.chunks:
            row, query = np.nonzero(scored.scores > threshold)
            scores, masks, boxes = self._nothing()
            if len(row):
                masks = self.reader.logits(scored, row, query, skips.of(0))
                at = self.compute.send(row), self.compute.send(query)
                scores, boxes = scored.answer.scores[at], scored.answer.boxes_xyxy[at]
            ends = np.searchsorted(row, np.arange(len(scored.pairs) + 1)).tolist()
            for pair, presence, start, stop in zip(scored.pairs, scored.presence, ends, ends[1:], strict=False):
                own = slice(start, stop)
                seen[pair.prompt] = Seen(float(presence), scores[own], masks[own], boxes[own])
        return list(seen.values())

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, masks and boxes of no candidate."""
        sides = (0,), (0, 4 * self.head.grid, 4 * self.head.grid), (0, 4)
        scores, masks, boxes = (torch.empty(side, device=self.device) for side in sides)
        return scores, masks, boxes

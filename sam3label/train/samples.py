"""What a model is tuned on: photos with the answers that people gave, and the questions that labelling would ask.

A step's batch is a pure function of the samples, the seed and the step's number, so that a training that was killed
goes on with the very numbers it would have had.

Shape legend: H x W pixels of the photo, X the model's input side, N objects of a photo, F cells a side of the masks
that are compared, B images, P image-prompt pairs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam3label.core import masks
from sam3label.media.image import decode_image, megapixels
from sam3label.model.encode import VISUAL, shrink
from sam3label.model.phrases import as_read
from sam3label.train.detector import PAD, Batch
from sam3label.train.pasting import pasted, rarity
from sam3label.train.taught import LEAST_LEFT, PhraseAnswer, TaughtPhoto, TruthObject, Window, around, is_sided

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # phrases -> ids [U, length], mask [U, length]
Rng = np.random.Generator

MOST_EXEMPLARS = 3
CLOSEST = 0.7  # side of the smallest crop, of the photo's
_TRIES = 8  # at a crop that cuts no object too much
REHEARSED = 0.5  # photos that are rehearsed, for each that is taught
PASTED = 0.7  # share of views with objects of another photo
LARGE = 2.0  # a photo's shorter side by the model's: beyond, crops are cut from a copy as large as the closest need
_CACHE = 256 << 20  # bytes of decoded photos that are kept


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch with what fine-tuning needs beside it."""

    batch: Batch
    denied: Tensor  # bool [P]
    has_mask: tuple[Tensor, ...]  # B times bool [N_b]
    unsure: tuple[Tensor, ...]  # P times the instances of its image that may answer the prompt

    def to(self, device: torch.device) -> Lesson:
        """Return the same on another device."""
        moved = (tuple(row.to(device) for row in rows) for rows in (self.has_mask, self.unsure))
        return Lesson(self.batch.to(device), self.denied.to(device), *moved)


@dataclass(frozen=True, slots=True)
class _View:
    """A photo as one step shows it: pixels [3, X, X], boxes [N, 4] cxcywh, masks [N, F, F] in [0, 1], what is known."""

    pixels: Tensor
    boxes: Tensor
    masks: Tensor
    has_mask: Tensor
    questions: tuple[PhraseAnswer, ...]


class Teacher:
    """Makes the batches of a training, and those that it is examined with.

    Beside every two samples a step shows one that is `rehearsed`: into those nothing is pasted.
    """

    def __init__(
        self,
        samples: Sequence[TaughtPhoto],
        tokenize: Tokenize,
        side: int,
        *,
        images: int = 8,
        pairs_an_image: int = 10,
        cells: int = 128,
        seed: int = 0,
        varied: bool = True,
        rehearsed: Sequence[TaughtPhoto] = (),
    ) -> None:
        self.samples, self.rehearsed, self._tokenize, self.side = samples, rehearsed, tokenize, side
        self.images, self.pairs_an_image, self.cells = min(images, len(samples)), pairs_an_image, cells
        self.seed, self.varied = seed, varied
        self._rarity = rarity(samples)
        odds = np.array([own.sum() for own in self._rarity])
        self._odds = odds / max(odds.sum(), 1e-9)
        self._decoded: dict[str, tuple[TaughtPhoto, npt.NDArray[np.uint8]]] = {}
        self._kept = 0

    @property
    def digest(self) -> str:
        """What tells these samples and this way of showing them from others."""
        whole = hashlib.sha256(repr((self.side, self.images, self.pairs_an_image, self.cells, self.seed)).encode())
        for sample in (*self.samples, *self.rehearsed):
            whole.update(repr((sample.item.id, sample.size_hw, sample.objects, sample.questions)).encode())
            for one in sample.objects:
                whole.update(one.rle.counts if one.rle else b"box")
        return whole.hexdigest()[:16]

    @property
    def photos_a_step(self) -> int:
        """How many photos a step shows, those that are rehearsed among them."""
        return self.images + self._rehearsed_a_step

    @property
    def _rehearsed_a_step(self) -> int:
        return min(math.ceil(REHEARSED * self.images), len(self.rehearsed))

    def lesson(self, step: int) -> list[Lesson]:
        """Return the step's images one by one, for whoever runs them together: `joined`."""
        rng = np.random.default_rng((self.seed, 1, step))
        taught = _in_turn(len(self.samples), self.images, step, (self.seed, 0))
        rehearsed = _in_turn(len(self.rehearsed), self._rehearsed_a_step, step, (self.seed, 2))
        return [
            *(self._lesson(self.samples[number], rng) for number in taught),
            *(self._lesson(self.rehearsed[number], rng, pasting=False) for number in rehearsed),
        ]

    def exam(self, number: int) -> Lesson:
        """Return one sample as it is, with every question."""
        sample = self.samples[number]
        return self._made(self._view(sample, _decode(sample), None, False, sample.questions), None)

    def _lesson(self, sample: TaughtPhoto, rng: Rng, pasting: bool = True) -> Lesson:
        if not self.varied:
            questions = _chosen(sample.questions, self.pairs_an_image, rng)
            return self._made(self._view(sample, _decode(sample), None, False, questions), rng)
        sample, photo = self._reduced(sample)
        if pasting and rng.random() < PASTED and self._odds.any():
            number = int(rng.choice(len(self.samples), p=self._odds))
            other, from_photo = self._reduced(self.samples[number])
            sample, photo = pasted(sample, photo, other, from_photo, self._rarity[number], rng)
        questions = _chosen(sample.questions, self.pairs_an_image, rng)
        mirrored = bool(rng.random() < 0.5) and not any(is_sided(q.phrase) for q in questions)
        return self._made(self._view(sample, photo, _window(sample.objects, rng), mirrored, questions), rng)

    def _view(
        self,
        sample: TaughtPhoto,
        photo: npt.NDArray[np.uint8],
        window: Window | None,
        mirrored: bool,
        questions: tuple[PhraseAnswer, ...],
    ) -> _View:
        x1, y1, x2, y2 = window or (0.0, 0.0, 1.0, 1.0)
        height, width = sample.size_hw
        left, right = round(x1 * width), max(round(x2 * width), round(x1 * width) + 1)
        top, bottom = round(y1 * height), max(round(y2 * height), round(y1 * height) + 1)
        part = np.ascontiguousarray(photo[top:bottom, left:right][:, :: -1 if mirrored else 1])
        pixels = shrink(torch.from_numpy(part), self.side, torch.device("cpu"))[0]
        pixels = pixels.round_().sub_(127.5).mul_(1 / 127.5)
        boxes, shown, kept = [], [], []
        for number, one in enumerate(sample.objects):
            box = _cut(one.box_xyxy, (left / width, top / height, right / width, bottom / height))
            part_of = None if one.rle is None else masks.decode(one.rle)[top:bottom, left:right]
            if box is None or (part_of is not None and not part_of.any()):
                continue
            kept.append(number)
            box = box if part_of is None else around(part_of)
            boxes.append(_mirrored(box) if mirrored else box)
            shown.append(self._mask(part_of, mirrored))
        place = {number: i for i, number in enumerate(kept)}

        def seen(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(place[number] for number in numbers if number in place)

        return _View(
            pixels,
            torch.tensor([_cxcywh(box) for box in boxes], dtype=torch.float32).reshape(-1, 4),
            torch.from_numpy(np.stack(shown)).float() / 255 if shown else torch.zeros(0, self.cells, self.cells),
            torch.tensor([sample.objects[number].rle is not None for number in kept], dtype=torch.bool),
            tuple(replace(q, answer=seen(q.answer), unsure=seen(q.unsure)) for q in questions),
        )

    def _mask(self, part: masks.Mask | None, mirrored: bool) -> npt.NDArray[np.uint8]:
        """Return how much of each cell a mask covers, 0 to 255; nothing where it is not known."""
        if part is None:
            return np.zeros((self.cells, self.cells), np.uint8)
        filled = part[:, :: -1 if mirrored else 1].astype(np.uint8) * 255
        return np.asarray(cv2.resize(filled, (self.cells, self.cells), interpolation=cv2.INTER_AREA), np.uint8)

    def _reduced(self, sample: TaughtPhoto) -> tuple[TaughtPhoto, npt.NDArray[np.uint8]]:
        """Return a photo to cut views from, with its outlines; those that were read lately are kept."""
        found = self._decoded.get(sample.item.path)
        if found is None:
            photo = _decode(sample)
            if min(sample.size_hw) > LARGE * self.side:
                sample, photo = smaller(sample, photo, self.side / CLOSEST / min(sample.size_hw))
            found = sample, photo
            if self._kept + photo.nbytes > _CACHE:
                self._decoded.clear()
                self._kept = 0
            self._decoded[sample.item.path] = found
            self._kept += photo.nbytes
        return found

    def _made(self, view: _View, rng: Rng | None) -> Lesson:
        questions = view.questions
        guides = [_guides(q, view, rng) for q in questions]
        most = max(1, *(len(guide) for guide in guides)) if guides else 1
        exemplars = torch.zeros(len(questions), most, 4)
        labels = torch.full((len(questions), most), PAD)
        for row, guide in enumerate(guides):
            for column, number in enumerate(guide):
                exemplars[row, column], labels[row, column] = view.boxes[number], 1
        phrases = list(dict.fromkeys(_text(q) for q in questions))
        ids, valid = self._tokenize(phrases)
        batch = Batch(
            pixels=view.pixels[None],
            token_ids=ids,
            token_mask=valid,
            image_of=torch.zeros(len(questions), dtype=torch.long),
            phrase_of=torch.tensor([phrases.index(_text(q)) for q in questions], dtype=torch.long),
            exemplars=exemplars,
            exemplar_labels=labels,
            instance_boxes=(view.boxes,),
            instance_masks=(view.masks,),
            targets=tuple(torch.tensor(q.answer, dtype=torch.long) for q in questions),
        )
        denied = torch.tensor([q.denied for q in questions], dtype=torch.bool)
        unsure = tuple(torch.tensor(q.unsure, dtype=torch.long) for q in questions)
        return Lesson(batch, denied, (view.has_mask,), unsure)


def _in_turn(count: int, images: int, step: int, seed: tuple[int, int]) -> list[int]:
    """Return the numbers that a step shows of `count`: every one once an epoch, in another order each."""
    places = range(step * images, (step + 1) * images)
    orders = {epoch: np.random.default_rng((*seed, epoch)).permutation(count) for epoch in
              {place // count for place in places}}  # fmt: skip
    return [int(orders[place // count][place % count]) for place in places]


def _decode(sample: TaughtPhoto) -> npt.NDArray[np.uint8]:
    """Return the photo as labelling decodes it."""
    return decode_image(sample.item.path, megapixels(sample.size_hw) + 1)


def smaller(
    sample: TaughtPhoto, photo: npt.NDArray[np.uint8], scale: float
) -> tuple[TaughtPhoto, npt.NDArray[np.uint8]]:
    """Return a photo and its outlines reduced."""
    height, width = (math.ceil(side * scale) for side in sample.size_hw)

    def reduced(one: TruthObject) -> TruthObject:
        if one.rle is None:
            return one
        covered = cv2.resize(
            masks.decode(one.rle).astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA
        )
        half = covered >= 128
        return replace(one, rle=masks.encode(half if half.any() else covered > 0))  # thin things are kept whole

    objects = tuple(reduced(one) for one in sample.objects)
    pixels = np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return replace(sample, size_hw=(height, width), objects=objects), pixels


def joined(lessons: Sequence[Lesson]) -> Lesson:
    """Return lessons of single images as one, exemplars and phrases padded to the longest."""
    parts = [lesson.batch for lesson in lessons]
    length = max(part.token_ids.shape[1] for part in parts)
    most = max(part.exemplars.shape[1] for part in parts)
    before = np.cumsum([0, *(len(part.token_ids) for part in parts)]).tolist()
    batch = Batch(
        pixels=torch.cat([part.pixels for part in parts]),
        token_ids=torch.cat([_padded(part.token_ids, length, 0) for part in parts]),
        token_mask=torch.cat([_padded(part.token_mask, length, 0) for part in parts]),
        image_of=torch.cat([part.image_of + number for number, part in enumerate(parts)]),
        phrase_of=torch.cat([part.phrase_of + start for part, start in zip(parts, before, strict=False)]),
        exemplars=torch.cat([_padded(part.exemplars, most, 0) for part in parts]),
        exemplar_labels=torch.cat([_padded(part.exemplar_labels, most, PAD) for part in parts]),
        instance_boxes=tuple(boxes for part in parts for boxes in part.instance_boxes),
        instance_masks=tuple(shown for part in parts for shown in part.instance_masks),
        targets=tuple(target for part in parts for target in part.targets),
    )
    denied = torch.cat([lesson.denied for lesson in lessons])
    return Lesson(
        batch,
        denied,
        tuple(row for lesson in lessons for row in lesson.has_mask),
        tuple(row for lesson in lessons for row in lesson.unsure),
    )


def tokenizing(tokenizer: Any) -> Tokenize:
    """Return how a checkpoint's tokenizer reads phrases, repaired as labelling repairs them."""

    def tokenize(phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        coded = tokenizer([as_read(phrase) for phrase in phrases], return_tensors="pt", padding=True)
        return coded.input_ids, coded.attention_mask

    return tokenize


def _padded(rows: Tensor, length: int, value: int) -> Tensor:
    """Lengthen dimension 1 with a value."""
    missing = length - rows.shape[1]
    return torch.cat([rows, rows.new_full((len(rows), missing, *rows.shape[2:]), value)], 1) if missing else rows


def _text(question: PhraseAnswer) -> str:
    return question.phrase or VISUAL


def _chosen(questions: tuple[PhraseAnswer, ...], most: int, rng: Rng) -> tuple[PhraseAnswer, ...]:
    """Return at most so many questions, a third of them about what is not there, where there are such."""
    there = [q for q in questions if q.answer]
    absent = [q for q in questions if not q.answer]
    for some in (there, absent):
        rng.shuffle(some)
    few = min(len(absent), max(most // 3, most - len(there)))
    return (*there[: most - few], *absent[:few])


def _window(objects: Sequence[TruthObject], rng: Rng) -> Window | None:
    """Return a crop that leaves of each object nothing or most of it; None shows the whole photo."""
    if rng.random() < 0.3:
        return None
    for _ in range(_TRIES):
        side = rng.uniform(CLOSEST, 1.0, 2)
        x, y = rng.uniform(0, 1 - side)
        window = float(x), float(y), float(x + side[0]), float(y + side[1])
        if all(_left(one.box_xyxy, window) == 0 or _left(one.box_xyxy, window) >= LEAST_LEFT for one in objects):
            return window
    return None


def _left(box: Window, window: Window) -> float:
    """Return how much of a box lies in the window."""
    width = min(box[2], window[2]) - max(box[0], window[0])
    height = min(box[3], window[3]) - max(box[1], window[1])
    area = max((box[2] - box[0]) * (box[3] - box[1]), 1e-12)
    return max(width, 0.0) * max(height, 0.0) / area


def _cut(box: Window, window: Window) -> Window | None:
    """Return the box in coordinates of the window, cut to it; None outside."""
    wide, high = window[2] - window[0], window[3] - window[1]
    x1, x2 = ((min(max(x, window[0]), window[2]) - window[0]) / wide for x in (box[0], box[2]))
    y1, y2 = ((min(max(y, window[1]), window[3]) - window[1]) / high for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 - x1 > 1e-6 and y2 - y1 > 1e-6 else None


def _mirrored(box: Window) -> Window:
    return 1 - box[2], box[1], 1 - box[0], box[3]


def _cxcywh(box: Window) -> Window:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def _guides(question: PhraseAnswer, view: _View, rng: Rng | None) -> tuple[int, ...]:
    """Return objects to show as exemplars: up to three of the answer, every other time where there are words too."""
    if not question.guided or not question.answer or rng is None:
        return ()
    if question.phrase is not None and rng.random() < 0.5:
        return ()
    count = int(rng.integers(1, min(MOST_EXEMPLARS, len(question.answer)) + 1))
    return tuple(int(n) for n in rng.choice(np.array(question.answer), count, replace=False))

"""What a training takes, before it begins: the weights that are trained, the memory by what holds it, and the time.

Memory is counted on one step of one image that is not applied: every tensor kept for the way back, once each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sam3label.train.samples import Lesson
from sam3label.train.tuning import StepTotals, Tuner

_ADAM = 3  # numbers kept for each that is trained: its gradient and AdamW's two averages
_AVERAGE = 1  # and its moving average


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes of the model, of training it, and of what one image keeps for the way back; seconds of an image's step."""

    trained: int  # how many numbers are trained
    of_all: int
    model_bytes: int
    training_bytes: int
    image_bytes: int
    image_seconds: float

    def bytes_for(self, images: int) -> int:
        """Return the peak of a step whose images go through the model so many at once."""
        return self.model_bytes + self.training_bytes + images * self.image_bytes


def measure(tuner: Tuner) -> Costs:
    """Run one image forth and back, and count; and again, by the clock."""
    lessons = tuner.teacher.lesson(0)[:1]
    parameters = list(tuner.model.parameters())
    trained = sum(value.numel() for value in tuner.trained.values())
    own = sum(value.numel() * value.element_size() for value in tuner.trained.values())
    kept = _kept(tuner, lessons)
    return Costs(
        trained,
        sum(value.numel() for value in parameters),
        sum(value.numel() * value.element_size() for value in parameters),
        (_ADAM + _AVERAGE) * own,
        kept,
        _seconds(tuner, lessons),
    )


def _kept(tuner: Tuner, lessons: list[Lesson]) -> int:
    """Return the bytes that are kept for the way back, parameters aside."""
    mine = {value.untyped_storage().data_ptr() for value in (*tuner.model.parameters(), *tuner.model.buffers())}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _forth_and_back(tuner, lessons)
    return sum(held.values())


def _seconds(tuner: Tuner, lessons: list[Lesson]) -> float:
    """Return how long it takes forth and back, once everything has run before."""
    begun = time.perf_counter()
    _forth_and_back(tuner, lessons)
    return time.perf_counter() - begun


def _forth_and_back(tuner: Tuner, lessons: list[Lesson]) -> None:
    parts = tuner.losses(lessons, StepTotals.of(lessons))
    torch.autograd.backward(torch.stack(list(parts.values())).sum())
    gradients = [value.grad for value in tuner.trained.values() if value.grad is not None]
    float(gradients[0].sum())  # waits for the device
    tuner.optimizer.zero_grad(set_to_none=True)

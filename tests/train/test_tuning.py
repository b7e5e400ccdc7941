"""Fine-tuning: what is trained and what is not, micro-batches, phrases that are denied, boxes alone, going on, ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sam3label.core import masks
from sam3label.core.records import MediaItem
from sam3label.errors import TuningStoppedError
from sam3label.model.checkpoint import resolve
from sam3label.model.weights import load_model, load_tokenizer
from sam3label.train import costs, loop, samples
from sam3label.train.methods import METHODS, Method, learned
from sam3label.train.samples import Teacher, joined, tokenizing
from sam3label.train.taught import PhraseAnswer, TaughtPhoto, TruthObject, around
from sam3label.train.tuning import StepTotals, Tuner, Tuning, answer, loss_parts, masked_pairs

SIZE = (60, 80)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(folder: Path, number: int) -> MediaItem:
    path = folder / f"{number}.png"
    if not path.exists():
        image = np.random.default_rng(number).integers(60, 90, (*SIZE, 3), dtype=np.uint8)
        cv2.rectangle(image, (10 + number, 10), (30 + number, 40), (20, 20, 220), -1)
        cv2.imwrite(str(path), image)
    return MediaItem(f"{number}.png", str(path))


def sample(folder: Path, number: int, *, box_only: bool = False) -> TaughtPhoto:
    mask = np.zeros(SIZE, np.bool_)
    mask[10:41, 10 + number : 31 + number] = True
    box = ((10 + number) / 80, 10 / 60, (31 + number) / 80, 41 / 60)
    known = TruthObject(box, None if box_only else masks.encode(mask))
    questions = (PhraseAnswer("red box", (0,)), PhraseAnswer("helmet"), PhraseAnswer("cup", (0,), denied=True))
    return TaughtPhoto(photo(folder, number), SIZE, (known,), questions)


def teacher(folder: Path, checkpoint: Path, images: int = 2, **ways: Any) -> Teacher:
    tokenize = tokenizing(load_tokenizer(resolve(str(checkpoint))))
    return Teacher([sample(folder, n) for n in range(3)], tokenize, 224, images=images, cells=32, **ways)


def tuner(folder: Path, checkpoint: Path, method: Method = "lora", **how: Any) -> Tuner:
    model = load_model(resolve(str(checkpoint)))
    return Tuner(model, teacher(folder, checkpoint), Tuning(method=method, rank=2, steps=8, precision="fp32", **how))


def large(folder: Path) -> TaughtPhoto:
    """A photo of four times the model's side, with a box, and a line that is a pixel wide."""
    size = (900, 1200)
    pixels = np.full((*size, 3), 70, np.uint8)
    cv2.rectangle(pixels, (300, 200), (599, 499), (20, 20, 220), -1)
    cv2.imwrite(str(folder / "large.png"), cv2.GaussianBlur(pixels, (0, 0), 6))
    box, line = np.zeros((2, *size), np.bool_)
    box[200:500, 300:600], line[100:800, 900] = True, True
    known = tuple(TruthObject(around(mask), masks.encode(mask)) for mask in (box, line))
    item = MediaItem("large.png", str(folder / "large.png"))
    return TaughtPhoto(item, size, known, (PhraseAnswer("red box", (0,)), PhraseAnswer("line", (1,))))


def test_views_of_a_large_photo_are_cut_from_it_reduced(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize = tokenizing(load_tokenizer(resolve(str(tiny_checkpoint))))
    ways: dict[str, Any] = {"images": 1, "cells": 32}
    monkeypatch.setattr(samples, "PASTED", 0.0)
    made: list[tuple[TaughtPhoto, Any]] = []
    smaller = samples.smaller
    monkeypatch.setattr(samples, "smaller", lambda *given: made.append(smaller(*given)) or made[-1])
    reduced = Teacher([large(tmp_path)], tokenize, 224, **ways)
    views = [reduced.lesson(step)[0].batch for step in range(6)]
    ((kept, pixels),) = made  # once
    assert kept.size_hw == pixels.shape[:2] == (320, 427) and min(kept.size_hw) * samples.CLOSEST >= 224
    monkeypatch.setattr(samples, "LARGE", 9.0)
    whole = Teacher([large(tmp_path)], tokenize, 224, **ways)
    for step, view in enumerate(views):
        other = whole.lesson(step)[0].batch
        assert [t.tolist() for t in view.targets] == [t.tolist() for t in other.targets]
        torch.testing.assert_close(view.instance_boxes[0], other.instance_boxes[0], atol=0.01, rtol=0)
        assert (view.pixels - other.pixels).abs().max() < 0.1  # of 2
        assert (view.instance_masks[0] - other.instance_masks[0]).abs().mean() < 0.02
        assert len(view.instance_boxes[0]) == 2  # the line, too
    exam = reduced.exam(0).batch.pixels
    monkeypatch.setattr(samples, "LARGE", 2.0)
    assert torch.equal(exam, Teacher([large(tmp_path)], tokenize, 224, **ways).exam(0).batch.pixels)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_only_where_they_belong(method: Method, tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = tuner(tmp_path, tiny_checkpoint, method)
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    for _ in range(2):  # an adapter's first half has no gradient while its second is zero
        made.step()
    changed = {name for name, value in made.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed <= set(made.trained)
    assert not any(name.startswith("text_encoder") for name in changed)
    frozen = [value for name, value in made.model.named_parameters() if name not in made.trained]
    assert all(value.grad is None for value in frozen)
    adapters = {name for name in changed if "lora_" in name}
    assert any("presence_head" in name for name in changed)
    if method == "lora":
        assert {name.split(".")[0] for name in adapters} == {"vision_encoder", "detr_encoder", "detr_decoder"}
    else:
        assert not adapters
    assert ("vision_encoder" in {name.split(".")[0] for name in changed}) == (method != "heads")


def test_how_many_images_go_together_changes_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    whole, parted = (tuner(tmp_path, tiny_checkpoint) for _ in range(2))
    parted.together = 1
    lessons = whole.teacher.lesson(0)
    totals = StepTotals.of(lessons)
    together = whole.losses(lessons, totals)
    apart = [parted.losses([lesson], totals, start) for start, lesson in enumerate(lessons)]
    for name in ("classification", "presence", "box", "giou", "denied", "semantic"):
        added = sum(float(part[name].detach()) for part in apart)
        assert added == pytest.approx(float(together[name].detach()), rel=1e-4), name


def test_fewer_images_go_together_where_memory_runs_out(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuner(tmp_path, tiny_checkpoint)
    own = Tuner.losses

    def short(self: Tuner, lessons: Any, totals: StepTotals, start: int = 0) -> Any:
        if len(lessons) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, lessons, totals, start)

    monkeypatch.setattr(Tuner, "losses", short)
    assert made.step()["total"] > 0
    assert made.together == 1


def test_a_denied_phrase_pushes_down_answers_on_its_objects_and_says_nothing_of_presence(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    made = tuner(tmp_path, tiny_checkpoint)
    lesson = made.teacher.exam(0)
    assert lesson.denied.tolist() == [False, False, True]
    totals = StepTotals.of([lesson])
    assert (totals.objects, totals.pairs, totals.denied) == (1, 2, 1)
    outputs, presence = answer(made.model, lesson, masked_pairs(lesson))
    presence = presence.detach().requires_grad_()
    box = torch.tensor(lesson.batch.instance_boxes[0][0].tolist()).expand_as(outputs.boxes).clone()
    logits = torch.zeros_like(outputs.logits, requires_grad=True)
    there = replace(outputs, boxes=box, logits=logits)
    parts = loss_parts(there, presence, lesson, masked_pairs(lesson), totals, made.tuning.weights, torch.Generator())
    assert float(parts["denied"].detach()) > 0
    parts["denied"].backward()
    assert logits.grad is not None
    assert float(logits.grad[:, :2].abs().sum()) == 0
    assert float(logits.grad[:, 2].sum()) > 0  # down
    (gradient,) = torch.autograd.grad(parts["presence"], presence)
    assert float(gradient[:, 2].abs().sum()) == 0
    assert float(gradient[:, :2].abs().min()) > 0


def test_of_what_is_unsure_nothing_is_learned(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = tuner(tmp_path, tiny_checkpoint)
    known = sample(tmp_path, 0)
    beside = TruthObject((0.7, 0.7, 0.9, 0.9), None)
    objects = (*known.objects, beside)

    def gradient(*questions: PhraseAnswer) -> torch.Tensor:
        """Of the scores, where half of the answers are about the one object, and half about the other."""
        tokenize = tokenizing(load_tokenizer(resolve(str(tiny_checkpoint))))
        lesson = Teacher([replace(known, objects=objects, questions=questions)], tokenize, 224, cells=32).exam(0)
        totals = StepTotals.of([lesson])
        outputs, presence = answer(made.model, lesson, masked_pairs(lesson))
        boxes = outputs.boxes.detach().clone()
        half = boxes.shape[2] // 2
        boxes[:, :, :half], boxes[:, :, half:] = lesson.batch.instance_boxes[0]
        logits = torch.zeros_like(outputs.logits, requires_grad=True)
        parts = loss_parts(replace(outputs, boxes=boxes, logits=logits), presence, lesson, masked_pairs(lesson), totals,
                           made.tuning.weights, torch.Generator())  # fmt: skip
        parts["classification"].backward()
        assert ("semantic" in parts and float(parts["semantic"].detach()) > 0) != any(q.unsure for q in questions)
        assert logits.grad is not None
        return torch.stack((logits.grad[:, 0, :half].abs().sum(), logits.grad[:, 0, half:].abs().sum()))

    sure, unsure = gradient(PhraseAnswer("red box", (0,))), gradient(PhraseAnswer("red box", (0,), unsure=(1,)))
    assert float(sure[0]) == float(unsure[0]) > 0
    assert float(sure[1]) > float(unsure[1]) == 0


def test_objects_with_boxes_alone_have_no_mask_losses(tmp_path: Path, tiny_checkpoint: Path) -> None:
    tokenize = tokenizing(load_tokenizer(resolve(str(tiny_checkpoint))))
    made = tuner(tmp_path, tiny_checkpoint)
    made.teacher = Teacher([sample(tmp_path, 0, box_only=True)], tokenize, 224, cells=32)
    told = made.step()
    assert told["box"] > 0
    assert not [name for name in told if name.startswith(("mask", "semantic"))]


def test_views_keep_boxes_around_their_masks(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = teacher(tmp_path, tiny_checkpoint, seed=3)
    for step in range(12):
        for lesson in made.lesson(step):
            (boxes,), (shown,) = lesson.batch.instance_boxes, lesson.batch.instance_masks
            for box, mask in zip(boxes, shown, strict=True):
                rows, columns = torch.where(mask.amax(1) > 0.5)[0], torch.where(mask.amax(0) > 0.5)[0]
                drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                given = (box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2)
                assert all(abs(float(a) / 32 - float(b)) < 1.5 / 32 for a, b in zip(drawn, given, strict=True))


def test_every_photo_is_seen_once_an_epoch_and_each_step_is_the_same_again(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    made = teacher(tmp_path, tiny_checkpoint, images=3)
    first, again = joined(made.lesson(4)), joined(teacher(tmp_path, tiny_checkpoint, images=3).lesson(4))
    assert torch.equal(first.batch.pixels, again.batch.pixels)
    assert len({float(image.sum()) for image in first.batch.pixels}) == 3


def test_what_is_rehearsed_is_shown_beside_and_each_step_is_the_same_again(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Teacher:
        return teacher(tmp_path, tiny_checkpoint, rehearsed=[sample(tmp_path, n) for n in (3, 4, 5)])

    alone, beside = teacher(tmp_path, tiny_checkpoint), made()
    assert (alone.photos_a_step, beside.photos_a_step) == (2, 3)
    assert alone.digest != beside.digest == made().digest
    shown, into = list[str](), list[str]()
    decode, paste = samples.decode_image, samples.pasted
    monkeypatch.setattr(samples, "decode_image", lambda path, most: shown.append(Path(path).name) or decode(path, most))
    monkeypatch.setattr(samples, "pasted", lambda *given: into.append(given[0].item.id) or paste(*given))
    for step in range(6):
        lessons, again = beside.lesson(step), made().lesson(step)
        assert all(torch.equal(one.batch.pixels, two.batch.pixels) for one, two in zip(lessons, again, strict=True))
        taught = alone.lesson(step)
        assert [one.batch.pixels.sum() for one in taught] == [one.batch.pixels.sum() for one in lessons[:2]]
    assert {"3.png", "4.png", "5.png"} <= set(shown) and into
    assert set(into) <= {"0.png", "1.png", "2.png"}  # nothing is pasted into what is rehearsed


def test_presence_learns_where_the_library_cuts_it_off(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = tuner(tmp_path, tiny_checkpoint, "heads")
    with torch.no_grad():
        made.model.detr_decoder.presence_head.layer3.bias.fill_(-30.0)
    made.step()
    gradient = made.model.detr_decoder.presence_head.layer3.bias.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_it_learns(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = load_model(resolve(str(tiny_checkpoint)))
    made = Tuner(model, teacher(tmp_path, tiny_checkpoint, varied=False), Tuning(steps=25, rate=5e-3, precision="fp32"))
    exam = [made.teacher.exam(0)]
    before = made.examine(exam)["total"]
    for _ in range(20):
        made.step()
    assert made.examine(exam)["total"] < 0.7 * before


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = tuner(tmp_path, tiny_checkpoint)
    good = {name: value.clone() for name, value in made.averaged.items()}
    with torch.no_grad():
        made.model.detr_decoder.presence_head.layer3.bias.fill_(float("nan"))
    with pytest.raises(TuningStoppedError, match=r"the loss of step 1 is no number: a lower --rate is steadier"):
        made.step()
    assert all(torch.equal(value, good[name]) for name, value in made.averaged.items())


def test_a_loss_that_grows_ends_it(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner(tmp_path, tiny_checkpoint)
    made.tuning = Tuning(steps=400)
    made.steps, made.first, made.smooth = 100, 1.0, 2.99
    first = next(iter(made.trained.values()))
    monkeypatch.setattr(Tuner, "losses", lambda *_: {"box": first.sum() * 0 + 9.0})
    with pytest.raises(TuningStoppedError, match=r"the loss grew from 1 to 3.29 by step 101"):
        made.step()


def test_costs_are_counted_before_it_begins(tmp_path: Path, tiny_checkpoint: Path) -> None:
    spent = {method: costs.measure(tuner(tmp_path, tiny_checkpoint, method)) for method in METHODS}
    assert spent["heads"].image_bytes < spent["lora"].image_bytes <= spent["full"].image_bytes
    assert spent["heads"].training_bytes < spent["full"].training_bytes
    again = costs.measure(tuner(tmp_path, tiny_checkpoint, recompute=True))
    assert again.image_bytes < 0.8 * spent["lora"].image_bytes


def test_computing_again_gives_the_same_gradients(tmp_path: Path, tiny_checkpoint: Path) -> None:
    kept, again = tuner(tmp_path, tiny_checkpoint), tuner(tmp_path, tiny_checkpoint, recompute=True)
    assert kept.step() == pytest.approx(again.step(), rel=1e-5)
    for name, value in kept.trained.items():
        assert torch.allclose(value, again.trained[name], atol=1e-6), name


# ---- the loop

SETTINGS = {"photos": "three"}


def trained_in(folder: Path, photos: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    made = tuner(photos, checkpoint)
    made.teacher = teacher(photos, checkpoint, rehearsed=[sample(photos, n) for n in (3, 4, 5)])
    exams = [made.teacher.exam(0)]
    return dict(loop.run(made, exams, folder, SETTINGS, saved_every=2).whole)


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / loop.LOG).read_text().splitlines()]


KILLED = """
import sys, torch
sys.path[:0] = {path!r}
torch.set_num_threads(1)
from pathlib import Path
from train.test_tuning import trained_in
trained_in(Path({folder!r}), Path({photos!r}), Path({checkpoint!r}))
"""


def test_it_goes_on_after_a_kill_with_the_same_curve(tmp_path: Path, tiny_checkpoint: Path) -> None:
    photos, whole, killed = tmp_path / "photos", tmp_path / "whole", tmp_path / "killed"
    photos.mkdir()
    expected = trained_in(whole, photos, tiny_checkpoint)
    path = [entry for entry in sys.path if entry]
    code = KILLED.format(path=path, folder=str(killed), photos=str(photos), checkpoint=str(tiny_checkpoint))
    process = subprocess.Popen([sys.executable, "-c", code])
    log = killed / loop.LOG
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 5):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert curve(killed)[-1]["step"] < 8 or process.returncode == 0
    with log.open("a") as file:
        file.write('{"step": 7, "ki')  # a line that was being written
    got = trained_in(killed, photos, tiny_checkpoint)
    assert curve(killed) == curve(whole)
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    assert list((killed / loop.BOARD).iterdir())


def test_other_settings_and_a_damaged_state_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from sam3label.errors import OutputError

    made = tuner(tmp_path, tiny_checkpoint)
    loop.save(made, tmp_path, {"photos": "others", "base": "b"})
    with pytest.raises(OutputError, match=r"begun with other settings \(photos\)\. The same settings go on"):
        loop.resume(made, tmp_path, {"photos": "these", "base": "b"})
    (tmp_path / loop.STATE).write_bytes(b"PK half a file")
    with pytest.raises(OutputError, match=r"state\.pt is damaged: remove .* to begin anew"):
        loop.resume(made, tmp_path, {})


def test_what_was_learned_is_adapters_and_heads(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = learned({name: value.detach() for name, value in tuner(tmp_path, tiny_checkpoint).trained.items()})
    assert "detr_encoder.layers.0.cross_attn.q_proj.weight" in found.low_rank
    a, b = found.low_rank["detr_encoder.layers.0.cross_attn.q_proj.weight"]
    assert a.shape[0] == b.shape[1] == 2
    assert "dot_product_scoring.text_proj.weight" in found.whole

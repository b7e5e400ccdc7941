"""What runs on CUDA only, on a pretend device: no error, no race, no wait that nobody meant, no memory lost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from support.pretend_cuda import STALE, Device, Pretend, pretend_cuda

from sam3label.core import masks
from sam3label.core.records import BoxPrompt, Candidate, Frame, MediaItem, Prompt
from sam3label.model.checkpoint import Checkpoint, resolve
from sam3label.model.clock import StageClock
from sam3label.model.detector import Detection, Detector, PromptStyle
from sam3label.model.encode_ahead import Ahead
from sam3label.model.head import Head, ImageState
from sam3label.model.memory import TOGETHER

PROMPTS = tuple(Prompt(phrase, phrase) for phrase in ("red hat", "safety helmet", "dog"))
FLOOR = 0.1


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Two sizes of photos in each batch of two."""
    cuts = [np.ascontiguousarray(data.chelsea()[40 * (n % 2) :, 3 * n :]) for n in range(4)]
    return [Frame(MediaItem(id=str(n), path=str(n)), 0, cut) for n, cut in enumerate(cuts)]


@pytest.fixture(scope="module")
def on_cpu(checkpoint: Checkpoint, frames: list[Frame]) -> list[Detection]:
    return Detector.load(checkpoint, device="cpu").detect(frames, PROMPTS, FLOOR)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A card that encodes two images together."""
    monkeypatch.setitem(TOGETHER, "images", 2)
    with pretend_cuda() as device:
        yield device


def pinned(frames: Sequence[Frame]) -> list[Frame]:
    """As the loader hands them on where there is CUDA."""
    return [Frame(f.item, f.index, torch.from_numpy(f.pixels).pin_memory().numpy()) for f in frames]


def in_batches(detector: Detector, frames: Sequence[Frame], size: int = 2) -> list[Detection]:
    """As a run has them: each batch begun before the one before it is asked."""
    batches = [frames[start : start + size] for start in range(0, len(frames), size)]
    found: list[Detection] = []
    for number, batch in enumerate(batches):
        for next_one in batches[number : number + 2] if number == 0 else batches[number + 1 : number + 2]:
            detector.encode_ahead(next_one)
        found += detector.detect(batch, PROMPTS, FLOOR)
    return found


def by_id(detections: Sequence[Detection]) -> dict[str, Candidate]:
    return {candidate.id: candidate for detection in detections for candidate in detection.candidates}


def assert_same(found: Sequence[Detection], expected: Sequence[Detection], tolerance: float) -> None:
    one, other = by_id(found), by_id(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].score == pytest.approx(other[name].score, abs=tolerance)
        assert (
            masks.iou_matrix([one[name].rle], [other[name].rle])[0, 0] > 0.999
        )  # logits are equal to rounding, a pixel on the edge need not be


# ---- the pretend device itself


def test_it_refuses_what_a_gpu_refuses(device: Device) -> None:
    there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
    assert isinstance(there, Pretend) and there.device == torch.device("cuda", 0)
    with pytest.raises(RuntimeError, match="same device, but found cuda:0 and cpu"):
        there + here
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + 1.0).sum().item() == 3.0


def test_its_autocast_is_cudas(device: Device) -> None:
    layer = torch.nn.Linear(4, 4).to("cuda")
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        made = layer(torch.ones(2, 4, device="cuda"))
        assert made.dtype == torch.bfloat16 and made.softmax(-1).dtype == torch.float32


def test_it_notes_what_the_host_waits_for(device: Device) -> None:
    values = torch.arange(4, device="cuda")
    device.forget()
    values.sum().item()
    values.nonzero()
    values.cpu()
    torch.ones(3).to("cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)  # this one does not wait
    assert sorted(wait.what for wait in device.waits) == [
        "_local_scalar_dense reads a value", "copy to the device", "copy to the host", "nonzero asks how many",
    ]  # fmt: skip


def test_a_copy_that_nobody_waited_for_has_not_arrived(device: Device) -> None:
    there, buffer = torch.arange(4, device="cuda"), torch.empty(4, dtype=torch.int64)
    buffer.copy_(there, non_blocking=True)
    assert buffer.tolist() == [STALE] * 4
    torch.cuda.current_stream().record_event().synchronize()
    assert buffer.tolist() == [0, 1, 2, 3]


def test_it_sees_what_no_event_orders(device: Device) -> None:
    side, here = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        made = torch.ones(3, device="cuda")
    made + 1  # nobody waited for the side stream
    assert [race.what for race in device.races] == ["unordered read"]
    device.forget()
    here.wait_stream(side)
    made + 1
    assert not device.races
    del made  # made in the side stream's memory, still read in this one
    assert [race.what for race in device.races] == ["unordered memory given back while another stream may use it"]


# ---- the detector on it


@pytest.mark.parametrize(
    ("dtype", "style"), [("fp32", "official"), ("bf16", "official"), ("bf16", "transformers"), ("fp16", "official")]
)
def test_batches_overlap_without_a_race_and_find_what_a_cpu_finds(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, style: PromptStyle, dtype: str
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype=dtype, prompt_style=style)
    detector.encode_phrases([str(prompt.text) for prompt in PROMPTS])
    photos = pinned(frames)
    device.forget()
    found = in_batches(detector, photos)
    assert device.races == []
    assert device.waits_on_side_streams == {}  # else the host could not go on with the batch before
    expected = Detector.load(checkpoint, device="cpu", prompt_style=style).detect(frames, PROMPTS, FLOOR)
    if dtype == "fp32":
        assert_same(found, expected, 1e-5)
        return
    shared = by_id(found).keys() & by_id(expected).keys()
    assert len(shared) > 0.8 * len(by_id(expected)) > 10


def test_weights_kept_as_they_are_cast_change_nothing_but_launches(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = BoxPrompt(np.array([[0.1, 0.1, 0.5, 0.6]], np.float32), (True,))
    found, launches = [], []
    for keeps in (True, False):
        with monkeypatch.context() as patch:
            if not keeps:
                patch.setattr(Head, "keep_cast", lambda *_: None)
            detector = Detector.load(checkpoint, device="cuda", dtype="bf16")
        detector.encode_phrases([str(prompt.text) for prompt in PROMPTS])
        device.forget()
        found.append(detector.detect(pinned(frames[:2]), PROMPTS, FLOOR, [{"dog": box}, {}]))
        launches.append(device.operations.total())
    assert by_id(found[0]) == by_id(found[1]) and len(by_id(found[0])) > 10
    assert found[0][0].presence.tobytes() == found[1][0].presence.tobytes()
    assert launches[0] < 0.95 * launches[1]


# waits of the host in one batch of `detect`, at most: for each chunk of pairs, and for all masks of the batch
CHUNK = {"model/ask.py:presence": 1}
MASKS = {"model/mask_runs.py:_cuts": 2, "model/mask_runs.py:_around": 1}
# for each list of prompts, for each size of a photo, and for each mask where rounding decides
ONCE = {"model/encode.py:_padded": 1, "model/mask_runs.py:_measured": 20, "model/mask_runs.py:_settled": 3}


def test_the_host_waits_where_it_may_and_nowhere_else(
    checkpoint: Checkpoint, frames: list[Frame], device: Device
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="bf16")
    detector.encode_phrases([str(prompt.text) for prompt in PROMPTS])
    photos = pinned(frames[:2])
    device.forget()
    detector.detect(photos, PROMPTS, FLOOR)
    waits = device.waits_by_place()
    chunks = 2  # six pairs, by four
    allowed = {place: count * chunks for place, count in CHUNK.items()} | MASKS | ONCE
    assert not waits.keys() - allowed.keys(), device.lines
    for place, count in waits.items():
        assert count <= allowed[place], (place, device.lines)


@torch.inference_mode()
def test_what_a_graph_would_record_touches_the_host_nowhere(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding a batch and scoring a chunk: no wait, and nothing sent, not even from page-locked memory."""
    detector = Detector.load(checkpoint, device="cuda", dtype="bf16")
    given: list[Any] = []
    score = detector.asker.scorer
    monkeypatch.setattr(detector.asker, "scorer", lambda *args: given.append(args) or score(*args))
    detector.detect(pinned(frames[:2]), PROMPTS, 1.0)
    pixels = detector.preprocess(pinned(frames[:2]))

    def refuse(*_: Any) -> None:
        raise AssertionError("something is sent")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    device.forget()
    detector.encode_images(pixels)
    with detector.precision():
        score(*given[0])
    assert device.operations.total() > 500 and not device.waits, device.lines


# ---- shapes are fixed: an answer depends on its image and its prompt alone, to the last bit


def test_neither_company_nor_place_changes_a_bit_of_a_score(
    checkpoint: Checkpoint, frames: list[Frame], device: Device
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")

    def scores(photos: Sequence[Frame], prompts: Sequence[Prompt]) -> dict[str, tuple[float, float]]:
        found = by_id(detector.detect(pinned(photos), prompts, FLOOR))
        return {name: (one.score, one.presence) for name, one in found.items() if one.prompt != longer.key}

    longer = Prompt("a large white dog on the road", "a large white dog on the road")
    together = scores(frames, PROMPTS)
    assert len(together) > 20
    alone = {name: one for frame in frames for name, one in scores([frame], PROMPTS).items()}
    assert alone == together
    assert scores(frames[::-1], (longer, *PROMPTS[::-1])) == together


def test_a_batch_that_was_filled_up_has_as_many_looks_as_photos(
    checkpoint: Checkpoint, frames: list[Frame], device: Device
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")
    photos = pinned(frames[:3])
    looks = detector.looks(photos)
    expected = Detector.load(checkpoint, device="cpu").looks(frames[:3])
    assert len(looks) == 3 and all(np.allclose(*pair, atol=1e-3) for pair in zip(looks, expected, strict=True))
    assert_same(detector.detect(photos[1:], PROMPTS, FLOOR), detector.detect(pinned(frames[1:3]), PROMPTS, FLOOR), 1e-5)


def test_pairs_are_computed_by_sixteen_and_by_four(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")
    shapes: list[tuple[int, ...]] = []
    score = detector.asker.scorer

    def seen(tokens: Any, prompt: Any, valid: Any) -> Any:
        shapes.append((*prompt.shape[:2], *valid.shape))
        return score(tokens, prompt, valid)

    monkeypatch.setattr(detector.asker, "scorer", seen)
    detector.detect(frames[:2], [Prompt(str(n), "red hat") for n in range(9)], 1.0)
    assert shapes == [(16, 40, 16, 40), (4, 40, 4, 40)]  # 18 pairs; words of 32 tokens, the image's own, and a few more


@pytest.mark.parametrize("number", [900, 1700])
def test_memory_that_is_short_once_changes_no_bit(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, number: int
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")
    photos = pinned(frames)
    expected = in_batches(detector, photos)
    device.forget()
    device.refuse = lambda at: at == number
    found = in_batches(detector, photos)
    assert device.emptied > 0 and device.operations.total() > number
    assert found[0].presence.tobytes() == expected[0].presence.tobytes() and by_id(found) == by_id(expected)
    assert detector.image_batch == 2


# ---- mutations: the detector of mistakes detects


class ForgetsToWait(Ahead):
    def take(self, frames: Sequence[Frame]) -> ImageState | None:
        with_waiting = torch.cuda.Stream.wait_event
        try:
            torch.cuda.Stream.wait_event = lambda *_: None  # type: ignore[method-assign,assignment]
            return super().take(frames)
        finally:
            torch.cuda.Stream.wait_event = with_waiting  # type: ignore[method-assign]


def test_a_forgotten_wait_is_a_race(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam3label.model.detector.Ahead", ForgetsToWait)
    in_batches(Detector.load(checkpoint, device="cuda"), pinned(frames))
    assert "unordered read" in {race.what for race in device.races}


def test_an_index_left_on_the_host_is_an_error(
    checkpoint: Checkpoint, frames: list[Frame], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.load(checkpoint, device="cuda")
    place = detector.head.skips
    monkeypatch.setattr(detector.head, "skips", lambda *args: tuple(skip.cpu() for skip in place(*args)))
    with pytest.raises(RuntimeError, match="same device"):
        detector.detect(pinned(frames[:2]), PROMPTS, FLOOR)


# ---- memory


@pytest.mark.parametrize("seed", range(2))
def test_running_out_of_memory_anywhere_changes_no_label(
    checkpoint: Checkpoint, frames: list[Frame], on_cpu: list[Detection], device: Device, seed: int
) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")
    detector.encode_phrases([str(prompt.text) for prompt in PROMPTS])
    photos = pinned(frames)
    device.forget()
    dice = random.Random(seed)
    fails = {dice.randrange(200, 2500) for _ in range(3)}
    device.refuse = lambda number: number in fails
    assert_same(in_batches(detector, photos), on_cpu, 1e-5)
    assert device.emptied > 0 and device.races == []


def test_what_never_fits_ahead_is_tried_twice(checkpoint: Checkpoint, frames: list[Frame], device: Device) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype="fp32")
    tried: list[int] = []

    def full(*_: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = detector.model.vision_encoder.backbone.register_forward_pre_hook(full)
    for start in (0, 1, 2):
        detector.encode_ahead(pinned(frames[start : start + 2]))
    handle.remove()
    assert len(tried) == 2
    assert len(detector.detect(pinned(frames[:2]), PROMPTS, FLOOR)) == 2


def test_the_text_encoder_leaves_the_device_after_its_use(checkpoint: Checkpoint, device: Device) -> None:
    detector = Detector.load(checkpoint, device="cuda")
    detector.encode_phrases(["red hat"])
    assert {p.device.type for p in detector.model.text_encoder.parameters()} == {"cpu"}
    assert detector.phrases.features["red hat"].device.type == "cuda"
    assert {p.device.type for p in detector.model.vision_encoder.parameters()} == {"cuda"}


def test_the_memory_asked_for_is_a_cap(checkpoint: Checkpoint, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: set_to.append(share))
    Detector.load(checkpoint, device="cuda", vram_gb=16)
    assert set_to == [pytest.approx(0.2)]


def test_the_clock_holds_no_more_than_what_is_under_way(device: Device) -> None:
    clock = StageClock(torch.device("cuda", 0))
    for _ in range(100):
        with clock("heads"):
            torch.ones(3, device="cuda").sum().item()
    assert clock.open_blocks <= 2
    torch.cuda.current_stream().record_event().synchronize()
    assert clock.seconds() == {"heads": pytest.approx(0.1)} and clock.open_blocks == 0


# ---- exemplars


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_boxes_and_references(checkpoint: Checkpoint, frames: list[Frame], device: Device, dtype: str) -> None:
    detector = Detector.load(checkpoint, device="cuda", dtype=dtype)
    box = BoxPrompt(np.array([[0.1, 0.1, 0.5, 0.6]], np.float32), (True,))
    asked = [*PROMPTS, Prompt("boxes", None, "exemplar")]
    found = detector.detect(pinned(frames[:2]), asked, FLOOR, [{"boxes": box, "dog": box}, {}])
    assert device.races == [] and np.isnan(found[1].presence[-1]) and not np.isnan(found[0].presence[-1])

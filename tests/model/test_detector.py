"""The detector against transformers' own SAM 3, and the promises it makes about work, memory and bad input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from sam3label.core import masks
from sam3label.core.records import Frame, MediaItem, Prompt, candidate_id
from sam3label.errors import ConfigError
from sam3label.model.checkpoint import Checkpoint, resolve
from sam3label.model.detector import BoxPrompt, Detection, Detector
from sam3label.model.device import pick_device, pick_dtype
from sam3label.model.memory import TOGETHER, footprint, sizes_for
from sam3label.model.vit import Layer
from sam3label.model.weights import load_model

PHRASES = ("red hat", "safety helmet", "a person on the road", "xq")
PROMPTS = tuple(Prompt(key=phrase, text=phrase) for phrase in PHRASES)
FLOOR = 0.1
TOLERANCE = 1e-4


def frame(name: str, pixels: np.ndarray) -> Frame:
    return Frame(MediaItem(id=name, path=name), 0, np.ascontiguousarray(pixels))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Photos of different sizes, one flat image among them."""
    flat = np.full((50, 90, 3), 77, np.uint8)
    return [frame("cat", data.chelsea()), frame("cup", data.coffee()[::2]), frame("flat", flat)]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def official(checkpoint: Checkpoint) -> Detector:
    return Detector.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> Detector:
    return Detector.load(checkpoint, device="cpu", prompt_style="transformers")


@pytest.fixture(scope="module")
def library(tiny_checkpoint: Path) -> tuple[Any, Any]:
    """Sam3Processor and Sam3Model as anyone would load them."""
    from transformers import Sam3Model, Sam3Processor

    return Sam3Processor.from_pretrained(tiny_checkpoint), Sam3Model.from_pretrained(tiny_checkpoint).eval()


def ask_library(library: tuple[Any, Any], pixels: torch.Tensor, **prompt: Any) -> Any:
    """One image [1, 3, X, X], one prompt, every token padded: the slow way."""
    processor, model = library
    text = processor(text=prompt.pop("text"), return_tensors="pt")
    with torch.no_grad():
        return model(pixel_values=pixels, **text, **prompt)


def padded_box() -> dict[str, torch.Tensor]:
    return {"input_boxes": torch.zeros(1, 1, 4), "input_boxes_labels": torch.tensor([[-10]])}


def parts(detector: Detector, frames: Sequence[Frame], prompts: Sequence[Prompt]) -> Iterator[tuple[int, int, Any]]:
    """Every (image, prompt) of one batch with its row of PairScores."""
    answer = detector.scores(frames, prompts)
    for row, (image, prompt) in enumerate(product(range(len(frames)), range(len(prompts)))):
        yield image, prompt, (answer.logits[row], answer.boxes_xyxy[row], answer.presence_logits[row])


@pytest.mark.parametrize("style", ["transformers", "official"])
def test_scores_and_boxes_are_the_librarys(
    style: str, official: Detector, plain: Detector, library: tuple[Any, Any], frames: list[Frame]
) -> None:
    detector = official if style == "official" else plain
    for image, prompt, (logits, boxes, presence) in parts(detector, frames, PROMPTS):
        extra = padded_box() if style == "official" else {}
        expected = ask_library(library, detector.preprocess([frames[image]]), text=PHRASES[prompt], **extra)
        assert (logits - expected.pred_logits[0]).abs().max() < TOLERANCE
        assert (boxes - expected.pred_boxes[0]).abs().max() < TOLERANCE
        assert (presence - expected.presence_logits[0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("style", ["transformers", "official"])
def test_kept_set_and_masks_are_the_librarys(
    style: str, official: Detector, plain: Detector, library: tuple[Any, Any], frames: list[Frame]
) -> None:
    detector = official if style == "official" else plain
    detections = detector.detect(frames, PROMPTS, FLOOR)
    assert sum(len(detection.candidates) for detection in detections) > 20
    for one, detection in zip(frames, detections, strict=True):
        for number, prompt in enumerate(PROMPTS):
            extra = padded_box() if style == "official" else {}
            expected = ask_library(library, detector.preprocess([one]), text=prompt.text, **extra)
            scores = (expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid())[0]
            presence = expected.presence_logits.sigmoid().item()
            assert detection.presence[number] == pytest.approx(presence, abs=TOLERANCE)
            inside = F.interpolate(expected.pred_masks, one.size_hw, mode="bilinear", align_corners=False)[0] > 0
            kept = {
                candidate_id(one.item.id, 0, prompt.key, query): query
                for query in torch.nonzero(scores >= FLOOR).flatten().tolist()
                if inside[query].any()
            }
            own = {candidate.id: candidate for candidate in detection.candidates if candidate.prompt == prompt.key}
            assert own.keys() == kept.keys()
            for name, query in kept.items():
                assert own[name].score == pytest.approx(scores[query].item(), abs=TOLERANCE)
                # logits agree to rounding, so a pixel on the very edge may differ; which ones is tested on equal logits
                different = masks.decode(own[name].rle) != inside[query].numpy()
                assert different.sum() <= 1e-4 * inside[query].numel()


def test_mask_logits_are_the_librarys(official: Detector, library: tuple[Any, Any], frames: list[Frame]) -> None:
    scores = official.scores(frames[:1], PROMPTS).scores
    with torch.inference_mode():
        pixels = official.preprocess(frames[:1])
        seen = official.look(official.encode_images(pixels), PROMPTS, FLOOR)
    assert len({len(one.masks) for one in seen}) > 1  # rows of different lengths, so that padding is exercised
    for phrase, one, own in zip(PHRASES, seen, scores, strict=True):
        whole = ask_library(library, pixels, text=phrase, **padded_box()).pred_masks[0]
        for logits, expected in zip(one.masks, whole[own > FLOOR], strict=True):
            assert (logits - expected).abs().max() < TOLERANCE * max(1.0, expected.abs().max().item())


# ---- exemplar boxes


def box(positive: tuple[bool, ...], seed: int = 0) -> BoxPrompt:
    corners = np.random.default_rng(seed).random((len(positive), 2, 2)).astype(np.float32)
    return BoxPrompt(np.concatenate((corners.min(1), corners.max(1) + 0.05), 1).clip(0, 1), positive)


def library_boxes(boxes: BoxPrompt) -> dict[str, torch.Tensor]:
    xyxy = torch.from_numpy(boxes.boxes_xyxy)
    cxcywh = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), 1)
    return {"input_boxes": cxcywh[None], "input_boxes_labels": torch.tensor([[int(p) for p in boxes.positive]])}


@pytest.mark.parametrize("style", ["transformers", "official"])
def test_boxes_words_both_and_neither_in_one_batch(
    style: str, official: Detector, plain: Detector, library: tuple[Any, Any], frames: list[Frame]
) -> None:
    detector = official if style == "official" else plain
    prompts = (Prompt("words", "red hat"), Prompt("both", "safety helmet"), Prompt("boxes", None, "exemplar"))
    boxes = [{"both": box((True, False, True)), "boxes": box((True,), 1)}, {}, {"boxes": box((True, True), 2)}]
    detections = detector.detect(frames, prompts, FLOOR, boxes)
    for one, own, detection in zip(frames, boxes, detections, strict=True):
        for number, prompt in enumerate(prompts):
            if prompt.text is None and prompt.key not in own:
                assert np.isnan(detection.presence[number])
                continue
            default = padded_box() if style == "official" else {}
            extra = library_boxes(own[prompt.key]) if prompt.key in own else default
            expected = ask_library(library, detector.preprocess([one]), text=prompt.text or "visual", **extra)
            scores = (expected.pred_logits.sigmoid() * expected.presence_logits.sigmoid())[0]
            assert detection.presence[number] == pytest.approx(expected.presence_logits.sigmoid().item(), abs=TOLERANCE)
            got = [c for c in detection.candidates if c.prompt == prompt.key]
            inside = F.interpolate(expected.pred_masks, one.size_hw, mode="bilinear", align_corners=False)[0] > 0
            kept = [q for q in torch.nonzero(scores >= FLOOR).flatten().tolist() if inside[q].any()]
            assert [c.score for c in got] == pytest.approx([scores[q].item() for q in kept], abs=TOLERANCE)
            source = ("exemplar" if prompt.text is None else "both") if prompt.key in own else "phrase"
            assert {c.source for c in got} <= {source}


def test_boxes_are_validated_where_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"boxes_xyxy must be \(2, 4\), N > 0, got \(1, 4\)"):
        BoxPrompt(np.zeros((1, 4), np.float32), (True, False))
    with pytest.raises(ValueError, match="N > 0"):
        BoxPrompt(np.zeros((0, 4), np.float32), ())


# ---- preprocessing


def test_preprocessing_is_the_librarys_of_a_gpu(official: Detector, library: tuple[Any, Any]) -> None:
    """There it resizes floats and rounds them back to bytes; on a CPU it resizes bytes, a grey level apart."""
    from torchvision.transforms.v2.functional import resize

    images = library[0].image_processor
    photos = [data.chelsea(), data.rocket(), data.astronaut()[:100, :37], np.full((1, 1, 3), 9, np.uint8)]
    own = official.preprocess([frame(str(n), photo) for n, photo in enumerate(photos)])
    for pixels, photo in zip(own, photos, strict=True):
        chw = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)
        levels = resize(chw.float(), list(pixels.shape[1:]), antialias=True).round().to(torch.uint8)
        expected = images(levels, do_resize=False, return_tensors="pt")["pixel_values"][0]
        assert (pixels - expected).abs().max() < 1e-6
        on_cpu = images(chw, return_tensors="pt")["pixel_values"][0]
        assert (pixels - on_cpu).abs().max() * 127.5 < 1.01


def test_pixels_may_be_views_and_read_only(official: Detector) -> None:
    photo = data.chelsea()
    flipped = photo[::-1, ::-1][:100]
    locked = flipped.copy()
    locked.flags.writeable = False
    views = [Frame(MediaItem(id="v", path="v"), 0, pixels) for pixels in (flipped, locked)]
    seen = official.preprocess(views)
    assert torch.equal(seen[0], seen[1])


# ---- how much work is done


def count_calls(module: torch.nn.Module) -> list[int]:
    """Grows by the batch size of each call of a real part of the model."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, args, kwargs, __: rows.append(_rows(args, kwargs)), with_kwargs=True)
    return rows


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))


def test_each_image_and_each_phrase_is_encoded_once(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    images = count_calls(detector.model.vision_encoder.backbone)
    phrases = count_calls(detector.model.text_encoder)
    shared = count_calls(detector.model.detr_encoder.layers[0].self_attn)
    pixels = count_calls(detector.model.mask_decoder.prompt_cross_attn)
    detector.encode_phrases([*PHRASES, *PHRASES])
    many = [frame(f"{n}", data.chelsea()[n:]) for n in range(9)]
    high = 0.6
    detections = [*detector.detect(many, PROMPTS, high), *detector.detect(frames, PROMPTS[:2], high)]
    assert sum(images) == len(many) + len(frames)
    assert phrases == [len(PHRASES)]
    assert sum(shared) == sum(images)  # the first layer's self-attention: per image, not per pair
    kept = sum(len({c.prompt for c in detection.candidates}) for detection in detections)
    assert sum(pixels) == kept  # masks only for pairs with a score over the floor
    assert 0 < kept < len(many) * len(PROMPTS) + 2 * len(frames)


def test_no_masks_when_nothing_is_over_the_floor(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    pixels = count_calls(detector.model.mask_decoder.prompt_cross_attn)
    detections = detector.detect(frames, PROMPTS, floor=1.0)
    assert pixels == [] and all(detection.candidates == () for detection in detections)
    assert np.isfinite([detection.presence for detection in detections]).all()


def test_scoring_is_one_graph_without_waiting_for_the_device(official: Detector, frames: list[Frame]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Syncs(TorchDispatchMode):
        seen: list[str]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(word in func._schema.name for word in ("local_scalar", "nonzero", "is_nonzero", "item")):
                self.seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode():
        state = official.encode_images(official.preprocess(frames[:1]))
        texts = official.phrases.texts(PROMPTS)
    tokens = state.tokens.expand(len(PROMPTS), -1, -1)
    arguments = [value.clone() for value in (tokens, texts.features, texts.valid)]
    with torch.no_grad():
        expected = official.head.score(*arguments)
        syncs = Syncs()
        syncs.seen = []
        with syncs:
            official.head.score(*arguments)
        assert syncs.seen == []
        compiled = torch.compile(official.head.score, fullgraph=True, backend="eager")
        answer = compiled(*arguments)
    assert torch.allclose(answer.scores, expected.scores, atol=1e-6)


def test_joined_products_are_those_of_the_library(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """Of the image encoder, whose windows divide its grid, and some of whose layers see the whole of it."""
    own, theirs = Detector.load(checkpoint, device="cpu"), load_model(checkpoint)
    layers = own.model.vision_encoder.backbone.layers
    assert all(isinstance(layer, Layer) for layer in layers) and len({layer.side for layer in layers}) == 2
    with torch.inference_mode():
        pixels = own.preprocess(frames[:2])
        expected = theirs.vision_encoder.backbone(pixels).last_hidden_state
        assert torch.allclose(own.images.backbone(pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


# ---- batches and memory


def same(a: Sequence[Detection], b: Sequence[Detection]) -> None:
    for one, two in zip(a, b, strict=True):
        assert np.allclose(one.presence, two.presence, atol=1e-5)
        assert [c.id for c in one.candidates] == [c.id for c in two.candidates]
        assert [c.score for c in one.candidates] == pytest.approx([c.score for c in two.candidates], abs=1e-5)
        assert [c.area for c in one.candidates] == pytest.approx([c.area for c in two.candidates], rel=1e-3, abs=2)


@pytest.mark.parametrize("part", ["vision_encoder.backbone", "detr_encoder.layers.1", "mask_decoder.prompt_cross_attn"])
def test_out_of_memory_halves_the_batch_and_tries_again(checkpoint: Checkpoint, frames: list[Frame], part: str) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    expected = detector.detect(frames, PROMPTS, FLOOR)
    sizes: list[int] = []

    def hungry(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _rows(args, kwargs) > 1:
            sizes.append(_rows(args, kwargs))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    detector.model.get_submodule(part).register_forward_pre_hook(hungry, with_kwargs=True)
    same(detector.detect(frames, PROMPTS, FLOOR), expected)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(set(sizes)) > 0
    tried = len(sizes)
    detector.detect(frames, PROMPTS, FLOOR)
    assert len(sizes) == tried  # the smaller batch is remembered


@pytest.mark.parametrize(
    "words", ["MPS backend out of memory (MPS allocated: 9 GB)", "DefaultCPUAllocator: can't allocate memory"]
)
def test_not_even_one_image_fits(checkpoint: Checkpoint, frames: list[Frame], words: str) -> None:
    detector = Detector.load(checkpoint, device="cpu")

    def full(*_: Any) -> None:
        raise RuntimeError(words)

    detector.model.vision_encoder.backbone.register_forward_pre_hook(full)
    with pytest.raises(
        ConfigError, match="the memory of cpu does not hold the model's work on even one image: free some"
    ):
        detector.detect(frames, PROMPTS, FLOOR)
    assert detector.image_batch == 1


def test_other_errors_are_not_taken_for_lack_of_memory(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")

    def broken(*_: Any) -> None:
        raise RuntimeError("shape mismatch")

    detector.model.vision_encoder.backbone.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        detector.detect(frames, PROMPTS, FLOOR)


def test_batch_sizes_follow_free_memory(checkpoint: Checkpoint) -> None:
    from transformers import Sam3Config

    each = footprint(Sam3Config(), torch.bfloat16)
    assert all(each[stage] > 50e6 for stage in each)
    sizes = [sizes_for(each, int(free * 1e9)) for free in (0, 2, 8, 16, 80)]
    assert sizes[0] == {"images": 1, "pairs": 1, "masks": 1}
    assert sizes[2] == sizes[-1] == TOGETHER
    for smaller, larger in pairwise(sizes):
        assert all(smaller[stage] <= larger[stage] for stage in smaller)
    for free, chosen in zip((2, 8, 16, 80), sizes[1:], strict=True):
        assert sum(chosen[stage] * each[stage] for stage in chosen) <= free * 1e9 or max(chosen.values()) == 1


def test_answers_do_not_depend_on_the_batch(official: Detector, frames: list[Frame]) -> None:
    together = official.detect(frames, PROMPTS, FLOOR)
    same([official.detect([one], PROMPTS, FLOOR)[0] for one in frames], together)
    for number, prompt in enumerate(PROMPTS):
        alone = official.detect(frames, [prompt], FLOOR)
        assert [d.presence[0] for d in alone] == pytest.approx([d.presence[number] for d in together], abs=1e-5)
    assert [d.candidates for d in together] == [d.candidates for d in official.detect(frames, PROMPTS, FLOOR)]


def test_candidates_come_in_the_order_of_prompts_then_queries(official: Detector, frames: list[Frame]) -> None:
    order = {prompt.key: number for number, prompt in enumerate(PROMPTS)}
    for one, detection in zip(frames, official.detect(frames, PROMPTS, FLOOR), strict=True):
        queries = {candidate_id(one.item.id, 0, key, q): (order[key], q) for key in order for q in range(24)}
        places = [queries[candidate.id] for candidate in detection.candidates]
        assert places == sorted(places)
        for candidate in detection.candidates:
            assert candidate.item_id == one.item.id and candidate.rle.size_hw == one.size_hw
            assert FLOOR <= candidate.score <= candidate.presence <= 1
            assert candidate.area == masks.area(candidate.rle) > 0
            assert candidate.box_xywh == masks.box_xywh(candidate.rle)


def test_nothing_asked_and_nothing_shown(official: Detector, frames: list[Frame]) -> None:
    assert official.detect([], PROMPTS, FLOOR) == []
    for detection in official.detect(frames, [], FLOOR):
        assert detection.presence.shape == (0,) and detection.candidates == ()
    official.encode_phrases([])


# ---- settings


def test_a_phrase_that_the_model_cannot_read_whole_is_refused(official: Detector) -> None:
    long = "the red hat " * 11  # 33 words and the two ends
    with pytest.raises(ConfigError) as caught:
        official.encode_phrases(["red hat", long, "zebra " * 12])
    message = str(caught.value)
    assert "at most 32 tokens of a phrase, start and end included: shorten 'the red hat" in message
    assert "(35)" in message and "zebra" in message and "'red hat'" not in message
    official.encode_phrases(["the red hat " * 10])  # 32 tokens: just fits


def test_bf16_image_encoder_with_a_float32_head(
    checkpoint: Checkpoint, official: Detector, frames: list[Frame]
) -> None:
    detector = Detector.load(checkpoint, device="cpu", dtype="bf16")
    assert detector.describe()["dtype"] == "bf16"
    detections = zip(detector.detect(frames, PROMPTS, FLOOR), official.detect(frames, PROMPTS, FLOOR), strict=True)
    for rough, exact in detections:
        assert 0 < np.abs(rough.presence - exact.presence).max() < 0.1


def test_what_changes_the_numbers_is_described(official: Detector, plain: Detector, checkpoint: Checkpoint) -> None:
    assert official.describe() == {
        "checkpoint": checkpoint.identity,
        "image_size": 224,
        "dtype": "fp32",
        "prompt_style": "official",
        "preprocessing": "bilinear antialiased, rounded to 8 bits, mean 0.5, std 0.5",
    }
    assert plain.describe()["prompt_style"] == "transformers"


def test_devices_and_precisions_that_are_not_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'tpu' is not available here: use auto or one of .*cpu"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda:1' is not available here"):
            pick_device("cuda:1")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(ConfigError, match="dtype must be auto, fp32, bf16 or fp16, got 'fp8'"):
        pick_dtype("fp8", torch.device("cpu"))

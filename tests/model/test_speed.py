"""Speed's promises that can be counted: work done once, work not done, the same answers. Timings are never asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import bench
import cv2
import numpy as np
import profile_run
import pytest
import torch
from skimage import data
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.cli.progress import advice
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import Frame, MediaItem, Prompt, Undecodable
from sam3label.errors import ConfigError
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.photos import begun
from sam3label.labelling.progress import Progress
from sam3label.labelling.questions import Guide
from sam3label.model.checkpoint import Checkpoint, resolve
from sam3label.model.clock import StageClock
from sam3label.model.detector import Detection, Detector
from sam3label.model.device import pick_device
from sam3label.run.reader import open_run

PROMPTS = tuple(Prompt(key=phrase, text=phrase) for phrase in ("red hat", "safety helmet", "a person", "dog"))
FLOOR = 0.1


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def detector(checkpoint: Checkpoint) -> Detector:
    return Detector.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    cuts = [data.chelsea()[n:] for n in range(5)]
    return [Frame(MediaItem(id=str(n), path=str(n)), 0, np.ascontiguousarray(cut)) for n, cut in enumerate(cuts)]


def assert_same(one: Sequence[Detection], two: Sequence[Detection], tolerance: float) -> None:
    for a, b in zip(one, two, strict=True):
        assert np.allclose(a.presence, b.presence, atol=tolerance)
        assert [c.id for c in a.candidates] == [c.id for c in b.candidates]
        assert np.allclose([c.score for c in a.candidates], [c.score for c in b.candidates], atol=tolerance)
        assert np.allclose([c.area for c in a.candidates], [c.area for c in b.candidates], rtol=1e-3, atol=2)


def count_images(detector: Detector) -> list[int]:
    sizes: list[int] = []
    detector.model.vision_encoder.backbone.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    return sizes


# ---- the images of the next batch are encoded ahead


def test_encoding_ahead_changes_nothing_and_encodes_nothing_twice(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    expected = [*detector.detect(frames[:2], PROMPTS, FLOOR), *detector.detect(frames[2:4], PROMPTS, FLOOR)]
    sizes = count_images(detector)
    detector.encode_ahead(frames[:2])
    detector.encode_ahead(frames[2:4])
    assert sizes == [2, 2]
    found = [*detector.detect(frames[:2], PROMPTS, FLOOR), *detector.detect(frames[2:4], PROMPTS, FLOOR)]
    assert sizes == [2, 2]
    assert_same(found, expected, 0.0)


def test_what_was_encoded_ahead_serves_those_very_frames_only(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    expected = detector.detect(frames[2:4], PROMPTS, FLOOR)
    detector.encode_ahead(frames[:2])
    detector.encode_ahead([])
    assert_same(detector.detect(frames[2:4], PROMPTS, FLOOR), expected, 0.0)


def test_no_memory_to_encode_ahead_is_no_error(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    expected = detector.detect(frames[:2], PROMPTS, FLOOR)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = detector.model.vision_encoder.backbone.register_forward_pre_hook(full)
    detector.encode_ahead(frames[:2])
    handle.remove()
    assert_same(detector.detect(frames[:2], PROMPTS, FLOOR), expected, 0.0)


def test_a_run_begins_each_batch_before_it_hands_on_the_one_before(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """As on CUDA, in the order that matters there."""
    detector = Detector.load(checkpoint, device="cpu")
    guide = Guide(detector, parse_concepts("names: [red hat, dog]", "test"))
    sizes = count_images(detector)
    batches: list[list[Frame | Undecodable]] = [
        frames[:2],
        [frames[2], Undecodable(MediaItem(id="x", path="x"), "broken"), frames[3]],
        [Undecodable(MediaItem(id="y", path="y"), "broken")],
        frames[4:],
    ]
    handed = []
    for batch in begun(iter(batches), detector.encode_ahead):
        handed.append((batch, sum(sizes)))
        guide.detect([entry for entry in batch if isinstance(entry, Frame)], FLOOR)
    assert [batch for batch, _ in handed] == batches
    assert [count for _, count in handed] == [4, 4, 5, 5]
    assert sizes == [2, 2, 1]


# ---- compiling


def test_a_compiled_model_finds_the_same(checkpoint: Checkpoint, detector: Detector, frames: list[Frame]) -> None:
    """Both parts captured whole. The code that torch then generates is left out: minutes of a C++ compiler."""
    compiled = Detector.load(checkpoint, device="cpu")
    compiled.compile("eager")
    expected = detector.detect(frames, PROMPTS, FLOOR)
    assert sum(len(detection.candidates) for detection in expected) > 20
    assert_same(compiled.detect(frames, PROMPTS, FLOOR), expected, 1e-4)


def test_nothing_is_compiled_in_the_middle_of_a_run(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """Two batches and a half, of other photos than were compiled for, and phrases of other lengths."""
    compiled = Detector.load(checkpoint, device="cpu")
    shapes: list[list[tuple[int, ...]]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[object]) -> object:
        shapes.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)])
        return graph.forward

    torch._dynamo.reset()
    compiled.compile(backend=backend)
    before = len(shapes)
    for count in (4, 1, 3):
        compiled.detect(frames[:count], PROMPTS[: count - 1] or PROMPTS[:1], FLOOR)
    compiled.detect(frames[:2], [Prompt("x", "a large white dog on the road")], FLOOR)
    assert before == 2 and len(shapes) == before  # the image encoder and the scoring of pairs


def test_no_compiler_is_said_in_one_sentence(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"torch cannot compile the model here \(.+\)\. Leave out --compile"):
        Detector.load(checkpoint, device="cpu", compiled=True)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], {"dtype": "auto", "batch_size": None, "vram": None, "compile": False}),
        (
            ["--dtype", "bf16", "--batch-size", "auto", "--vram", "16", "--compile"],
            {"dtype": "bf16", "batch_size": None, "vram": 16.0, "compile": True},
        ),
        (["--batch-size", "12"], {"batch_size": 12}),
    ],
)
def test_what_the_command_line_says_reaches_the_run(
    words: list[str], chosen: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LabelOptions] = []

    def stop(_photos: object, _concepts: object, _out: object, options: LabelOptions, **_: object) -> None:
        seen.append(options)
        raise ConfigError("far enough")

    monkeypatch.setattr("sam3label.labelling.job.label", stop)
    result = CliRunner().invoke(app, ["run", "photos", "--ontology", '{"dog": "dog"}', *words])
    assert result.exit_code == 1 and "far enough" in result.output
    assert {name: getattr(seen[0], name) for name in chosen} == chosen


@pytest.mark.parametrize("size", ["0", "many", "1.5", "-2"])
def test_a_batch_size_is_auto_or_a_number(size: str) -> None:
    result = CliRunner().invoke(app, ["run", "photos", "--ontology", '{"dog": "dog"}', "--batch-size", size])
    said = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and f"'{size}' is neither auto nor a number from 1 on" in said


# ---- where the time goes


def test_the_detector_says_how_long_each_stage_took(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    detector = Detector.load(checkpoint, device="cpu")
    assert detector.clock.seconds() == {}
    detector.detect(frames[:1], PROMPTS, FLOOR)
    first = detector.clock.seconds()
    assert set(first) == {"encode", "heads", "post"} and min(first.values()) > 0
    detector.detect(frames[:1], PROMPTS, FLOOR)
    second = detector.clock.seconds()
    assert all(second[stage] > first[stage] for stage in first)


def test_a_stage_that_fails_is_not_counted() -> None:
    clock = StageClock(pick_device("cpu"))
    with pytest.raises(ValueError, match="broken"), clock("encode"):
        raise ValueError("broken")
    assert clock.seconds() == {}


@pytest.mark.parametrize(
    ("slowest", "expected"),
    [
        ("decode", "decoding is the bottleneck: try more --workers"),
        ("post", "reading off masks is the bottleneck: a higher --floor keeps fewer"),
        ("write", "writing is the bottleneck: try -o on a faster disk"),
        ("encode", ""),
        ("heads", ""),
    ],
)
def test_the_bottleneck_is_named_with_what_to_do(slowest: str, expected: str) -> None:
    stages = dict.fromkeys(("decode", "encode", "heads", "post", "write"), 1.0) | {slowest: 9.0}
    progress = Progress(1000, 100, 0, {}, 13.0, stages)
    assert advice(progress).strip(" ()") == expected
    assert advice(Progress(1000, 10, 0, {}, 1.3, stages)) == ""  # too early to tell
    assert advice(Progress(1000, 100, 0, {}, 0.0, {})) == ""


# ---- operations


def operations(detector: Detector, frames: Sequence[Frame], prompts: Sequence[Prompt], floor: float) -> float:
    detector.encode_phrases([prompt.text or "" for prompt in prompts])
    with FlopCounterMode(display=False) as counter:
        detector.detect(frames, prompts, floor)
    return float(counter.get_total_flops())


def test_a_phrase_more_costs_pairs_and_no_image(detector: Detector, frames: list[Frame]) -> None:
    """Linear in phrases (of as many tokens) and in images, to the last operation."""
    words = tuple(Prompt(word, word) for word in ("dog", "cat", "car", "bus", "cup"))
    counts = [operations(detector, frames[:1], words[:n], floor=1.0) for n in (1, 3, 5)]
    assert counts[1] - counts[0] == counts[2] - counts[1] > 0
    assert operations(detector, frames[:2], words, floor=1.0) == 2 * counts[2]


def test_fewer_operations_than_the_library_with_everything_cached(
    tiny_checkpoint: Path, checkpoint: Checkpoint, frames: list[Frame]
) -> None:
    ours = Detector.load(checkpoint, device="cpu", prompt_style="transformers")
    library = bench.Library(tiny_checkpoint, ours.device, ours.dtype)
    library.read(PROMPTS)
    with FlopCounterMode(display=False) as counter:
        list(library.cached(frames[:1], PROMPTS, 1.0, (1, 8)))
    nothing = operations(ours, frames[:1], PROMPTS, floor=1.0)
    everything = operations(ours, frames[:1], PROMPTS, floor=0.0)
    assert nothing < everything < counter.get_total_flops()


# ---- the benchmark and the profile


def test_the_benchmark_compares_answers_before_it_times_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size", "tiny", "--concepts", "1,2,4", "--images", "2", "--rounds", "1", "--megapixels", "0.1"]
    words += ["--present", "0.5", "--workers", "0", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["bench.py", *words, "--json", str(tmp_path / "report.json")])
    bench.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert [table["concepts"] for table in report["tables"]] == [1, 2, 4]
    for table in report["tables"]:
        assert [row["variant"] for row in table["rows"]] == ["phrase", "cached", "pixels", "ours", "run"]
        assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in table["rows"])
        slow, cached, _, ours, _ = (row["operations"] for row in table["rows"])
        assert slow >= cached > ours > 0
        assert table["agreement"]["cached"]["pairs with equally many"] == 1
        assert table["agreement"]["cached"]["largest score difference"] < 1e-4
    printed = capsys.readouterr().out
    assert "s a concept" in printed
    assert "no column for official: sam3 and iopath not installed" in printed
    assert "no column for ultralytics: " in printed


def test_random_masks_get_the_size_of_objects(detector: Detector, frames: list[Frame]) -> None:
    shapes = bench.object_shapes(24, 64)
    covered = (shapes > 0).float().mean((1, 2))
    assert 0 < covered.min() < 0.005 and 0.05 < covered.max() < 0.16  # of 0.1 to 15 %, some of it off the photo
    before = detector.detect(frames[:1], PROMPTS, FLOOR)
    with bench.shaped_masks(shapes - 100.0):
        assert all(detection.candidates == () for detection in detector.detect(frames[:1], PROMPTS, FLOOR))
    assert_same(detector.detect(frames[:1], PROMPTS, FLOOR), before, 0.0)


def test_agreement_is_counted_by_pairs_scores_and_masks() -> None:
    from sam3label.core import masks

    square, half = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    square[:2], half[:1] = True, True
    one: bench.Found = {
        (0, 0): (np.array([0.9, 0.5]), [masks.encode(square), masks.encode(square)]),
        (0, 1): (np.array([0.8]), [masks.encode(square)]),
    }
    other: bench.Found = {
        (0, 0): (np.array([0.9, 0.4]), [masks.encode(square), masks.encode(half)]),
        (0, 1): (np.array([]), []),
    }
    assert bench.agreement(one, other) == {
        "objects": 3,
        "objects of the other": 2,
        "pairs with equally many": 0.5,
        "largest score difference": pytest.approx(0.1),
        "median mask IoU": 0.75,
        "lowest mask IoU": 0.5,
    }


def test_the_profile_has_a_trace_and_a_page_by_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "out"), "--size", "tiny", "--concepts", "2", "--images", "2", "--megapixels", "0.1"]
    words += ["--device", "cpu", "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["profile_run.py", *words])
    profile_run.main()
    page = (tmp_path / "out" / "summary.txt").read_text()
    assert page in capsys.readouterr().out
    lines = page.splitlines()
    assert [line.split()[0] for line in lines[4:9]] == list(profile_run.STAGES)
    assert sum(float(line.split()[2].rstrip("%")) for line in lines[4:9]) == pytest.approx(100, abs=0.5)
    names = {event["name"] for event in json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]}
    assert {f"stage {stage}" for stage in profile_run.STAGES} <= names


# ---- growth


def test_a_run_does_as_much_for_every_image(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Twice the photos: twice the candidates and the units, and no image encoded twice."""
    photos, stored = tmp_path / "photos", []
    photos.mkdir()
    pixels = cv2.cvtColor(data.chelsea(), cv2.COLOR_RGB2BGR)
    for count in (2, 4):
        for number in range(count):
            cv2.imwrite(str(photos / f"{number}-photo.png"), pixels)
        concepts = parse_concepts("names: [red hat, dog]\ndefaults: {conf: 0.1}", "test")
        options = LabelOptions(model=str(tiny_checkpoint), device="cpu", workers=0)
        summary = label([photos], concepts, tmp_path / f"run{count}", options)
        assert summary.progress.done == count
        with open_run(tmp_path / f"run{count}") as labelled:
            stored.append(labelled.totals().candidates)
    assert stored[1] == 2 * stored[0] > 0

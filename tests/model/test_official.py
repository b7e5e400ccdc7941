"""Meta's own files: every name mapped, every way back bit-equal, and each kind of broken file its sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_checkpoint import make_official_file
from safetensors.torch import load_file, save_file
from support.videofiles import clip_pixels, write_frames
from typer.testing import CliRunner

import sam3label as sl
from sam3label.cli import app
from sam3label.core.records import Frame, Hint, MediaItem, Prompt
from sam3label.errors import CheckpointError
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.model.identity import SAM3_CONFIG, identity
from sam3label.model.interactive import Clicker
from sam3label.model.inventory import convert
from sam3label.model.official import from_official, normalized, source_of, to_official
from sam3label.model.tracker import Tracker
from sam3label.model.weight_files import clip_tokenizer, hub_shapes
from sam3label.model.weights import load_video_model
from sam3label.run.reader import open_run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: what was converted before must not answer for what is converted now."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def official(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """`sam3.pt` with its config and tokenizer beside it, as a download of facebook/sam3 has them."""
    return beside(tiny_checkpoint, tmp_path / "meta", "sam3.pt")


def beside(checkpoint: Path, folder: Path, name: str, release: str = "3") -> Path:
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / file, folder / file)
    return make_official_file(checkpoint, folder / name, release)


def rewritten(path: Path, edit: Any) -> Path:
    content = torch.load(path, weights_only=True)
    edit(content["model"])
    torch.save(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(str(path))
    return str(caught.value)


def test_the_full_model_has_the_official_names() -> None:
    """The digest is of the 1427 names that the module tree of facebookresearch/sam3 gave for these weights."""
    shapes = hub_shapes(json.loads(SAM3_CONFIG.read_text()))
    assert len(shapes) == 1797
    sources = {source_of(name) for name in shapes}
    names = {s.name.replace("#", str(i)) for s in sources for i in range(4 if s.part == "rows" else 1)}
    assert (len(names), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]) == OFFICIAL_NAMES


OFFICIAL_NAMES = (1427, "26aba51adc497ad8")


def test_there_and_back_is_bit_equal(tiny_checkpoint: Path) -> None:
    ours = load_file(tiny_checkpoint / "model.safetensors")
    again = from_official(normalized(to_official(ours), "here"), {name: t.shape for name, t in ours.items()}, "here")
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_a_file_of_meta_is_the_same_checkpoint_as_the_folder(official: Path, tiny_checkpoint: Path) -> None:
    file, folder = resolve(str(official)), resolve(str(tiny_checkpoint))
    assert file.identity == folder.identity  # one run goes on with either
    assert file.source == str(official) and file.release == "3"
    converted, original = load_file(file.weights[0]), load_file(folder.weights[0])
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], original[name]) for name in original)
    assert load_video_model(file).config.tracker_config is not None


def test_it_is_converted_once(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(str(official))
    monkeypatch.setattr("sam3label.model.weight_files.read_weights", None)
    assert resolve(str(official)) == first


def test_what_lies_beside_a_file_is_part_of_what_it_becomes(official: Path, tmp_path: Path) -> None:
    first = resolve(str(official))
    copy = Path(shutil.copytree(official.parent, tmp_path / "copy")) / official.name
    assert resolve(str(copy)).folder == first.folder
    config = json.loads(copy.with_name("config.json").read_text())
    copy.with_name("config.json").write_text(json.dumps({**config, "low_res_mask_size": 1}))
    other = resolve(str(copy))
    assert other.config["low_res_mask_size"] == 1 and other.identity != first.identity
    tokenizer = json.loads(copy.with_name("tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zebra</w>"] = len(tokenizer["model"]["vocab"])
    copy.with_name("tokenizer.json").write_text(json.dumps(tokenizer))
    assert resolve(str(copy)).identity not in (first.identity, other.identity)
    assert resolve(str(official)).identity == first.identity


def test_both_ways_give_the_same_answers(official: Path, tiny_checkpoint: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    frame, prompt = Frame(MediaItem("a", "a"), 0, pixels), Prompt("cat", "cat")
    answers = []
    for model in (official, tiny_checkpoint):
        detector = Detector.load(resolve(str(model)), device="cpu")
        detector.encode_phrases(["cat"])
        answers.append(detector.detect([frame], [prompt], 0.2))
    assert answers[0][0].candidates and answers[0][0].candidates == answers[1][0].candidates


def test_both_ways_make_the_same_masks_of_boxes_and_the_same_tracks(official: Path, tiny_checkpoint: Path) -> None:
    item = MediaItem("walk", "walk", "video")
    frames = [Frame(item, number, pixels) for number, pixels in enumerate(clip_pixels(4, size_hw=(120, 160)))]
    hints = [Hint((20, 20, 90, 80)), Hint(None, ((60, 50, True), (5, 5, False)))]
    logits, tracks = [], []
    for model in (official, tiny_checkpoint):
        checkpoint = resolve(str(model))
        detector = Detector.load(checkpoint, device="cpu")
        clicker, tracker = Clicker.load(checkpoint, detector), Tracker.load(checkpoint, detector)
        with torch.inference_mode():
            grid = detector.encode_grid(detector.preprocess(frames[:1]))
            answer = clicker.ask(clicker.features(grid), [frames[0].size_hw], [hints])
        logits.append((answer.masks, answer.ious))
        tracker.settings = replace(tracker.settings, score_threshold_detection=0.0, new_det_thresh=0.0)
        tracks.append([(one.objects, one.presence.tolist()) for one in tracker.track(frames, [Prompt("car", "car")])])
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))
    assert tracks[0] == tracks[1] and sum(len(objects) for objects, _ in tracks[0]) > 4


@pytest.mark.parametrize("prefix", ["module.", "detector only"])
def test_what_trainers_leave_before_the_names(official: Path, tiny_checkpoint: Path, prefix: str) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if prefix == "module.":
                tensors[prefix + name] = tensor
            elif name.startswith("detector.") and "sam2_convs" not in name:
                tensors[name.removeprefix("detector.")] = tensor

    checkpoint = resolve(str(rewritten(official, edit)))
    ours = load_file(tiny_checkpoint / "model.safetensors")
    found = load_file(checkpoint.weights[0])
    assert all(torch.equal(found[name], ours[name]) for name in found)
    assert len(found) == len(ours) if prefix == "module." else {n.split(".")[0] for n in found} == {"detector_model"}


def test_one_weight_under_two_names_is_refused_where_they_differ(official: Path, tiny_checkpoint: Path) -> None:
    name = "detector.transformer.decoder.norm.bias"
    resolve(str(rewritten(official, lambda t: t.update({f"module.{name}": t[name].clone()}))))
    said = refusal(rewritten(official, lambda t: t.update({f"module.{name}": t[name] + 1})))
    assert f"holds {name} and module.{name}, which are the same weight under two names and differ" in said
    ours = load_file(tiny_checkpoint / "model.safetensors")
    first = next(iter(ours))
    save_file({**ours, f"module.{first}": ours[first] + 1}, official.parent / "hub.safetensors")
    assert f"module.{first}" in refusal(official.parent / "hub.safetensors")


def test_sam_31_gives_its_detector_and_refuses_to_track(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = resolve(str(beside(tiny_checkpoint, tmp_path / "three-one", "sam3.1_multiplex.pt", "3.1")))
    assert checkpoint.release == "3.1" and checkpoint.config["sam3label"]["thresholds"]["detection"] == 0.4
    ours, found = load_file(tiny_checkpoint / "model.safetensors"), load_file(checkpoint.weights[0])
    level = {name for name in found if "neck.fpn_layers.3." in name}
    assert len(level) == 4 and not any(found[name].any() for name in level)
    assert all(torch.equal(found[name], ours[name]) for name in found.keys() - level)
    Detector.load(checkpoint, device="cpu")
    with pytest.raises(CheckpointError, match=r"tracker of SAM 3\.1.*--video frames"):
        load_video_model(checkpoint)


def test_sam_31_labels_sampled_frames_and_says_what_it_cannot(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = beside(tiny_checkpoint, tmp_path / "three-one", "sam3.1_multiplex.pt", "3.1")
    write_frames(tmp_path / "videos" / "walk", clip_pixels(9), ".png")
    told = ""
    for video, code in (("frames", 0), ("track", 1)):
        options = ["--model", str(file), "--video", video, "--every", "4", "--workers", "0", "--floor", "0.01"]
        command = ["run", str(tmp_path / "videos"), "-p", "car", "-o", str(tmp_path / video), *options]
        done = CliRunner().invoke(app, command)
        said = " ".join((done.output + capsys.readouterr().err).split())
        assert done.exit_code == code, said
        told += said
    assert "the tracker of SAM 3.1 follows many objects at once and is not part of this program" in said
    assert "--video frames" in said
    assert "the authors of this checkpoint use 0.4, which --set defaults.conf=0.4 sets" in told
    with open_run(tmp_path / "frames") as run:
        assert [image.frame for image in run.images()] == [0, 4, 8]
        assert run.info["authors_thresholds"] == {"detection": 0.4, "new_track": 0.65}
    with pytest.raises(CheckpointError, match=r"tracker of SAM 3\.1.*boxes and points"):
        Clicker.load(resolve(str(file)), Detector.load(resolve(str(file)), device="cpu"))


def test_a_folder_that_holds_nothing_but_metas_file(official: Path, tiny_checkpoint: Path) -> None:
    assert resolve(str(official.parent)).identity == resolve(str(tiny_checkpoint)).identity


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda t: t.pop("detector.transformer.decoder.norm.bias"),
            "1 weights missing (detector.transformer.decoder",
        ),
        (lambda t: t.update({"detector.extra.weight": torch.ones(1)}), "1 weights unknown (detector.extra.weight)"),
        (lambda t: t.update({"detector.transformer.decoder.norm.bias": torch.ones(3)}), "norm.bias (3,) for (128,)"),
        (lambda t: t.clear(), "it holds nothing"),
        (lambda t: t.update(note="mine"), "it holds note among other things"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(official: Path, edit: Any, said: str) -> None:
    assert said in refusal(rewritten(official, edit))


class Code:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_pickle_never_runs(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"detector.weight": Code()}}, official)
    assert "reading it could run code, so it is not read" in refusal(official)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not weights at all"])
def test_a_damaged_file(official: Path, content: bytes) -> None:
    official.write_bytes(content)
    assert "get it again" in refusal(official) or "could run code" in refusal(official)


def test_safetensors_of_either_naming(official: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = {n: t for n, t in torch.load(official, weights_only=True)["model"].items() if not t.is_complex()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, official.parent / "meta.safetensors")
    shutil.copy(tiny_checkpoint / "model.safetensors", official.parent / "hub.safetensors")
    want = resolve(str(tiny_checkpoint)).identity
    assert {resolve(str(official.parent / name)).identity for name in ("meta.safetensors", "hub.safetensors")} == {want}


def test_the_tokenizer_that_comes_along_is_clips() -> None:
    """Ids as CLIP's own tokenizer gives them, known from its documentation and the official code."""
    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("hello world!")["input_ids"] == [49406, 3306, 1002, 256, 49407]


def test_the_identity_is_of_numbers_not_of_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    files = tuple(tmp_path / f"{i}.safetensors" for i in range(2))
    for half, file in zip(halves, files, strict=True):
        save_file(half, file, metadata={"note": "other bytes"})
    config, tokenizer = json.loads((tiny_checkpoint / "config.json").read_text()), tiny_checkpoint / "tokenizer.json"
    whole = identity((tiny_checkpoint / "model.safetensors",), config, tokenizer)
    assert identity(files, config, tokenizer) == whole
    assert identity(files, {**config, "transformers_version": "9"}, tokenizer) == whole
    assert identity(files, {**config, "low_res_mask_size": 1}, tokenizer) != whole


def test_weights_are_listed_and_converted_from_the_command_line(official: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder, file = tmp_path / "hub", tmp_path / "again.pt"
    assert run(app, ["weights", "convert", str(official), str(folder)]).exit_code == 0
    done = run(app, ["weights", "convert", str(folder), str(file)])
    assert done.exit_code == 0 and "official code's names" in done.output
    assert resolve(str(beside_tokenizer(folder, file))).identity == resolve(str(official)).identity
    listed = run(app, ["weights"])
    assert listed.exit_code == 0 and "demo\n  demo: images, videos, boxes to masks" in listed.output
    assert "from sam3.pt" in listed.output and "SAM License" in listed.output
    assert "is not empty" in run(app, ["weights", "convert", str(official), str(folder)]).output
    assert "layout of facebook/sam3 already" in run(app, ["weights", "convert", "demo", str(tmp_path / "x")]).output


def test_a_folder_or_a_download_with_nothing_but_metas_file_is_converted(
    official: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(official.parent))
    for model in (str(official.parent), "facebook/sam3.1"):
        assert "in the layout of facebook/sam3: " in convert(model, tmp_path / f"from-{Path(model).name}")
        assert resolve(str(tmp_path / f"from-{Path(model).name}")).identity == resolve(str(tiny_checkpoint)).identity


def test_the_doctor_says_what_a_file_holds(tiny_checkpoint: Path, official: Path, tmp_path: Path) -> None:
    newer = beside(tiny_checkpoint, tmp_path / "three-one", "sam3.1_multiplex.pt", "3.1")
    for file, holds in ((official, "SAM 3: images, videos, boxes to masks"), (newer, "SAM 3.1: images only")):
        (check,) = (one for one in sl.doctor(str(file)) if one.what == "checkpoint")
        assert (check.found, check.advice) == (f"{file}: whole ({holds})", "")


def beside_tokenizer(folder: Path, file: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, file.with_name(name))
    return file

"""Near-copies are left out, said, remembered, and labelled later by those who want them after all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import Frame, MediaItem
from sam3label.demo.shapes import make_clip, make_scene
from sam3label.labelling import job
from sam3label.labelling.near_copies import NearCopies, distance
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.questions import Guide
from sam3label.media.video_writer import VideoWriter
from sam3label.model.ask import Asker
from sam3label.model.checkpoint import resolve
from sam3label.model.detector import Detector
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.run.unit_writer import LOOKS

CONCEPTS = parse_concepts("names: [star, circle]")
GROWN = parse_concepts("names: [star, circle, ring]")
LIMIT = 0.02


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bursts of three photos: the same scene with other noise, and a broken file among them."""
    folder, rng = tmp_path_factory.mktemp("bursts"), np.random.default_rng(0)
    for burst in range(3):
        scene = make_scene(60 + burst, (120, 160)).image.astype(int)
        for n in range(3):
            pixels = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{burst}-{n}.png"), pixels)
    (folder / "1-1x.png").write_bytes(b"no photo")
    return folder


def label(source: Path, out: Path, concepts: Any = CONCEPTS, **options: Any) -> Any:
    chosen = {"model": "demo", "device": "cpu", "workers": 0, "batch_size": 4, "skip_similar": LIMIT, **options}
    return job.label([source], concepts, out, LabelOptions(**chosen))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    encode, score = Detector.encode_images, Asker.score

    def counting_encode(self: Any, pixels: Any) -> Any:
        counted["encodes"] += len(pixels)
        return encode(self, pixels)

    def counting_score(self: Any, state: Any, pairs: Any, texts: Any) -> Any:
        counted["pairs"] += len(pairs)
        return score(self, state, pairs, texts)

    monkeypatch.setattr(Detector, "encode_images", counting_encode)
    monkeypatch.setattr(Asker, "score", counting_score)
    return counted


def labelled(out: Path) -> list[str]:
    with open_run(out) as run:
        return [item.id for item in run.items()]


def left_out(out: Path) -> dict[str, str]:
    with open_run(out) as run:
        return {item_id: like.item_id for item_id, _, like in run.near_copies()}


def test_one_of_each_burst_is_labelled_and_the_others_name_it(
    photos: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    out = tmp_path / "run"
    summary = label(photos, out)
    assert labelled(out) == ["0-0.png", "1-0.png", "2-0.png"]
    assert left_out(out) == {f"{b}-{n}.png": f"{b}-0.png" for b in range(3) for n in (1, 2)}
    assert calls == {"encodes": 9, "pairs": 6}  # every photo is encoded once, and only three are asked
    assert (summary.progress.done, summary.progress.skipped, summary.progress.failed) == (3, 6, 1)
    assert not summary.interrupted and summary.failures == (("1-1x.png", summary.failures[0][1]),)
    calls.clear()
    label(photos, out)  # what was left out stays so, without a look
    assert not calls and len(labelled(out)) == 3
    label(photos, out, GROWN)
    assert calls == {"encodes": 3, "pairs": 3} and len(labelled(out)) == 3
    calls.clear()
    label(photos, out, GROWN, skip_similar=None)  # and is labelled by who wants it
    assert calls == {"encodes": 6, "pairs": 18}
    assert len(labelled(out)) == 9 and left_out(out) == {}


def test_the_labels_of_what_is_kept_are_those_without_it(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "some")
    label(photos, tmp_path / "all", skip_similar=None)
    with open_run(tmp_path / "some") as some, open_run(tmp_path / "all") as every:
        for image in some.images():
            same = every.image(image.item.id)
            assert same is not None
            assert [(x.id, x.class_id) for x in image.labels] == [(x.id, x.class_id) for x in same.labels]


def test_it_goes_on_where_it_stopped_as_if_it_had_not(photos: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    label(photos, once)
    label(photos, twice, limit=4)
    assert len(labelled(twice)) + len(left_out(twice)) == 4
    label(photos, twice)
    assert left_out(twice) == left_out(once) and labelled(twice) == labelled(once)


def test_a_near_copy_that_was_replaced_is_looked_at_again(photos: Path, tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    for name in ("0-0.png", "0-1.png"):
        (mine / name).write_bytes((photos / name).read_bytes())
    label(mine, tmp_path / "run")
    assert left_out(tmp_path / "run") == {"0-1.png": "0-0.png"}
    (mine / "0-1.png").write_bytes((photos / "2-0.png").read_bytes())
    label(mine, tmp_path / "run")
    assert labelled(tmp_path / "run") == ["0-0.png", "0-1.png"] and not left_out(tmp_path / "run")


def test_sampled_frames_of_a_still_video_are_left_out_to_its_end(tmp_path: Path) -> None:
    scenes = make_clip(3, 6, (120, 160), 3)
    shown = [scenes[0]] * 4 + list(scenes[2:6:3]) + [scenes[5]] * 4  # still, moving, still
    (tmp_path / "videos").mkdir()
    with VideoWriter(tmp_path / "videos" / "v.mp4", 12, crf=12, repeatable=True) as video:
        for scene in shown:
            video.write(scene.image)
    out = tmp_path / "run"
    chosen = {"video": "frames", "every": 1, "batch_size": 3}
    summary = label(tmp_path / "videos", out, **chosen)
    assert summary.progress.done == 1 and not summary.interrupted
    with Store.open(out) as store:
        units = [unit.frame_start for unit in store.units()]
        skipped = [frame for _, frame, _ in store.skipped()]
    assert {0} <= set(units) and {1, 2, 3, 9} <= set(skipped)
    assert sorted(units + skipped) == list(range(10))
    label(tmp_path / "videos", out, GROWN, **chosen)
    with Store.open(out) as store:
        assert [unit.frame_start for unit in store.units()] == units
        assert all(len(store.asked(unit).prompts) == 3 for unit in store.units())
    label(tmp_path / "videos", out, GROWN, **{**chosen, "skip_similar": None})
    with open_run(out) as run:
        assert [unit.frame_start for unit in run.done_units()] == list(range(10))
        assert run.near_copies() == [] and run.coverage().waiting == ()


def test_only_the_images_labelled_last_are_compared_and_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(LOOKS + 2, 16, 8)).astype(np.float16)
    looks /= np.linalg.norm(looks.astype(np.float32), axis=2, keepdims=True).astype(np.float16)
    copies = NearCopies(1e-3)
    frames = [Frame(MediaItem(f"{n}", f"{n}"), 0, np.zeros((2, 2, 3), np.uint8)) for n in range(LOOKS + 2)]
    assert all(seen.like is None for seen in copies.judge(frames, list(looks)))
    first, last = copies.judge(frames[:1] + frames[-1:], [looks[0], looks[-1]])
    assert first.like is None  # it has left the window
    assert last.like is not None and last.like.item_id == frames[-1].item.id
    assert distance(looks[0], looks[0].ravel()) < 2e-3 and distance(looks[0], looks[1].ravel()) > 0.5


def test_it_is_said(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["run", str(photos), "-p", "star", "--model", "demo", "--device", "cpu", "--workers", "0", "-o", str(out)]
    ran = CliRunner().invoke(app, [*command, "--skip-similar", str(LIMIT)])
    assert ran.exit_code == 3, ran.output  # the broken file
    line = "6 near-copies left out by --skip-similar (0-1.png is like 0-0.png, ...): the same command without it"
    assert line in ran.output
    told = CliRunner().invoke(app, ["status", str(out)])
    assert line in told.output
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert '"copies": 6' in (out / "report.html").read_text()


def test_features_are_of_length_one_and_detect_does_not_encode_again(calls: Counter[str]) -> None:
    detector = Detector.load(resolve("demo"), device="cpu")
    frames = [Frame(MediaItem(f"{n}", f"{n}"), 0, make_scene(n, (90, 120)).image) for n in range(5)]
    looks = detector.looks(frames)
    np.testing.assert_allclose(np.linalg.norm(np.stack(looks).astype(np.float32), axis=2), 1, atol=2e-3)
    prompts = Guide(detector, CONCEPTS).prompts
    again = detector.detect([frames[1], frames[4]], prompts)
    assert calls["encodes"] == 5
    fresh = Detector.load(resolve("demo"), device="cpu").detect([frames[1], frames[4]], prompts)
    for one, other in zip(again, fresh, strict=True):
        np.testing.assert_allclose(one.presence, other.presence, atol=1e-5)
        assert [c.id for c in one.candidates] == [c.id for c in other.candidates]

"""Videos through a run, the exports and `render`, on a tiny random checkpoint: whole, killed, resumed, damaged."""

from __future__ import annotations

import configparser
import io
import json
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from safetensors.torch import load_file, save_file
from support.lively import make_lively
from support.nursery import Nursery
from support.videofiles import clip_pixels, write_frames, write_video
from typer.testing import CliRunner

from sam3label.cli import app
from sam3label.cli.status import as_json
from sam3label.cli.tables import full_answers
from sam3label.concepts.concept_list import parse_concepts
from sam3label.core import masks
from sam3label.core.records import ConceptList, MediaItem, Rle
from sam3label.errors import CheckpointError, ConfigError, InputError, OutputError
from sam3label.export.options import Options
from sam3label.export.splits import parse_splits
from sam3label.export.write import export
from sam3label.labelling import job
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.labelling.videos import OVERLAP
from sam3label.media import video as media_video
from sam3label.review.reasons import cases
from sam3label.review.survey import survey_run
from sam3label.run.reader import open_run
from sam3label.run.store import Store
from sam3label.show.render import render

ONTOLOGY = '{"car": "car"}'
CONCEPTS = parse_concepts("names: [car]\ndefaults: {conf: 0.3}")
runner = CliRunner()


@pytest.fixture(scope="module")
def checkpoint(least_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively(least_checkpoint, tmp_path_factory.mktemp("lively") / "checkpoint")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames, a folder of 10, and a photo."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "sub").mkdir()
    write_video(folder / "sub/walk.mp4", clip_pixels(40))
    write_frames(folder / "steps", clip_pixels(10, seed=6), ".png")
    cv2.imwrite(str(folder / "photo.jpg"), clip_pixels(1, seed=7)[0])
    return folder


def label(sources: list[Path], out: Path, checkpoint: Path, **options: Any) -> tuple[Any, list[Progress]]:
    seen: list[Progress] = []
    chosen = LabelOptions(**{"model": str(checkpoint), "workers": 0, "clip_frames": 16, "video": "track", **options})
    return job.label(sources, CONCEPTS, out, chosen, on_progress=seen.append), seen


def rows(out: Path) -> list[tuple[Any, ...]]:
    """Everything a run holds, by item, without SQLite's own numbering."""
    with Store.open(out) as store:
        return [
            (u.item, u.frame_start, u.frame_stop, u.size_hw, u.error, store.presence(u).tobytes(), store.candidates(u))
            for u in store.units()
        ]


@pytest.fixture(scope="module")
def tracked(sources: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tracked"
    summary, seen = label([sources], out, checkpoint)
    assert (summary.progress.done, summary.progress.failed, summary.found) == (3, 0, 3)
    assert summary.progress.frames == 50
    assert [p.frames for p in seen] == sorted(p.frames for p in seen)
    return out


# ---- tracking in a run


def test_clips_join_into_one_video_with_lasting_ids(tracked: Path) -> None:
    units = {(item.id, start): (stop, found) for item, start, stop, _, _, _, found in rows(tracked)}
    walk = [(start, stop) for (name, start), (stop, _) in units.items() if name == "sub/walk.mp4"]
    assert walk == [(0, 16), (16, 32), (32, 40)]
    (before, first), (_, second) = units["sub/walk.mp4", 0], units["sub/walk.mp4", 16]
    at_end = {c.track_id for c in first if c.frame == before - 1}
    at_start = {c.track_id for c in second if c.frame == before}
    assert at_end and at_end & at_start  # someone was recognised
    born: dict[int | None, float] = {}
    for _, found in (units["sub/walk.mp4", start] for start, _ in walk):
        for one in found:
            assert born.setdefault(one.track_id, one.score) == one.score  # the score at birth goes along
    assert min(born) == 1 and len(born) == max(born)  # type: ignore[type-var]


def test_every_candidate_of_a_track_is_consistent(tracked: Path) -> None:
    ids = set()
    for _, start, stop, _size_hw, _, _presence, found in rows(tracked):
        for one in found:
            assert start <= one.frame < stop
            assert one.area == masks.area(one.rle) > 0
            assert one.box_xywh == masks.box_xywh(one.rle)
            if one.track_id is not None:
                assert 0 < one.score <= 1 and one.track_score is not None and 0 <= one.track_score <= 1
            ids.add(one.id)
    assert len(ids) == sum(len(row[-1]) for row in rows(tracked))


def test_a_track_counts_as_one_object(tracked: Path, sources: Path, checkpoint: Path, tmp_path: Path) -> None:
    summary, _ = label([sources / "steps"], tmp_path / "run", checkpoint)
    (row,) = rows(tmp_path / "run")
    assert summary.progress.objects == {"car": len({one.track_id for one in row[-1]})}
    again, _ = label([sources / "steps"], tmp_path / "run", checkpoint)
    assert (again.progress.total, again.already_done) == (0, 1)


@pytest.mark.parametrize("rule", ["tile: 32", "tile: auto, refine: true"])
def test_tiles_and_refine_track_nothing_again(
    rule: str, tracked: Path, sources: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for photos: a tracked video keeps its answers and the ids of its objects, there and back."""
    out, other = tmp_path / "run", parse_concepts(f"names: [car]\ndefaults: {{conf: 0.3, {rule}}}")
    shutil.copytree(tracked, out)
    monkeypatch.setattr("sam3label.model.tracker.Tracker.track", lambda *_, **__: pytest.fail("a video was tracked"))

    def labelled(concepts: ConceptList) -> tuple[int, list[str]]:
        said: list[str] = []
        options = LabelOptions(model=str(checkpoint), workers=0, clip_frames=16, video="track")
        summary = job.label([sources], concepts, out, options, on_message=said.append)
        return summary.progress.total, said

    before = [row for row in rows(out) if row[0].kind == "video"]
    total, said = labelled(other)
    assert total == 1  # the photo
    assert any("nothing in 2 videos, which are tracked" in line for line in said), said
    assert "1 phrase in other tiles ('car') on 1 image; 0 prompts kept as answered." in said
    with open_run(out) as run:
        assert run.coverage().waiting == () and run.concepts.concepts[0].tile is not None
    assert [row for row in rows(out) if row[0].kind == "video"] == before
    assert labelled(CONCEPTS)[0] == 0  # the photo's answers of before are there too
    assert [row for row in rows(out) if row[0].kind == "video"] == before
    assert labelled(other)[0] == 0


def test_a_tracked_video_that_is_full_is_named_whatever_tiles_its_class_has(
    tracked: Path, sources: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tracked, out)
    options = LabelOptions(model=str(checkpoint), workers=0, clip_frames=16, video="track")
    tiled = parse_concepts("names: [car]\ndefaults: {conf: 0.3, tile: auto}")
    job.label([sources], tiled, out, options)
    with Store.open(out) as store:
        store.set_meta("info", {**store.meta("info"), "queries": 1})  # as if no more could be answered
    with open_run(out) as run:
        full, objects = run.full(), {(c.item_id, c.frame) for u in run.done_units() for c in run.candidates(u)}
        assert {(item_id, frame) for item_id, frame, _ in full} == {one for one in objects if one[0] != "photo.jpg"}
        (line,) = full_answers(run)
        assert line.endswith("tracked videos have no tiles, --video frames labels samples of them in parts")
        kinds = {case.item.id: case.of("saturated") for case in cases(run, survey_run(run, audit=0))}
        assert kinds["sub/walk.mp4"] and not kinds["photo.jpg"]
        assert as_json(run)["full"][0] == {"id": full[0][0], "frame": full[0][1], "prompt": "car"}


def test_kill_nine_in_mid_video_and_resume_gives_the_uninterrupted_store(
    sources: Path, tracked: Path, nursery: Nursery, checkpoint: Path, tmp_path: Path
) -> None:
    out, expected = tmp_path / "run", rows(tracked)
    arguments = ["run", sources, "--ontology", ONTOLOGY, "--video", "track", "--set", "defaults.conf=0.3"]
    arguments += ["--clip-frames", 16, "--workers", 0, "-o", out, "-q"]
    command = nursery.command(tmp_path / "said", checkpoint, *arguments)
    while committed(out) < 3 and command.lives():  # the photo, the folder, a clip
        time.sleep(0.01)
    command.send(signal.SIGKILL)
    assert command.ended()[0] == -signal.SIGKILL
    assert rows(out) == [row for row in expected if row[:2] in {r[:2] for r in rows(out)}]
    assert committed(out) < len(expected)
    code, output = nursery.command(tmp_path / "said", checkpoint, *arguments).ended()
    assert code == 0, output
    assert rows(out) == expected


def committed(out: Path) -> int:
    if not (out / "run.sqlite").is_file():
        return 0
    try:
        with sqlite3.connect(f"file:{out / 'run.sqlite'}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM units").fetchone()[0])
    except sqlite3.OperationalError:  # being made
        return 0


def test_other_clips_are_refused_and_so_is_a_checkpoint_without_tracker(
    sources: Path, tracked: Path, checkpoint: Path, tmp_path: Path
) -> None:
    result = runner.invoke(
        app,
        [
            "run",
            str(sources),
            "--ontology",
            ONTOLOGY,
            "--model",
            str(checkpoint),
            "-o",
            str(tracked),
            "--clip-frames=32",
        ],
    )
    assert result.exit_code == 1
    assert 'video: was "track, clips of 16 frames", now "track, clips of 32 frames"' in result.output
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    weights = load_file(bare / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("detector_model.")}
    save_file(kept, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="has no complete tracker"):
        label([sources], tmp_path / "run", bare)
    assert rows(tmp_path / "run") == []  # not after the photos: before them


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("short") / "short.mp4", clip_pixels(6))


def tracked_by_command(short: Path, checkpoint: Path, out: Path, *options: str) -> tuple[int, str]:
    arguments = ["run", str(short), "--ontology", ONTOLOGY, "--model", str(checkpoint), "-o", str(out), *options]
    result = runner.invoke(app, [*arguments, "--workers", "0", "--set", "defaults.conf=0.3"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def test_a_run_keeps_to_the_rules_it_was_begun_with(short: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    chosen = ("--tracker", "transformers", "--tracking-extra", "confirm")
    code, said = tracked_by_command(short, checkpoint, out, *chosen)
    assert code == 0, said
    found = rows(out)
    assert tracked_by_command(short, checkpoint, tmp_path / "official", "--tracker", "official")[0] == 0
    assert found[0][6] and rows(tmp_path / "official") != found
    assert tracked_by_command(short, checkpoint, out, *chosen)[0] == 0 and rows(out) == found
    for changed, now in (
        ((), "official"),
        (chosen[:2], "transformers"),
        (("--tracker", "official", *chosen[2:]), "official, confirm"),
        ((*chosen, "--tracking-extra", "birth-065"), "transformers, birth-065, confirm"),
        ((*chosen, "--both-ways"), "transformers, confirm, both ways"),
    ):
        code, said = tracked_by_command(short, checkpoint, out, *changed)
        assert code == 1 and f'tracker: was "transformers, confirm", now "{now}"' in said
    assert rows(out) == found
    code, said = tracked_by_command(short, checkpoint, tmp_path / "other", "--tracking-extra", "confrim")
    assert code == 1 and "confrim" in said and "confirm" in said and not (tmp_path / "other").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_both_ways_on_a_full_disk_ends_in_a_sentence(
    short: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "r+b"))
        code, said = tracked_by_command(short, checkpoint, out, "--both-ways")
    assert code == 1 and said.endswith(
        f"{tempfile.gettempdir()} cannot be written (no space left on device): "
        "free space, or set TMPDIR to a folder on a larger disk. The same command goes on."
    )
    assert tracked_by_command(short, checkpoint, out, "--both-ways")[0] == 0 and len(rows(out)) == 1


def test_a_damaged_video_is_labelled_as_far_as_it_goes(checkpoint: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clips/a.mp4" if (tmp_path / "clips").mkdir() is None else tmp_path, clip_pixels(24))
    data = bytearray(path.read_bytes())
    end = data.index(b"moov") - 4
    data[end - 1500 : end] = bytes(1500)
    path.write_bytes(data)
    good = 0
    try:
        for _ in media_video.frames(MediaItem("a.mp4", str(path), "video")):
            good += 1
    except Exception as error:
        reason = str(error)
    assert 0 < good < 24
    summary, _ = label([tmp_path / "clips"], tmp_path / "run", checkpoint)
    assert (summary.progress.done, summary.progress.failed) == (0, 1)
    assert summary.failures == (("a.mp4", reason),)
    with open_run(tmp_path / "run") as labelled:
        assert [image.frame for image in labelled.images()] == list(range(good))
    again, _ = label([tmp_path / "clips"], tmp_path / "run", checkpoint)  # the file is as it was: left alone, and named
    assert (again.progress.failed, again.failures) == (0, summary.failures)
    insisted, _ = label([tmp_path / "clips"], tmp_path / "run", checkpoint, retry_failed=True)
    assert (insisted.progress.failed, insisted.failures) == (1, summary.failures)
    (tmp_path / "clips/none.avi").write_bytes(b"no video at all")
    worst, _ = label([tmp_path / "clips"], tmp_path / "run", checkpoint)
    assert [name for name, _ in worst.failures] == ["a.mp4", "none.avi"]


# ---- sampled frames


def test_sampled_frames_are_photos_of_their_own(sources: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = ["run", str(sources), "--ontology", ONTOLOGY, "--model", str(checkpoint), "-o", str(tmp_path / "run")]
    command += ["--set", "defaults.conf=0.3", "--video", "frames", "--every", "9", "--workers", "0"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "run")
    walk = [(start, stop) for item, start, stop, *_ in found if item.id == "sub/walk.mp4"]
    assert walk == [(i, i + 1) for i in (0, 9, 18, 27, 36)]
    assert all(one.track_id is None for row in found for one in row[-1])
    with open_run(tmp_path / "run") as labelled:
        frames = {image.frame: image for image in labelled.images() if image.item.id == "sub/walk.mp4"}
        assert sorted(frames) == [0, 9, 18, 27, 36]
        export(labelled, "coco", tmp_path / "coco")
        with pytest.raises(OutputError, match=r"were labelled frame by frame and have no identity.*--video track"):
            export(labelled, "mot", tmp_path / "mot")
    truth = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    names = [image["file_name"] for image in truth["images"]]
    assert names == ["photo.jpg", "steps/00000.png", "steps/00009.png"] + [
        f"sub/walk.mp4/{i:06d}.jpg" for i in (0, 9, 18, 27, 36)
    ]
    pixels = clip_pixels(40)[18]
    (path,) = (tmp_path / "coco").rglob("000018.jpg")
    written = cv2.imread(str(path))[..., ::-1]
    assert np.abs(written.astype(int) - pixels).mean() < 12
    again = runner.invoke(app, command)
    assert again.exit_code == 0 and rows(tmp_path / "run") == found


def test_a_killed_sampling_goes_on_where_it_was(sources: Path, checkpoint: Path, tmp_path: Path) -> None:
    import threading

    whole, part, stop = tmp_path / "whole", tmp_path / "part", threading.Event()
    options = {"video": "frames", "every": 4, "batch_size": 2}
    label([sources / "sub"], whole, checkpoint, **options)

    def after_three(progress: Progress) -> None:
        if progress.frames >= 3:
            stop.set()

    chosen = LabelOptions(model=str(checkpoint), workers=0, clip_frames=16, **options)  # type: ignore[arg-type]
    summary = job.label([sources / "sub"], CONCEPTS, part, chosen, on_progress=after_three, stop=stop)
    assert summary.interrupted and 0 < len(rows(part)) < len(rows(whole))
    label([sources / "sub"], part, checkpoint, **options)
    assert rows(part) == rows(whole)


def test_videos_can_be_left_out(sources: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    summary, _ = label([sources], tmp_path / "run", least_checkpoint, video="off")
    assert (summary.progress.done, summary.skipped_videos) == (11, 1)  # frames of a folder are photos then
    result = runner.invoke(app, ["run", str(sources), "--ontology", ONTOLOGY, "--video", "sideways"])
    assert result.exit_code == 2 and "'sideways' is not one of 'auto'" in result.output


# ---- exports


@pytest.mark.parametrize("kind", ["coco", "coco-roboflow", "yolo-detect", "voc", "labelstudio", "masks"])
def test_frames_of_a_video_go_into_every_image_format_and_one_split(kind: str, tracked: Path, tmp_path: Path) -> None:
    options = Options(splits=parse_splits("train=0.5,val=0.5", 3))
    with open_run(tracked) as labelled:
        summary = export(labelled, kind, tmp_path / "set", options)
    assert summary.images == 51
    frames = [path for path in (tmp_path / "set").rglob("*.jpg") if "walk.mp4" in str(path)]
    if frames:
        assert len({path.parent for path in frames}) == 1 and len(frames) == 40


def export_tracked(tracked: Path, kind: str, out: Path) -> dict[str, dict[int, dict[int, Any]]]:
    """Exports the two videos; returns video -> frame -> track -> label."""
    expected: dict[str, dict[int, dict[int, Any]]] = {}
    with open_run(tracked) as labelled:
        videos = [image for image in labelled.images() if image.item.kind == "video"]
        assert "1 photo left out: this format holds videos." in export(labelled, kind, out).notes
    for image in videos:
        frames = expected.setdefault(image.item.id, {})
        frames[image.frame] = {one.track_id: one for one in image.labels}  # type: ignore[misc]
    return expected


def test_ytvis_holds_every_track_frame_by_frame(tracked: Path, tmp_path: Path) -> None:
    expected = export_tracked(tracked, "ytvis", tmp_path / "set")
    data = json.loads((tmp_path / "set/train/instances.json").read_text())
    assert data["categories"] == [{"id": 1, "name": "car", "supercategory": "object"}]
    found: Counter[str] = Counter()
    for video in data["videos"]:
        assert (video["height"], video["width"], video["length"]) == (64, 80, len(video["file_names"]))
        for name in video["file_names"]:
            assert cv2.imread(str(tmp_path / "set/train/JPEGImages" / name)).shape == (64, 80, 3)
    names = {video["id"]: str(Path(video["file_names"][0]).parent) for video in data["videos"]}
    for annotation in data["annotations"]:
        frames = expected[names[annotation["video_id"]]]
        track = {frame: m for frame, m in enumerate(annotation["segmentations"]) if m is not None}
        (number,) = (
            t for t in {t for labels in frames.values() for t in labels}
            if {f for f, labels in frames.items() if t in labels} == set(track)
            and all(masks.to_runs(frames[f][t].rle).tolist() == m["counts"] for f, m in track.items())
        )  # fmt: skip
        for frame, mask in track.items():
            packed = coco_mask.frPyObjects(mask, *mask["size"])  # as TrackEval reads it: compressed counts raise here
            assert annotation["areas"][frame] == int(coco_mask.area(packed)) == frames[frame][number].area
            assert annotation["bboxes"][frame] == list(frames[frame][number].box_xywh)
        found[names[annotation["video_id"]]] += 1
    assert found == {v: len({t for labels in frames.values() for t in labels}) for v, frames in expected.items()}


def test_mot_counts_from_one(tracked: Path, tmp_path: Path) -> None:
    expected = export_tracked(tracked, "mot", tmp_path / "set")
    assert (tmp_path / "set/train/seqmap.txt").read_text().split() == ["name", "steps", "sub/walk.mp4"]
    for name, frames in expected.items():
        folder = tmp_path / "set/train" / name
        info = configparser.ConfigParser()
        info.read(folder / "seqinfo.ini")
        assert info["Sequence"]["seqLength"] == str(len(frames)) == str(len(list((folder / "img1").iterdir())))
        assert (info["Sequence"]["imWidth"], info["Sequence"]["imHeight"]) == ("80", "64")
        assert info["Sequence"]["frameRate"] == ("10" if name.endswith("mp4") else "25")
        assert (folder / "gt/labels.txt").read_text() == "car\n"
        found: dict[int, list[list[float]]] = {}
        for line in (folder / "gt/gt.txt").read_text().splitlines():
            frame, _number, *rest = (float(value) for value in line.split(","))
            found.setdefault(int(frame) - 1, []).append(rest)
        for frame, labels in frames.items():
            boxes = [[x + 1, y + 1, w, h, 1, 1, 1] for x, y, w, h in (one.box_xywh for one in labels.values())]
            assert sorted(found.get(frame, [])) == sorted(boxes)


def test_mots_gives_each_pixel_to_one_object(tracked: Path, tmp_path: Path) -> None:
    expected = export_tracked(tracked, "mots", tmp_path / "set")
    for name, frames in expected.items():
        lines = [line.split() for line in (tmp_path / "set/train" / name / "gt/gt.txt").read_text().splitlines()]
        covered: dict[int, np.ndarray] = {}
        for frame, identity, class_id, height, width, counts in lines:
            assert (class_id, height, width) == ("1", "64", "80") and 1000 < int(identity) < 2000
            mask = masks.decode(Rle((64, 80), counts.encode()))
            covered[int(frame) - 1] = covered.get(int(frame) - 1, np.zeros((64, 80), int)) + mask
        for frame, labels in frames.items():
            if labels:
                assert covered[frame].max() == 1
                union = masks.decode(masks.union([one.rle for one in labels.values()]))
                assert np.array_equal(covered[frame] > 0, union)


def test_a_video_that_is_gone_is_named(tracked: Path, sources: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", clip_pixels(17))
    label([path], tmp_path / "run", checkpoint)
    path.write_bytes(b"overwritten")
    with open_run(tmp_path / "run") as labelled:
        with pytest.raises(OutputError, match=r"a.mp4: replaced since it was labelled"):
            export(labelled, "coco", tmp_path / "set")
        assert export(labelled, "coco", tmp_path / "set", Options(images="none")).images == 17
        with pytest.raises(OutputError, match=r"a.mp4 can no longer be decoded as it was labelled"):
            render(labelled, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


# ---- render


def test_render_draws_every_track(tracked: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["render", str(tracked), "-o", str(tmp_path / "rendered")])
    assert result.exit_code == 0, result.output
    assert "2 videos" in result.output
    drawn = list(media_video.frames(MediaItem("x", str(tmp_path / "rendered/sub/walk.mp4"), "video")))
    assert len(drawn) == 40 and drawn[0].size_hw == (64, 80)
    plain = clip_pixels(40)
    with open_run(tracked) as labelled:
        for image in labelled.images():
            if image.item.id != "sub/walk.mp4" or not image.labels:
                continue
            mask = masks.decode(masks.union([one.rle for one in image.labels]))
            change = np.abs(drawn[image.frame].pixels.astype(int) - plain[image.frame]).mean(axis=2)
            assert change[mask].mean() > 15
    assert [p.name for p in (tmp_path / "rendered").rglob("*partial*")] == []


def test_render_refuses_in_words(tracked: Path, sources: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    with open_run(tracked) as labelled:
        with pytest.raises(
            OutputError, match=r"the run has 2 videos, and .*out.mp4 is one file. Choose one with --item steps"
        ):
            render(labelled, tmp_path / "out.mp4")
        with pytest.raises(InputError, match=r"the run has no video 'walk'. It has: steps, sub/walk.mp4"):
            render(labelled, tmp_path / "out.mp4", "walk")
        assert render(labelled, tmp_path / "out.mp4", "steps") == 1
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot be written"):
            render(labelled, tmp_path / "file/out.mp4", "steps")
    label([sources / "photo.jpg"], tmp_path / "photos", least_checkpoint)
    with open_run(tmp_path / "photos") as labelled, pytest.raises(InputError, match="the run has no labelled videos"):
        render(labelled, tmp_path / "out")


def test_the_overlap_is_shorter_than_the_shortest_clip() -> None:
    result = runner.invoke(app, ["run", "x", "--ontology", ONTOLOGY, "--clip-frames", "15"])
    assert result.exit_code == 2 and "16" in result.output
    assert 2 * OVERLAP == 16


# ---- boxes on a frame


def with_exemplars(exemplars: str, folder: Path) -> ConceptList:
    text = f"names: [thing]\nconcepts: {{thing: {{prompts: [], exemplars: {exemplars}}}}}"
    return parse_concepts(text, "c.yaml", (), folder)


def test_boxes_on_a_frame_of_a_tracked_video_are_asked_there_and_the_objects_live_on(
    sources: Path, checkpoint: Path, tmp_path: Path
) -> None:
    labels = {
        "images": [{"id": 1, "file_name": "walk.mp4/000008.jpg", "height": 64, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 30, 30, 30]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(labels))
    concepts = parse_concepts(
        "names: [thing]\ndefaults: {conf: 0.3}\nconcepts: {thing: {prompts: [], exemplars: {labels: boxes.json}}}",
        "c.yaml",
        (),
        tmp_path,
    )
    options = LabelOptions(model=str(checkpoint), workers=0, video="track", floor=0.0)
    summary = job.label([sources / "sub/walk.mp4"], concepts, tmp_path / "run", options)
    assert summary.progress.done == 1 and not summary.failures
    (unit,) = rows(tmp_path / "run")
    presence = np.frombuffer(unit[5], np.float32)
    assert np.flatnonzero(~np.isnan(presence)).tolist() == [8]
    assert all(one.frame >= 8 for one in unit[6])
    with open_run(tmp_path / "run") as run:
        labels = [label for image in run.images() for label in image.labels]
    assert labels and {label.class_name for label in labels} == {"thing"}


def test_boxes_that_do_not_fit_a_video_fail_it_by_name_and_reference_images_are_refused(
    sources: Path, checkpoint: Path, tmp_path: Path
) -> None:
    labels = {
        "images": [{"id": 1, "file_name": "walk.mp4/000003.jpg", "height": 600, "width": 800}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 300, 300]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(labels))
    concepts = parse_concepts(
        "names: [thing]\nconcepts: {thing: {prompts: [], exemplars: {labels: boxes.json}}}", "c.yaml", (), tmp_path
    )
    options = LabelOptions(model=str(checkpoint), workers=0, video="track")
    summary = job.label([sources / "sub/walk.mp4"], concepts, tmp_path / "run", options)
    ((name, reason),) = summary.failures
    assert name == "walk.mp4" and "600" in reason
    (tmp_path / "refs").mkdir()
    cv2.imwrite(str(tmp_path / "refs/a.jpg"), clip_pixels(1, seed=7)[0])
    referring = {**labels, "images": [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 80}]}
    referring["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 30]}]
    (tmp_path / "refs/labels.json").write_text(json.dumps(referring))
    concepts = parse_concepts(
        "names: [thing]\nconcepts: {thing: {prompts: [], exemplars: refs}}", "c.yaml", (), tmp_path
    )
    with pytest.raises(ConfigError, match="reference images are for photos .* --video frames .* labels: with boxes"):
        job.label([sources / "sub/walk.mp4"], concepts, tmp_path / "run2", options)

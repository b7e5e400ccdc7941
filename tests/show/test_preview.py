"""Preview: a spread sample, a sheet, a page, and an estimate made of what the sample took."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from sam3label.concepts.concept_list import parse_concepts
from sam3label.core.records import MediaItem
from sam3label.demo.shapes import make_scene
from sam3label.errors import InputError, OutputError
from sam3label.labelling.job import label
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.progress import Progress
from sam3label.media.image import decode_image
from sam3label.model.checkpoint import Checkpoint
from sam3label.model.detector import Detector
from sam3label.run.reader import open_run
from sam3label.run.store_errors import DATABASE
from sam3label.show.draw import Pixels
from sam3label.show.preview import preview, spread

CONCEPTS = parse_concepts("names: [cat, dog]\ndefaults: {conf: 0.3}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 small photos in five folders with equal base names, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = [Image.fromarray(make_scene(seed, (60, 80)).image) for seed in range(20)]
    for n in range(500):
        path = folder / f"day{n // 100}" / f"IMG_{n % 100:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        scenes[n % len(scenes)].save(path)
    (folder / "day2" / "IMG_025.jpg").write_bytes(b"not a photo")
    return folder


def options(checkpoint: Path) -> LabelOptions:
    return LabelOptions(model=str(checkpoint), device="cpu", workers=0, floor=0.2)


def test_the_sample_is_spread_over_all_folders() -> None:
    items = [MediaItem(f"{i:03d}", f"/{i}") for i in range(100)]
    assert [i.id for i in spread(items, 4)] == ["012", "037", "062", "087"]
    assert spread(items, 100) == spread(items, 300) == items
    assert len({i.id for i in spread(items, 99)}) == 99


def test_sheet_page_and_counts(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    made = preview([photos], CONCEPTS, tmp_path / "out", 10, options(least_checkpoint))
    assert (made.total, made.labelled, len(made.failures)) == (500, 9, 1)
    assert made.failures[0][0] == "day2/IMG_025.jpg", "named as a run of the whole folder names it"
    assert list(made.objects) == ["cat", "dog"]
    assert 0 <= made.empty <= 9
    assert made.sheet is not None
    with Image.open(made.sheet) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 1200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert "data:image/jpeg;base64" in made.page.read_text()
    folders = {Path(line).parent.name for line in (tmp_path / "out" / "sample.txt").read_text().split()}
    assert folders == {f"day{i}" for i in range(5)}
    assert made.memory > 1e8 and made.memory_kind == "memory"


@pytest.mark.parametrize(("decoding", "seconds"), [(0.0, 7 + 3 + 0.1 * 500), (0.25, 7 + 3 + 0.25 * 500)])
def test_the_estimate_is_made_of_measured_parts(
    decoding: float,
    seconds: float,
    photos: Path,
    least_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a pretend clock: 7 s to load, 3 s to warm up, 0.1 s an image, and what it takes to decode one."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def loaded(_: str) -> None:
        clock[0] += 7

    def worked(progress: Progress) -> None:
        clock[0] += 0 if progress.finished == progress.total else 0.2 if progress.finished else 3.2

    def decoded(path: str, max_megapixels: float | None = None) -> Pixels:
        clock[0] += decoding
        return decode_image(path, max_megapixels)

    monkeypatch.setattr("sam3label.show.preview.decode_image", decoded)
    made = preview([photos], CONCEPTS, tmp_path, 8, options(least_checkpoint), worked, loaded)
    assert made.seconds == pytest.approx(seconds)
    assert made.images_per_s == pytest.approx(1 / max(0.1, decoding))


def test_the_estimate_of_disk_is_that_of_the_run(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    some = [photos / "day0" / f"IMG_{n:03d}.jpg" for n in range(40)]
    everything = replace(options(least_checkpoint), floor=0.0)  # so that it is candidates that fill the database
    made = preview(some, CONCEPTS, tmp_path / "preview", 12, everything)
    label(some, CONCEPTS, tmp_path / "run", everything)
    assert 0.5 < made.disk / (tmp_path / "run" / DATABASE).stat().st_size < 2


def test_previewing_again_replaces_and_never_labels_its_own_sheet(least_checkpoint: Path, tmp_path: Path) -> None:
    for n in range(3):
        Image.fromarray(make_scene(n, (60, 80)).image).save(tmp_path / f"{n}.jpg")
    for _ in range(2):
        made = preview([tmp_path], CONCEPTS, tmp_path / "preview", 16, options(least_checkpoint))
        assert (made.total, made.labelled) == (3, 3)
    with pytest.raises(InputError, match="choose another folder for the preview with -o"):
        preview([tmp_path / "preview"], CONCEPTS, tmp_path / "preview", 4, options(least_checkpoint))


def test_a_run_goes_on_from_the_previews_labels(least_checkpoint: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for n in range(6):
        (photos / f"day{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_scene(n, (60, 80)).image).save(photos / f"day{n % 2}" / f"{n}.jpg")
    preview([photos], CONCEPTS, out, 3, options(least_checkpoint))
    done = label([photos], CONCEPTS, out / "run", options(least_checkpoint))
    assert (done.already_done, done.progress.done, done.missing) == (3, 3, ())
    label([photos], CONCEPTS, tmp_path / "whole", options(least_checkpoint))
    with open_run(out / "run") as went_on, open_run(tmp_path / "whole") as whole:
        assert [(i.item, len(i.labels)) for i in went_on.images()] == [(i.item, len(i.labels)) for i in whole.images()]
    with pytest.raises(OutputError, match="holds 6 images, more than the preview labelled: a run has gone on from it"):
        preview([photos], CONCEPTS, out, 3, options(least_checkpoint))


def test_videos_are_counted_and_left_out(least_checkpoint: Path, tmp_path: Path) -> None:
    """With --video track a folder of numbered frames is a video, so it is not in the sample or in the estimate."""
    track = replace(options(least_checkpoint), video="track")
    (tmp_path / "clip").mkdir()
    for n in range(8):
        Image.fromarray(make_scene(n, (60, 80)).image).save(tmp_path / "clip" / f"{n:05d}.jpg")
    with pytest.raises(InputError, match="there is 1 video .* and no photos. A preview shows photos"):
        preview([tmp_path], CONCEPTS, tmp_path / "out", 4, track)
    Image.fromarray(make_scene(0, (60, 80)).image).save(tmp_path / "photo.jpg")
    made = preview([tmp_path], CONCEPTS, tmp_path / "out", 4, track)
    assert (made.total, made.videos, made.labelled) == (1, 1, 1)
    made = preview([tmp_path], CONCEPTS, tmp_path / "out", 4, options(least_checkpoint))
    assert (made.total, made.videos, made.labelled) == (9, 0, 4), "numbered photos are photos unless asked otherwise"


def test_a_sample_without_a_single_photo(least_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"nothing")
    made = preview([tmp_path / "photos"], CONCEPTS, tmp_path / "out", 4, options(least_checkpoint))
    assert (made.labelled, made.sheet, len(made.failures)) == (0, None, 1)
    assert made.page.is_file()


def invoke(arguments: list[str]) -> Result:
    from sam3label.cli import app

    return CliRunner().invoke(app, arguments)


def test_command_line(photos: Path, least_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: [cat, dog]")
    out = tmp_path / "out"
    given = ["-c", str(tmp_path / "c.yaml"), "-n", "4", "-o", str(out), "--model", str(least_checkpoint)]
    done = invoke(["preview", str(photos), *given, "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "4 images labelled, a sample of 500; " in done.output
    assert re.search(r"images/s; all 500 images: about \d:\d\d:\d\d \(h:mm:ss\)", done.output)
    assert "GB of memory" in done.output and "on disk" in done.output
    assert (out / "contact.png").is_file() and (out / "report.html").is_file()
    missing = invoke(["preview", str(tmp_path / "nothing"), *given])
    assert (missing.exit_code, "no such file or folder" in missing.output) == (1, True)


def test_tiles_are_shown_with_and_without_side_by_side_and_their_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Checkpoint] = []
    load = Detector.load

    def counted(checkpoint: Checkpoint, **how: Any) -> Detector:
        loads.append(checkpoint)
        return load(checkpoint, **how)

    monkeypatch.setattr(Detector, "load", counted)
    (tmp_path / "photos").mkdir()
    for n in range(2):
        scene = make_scene(70 + n, (384, 384), objects=12, radius=(0.02, 0.04))
        cv2.imwrite(str(tmp_path / "photos" / f"{n}.png"), scene.image[..., ::-1])
    (tmp_path / "c.yaml").write_text("names: [shape]\ndefaults: {tile: auto}")
    out = tmp_path / "out"
    given = ["-c", str(tmp_path / "c.yaml"), "-o", str(out), "--model", "demo", "--workers", "0", "--device", "cpu"]
    done = invoke(["preview", str(tmp_path / "photos"), *given])
    assert done.exit_code == 0, done.output
    assert len(loads) == 1, "the model is loaded once"
    line = re.search(r"With tiles (\d+) objects instead of (\d+), in \S+ s an image instead of \S+ s", done.output)
    assert line and int(line[1]) > int(line[2])
    with Image.open(out / "tiles.png") as sheet:
        width, height = sheet.size
    assert width < height + 100  # two photos, each beside itself
    given += ["--set", "defaults.tile=400", "--max-megapixels", "9"]
    larger = invoke(["preview", str(tmp_path / "photos"), *given, "--image-size", "192"])
    command = larger.output.rpartition("Next")[2]
    assert "--set defaults.tile=400" in command and "--max-megapixels 9.0" in command
    assert "at 192 x 192 pixels instead of 128 x 128: " in larger.output
    assert "--image-size 192" in larger.output.rpartition("Next")[2]
    wrong = invoke(["preview", str(tmp_path / "photos"), *given, "--image-size", "200"])
    assert wrong.exit_code == 1 and "The nearest: 192 and 256." in wrong.output

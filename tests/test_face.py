"""The public face: lazy names, short looks, and every example in its docstrings, run on the demo checkpoint."""

from __future__ import annotations

import doctest
import inspect
import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sam3label as sl
import sam3label.face
from sam3label import image_detector, labelled_run
from sam3label.demo.job import HELD_OUT
from sam3label.demo.shapes import write_scenes
from sam3label.errors import ConfigError


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face")
    write_scenes(folder / "photos", 4, seed=HELD_OUT, concepts={"disc": "circle", "star": "star"})
    return folder


FIRST = ("face.label", "face.open_run")
IN_FIFTYONE = ("review_push", "review_pull")
WITHOUT_AN_EXAMPLE = {"review_open", "demo_videos", "demo_verified"}  # waits for people, or works for a minute


def examples() -> list[doctest.DocTest]:
    """In an order in which each stands on what those before it made: a run, what is done with it, and the rest."""
    finder, places = doctest.DocTestFinder(exclude_empty=True), (labelled_run, image_detector, sam3label.face)
    found = [test for place in places for test in finder.find(place, extraglobs={"sl": sl}) if test.examples]
    return sorted(found, key=lambda test: (not test.name.endswith(FIRST), places_of(test.name), test.lineno or 0))


def places_of(name: str) -> int:
    return next(i for i, place in enumerate(("labelled_run", "image_detector", "face")) if f".{place}." in name)


def failures(tests: Iterable[doctest.DocTest]) -> str:
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    for test in tests:
        runner.run(test, out=said.write)
    return said.getvalue()


def test_every_example_in_the_docstrings_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert failures(test for test in examples() if not test.name.endswith(IN_FIFTYONE)) == ""


def test_the_examples_in_fiftyone_run(fo: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    if not Path("runs/demo").exists():
        sl.label("photos", {"disc": ["circle"]}, out="runs/demo", model="demo")
    assert failures(test for test in examples() if test.name.endswith(IN_FIFTYONE)) == ""
    fo.delete_dataset("site-a")


def test_every_public_function_has_an_example() -> None:
    shown = {test.name.split(".", 2)[2] for test in examples()}
    public = {name for name, thing in vars(sam3label.face).items() if is_ours(thing) and not name.startswith("_")}
    public |= {
        f"LabeledRun.{name}" for name, thing in vars(sl.Run).items() if inspect.isfunction(thing) and name[0] != "_"
    }
    assert {name for name in public - shown if name.split(".")[-1] not in WITHOUT_AN_EXAMPLE} == set()


def is_ours(thing: object) -> bool:
    return (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == "sam3label.face"


def test_a_detector_takes_paths_pillow_images_and_arrays(workplace: Path) -> None:
    path = workplace / "photos" / "scene_0000.jpg"
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    with sl.Detector("demo", device="cpu") as detector:
        found = [detector(one, ["circle"], floor=0.3) for one in (str(path), picture, np.asarray(picture))]
        thresholded = detector(picture, {"circle": {"conf": 0.99}})
    assert [len(one.labels) for one in found] == [len(found[0].labels)] * 3
    assert not thresholded.labels and found[0].size == picture.size
    with pytest.raises(ValueError, match="closed"):
        detector(picture, ["circle"])


def test_the_import_is_light_and_the_names_are_all_there() -> None:
    code = (
        "import sys, sam3label as sl\n"
        "assert not {'torch', 'transformers', 'numpy', 'cv2', 'rich'} & set(sys.modules)\n"
        "assert set(sl.__all__) <= set(dir(sl)) and sl.__version__\n"
        "for name in sl.__all__: getattr(sl, name)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sl.nonsense


def test_a_wrong_keyword_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="video: 'trak' is not one of"):
        sl.label("nowhere", ["person"], video="trak")


def test_a_script_needs_no_main_guard(workplace: Path, tmp_path: Path) -> None:
    """Decoding workers must not run the script a second time: one print, and a run with everything in it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sam3label as sl\n"
        "print('begun')\n"
        f"run = sl.label({str(workplace / 'photos')!r}, ['circle'], out={str(tmp_path / 'run')!r}, model='demo',\n"
        "               workers=2, on_message=print)\n"
        "print(len(run), 'labelled')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "loading the model demo ...", "4 labelled"]
    assert done.stderr == ""


def test_no_public_name_is_a_rooms() -> None:
    """Importing a room would put it in the place of the name."""
    rooms = {path.name for path in Path(sam3label.__file__).parent.iterdir() if path.is_dir()}
    assert not rooms & set(sl.__all__)

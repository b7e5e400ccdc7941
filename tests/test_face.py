"""The public face: lazy names, short looks, and every example in its docstrings, run on the demo checkpoint."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sam3label as sl
import sam3label.face
from sam3label.demo.job import HELD_OUT
from sam3label.demo.shapes import write_scenes
from sam3label.errors import ConfigError


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face")
    write_scenes(folder / "photos", 4, seed=HELD_OUT, concepts={"disc": "circle", "star": "star"})
    return folder


def test_every_example_in_the_docstrings_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the module: each stands on what those before it made."""
    monkeypatch.chdir(workplace)
    tests = doctest.DocTestFinder(exclude_empty=True).find(sam3label.face, extraglobs={"sl": sl})
    tests = sorted((test for test in tests if test.examples), key=lambda test: test.lineno or 0)
    assert len(tests) >= 9
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


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

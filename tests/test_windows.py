"""What can be known of Windows without one: no module needs what is only on Linux and macOS, paths become ids."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

# The libraries are imported as they are here; then what Windows has not is taken away, and the program works on.
AS_ON_WINDOWS = r"""
import importlib, ntpath, os, pkgutil, sys
import av, cv2, filelock, pycocotools.mask, scipy.optimize, scipy.ndimage, scipy.spatial
import torch.utils.data, torchvision, transformers, rich.console, typer, yaml, ruamel.yaml, ftfy, fontTools.ttLib
import transformers.models.sam3.modeling_sam3, transformers.models.sam3_video.modeling_sam3_video
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sysconf", "sched_getaffinity", "geteuid", "getuid", "fork", "uname"):
    if hasattr(os, name):
        delattr(os, name)
import sam3label
for found in pkgutil.walk_packages(sam3label.__path__, "sam3label."):
    if found.name != "sam3label.__main__":
        importlib.import_module(found.name)
from sam3label.media import discovery, loader
from sam3label.model import doctor
from sam3label.show import preview
assert "size unknown" in next(check.found for check in doctor.examine("demo") if check.what == "memory")
del os.statvfs  # which shutil needs here, and not there
assert loader._free_shared_memory() > 1 << 60 and loader.default_workers(9) >= 1
assert preview._peak_memory() == (0, "memory")
here, os.path, os.sep = os.path, ntpath, chr(92)  # ids have forward slashes where paths have others
assert discovery._key(r"C:\data\site A\1.jpg", r"C:\data") == "site A/1.jpg"
assert discovery._root("site A/1.jpg", r"C:\data\site A\1.jpg") == r"C:\data"
os.path, os.sep = here, "/"
from sam3label.cli import main
sys.argv = ["sam3label", *sys.argv[1:]]
main()
"""


def test_a_photo_is_labelled_and_exported_without_what_windows_has_not(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photos" / "a.jpg"), pixels)
    words = ["run", tmp_path / "photos", "-p", "cat", "--model", tiny_checkpoint, "--workers", "0", "-o",
             tmp_path / "run", "--export", "yolo"]  # fmt: skip
    # and with a terminal that cannot show everything
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "1 image labelled" in done.stdout
    exported = {p.relative_to(tmp_path / "run/exports").as_posix() for p in (tmp_path / "run/exports").rglob("*.*")}
    assert {"yolo/data.yaml", "yolo/images/train/a.jpg"} <= exported, done.stdout

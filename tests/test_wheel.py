"""The wheel is whole: installed without the source beside it, it runs the demo from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def done(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and of this one nothing but the packages it depends on."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "sam3label", place / "source" / "sam3label", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, place / "source")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    done(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", place, place / "source", cwd=place)
    venv.create(place / "env", with_pip=False)
    python = place / "env" / "bin" / "python"
    (wheel,) = place.glob("*.whl")
    done(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    # a path alone: what makes this environment's copy of the source importable is not read there
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_the_wheel_brings_all_that_the_package_reads(installed: Path, tmp_path: Path) -> None:
    where = done(installed / "python", "-c", "import sam3label; print(sam3label.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    own, ours = Path(where.strip()).parent, ROOT / "sam3label"
    kept = {p.relative_to(ours) for p in ours.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {path for path in kept if not (own / path).is_file()} == set()


def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    said = done(installed / "sam3label", "demo", "--number", "2", "-o", "demo", cwd=tmp_path)
    assert "2 synthetic photos labelled" in said
    assert (tmp_path / "demo" / "contact_sheet.png").is_file()

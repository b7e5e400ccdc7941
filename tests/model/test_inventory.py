"""What is listed of this machine's weights: nothing is fetched for it, and one that is broken hides no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sam3label import face
from sam3label.cli import app
from sam3label.errors import CheckpointError
from sam3label.model.inventory import on_this_machine

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and a hub that no test may ask."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked for files")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    return tmp_path / "home" / "hub"


def cached(cache: Path, repo: str, *files: Path) -> Path:
    """Put files into the hub's cache as a download of `repo` leaves them."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in files:
        shutil.copy(file, snapshot / file.name)
    return snapshot


def test_a_checkpoint_of_which_only_the_settings_are_here_is_not_listed(cache: Path, tiny_checkpoint: Path) -> None:
    cached(cache, "facebook/sam3", tiny_checkpoint / "config.json")
    assert [held.model for held in on_this_machine()] == ["demo"]
    listed = CliRunner().invoke(app, ["weights"])
    assert listed.exit_code == 0 and "facebook/sam3\n" not in listed.output


def test_a_checkpoint_in_the_hubs_cache_is_listed_without_asking_the_hub(cache: Path, tiny_checkpoint: Path) -> None:
    cached(cache, "facebook/sam3", *tiny_checkpoint.iterdir())
    _, held = on_this_machine()
    assert (held.model, held.release, held.problem) == ("facebook/sam3", "SAM 3", "")
    assert held.came_from == f"facebook/sam3@{COMMIT}" and held.can == ("images", "videos", "boxes to masks")


def test_a_broken_checkpoint_is_listed_with_what_is_wrong(cache: Path, tiny_checkpoint: Path) -> None:
    whole = cached(cache, "facebook/sam3", *tiny_checkpoint.iterdir())
    (whole / "model.safetensors").write_bytes(b"cut off")
    cached(cache, "facebook/sam3.1", *tiny_checkpoint.iterdir())
    assert [bool(held.problem) for held in on_this_machine()] == [False, True, False]
    listed = CliRunner().invoke(app, ["weights"])
    assert listed.exit_code == 0
    assert "facebook/sam3\n  cannot be used: " in listed.output and "not a whole safetensors file" in listed.output
    assert "facebook/sam3.1\n  SAM 3: images" in listed.output


def test_the_doctor_tells_settings_alone_from_a_checkpoint(cache: Path, tiny_checkpoint: Path) -> None:
    def found() -> tuple[str, str]:
        (check,) = (one for one in face.doctor("facebook/sam3") if one.what == "checkpoint")
        return check.found, check.advice

    snapshot = cached(cache, "facebook/sam3", tiny_checkpoint / "config.json")
    assert found()[0] == "facebook/sam3: unavailable" and "HF_HUB_OFFLINE is set" in found()[1]
    shutil.copytree(tiny_checkpoint, snapshot, dirs_exist_ok=True)
    assert found() == ("facebook/sam3: whole (SAM 3: images, videos, boxes to masks)", "")


def test_the_list_is_guarded_as_every_verb_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise CheckpointError("nothing can be listed: look elsewhere.")

    monkeypatch.setattr(face, "weights", broken)
    listed = CliRunner().invoke(app, ["weights"])
    assert (listed.exit_code, listed.output) == (1, "Error: nothing can be listed: look elsewhere.\n")

"""What became of a project, turn by turn: its runs, what people corrected in them, and the checkpoints made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3label.errors import InputError, StoreError
from sam3label.flywheel.job import FIGURES
from sam3label.model.adapter import MARKER
from sam3label.run.reader import open_run
from sam3label.run.store_errors import DATABASE

_DEEPEST = 4  # folders below the project's in which is looked
_NONE = "-"


@dataclass(frozen=True, slots=True)
class ProjectStep:
    """A run or a checkpoint of a project. `cgf1` is a checkpoint's before and after, on photos it never saw."""

    at: str  # ISO 8601, UTC
    kind: str  # "run", "checkpoint" or "refused"
    name: str  # its path in the project
    model: str  # that labelled the run, or that the checkpoint was trained from
    photos: int
    reviewed: int  # photos, or those that were trained on
    corrections: int
    cgf1: tuple[float, float] | None = None

    def row(self) -> tuple[str, ...]:
        """Return it as a row of a table: when, what, name, model, photos, reviewed, corrections, cgF1."""
        corrections = str(self.corrections) if self.kind == "run" else ""
        cgf1 = "" if self.cgf1 is None else f"{self.cgf1[0]:.3f} -> {self.cgf1[1]:.3f}"
        counts = str(self.photos), str(self.reviewed), corrections
        return self.at[:16].replace("T", " "), self.kind, self.name, self.model, *counts, cgf1


def history(project: str | Path) -> list[ProjectStep]:
    """Return the project's runs and checkpoints, oldest first. Raises InputError where there are none."""
    folder = Path(project)
    if not folder.is_dir():
        raise InputError(f"{project}: no such folder. Name the folder that your runs and checkpoints are in.")
    found = sorted((turn for path in _folders(folder) for turn in _turns(path, folder)), key=_when)
    if not found:
        raise InputError(f"{project} holds no run and no checkpoint that sam3label finetune made.")
    return found


def _when(step: ProjectStep) -> tuple[str, bool]:
    """Return when it was made, to the second: a run may begin in the one in which its checkpoint was finished."""
    return step.at, step.kind == "run"


def _folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Yield folders below, but for what is inside runs, checkpoints and a training's own work."""
    yield folder
    if depth == _DEEPEST or (folder / DATABASE).is_file() or (folder / MARKER).is_file() or folder.suffix == ".work":
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from _folders(child, depth + 1)


def _turns(folder: Path, project: Path) -> Iterator[ProjectStep]:
    name = folder.relative_to(project).as_posix()
    if (folder / DATABASE).is_file():
        yield _run(folder, name, project)
    elif (folder / FIGURES).is_file():
        kept = (folder / MARKER).is_file()
        figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        if kept or not folder.with_suffix("").exists():  # a checkpoint's own work says the same again
            yield _checkpoint(figures, name if kept else name.removesuffix(".work"), kept, project)


def _run(folder: Path, name: str, project: Path) -> ProjectStep:
    try:
        with open_run(folder) as run:
            info, corrections = run.info, run.corrections()
            reviewed = {(one.item_id, one.frame) for one in corrections if one.action == "reviewed"}
            decided = sum(one.action not in ("reviewed", "approved") for one in corrections)
            model = _shown(str(info.get("model", _NONE)), project)
            return ProjectStep(str(info.get("created", "")), "run", name, model, len(run), len(reviewed), decided)
    except StoreError as error:
        raise InputError(f"{folder} cannot be read: {error}") from error


def _checkpoint(figures: dict[str, Any], name: str, kept: bool, project: Path) -> ProjectStep:
    cgf1 = figures["held_out"]["cgF1"]
    return ProjectStep(
        figures["created"],
        "checkpoint" if kept else "refused",
        name,
        _shown(figures["base"]["model"], project),
        figures["photos"] + figures["photos_held_out"],
        figures["photos"],
        0,
        (cgf1["before"], cgf1["after"]),
    )


def _shown(model: str, project: Path) -> str:
    """Return a checkpoint of the project by its path in it."""
    path, root = Path(model), project.resolve()
    return path.relative_to(root).as_posix() if path.is_absolute() and path.is_relative_to(root) else model

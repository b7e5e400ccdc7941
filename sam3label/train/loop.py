"""The loop of a fine-tuning: steps, a log of them, and a state from which the same command goes on after any end.

FOLDER/state.pt       written whole every so many steps; what the next step depends on
FOLDER/log.jsonl      a line a step, and one for each look at photos that are not trained on
FOLDER/tensorboard/   the same for TensorBoard
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sam3label.core.files import write_whole
from sam3label.errors import ExtraMissingError, OutputError, os_reason
from sam3label.model.adapter import Learned
from sam3label.train.methods import learned
from sam3label.train.samples import Lesson
from sam3label.train.tuning import Tuner

STATE, LOG, BOARD = "state.pt", "log.jsonl", "tensorboard"
SAVED_EVERY = 25  # steps
EXAMINED_EVERY = 50


@dataclass(frozen=True, slots=True)
class Course:
    """Where a training is: the losses of the last step, smoothed, and the last look at photos not trained on."""

    step: int
    steps: int
    loss: float
    held_out: Mapping[str, float]
    seconds_a_step: float
    together: int  # images that go through the model at once


def run(
    tuner: Tuner,
    exams: Sequence[Lesson],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    on_progress: Callable[[Course], None] = lambda _: None,
    saved_every: int = SAVED_EVERY,
) -> Learned:
    """Train to the end, from wherever the folder's state is, and return what was learned.

    `settings` are what the numbers depend on: a state with others is refused. Raises OutputError where the folder
    cannot be written, and what `Tuner.step` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume(tuner, folder, settings)
    held_out: dict[str, float] = {}
    begun, first = time.monotonic(), tuner.steps
    with _log(folder, tuner.steps) as write:
        while tuner.steps < tuner.tuning.steps:
            told = tuner.step()
            step = tuner.steps
            write(step, "train", told | {"together": tuner.together})
            if step % EXAMINED_EVERY == 0 or step == tuner.tuning.steps:
                held_out = tuner.examine(exams)
                write(step, "held out", held_out)
            if step % saved_every == 0 or step == tuner.tuning.steps:
                save(tuner, folder, settings)
            pace = (time.monotonic() - begun) / (step - first)
            on_progress(Course(step, tuner.tuning.steps, tuner.smooth, held_out, pace, tuner.together))
    return learned({name: value.detach().cpu() for name, value in tuner.averaged.items()})


def save(tuner: Tuner, folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the state whole. Raises OutputError."""
    partial = folder / f".{STATE}.partial"
    try:
        torch.save({"settings": dict(settings), **tuner.state()}, partial)
        partial.replace(folder / STATE)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = os_reason(error) if isinstance(error, OSError) else str(error).splitlines()[0]
        raise OutputError(f"{folder} cannot hold the state of the training ({reason}): free some space.") from error


def resume(tuner: Tuner, folder: Path, settings: Mapping[str, Any]) -> None:
    """Go on from the folder's state, if it has one. Raises OutputError for one of another training, or damaged."""
    path = folder / STATE
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location=tuner.model.device, weights_only=True)
        other = [name for name in settings if state["settings"].get(name) != settings[name]]
    except Exception as error:  # a damaged file fails in as many ways as it has parts
        raise OutputError(f"{path} is damaged: remove {folder} to begin anew.") from error
    if other:
        raise OutputError(
            f"{folder} holds a training that was begun with other settings ({', '.join(other)}). The same settings go "
            "on with it; remove the folder to begin anew."
        )
    tuner.load(state)


@contextmanager
def _log(folder: Path, steps: int) -> Iterator[Callable[[int, str, Mapping[str, float]], None]]:
    """Open both logs after `steps` steps: what a lost session wrote of later ones is taken out, it comes again."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if (number := _step_of(line)) is not None and number <= steps]
    write_whole(path, "".join(f"{line}\n" for line in kept))
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ExtraMissingError("finetune", "fine-tuning") from error
    with path.open("a", encoding="utf-8") as file, SummaryWriter(str(folder / BOARD), purge_step=steps + 1) as board:

        def write(step: int, kind: str, figures: Mapping[str, float]) -> None:
            row = {"step": step, "kind": kind, **{name: round(value, 6) for name, value in figures.items()}}
            file.write(json.dumps(row) + "\n")
            file.flush()
            for name, value in figures.items():
                board.add_scalar(f"{kind}/{name}".replace(" ", "_"), value, step)

        yield write


def _step_of(line: str) -> int | None:
    """Return the step that a line is of, None for one that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return None

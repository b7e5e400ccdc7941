"""What weights are on this machine, where they came from, and what they can do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sam3label.errors import CheckpointError, NotDownloadedError, Sam3LabelError, os_reason
from sam3label.model.checkpoint import DEMO, OWN_HEAD, Checkpoint, resolve, resolve_here
from sam3label.model.identity import cache_folder
from sam3label.model.weight_files import whole_weights, write_official_file, write_whole_checkpoint

HUB_IDS = ("facebook/sam3", "facebook/sam3.1")


@dataclass(frozen=True, slots=True)
class Weights:
    """One checkpoint of this machine. `model` is what to write behind --model; `size` is in bytes.

    `problem` says what is wrong with one that cannot be used, of which nothing else is known.
    """

    model: str
    release: str = ""
    can: tuple[str, ...] = ()
    size: int = 0
    identity: str = ""
    licence: str = ""
    came_from: str = ""
    problem: str = ""

    @property
    def abilities(self) -> str:
        """Whose release it is and what it can do, in words."""
        only = "" if self.can[1:] else " only"
        return f"{self.release}: {', '.join(self.can)}{only}"


def on_this_machine() -> list[Weights]:
    """Return the demo checkpoint, what the hub's cache holds of SAM 3, and the files converted so far.

    Nothing is downloaded, and one that cannot be used is listed with what is wrong.
    """
    return list(_held())


def _held() -> Iterator[Weights]:
    converted = sorted(str(path.parent) for path in (cache_folder() / "weights").glob("*/config.json"))
    for model in (DEMO, *HUB_IDS, *converted):
        try:
            yield describe(model)
        except NotDownloadedError:
            continue
        except Sam3LabelError as error:
            yield Weights(model, problem=str(error))
        except OSError as error:
            yield Weights(model, problem=f"{model} cannot be read ({os_reason(error)}).")


def describe(model: str) -> Weights:
    """Say what a hub id, folder, file or "demo" holds, without downloading it.

    Raises `CheckpointError` where it cannot be used, `NotDownloadedError` where it is not here.
    """
    checkpoint = resolve_here(model)
    return Weights(
        model,
        "demo" if model == DEMO else f"SAM {checkpoint.release}",
        _abilities(checkpoint),
        sum(file.stat().st_size for file in checkpoint.own_weights),
        checkpoint.identity,
        "Apache-2.0, this project's" if model == DEMO else "SAM License, Meta's, where they come from facebook/sam3",
        _origin(checkpoint),
    )


def _origin(checkpoint: Checkpoint) -> str:
    if checkpoint.adapter is not None:
        return f"fine-tuned from {checkpoint.adapter.base}"
    return str(checkpoint.config.get("sam3label", {}).get("made_from", checkpoint.source))


def _abilities(checkpoint: Checkpoint) -> tuple[str, ...]:
    return ("images", "videos", "boxes to masks") if "tracker_config" in checkpoint.config else ("images",)


def convert(model: str, out: Path) -> str:
    """Write a checkpoint in the other layout: `out` ending in .pt for the official code, else a folder for the hub's.

    Returns what was written, in words. Raises `CheckpointError`; a folder that holds files already is refused.
    """
    checkpoint = resolve(model)
    if out.suffix == ".pt":
        own = (checkpoint.folder / OWN_HEAD).is_file()
        without = f" (without {OWN_HEAD}, which they have no name for)" if own else ""
        written = write_official_file(whole_weights(checkpoint), out)
        return f"{written} tensors under the official code's names: {out}{without}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty: name another folder.")
    if checkpoint.adapter is not None:
        write_whole_checkpoint(checkpoint, out)
        return f"a folder in the layout of facebook/sam3, with what was learned: {out}"
    if checkpoint.converted:
        shutil.copytree(checkpoint.folder, out, dirs_exist_ok=True)
        return f"a folder in the layout of facebook/sam3: {out}"
    raise CheckpointError(f"{model} is in the layout of facebook/sam3 already: name a .pt file to write.")

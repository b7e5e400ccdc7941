"""Where the weights come from, and proof that they are a complete SAM 3 detector before anything runs on them.

A checkpoint is a folder in the hub's layout: `config.json`, weights in safetensors, tokenizer files. A single file
(`sam3.pt`) becomes such a folder first, and what `sam3label finetune` writes names the one it was trained from. Every
failure is a `CheckpointError` that says what to do next; nothing is ever replaced by random weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sam3label.core.files import close_match
from sam3label.errors import CheckpointError, NotDownloadedError
from sam3label.model.adapter import MARKER, Adapter, find_adapter
from sam3label.model.config_check import refuse_bad_config
from sam3label.model.identity import identity
from sam3label.model.image_size import EncoderShape
from sam3label.model.weight_files import FILE_SUFFIXES, imported

OWN_HEAD = "interactive.safetensors"  # weights that only boxes and points are asked of, where there are such
DEMO = "demo"
FAMILIES = ("sam3_video", "sam3")
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_WANTED = [_CONFIG, "*.safetensors", _INDEX, MARKER, *_TOKENIZER]
_OFFICIAL_FILES = ("sam3.1_multiplex.pt", "sam3.pt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
Fetch = Callable[[str, str | None], Path]  # gives the folder of a hub id and revision
_DEEPEST = 32  # levels of objects and lists in a file of settings; SAM 3's own have 5


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose files are known to be there and readable. `identity` changes when its numbers can."""

    folder: Path
    identity: str  # sha256:... of what decides the numbers, wherever it came from
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    source: str = ""  # repository@commit, or the path that was named
    image_size: int | None = None  # of the model's input, where it is not the checkpoint's own
    converted: bool = False  # `folder` was made of a single file of weights
    adapter: Adapter | None = None  # what was learned upon it: `folder`, `config` and `weights` are then its base's

    @property
    def own_weights(self) -> tuple[Path, ...]:
        """The files of this checkpoint alone, without its base's."""
        return self.weights if self.adapter is None else (self.adapter.weights,)

    @property
    def release(self) -> str:
        """ "3" or "3.1"."""
        return str(self.config.get("sam3label", {}).get("release", "3"))

    @property
    def thresholds(self) -> dict[str, float]:
        """What its authors use where that is not SAM 3's own: "detection" and "new_track"."""
        own = self.config.get("sam3label", {}).get("thresholds", {})
        return {name: value for name, value in own.items() if isinstance(value, float)}


def resolve(model: str, revision: str | None = None, image_size: int | None = None) -> Checkpoint:
    """Find the checkpoint named by a hub id, a local folder or "demo", and check that its files are whole.

    `image_size` is the side of the model's input, if not the checkpoint's own. Raises CheckpointError with the next
    step, and ConfigError for a side that the model cannot take. The detector's weights themselves are compared with the
    model when it is loaded (`model.Detector.load`).
    """
    return with_image_size(_found(model, revision, _download), image_size)


def resolve_here(model: str, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint as `resolve` does, of what is on this machine: nothing is downloaded.

    Raises NotDownloadedError where the hub would have to send its weights, or those of the base it was trained from.
    """
    return _found(model, revision, _cached)


def with_image_size(checkpoint: Checkpoint, image_size: int | None) -> Checkpoint:
    """Return the checkpoint with another side of the model's input. Raises ConfigError for one it cannot take."""
    if image_size is None:
        return checkpoint
    EncoderShape.of(checkpoint.config).refuse(image_size)
    return replace(checkpoint, image_size=image_size)


def _found(model: str, revision: str | None, fetch: Fetch) -> Checkpoint:
    if model == DEMO:
        return _local(_demo_folder(), revision, fetch)
    if Path(model).exists():
        return _local(Path(model).resolve(), revision, fetch)
    _require_hub_id(model)
    folder = fetch(model, revision)
    return _whole(folder, f"{model}@{folder.name}", fetch)


def _demo_folder() -> Path:
    folder = Path(__file__).parents[1] / "demo" / "checkpoint"
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            "the demo checkpoint is not part of this installation: make one with "
            "scripts/demo_weights/train_detector.py, or name another model, such as --model facebook/sam3."
        )
    return folder


def _local(path: Path, revision: str | None, fetch: Fetch) -> Checkpoint:
    if revision is not None:
        raise CheckpointError(f"{path} is on this machine and has no revisions: leave out --revision {revision}.")
    return _whole(path, str(path), fetch)


def _whole(path: Path, source: str, fetch: Fetch) -> Checkpoint:
    """Return the checkpoint in a folder, or in the one file of weights that a path or a hub's folder comes down to."""
    if (adapter := find_adapter(path)) is not None:
        return _tuned(adapter, source, fetch)
    folder = imported(path) if path.is_file() and _is_weight_file(path) else path
    if folder.is_dir() and (file := _only_official_file(folder)):
        folder = imported(file)
    config, weights = _checked(folder)
    tokenizer = next(folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file())
    everything = (*weights, *(path for path in (folder / OWN_HEAD,) if path.is_file()))
    whole = identity(everything, config, tokenizer)
    return Checkpoint(folder, whole, config, weights, source, converted=folder != path)


def _tuned(adapter: Adapter, source: str, fetch: Fetch) -> Checkpoint:
    """Return a fine-tuned checkpoint, once its base is found to be the one that it was trained from."""
    try:
        base = _found(adapter.base, adapter.revision, fetch)
    except NotDownloadedError:
        raise
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.folder} was trained from {adapter.base}, which cannot be had: {error} (`sam3label weights "
            "convert`, where both are, writes it whole.)"
        ) from error
    if base.identity != adapter.base_identity:
        raise CheckpointError(
            f"{adapter.folder} was trained from {adapter.base} as it was then ({adapter.base_identity[:19]}...), and "
            f"that is another checkpoint now ({base.identity[:19]}...): put the old one back, or train again."
        )
    return replace(base, identity=adapter.identity(), source=source, adapter=adapter)


def _is_weight_file(path: Path) -> bool:
    if path.suffix in FILE_SUFFIXES:
        return True
    raise CheckpointError(
        f"{path} is a file of another kind: name sam3.pt, a .safetensors file, "
        f"or the folder that holds {_CONFIG} and {_WEIGHTS}."
    )


def _only_official_file(folder: Path) -> Path | None:
    """Return the file in Meta's naming of a folder that has no other weights, such as what facebook/sam3.1 holds."""
    if (folder / _WEIGHTS).is_file() or (folder / _INDEX).is_file():
        return None
    return next((folder / name for name in _OFFICIAL_FILES if (folder / name).is_file()), None)


# ---- the files of a folder


def _checked(folder: Path) -> tuple[Mapping[str, Any], tuple[Path, ...]]:
    config = _read_config(folder)
    weights = _weight_files(folder)
    for file in weights:
        _check_safetensors(file)
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise CheckpointError(f"{folder} has no tokenizer (tokenizer.json): copy it from the same checkpoint.")
    return config, weights


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {_CONFIG}: name a folder in the layout of huggingface.co/facebook/sam3."
        )
    config = _read_json(path)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{folder} holds a {family!r} model, and this program runs SAM 3 only "
            f"({_CONFIG} must say model_type {' or '.join(FAMILIES)}): use --model facebook/sam3."
        )
    refuse_bad_config(path, config)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): fetch it again.") from error
    except RecursionError as error:
        raise CheckpointError(_TOO_DEEP.format(path=path)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object: fetch it again.")
    if _is_deep(value):
        raise CheckpointError(_TOO_DEEP.format(path=path))
    return value


_TOO_DEEP = f"{{path}} is nested more than {_DEEPEST} levels deep, as no checkpoint's is: fetch it again."


def _is_deep(value: Any) -> bool:
    """Look level by level, since a value nested deep enough ends a recursion with a traceback."""
    level = [value]
    for _ in range(_DEEPEST):
        children = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [child for some in children for child in some]
    return any(isinstance(v, dict | list) for v in level)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,)
    if (folder / _INDEX).is_file():
        shards = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{folder / _INDEX} lists no weights: fetch it again.")
        strange = [name for name in shards.values() if not _is_plain_name(name)]
        if strange:
            raise CheckpointError(
                f"{folder / _INDEX} names {str(strange[0])[:60]!r} as a file of weights, which is no .safetensors file "
                "beside it: fetch it again."
            )
        files = tuple(folder / name for name in sorted(set(shards.values())))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files ({_few(missing)}): fetch them again."
            )
        return files
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights as {_few(pickles)}, and a pickle can run any code: only {_WEIGHTS} is read. "
            "Name the file itself if it is sam3.pt or was trained from it, or use --model facebook/sam3."
        )
    raise CheckpointError(f"{folder} has no weights ({_WEIGHTS}): download the checkpoint again.")


def _is_plain_name(name: object) -> bool:
    """Tell whether an index may name this file: no path, so that nothing outside the folder is opened."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None


def _check_safetensors(path: Path) -> None:
    """Refuse a file that is not whole, by its header and its length. Reads no weights."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in {path.parent}.")
    if head.startswith((b"PK", b"\x80")):
        raise CheckpointError(
            f"{path} is a PyTorch pickle under another name, not safetensors: convert it with save_pretrained."
        )
    try:
        with safe_open(path, framework="numpy"):
            return
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({path.stat().st_size} bytes: {error}): download it again."
        ) from error


def _few(names: list[str], limit: int = 3) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


# ---- the hub


def _cached(repo: str, revision: str | None) -> Path:
    """Return the snapshot folder that the cache has weights in. Raises NotDownloadedError."""
    from huggingface_hub import try_to_load_from_cache

    for name in (_WEIGHTS, _INDEX, MARKER, *_OFFICIAL_FILES):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    raise NotDownloadedError(repo, revision)


def _download(repo: str, revision: str | None) -> Path:
    """Return the snapshot folder of `repo`, named by its commit. Only the files that are needed; the cache is used."""
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=_WANTED))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*_WANTED, *_OFFICIAL_FILES]))


def check_access(model: str, revision: str | None) -> str:
    """Say in words that the hub would send a checkpoint, without downloading its weights. Raises CheckpointError."""
    from huggingface_hub import auth_check

    _require_hub_id(model)
    with _hub_errors(model, revision):
        auth_check(model)
    return f"{model}: access granted, not downloaded yet"


def _require_hub_id(model: str) -> None:
    if not _HUB_ID.fullmatch(model):
        near = close_match(model) or (" (did you mean demo?)" if get_close_matches(model, [DEMO]) else "")
        raise CheckpointError(
            f"model {model!r}: no such folder, and not a hub id{near}. "
            "Give a folder, a hub id such as facebook/sam3, or 'demo'."
        )


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, in our words."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(f"{repo!r} is no hub id ({error}): give one such as facebook/sam3.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(_hub_message(error, repo, revision)) from error
    except Exception as error:  # its HTTP library's own errors, which change with its releases; a full disk
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"downloading {repo} failed ({reason}): check disk and network, try again.") from error


def _hub_message(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{repo}"
    status = _status(error)
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return (
                f"{repo} is gated and you are not logged in: request access at {page}, then run `hf auth login` "
                "(or set HF_TOKEN); or try --model demo."
            )
        return f"your Hugging Face account has no access to {repo} yet: request it at {page}; or try --model demo."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: see {page}/commits/main, or leave out --revision."
    if isinstance(error, RepositoryNotFoundError):
        login = " If it is private, run `hf auth login` first." if get_token() is None else ""
        return f"there is no model {repo} on the hub that you may see: check the spelling at {page}.{login}"
    if status in (401, 403):
        return (
            f"the hub refused your token for {repo} (HTTP {status}): renew it with `hf auth login`; "
            "a fine-grained token needs read access to gated repositories."
        )
    if status is not None:
        return f"the hub answered HTTP {status} for {repo}: try again later, or name a local folder."
    if constants.HF_HUB_OFFLINE:
        return (
            f"{repo} is not in the local cache and HF_HUB_OFFLINE is set: unset it to download, name a local folder, "
            "or try --model demo."
        )
    return (
        f"{repo} is not in the local cache and {constants.ENDPOINT} cannot be reached: check the network, "
        "name a local folder, or try --model demo."
    )


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error of the hub's client, which wraps some of them."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None

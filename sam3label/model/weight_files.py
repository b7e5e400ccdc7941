"""Single files of weights made into folders in the hub's layout, and folders into files for the official code.

A file is read with `torch.load(weights_only=True)` or as safetensors, never as a pickle that may hold code. It becomes
a folder of the cache, named by all that it is made of, with SAM 3's config and tokenizer where the file's folder has
none.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sam3label.core.files import share
from sam3label.errors import CheckpointError, os_reason
from sam3label.model.identity import SAM3_CONFIG, cache_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sam3label.model.checkpoint import Checkpoint

Release = Literal["3", "3.1"]
FILE_SUFFIXES = (".pt", ".pth", ".safetensors")
HUB_WEIGHTS = "model.safetensors"
SAM31_DEFAULTS = {"detection": 0.4, "new_track": 0.65}  # its own thresholds, where SAM 3's are 0.5 and 0.7
_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
_INSIDE = ("model", "state_dict")  # where trainers put the weights in their files


def imported(path: Path) -> Path:
    """Turn a file of weights into a folder in the hub's layout, or find the one made before.

    Raises `CheckpointError` where the file is damaged, holds code, or does not hold exactly SAM 3's weights.
    """
    made = cache_folder() / "weights" / _key(path)
    if not (made / "config.json").is_file():
        tensors = read_weights(path)
        _write_folder(made, tensors, path)
    return made


def _key(path: Path) -> str:
    """Return what tells a conversion from all others: the file's content, and the config and tokenizer beside it."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if (config := _config_beside(path)) is not None:
            digest.update(json.dumps(config, sort_keys=True).encode())
        for own in _tokenizer_beside(path):
            digest.update(f"{own.name} {hashlib.sha256(own.read_bytes()).hexdigest()}".encode())
        return digest.hexdigest()[:32]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({os_reason(error)}).") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pt` or `.safetensors` file by their names, with what trainers put around them removed."""
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _INSIDE:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    odd = [str(name) for name, value in content.items() if not hasattr(value, "chunk")]
    if odd or not content:
        held = f"{', '.join(odd[:3])} among other things" if odd else "nothing"
        raise CheckpointError(f"{path} is no file of weights: it holds {held}, where tensors by name are expected.")
    return dict(content)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Mapping[str, Any] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again.") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights: reading it could run code, so it is not read. "
            "Save its state_dict alone, with torch.save or as safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no PyTorch file ({_first_line(error)}): get it again.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is no file of weights: it holds a {type(content).__name__}.")
    return content


def _is_zip(path: Path) -> bool:
    """Files of the older format cannot be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


# ---- a file becomes a folder


def _write_folder(made: Path, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the folder beside its place and move it there whole."""
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=made.parent) as partial:
        folder = Path(partial) / "folder"
        folder.mkdir()
        try:
            write_hub_folder(folder, tensors, path)
            folder.replace(made)
        except OSError as error:
            if not (made / "config.json").is_file():  # else another process was quicker
                raise CheckpointError(
                    f"{made.parent} cannot hold the converted weights ({os_reason(error)}): "
                    "free some space, or set HF_HOME."
                ) from error


def write_hub_folder(folder: Path, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write config, weights and tokenizer of a file of weights into `folder`, in the layout of facebook/sam3."""
    from safetensors.torch import save_file

    config, release = _config_of(path, tensors)
    wanted = hub_shapes(config)
    ours = _as_ours(tensors, wanted, path)
    config["sam3label"] = {"made_from": path.name, "release": release}
    if release == "3.1":
        config["sam3label"]["thresholds"] = SAM31_DEFAULTS
    save_file(ours, folder / HUB_WEIGHTS, metadata={"format": "pt"})
    share(folder / HUB_WEIGHTS)
    _write_tokenizer(folder, path)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _as_ours(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], path: Path) -> dict[str, Tensor]:
    from sam3label.model import official

    if _is_hub_naming(tensors):
        return _checked(official.renamed(tensors, lambda name: name.removeprefix("module."), str(path)), wanted, path)
    return official.from_official(official.normalized(tensors, str(path)), wanted, str(path))


def _is_hub_naming(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix("module.").startswith("detector_model.") for name in tensors)


def _checked(tensors: dict[str, Tensor], wanted: Mapping[str, torch.Size], path: Path) -> dict[str, Tensor]:
    wrong = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & tensors.keys() if tensors[n].shape != wanted[n]),
    }
    if any(wrong.values()):
        told = "; ".join(
            f"{len(names)} weights {kind} ({', '.join(names[:3])})" for kind, names in wrong.items() if names
        )
        raise CheckpointError(f"{path} does not hold SAM 3 as transformers names it: {told}.")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _config_of(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], Release]:
    """Return the config beside the file if it is SAM 3's, else SAM 3's own; without a tracker if the file has none."""
    from sam3label.model.official import is_multiplex, normalized

    config: dict[str, Any] = _config_beside(path) or json.loads(SAM3_CONFIG.read_text(encoding="utf-8"))
    names = tensors if _is_hub_naming(tensors) else normalized(tensors, str(path))
    multiplex = is_multiplex(names)
    if multiplex or not any(name.removeprefix("module.").startswith(("tracker.", "tracker_model.")) for name in names):
        config.pop("tracker_config", None)
    return config, "3.1" if multiplex else "3"


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Return the config in the file's own folder, if it is SAM 3's."""
    try:
        own = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return own if isinstance(own, dict) and own.get("model_type") == "sam3_video" else None


def hub_shapes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return name and shape of every weight a checkpoint of this config must hold, by our names. Takes no memory."""
    import torch
    from transformers import Sam3Config, Sam3Model, Sam3VideoConfig, Sam3VideoModel

    with torch.device("meta"):
        if "tracker_config" in config:
            model = Sam3VideoModel(Sam3VideoConfig.from_dict(dict(config)))
            return {name: tensor.shape for name, tensor in model.state_dict().items()}
        detector = Sam3Model(Sam3Config.from_dict(dict(config["detector_config"])))
        return {f"detector_model.{name}": tensor.shape for name, tensor in detector.state_dict().items()}


def _write_tokenizer(folder: Path, path: Path) -> None:
    """Write the tokenizer of the file's own folder, else CLIP's, which SAM 3 was trained with."""
    own = _tokenizer_beside(path)
    for file in own:
        shutil.copyfile(file, folder / file.name)
    if not own:
        clip_tokenizer().save_pretrained(folder)


def _tokenizer_beside(path: Path) -> list[Path]:
    """Return the files of the tokenizer in the file's own folder; none where they are no whole one."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
    own = [file for file in map(path.with_name, names) if file.is_file()]
    return own if any(file.name in ("tokenizer.json", "vocab.json") for file in own) else []


def clip_tokenizer() -> Any:
    """Build CLIP's byte-pair tokenizer, 49,408 tokens and 32 to a phrase, from the list of its merges."""
    import gzip

    from transformers import CLIPTokenizer

    merges = [tuple(line.split()) for line in gzip.decompress(_MERGES.read_bytes()).decode().splitlines()]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves, then all others
    letters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)


# ---- a folder becomes a file


def whole_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read every weight of a checkpoint by its name, with what was learned upon it, which is float32."""
    from safetensors.torch import load_file

    from sam3label.model.adapter import add_to

    tensors: dict[str, Tensor] = {}
    for file in checkpoint.weights:
        tensors |= load_file(file)
    if checkpoint.adapter is not None:
        prefix = "detector_model." if _is_hub_naming(tensors) else ""
        add_to(tensors, checkpoint.adapter.learned(), checkpoint.adapter.folder, prefix)
    return tensors


def write_whole_checkpoint(checkpoint: Checkpoint, out: Path) -> None:
    """Write a fine-tuned checkpoint into a new folder in the hub's layout, which needs its base no longer."""
    from safetensors.torch import save_file

    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file in checkpoint.folder.iterdir():
            if file.is_file() and file.resolve() not in {weights.resolve() for weights in checkpoint.weights}:
                shutil.copyfile(file, partial / file.name)
        (partial / f"{HUB_WEIGHTS}.index.json").unlink(missing_ok=True)
        save_file(whole_weights(checkpoint), partial / HUB_WEIGHTS, metadata={"format": "pt"})
        share(partial / HUB_WEIGHTS)
        if out.is_dir():
            out.rmdir()  # it is empty
        partial.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({os_reason(error)}): free space, or name another.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_official_file(weights: Mapping[str, Tensor], out: Path) -> int:
    """Write a checkpoint's weights as the official code and Ultralytics read them. Returns how many tensors."""
    import torch

    from sam3label.model.official import to_official

    official = to_official(weights)
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": official}, partial)
        partial.replace(out)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{out} cannot be written ({_first_line(error)}): free space, or name another."
        ) from error
    return len(official)

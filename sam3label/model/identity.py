"""What makes two checkpoints the same: their numbers, not where they came from or what file holds them.

The identity covers every weight, the settings that differ from SAM 3's own, and the tokenizer's vocabulary. So weights
from the hub and the same weights from Meta's file continue one run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3label.core.files import write_whole
from sam3label.errors import OutputError

SAM3_CONFIG: Path = Path(__file__).with_name("sam3_config.json")  # of facebook/sam3, as its code has it
_OF_NO_WEIGHT = {  # settings that the library writes down and the model does not read
    *("transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict", "dtype"),
    *("torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type"),
    *("_name_or_path", "_commit_hash", "use_cache", "auto_map", "sam3label"),
}
_WORTH_REMEMBERING = 64 << 20  # bytes of weights


def cache_folder() -> Path:
    """Return where this program keeps what it can make again: beside the hub's own cache (HF_HOME)."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "sam3label"


def identity(weights: Sequence[Path], config: Mapping[str, Any], tokenizer: Path) -> str:
    """Return `sha256:` and 64 hexadecimal digits that change with whatever decides what the model answers."""
    digest = hashlib.sha256(_remembered(weights).encode())
    digest.update(json.dumps(_own_settings(config), sort_keys=True).encode())
    digest.update(_vocabulary(tokenizer))
    return f"sha256:{digest.hexdigest()}"


def _remembered(weights: Sequence[Path]) -> str:
    """Return the digest of the weights: of large files it is kept, since reading gigabytes takes seconds."""
    if sum(file.stat().st_size for file in weights) < _WORTH_REMEMBERING:
        return weights_digest(weights)
    files = [file.resolve() for file in weights]
    key = "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    note = cache_folder() / "identities" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if note.is_file():
        return note.read_text(encoding="utf-8")
    digest = weights_digest(weights)
    with contextlib.suppress(OutputError):  # a cache that cannot be written costs seconds at every start, no more
        write_whole(note, digest)
    return digest


def weights_digest(weights: Sequence[Path]) -> str:
    """Return SHA-256 over all tensors of safetensors files in the order of their names: name, type, shape, bytes."""
    whole = hashlib.sha256()
    for name, kind, content in sorted(_tensors(weights)):
        whole.update(f"{name} {kind} {content}\n".encode())
    return whole.hexdigest()


def _tensors(weights: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    for path in weights:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = 8 + int.from_bytes(content[:8], "little")
            with memoryview(content) as view:
                for name, about in json.loads(content[8:start]).items():
                    if name != "__metadata__":
                        begin, end = about["data_offsets"]
                        with view[start + begin : start + end] as part:
                            yield name, f"{about['dtype']} {about['shape']}", hashlib.sha256(part).hexdigest()


def _own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in which a config differs from SAM 3's own, by dotted name."""
    usual = leaves(json.loads(SAM3_CONFIG.read_text(encoding="utf-8")))
    return {name: value for name, value in leaves(config).items() if name not in usual or usual[name] != value}


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested settings by dotted name, but for what the model does not read."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        if key not in _OF_NO_WEIGHT:
            found |= leaves(child, f"{name}.{key}" if name else str(key))
    return found


def _vocabulary(tokenizer: Path) -> bytes:
    """Return the tokens and their ids; of a tokenizer in another form than `tokenizer.json` the file as it is."""
    content = tokenizer.read_bytes()
    try:
        vocabulary = json.loads(content)["model"]["vocab"]
    except (ValueError, LookupError, TypeError):
        return content
    return json.dumps(vocabulary, sort_keys=True).encode()

"""The detector's weights and tokenizer out of a checkpoint, through transformers: all of them or an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sam3label.errors import CheckpointError
from sam3label.model.adapter import add_to
from sam3label.model.checkpoint import OWN_HEAD, Checkpoint


def load_model(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's Sam3Model, float32, on the CPU. Raises CheckpointError unless every weight fits."""
    from transformers import Sam3Model

    model, problems = _load(checkpoint, Sam3Model, "detector")
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder} is not a complete SAM 3 detector: {'; '.join(problems)}. "
            "It may be another release or a damaged copy: use --model facebook/sam3, or fetch it again."
        )
    _learn(checkpoint, model)
    return model.eval().requires_grad_(False)


def _learn(checkpoint: Checkpoint, detector: Any) -> None:
    """Put what was learned by fine-tuning into a detector."""
    if checkpoint.adapter is None:
        return
    there: dict[str, Tensor] = dict(detector.state_dict())
    changed = add_to(there, checkpoint.adapter.learned(), checkpoint.adapter.folder)
    detector.load_state_dict({name: there[name] for name in changed}, strict=False)


_NO_TRACKER = "Videos cannot be tracked with it: use --model facebook/sam3, or --video frames, which tracks nothing."


def load_video_model(checkpoint: Checkpoint, without: str = _NO_TRACKER) -> Any:
    """Return the checkpoint's Sam3VideoModel, detector and tracker, as `load_model` loads. Raises CheckpointError.

    `without` says what cannot be done with a checkpoint that has no tracker.
    """
    from transformers import Sam3VideoModel

    if "tracker_config" not in checkpoint.config:
        if checkpoint.release == "3.1":
            raise CheckpointError(
                "the tracker of SAM 3.1 follows many objects at once and is not part of this program, and SAM 3's does "
                f"not go with its detector. {without}"
            )
        raise CheckpointError(f"{checkpoint.source} has no tracker (a detector only). {without}")
    model, problems = _load(checkpoint, Sam3VideoModel, "video model")
    if problems:
        raise CheckpointError(f"{checkpoint.folder} has no complete tracker: {'; '.join(problems)}. {without}")
    _learn(checkpoint, model.detector_model)
    return model.eval().requires_grad_(False)


def load_own_head(checkpoint: Checkpoint, video: Any) -> None:
    """Load the weights that a checkpoint has for boxes and points alone, if it has some, into a video model's tracker.

    SAM 3's tracker answers both with the same weights; the demo checkpoint's is too small for that. Raises
    CheckpointError unless all of them fit.
    """
    from safetensors.torch import load_file

    path = checkpoint.folder / OWN_HEAD
    if not path.is_file():
        return
    own, there = load_file(path), video.state_dict()
    wrong = [name for name, value in own.items() if name not in there or there[name].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the tracker beside it ({', '.join(sorted(wrong)[:3])}): fetch the checkpoint again."
        )
    video.load_state_dict({name: value.float() for name, value in own.items()}, strict=False)


def _load(checkpoint: Checkpoint, kind: Any, name: str) -> tuple[Any, list[str]]:
    """Return a model of class `kind` and what is wrong with its weights."""
    with _quiet_transformers():
        try:
            config = kind.config_class.from_pretrained(checkpoint.folder, local_files_only=True)
            if checkpoint.image_size is not None:
                config.image_size = checkpoint.image_size  # rotary positions, grids and masks follow from it
            model, report = kind.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                use_safetensors=True,
            )
        except Exception as error:  # a config's values fail in as many ways as there are modules to build
            raise CheckpointError(
                f"{checkpoint.folder}: config.json does not describe a SAM 3 {name} that can be built "
                f"({_first_line(error)}): "
                "fetch the checkpoint again."
            ) from error
    return model, _weight_problems(report)


def _first_line(error: Exception) -> str:
    """Return a library's message without the pages that some append, or the type's name where there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _weight_problems(report: Mapping[str, Any]) -> list[str]:
    wrong = [f"{name} {tuple(got)} instead of {tuple(want)}" for name, got, want in report["mismatched_keys"]]
    kinds = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(wrong),
        "unreadable": [str(message) for message in report.get("error_msgs", ())],
    }
    return [
        f"{len(names)} weights {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's own tokenizer. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception on a damaged file
        raise CheckpointError(
            f"{checkpoint.folder}: the tokenizer cannot be read ({error}): fetch it again."
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its bars and reports would mix with ours; what they report is checked and raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class _RotaryTable(nn.Module):
    """The rotary tables of a layer, which depend on nothing but the model's size: computed once, in float32."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.cos, self.sin = nn.Buffer(cos, persistent=False), nn.Buffer(sin, persistent=False)

    def forward(self, _hidden: Tensor, _positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


def fix_rotary_tables(model: Any) -> None:
    """Share one table per kind of layer (windowed or global). After any cast: the tables stay float32."""
    tables: dict[int, _RotaryTable] = {}
    for layer in model.vision_encoder.backbone.layers:
        if layer.window_size not in tables:
            like = torch.empty(0, device=layer.position_ids.device)
            tables[layer.window_size] = _RotaryTable(*layer.rotary_emb(like, layer.position_ids))
        layer.rotary_emb = tables[layer.window_size]


def reuse_buffers(model: Any) -> None:
    """Let every ReLU write over its input: each follows a linear layer whose output nobody else reads."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True


def widen_pointers(video: Any) -> None:
    """Let the library's tracker run where it is as narrow as its memory (64), as small ones are, by one method of ours.

    It splits object pointers into pieces as wide as the memory, and forgets to drop an axis where one piece is the
    whole. Pointers [S, B, 1, D] become [S, B, D]. Our own tracking does not go through it; training does.
    """
    process = video.tracker_model._process_object_pointers

    def pointers(*args: Any, **kwargs: Any) -> Any:
        tokens, places = process(*args, **kwargs)
        return (tokens.squeeze(2) if tokens is not None and tokens.dim() == 4 else tokens), places

    video.tracker_model._process_object_pointers = pointers

"""A checkpoint's settings are compared with SAM 3's own before a model is built from them.

A size that is no number, or a million layers, would otherwise end in a traceback's tail, or never.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam3label.errors import CheckpointError
from sam3label.model.identity import SAM3_CONFIG, leaves

_LARGER = 4  # so many times SAM 3's own number is taken for a mistake,
_SMALL = 64  # but no number up to this one


def refuse_bad_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a number of SAM 3's settings is no number in `config`, or far beyond SAM 3's own."""
    problems = list(_problems(config))
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} does not describe a SAM 3 model: {', '.join(problems[:3])}{more}. Fetch the checkpoint again."
        )


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    usual = json.loads(SAM3_CONFIG.read_text(encoding="utf-8"))
    if config.get("model_type") == "sam3":  # the detector alone
        usual = usual["detector_config"]
    own = leaves(usual)
    for name, value in leaves(config).items():
        limit = own.get(name)
        if isinstance(limit, bool) or not isinstance(limit, int | float) or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{name} is {str(value)[:40]!r}, not a number"
        elif isinstance(limit, int) and not name.endswith("_id") and value > max(_SMALL, _LARGER * limit):
            yield f"{name} is {value}, and SAM 3's is {limit}"

"""Another input side than a checkpoint's own: which ones its image encoder can take, and what they cost.

The encoder's rotary positions are stretched over the image, and its windows must fill the grid of patches: in a window
that hangs over, objects would attend to nothing, which no SAM 3 was trained for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sam3label.errors import ConfigError
from sam3label.model.identity import SAM3_CONFIG

MOST = 4  # times the checkpoint's own side: beyond, positions are stretched too far to say anything


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The numbers of an image encoder that decide which input sides it can take."""

    side: int  # the checkpoint's own, in pixels
    patch: int
    window: int  # in patches
    width: int
    mlp: int
    layers: int
    global_layers: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EncoderShape:
        """Read it from a checkpoint's config; what that leaves out is SAM 3's own."""
        usual = json.loads(SAM3_CONFIG.read_text())
        values = {**_encoder(usual), **_encoder(config)}
        return cls(
            side=int(values["image_size"]),
            patch=int(values["patch_size"]),
            window=int(values["window_size"]),
            width=int(values["hidden_size"]),
            mlp=int(values["intermediate_size"]),
            layers=int(values["num_hidden_layers"]),
            global_layers=len(values["global_attn_indexes"]),
        )

    @property
    def step(self) -> int:
        """What a side must be a multiple of, in pixels."""
        return self.patch * self.window

    def refuse(self, side: int) -> None:
        """Raise ConfigError where an input of `side` pixels could not be right."""
        if side % self.step == 0 and self.step <= side <= MOST * self.side:
            return
        sides = range(self.step, MOST * self.side + 1, self.step)
        near = sorted(sorted(sides, key=lambda fit: abs(fit - side))[:2])
        raise ConfigError(
            f"--image-size {side} does not fit this checkpoint: its image encoder looks at windows of {self.window} "
            f"patches of {self.patch} pixels, so that sides are multiples of {self.step}, up to {MOST} times its own "
            f"{self.side}. The nearest: {' and '.join(map(str, near))}."
        )

    def operations(self, side: int) -> int:
        """Return the multiply-adds of encoding one image of this side."""
        tokens = (side // self.patch) ** 2
        linear = self.layers * tokens * (4 * self.width**2 + 2 * self.width * self.mlp)
        windows = (self.layers - self.global_layers) * tokens * self.window**2
        return linear + 2 * self.width * (windows + self.global_layers * tokens**2)


def _encoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    detector = config.get("detector_config", config)
    values: Mapping[str, Any] = detector.get("vision_config", {}).get("backbone_config", {})
    return {name: value for name, value in values.items() if value is not None}

"""One color a class, wherever people look at labels: in sheets, reports, videos and FiftyOne."""

from __future__ import annotations

import colorsys

Rgb = tuple[int, int, int]


def class_color(class_id: int) -> Rgb:
    """Return the color of a class id: neighbors lie a golden angle apart on the hue circle, so none look alike.

    >>> class_color(0)
    (241, 64, 39)
    """
    hue = (0.02 + class_id * 0.61803398875) % 1.0
    lightness = (0.55, 0.68, 0.45)[class_id // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.88)
    return round(red * 255), round(green * 255), round(blue * 255)


def as_hex(color: Rgb) -> str:
    """Return a color as web pages write it.

    >>> as_hex((241, 64, 39))
    '#f14027'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)

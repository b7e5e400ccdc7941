"""Tables and figures for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Tables are as wide as the terminal; a file or a pipe gets them whole."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=160)


def figure(value: float | int) -> str:
    """Three digits; a dash where the figure is undefined."""
    if isinstance(value, int):
        return str(value)
    return "-" if value <= -1 else f"{value:.3f}"

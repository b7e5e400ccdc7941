"""The one error boundary: what goes wrong becomes a sentence and an exit code. Tracebacks are for --debug."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from sam3label.core.text import visible
from sam3label.errors import Sam3LabelError

_debug = False


def show_tracebacks() -> None:
    """Show them from now on, above the sentence."""
    global _debug
    _debug = True


def guarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Return a verb that leaves with 1 and a sentence where it fails, and with 130 where it is interrupted."""

    @functools.wraps(verb)
    def inside(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except Sam3LabelError as error:
            _explain(error)
            raise typer.Exit(1) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone: nothing to say, and nobody to say it to
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None

    return inside


def _explain(error: Sam3LabelError) -> None:
    if _debug:
        traceback.print_exc()
    typer.echo(f"Error: {visible(str(error))}", err=True)

"""The command line: each verb parses, calls one function, prints, and leaves with an exit code.

    0   all labelled
    1   a clear error about input, config, checkpoint or output: one message, what to do next
    2   wrong command line
    3   finished, but some files could not be labelled (or, for `validate`, a trainer would drop something): listed
    130 interrupted, resumable

This module is the one error boundary. Verbs import what they need inside the function, so that --help is instant.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sam3label.cli import review, weights
from sam3label.cli.calibrate import calibrate
from sam3label.cli.demo import demo
from sam3label.cli.doctor import doctor
from sam3label.cli.evaluate import evaluate
from sam3label.cli.export import export
from sam3label.cli.init import init
from sam3label.cli.preview import preview
from sam3label.cli.render import render
from sam3label.cli.report import report
from sam3label.cli.run import run
from sam3label.cli.status import status
from sam3label.cli.validate import validate
from sam3label.errors import Sam3LabelError

_debug = False

app = typer.Typer(
    name="sam3label",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Label folders of images with SAM 3 and write training sets.",
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"sam3label {version('sam3label')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere on the line.")] = False,
) -> None:
    """Label folders of images with SAM 3 and write training sets."""


def _boundary(verb: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(verb)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except Sam3LabelError as error:
            _explain(error)
            raise typer.Exit(1) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone: nothing to say, and nobody to say it to
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None

    return guarded


def _explain(error: Sam3LabelError) -> None:
    if _debug:
        traceback.print_exc()
    typer.echo(f"Error: {error}", err=True)


for _verb in (init, run, demo, status, export, validate, preview, evaluate, calibrate, report, render, doctor):
    app.command(_verb.__name__)(_boundary(_verb))

for _command in (*review.app.registered_commands, *weights.app.registered_commands):
    if _command.callback is not None:
        _command.callback = _boundary(_command.callback)
app.add_typer(review.app, name="review")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """The `sam3label` program."""
    global _debug
    _debug = "--debug" in sys.argv
    sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    app()

"""The command line: each verb parses, calls one function, prints, and leaves with an exit code.

    0   all labelled
    1   a clear error about input, config, checkpoint or output: one message, what to do next
    2   wrong command line
    3   finished, but not all is well, and what is not is listed (docs/reference/cli.md says it for each verb)
    130 interrupted, resumable

`boundary` turns errors into these. Verbs import what they need inside the function, so that --help is instant.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sam3label.cli import review, weights
from sam3label.cli.ask import ask
from sam3label.cli.boundary import guarded, show_tracebacks
from sam3label.cli.calibrate import calibrate
from sam3label.cli.check import check
from sam3label.cli.demo import demo
from sam3label.cli.doctor import doctor
from sam3label.cli.evaluate import evaluate
from sam3label.cli.export import export
from sam3label.cli.finetune import finetune
from sam3label.cli.history import history
from sam3label.cli.init import init
from sam3label.cli.masks import masks
from sam3label.cli.preview import preview
from sam3label.cli.render import render
from sam3label.cli.report import report
from sam3label.cli.run import run
from sam3label.cli.status import status
from sam3label.cli.validate import validate
from sam3label.cli.verify import verify

app = typer.Typer(
    name="sam3label",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",  # for the panels of --help: nothing else goes through rich's markup
    help="Label folders of images with SAM 3 and write training sets.",
    epilog="Example: sam3label run photos -p person -p helmet --export yolo",
)

EXAMPLES = {
    "init": "sam3label init concepts.yaml --from data.yaml",
    "run": "sam3label run photos videos -c concepts.yaml -o runs/site-a --export yolo --split train=0.8,val=0.2",
    "masks": "sam3label masks boxes.json --photos photos -o runs/site-a-masks --export yolo",
    "demo": "sam3label demo --videos -o runs/demo-video",
    "status": "sam3label status runs/site-a",
    "export": "sam3label export runs/site-a -f coco -f yolo -o datasets/site-a --split train=0.8,val=0.2",
    "validate": "sam3label validate datasets/site-a --run runs/site-a",
    "preview": "sam3label preview photos -c concepts.yaml -n 32 -o preview",
    "evaluate": "sam3label evaluate runs/site-a --gt truth.json",
    "calibrate": "sam3label calibrate runs/site-a --gt truth.json -o concepts.calibrated.yaml",
    "finetune": "sam3label finetune runs/site-a -o checkpoints/site-a-1",
    "history": "sam3label history .",
    "report": "sam3label report runs/site-a -o report.html",
    "render": "sam3label render runs/site-a -o rendered",
    "check": "sam3label check runs/site-a --repair runs/site-a-saved",
    "doctor": "sam3label doctor --model facebook/sam3",
    "verify": "sam3label verify runs/site-a --server http://localhost:8000/v1 --vlm qwen3-vl --budget 200",
    "ask": 'sam3label ask photos "person without a helmet" -o runs/a --server http://localhost:8000/v1 --vlm qwen3-vl',
    "push": "sam3label review push runs/site-a",
    "open": "sam3label review open runs/site-a",
    "pull": "sam3label review pull runs/site-a --who anna",
    "summary": "sam3label review summary runs/site-a",
    "next": "sam3label review next runs/site-a -n 30",
    "write": "sam3label review write runs/site-a -o fiftyone",
    "convert": "sam3label weights convert sam3.pt weights/sam3",
}


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


for _verb in (
    init, run, masks, ask, demo, status, check, export, validate, preview, evaluate, calibrate, finetune, history,
    report, render, verify, doctor,
):  # fmt: skip
    app.command(_verb.__name__, epilog=f"Example: {EXAMPLES[_verb.__name__]}")(guarded(_verb))

for _group in (review.app, weights.app):
    if _group.registered_callback is not None and _group.registered_callback.callback is not None:
        _group.registered_callback.callback = guarded(_group.registered_callback.callback)
for _command in (*review.app.registered_commands, *weights.app.registered_commands):
    if _command.callback is not None:
        _command.epilog = f"Example: {EXAMPLES[_command.name or _command.callback.__name__]}"
        _command.callback = guarded(_command.callback)
app.add_typer(review.app, name="review")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """The `sam3label` program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no terminal is too poor for a name or a table
    if "--debug" in sys.argv:
        show_tracebacks()
    sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    app()

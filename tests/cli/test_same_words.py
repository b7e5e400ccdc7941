"""The command line and Python have the same words: an option is called as the keyword that it goes to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from cli.test_help import options, verbs

import sam3label as sl
from sam3label import face
from sam3label.export.options import Options
from sam3label.flywheel.options import FinetuneOptions
from sam3label.labelling.options import LabelOptions
from sam3label.verify.server import ServerOptions

VERBS = dict(verbs())
RUN = sl.Run
LISTS = (face.Concepts.from_phrases, face.Concepts.from_ontology)
CALLS: dict[str, tuple[Callable[..., Any], ...]] = {
    "init": (face.init,),
    "run": (face.label, LabelOptions, *LISTS, RUN.export_each),
    "demo": (face.demo_photos,),
    "status": (face.open_run,),
    "check": (face.check,),
    "export": (face.open_run, RUN.export_each, Options),
    "validate": (face.open_run, face.validate_dataset),
    "preview": (face.preview, LabelOptions, *LISTS),
    "evaluate": (face.open_run, RUN.evaluate, face.evaluate),
    "calibrate": (face.open_run, RUN.calibrate),
    "report": (face.open_run, RUN.report),
    "render": (face.open_run, RUN.render),
    "finetune": (face.open_run, face.finetune, FinetuneOptions),
    "history": (face.history,),
    "doctor": (face.doctor,),
    "masks": (face.mask_boxes, LabelOptions, RUN.export_each),
    "weights convert": (face.convert_weights,),
    "ask": (face.ask, LabelOptions),
    "verify": (face.open_run, RUN.verify, ServerOptions),
    "review push": (face.open_run, RUN.review_push),
    "review open": (face.open_run, RUN.review_open),
    "review pull": (face.open_run, RUN.review_pull, LabelOptions),
    "review summary": (face.open_run, RUN.review_summary),
    "review next": (face.open_run, RUN.review_next, LabelOptions),
    "review write": (face.open_run, RUN.review_write),
}
FOR_THE_EYE = {"--quiet", "--json", "--watch", "--help"}  # what is printed, where else, and how often
A_METHOD = {("run", "--export"), ("masks", "--export"), ("demo", "--videos"), ("demo", "--verify")}  # in Python
# --ray local --replicas N; the answer to a question; a list as what is asked
SHORT_FOR_OTHERS = {("run", "--gpus"), ("review pull", "--yes"), ("ask", "--concepts")}
OTHER_WORDS = {
    "--set": "settings",
    "--phrase": "phrases",
    "--format": "formats",
    "--from": "source",
    "-n": "n",
    "--all": "everything",
}


def keywords(call: Callable[..., Any]) -> set[str]:
    named = inspect.signature(call).parameters.values()
    return {p.name for p in named if p.kind is not p.VAR_KEYWORD} - {"self"}


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_is_called_as_its_keyword(verb: str) -> None:
    known = {name for call in CALLS[verb] for name in keywords(call)}
    given = {
        name
        for name in options(VERBS[verb])
        if name not in FOR_THE_EYE and (verb, name) not in A_METHOD | SHORT_FOR_OTHERS
    }
    words = {OTHER_WORDS.get(name, name.removeprefix("--").replace("-", "_")) for name in given}
    assert words <= known, f"{verb}: no keyword for {words - known}"


@pytest.mark.parametrize(("verb", "choices"), [("run", LabelOptions), ("export", Options)])
def test_every_choice_is_an_option(verb: str, choices: Any) -> None:
    named = {parameter.name for parameter in VERBS[verb].params}
    assert {field.name for field in fields(choices)} - named == ({"splits"} if choices is Options else set())

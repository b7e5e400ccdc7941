"""The concept list that `sam3label init` writes: a commented one to start from."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sam3label.concepts.concept_list import load_concepts
from sam3label.core.files import write_whole
from sam3label.errors import OutputError

_STARTER = """\
# A concept list for sam3label: the classes to label, and by which phrases to find them.

# The ids are the class ids of the training set. Add classes at the end; never renumber.
names:
{names}

# For every class. These can be changed after a run: labels are chosen anew at export, without the model.
defaults:
  conf: 0.5        # keep instances with at least this score, 0 to 1
  iou: 0.7         # masks of one class that overlap more than this are one object
  presence: 0.0    # keep them only where the phrase is in the image with at least this score, 0 to 1
  min_area: 0      # in pixels; smaller instances are dropped
  # max_instances: 100   # per image and class; the best are kept

# For one class. Without an entry here, the phrase is the class name.
concepts:
  # {example}:
  #   prompts: [first phrase, another phrase]   # synonyms: what they find is merged; one phrase needs no brackets
  #   not: [something similar]                  # what looks like this is not the class
  #   conf: 0.6                                 # any of the defaults above
  #   exemplars: refs/example                   # a folder of labelled example images

# Groups of classes in which one object gets one class, the best.
exclusive: []
# exclusive: [[car, truck], [cat, dog]]
"""


def write_starter(out: Path, source: Path | None = None, force: bool = False) -> tuple[str, ...]:
    """Write a commented concept list with the classes of `source`, or two to start from, and return their names.

    Raises `OutputError` when there is something in the way, `ConfigError` when `source` is no concept list.
    """
    names: Sequence[str] = ("person", "helmet") if source is None else load_concepts(source).names
    if out.is_dir():
        raise OutputError(f"{out} is a folder: name a file, such as {out / 'concepts.yaml'}")
    if source is not None and out.exists() and out.samefile(source):
        raise OutputError(f"{out} is the file the names come from: write to another one")
    if out.exists() and not force:
        raise OutputError(f"{out} is already there: write to another file, or overwrite it with --force")
    write_whole(out, starter(names))
    return tuple(names)


def starter(names: Sequence[str]) -> str:
    """Return the text of a commented concept list with these classes."""
    one_line: dict[str, Any] = {"allow_unicode": True, "sort_keys": False, "width": 1 << 30}
    dumped = yaml.safe_dump(dict(enumerate(names)), **one_line)
    example = yaml.safe_dump([names[-1]], default_flow_style=True, **one_line).strip("[]\n")
    return _STARTER.format(names=textwrap.indent(dumped.rstrip(), "  "), example=example)

"""The concept list that calibration writes: the user's own file with new thresholds, comments and all."""

from __future__ import annotations

import copy
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from sam3label.concepts.checking import RULE_KEYS
from sam3label.concepts.concept_list import dump_concepts, dump_verify, parse_concepts, read_text
from sam3label.core.files import write_whole
from sam3label.core.records import Concept, ConceptList
from sam3label.errors import ConfigError
from sam3label.quality.calibrate import Calibration, describe

_HEADER = "# Thresholds calibrated by sam3label"
_END = "# ---- end of calibration"


def write_concepts(calibration: Calibration, path: str | Path, source: str | Path | None = None) -> None:
    """Write the concept list with the new values, under comments that say what was found for each class.

    With `source`, the file that the calibrated list came from, everything else in it stays as it is. Raises
    `OutputError` when the file cannot be written.
    """
    text = dump_concepts(calibration.concepts)
    if source is not None:
        original = read_text(source)
        text = edited(original, calibration.concepts, Path(source).parent, Path(path).parent) or text
    write_whole(path, "\n".join([*_header(calibration), text]))


def edited(text: str, concepts: ConceptList, folder: Path, target: Path) -> str | None:
    """Return a concept list in `folder` as YAML with the rules of `concepts`, for a file in the folder `target`.

    None where the text cannot be edited so that it says exactly that, as when it has other classes or phrases.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 20
    try:
        own = _without_header(text)
        document = yaml.load(own)
        for old, concept in zip(parse_concepts(own, folder=folder).concepts, concepts.concepts, strict=True):
            changed = {key: value for key in RULE_KEYS if (value := getattr(concept, key)) != getattr(old, key)}
            if concept.exemplars is not None and folder.resolve() != target.resolve():
                changed["exemplars"] = concept.exemplars.path
            if concept.verify != old.verify:
                changed["verify"] = dump_verify(concept.verify)
            if changed:
                document = _with_rules(document, concept, changed)
        made = io.StringIO()
        yaml.dump(document, made)
        return made.getvalue() if parse_concepts(made.getvalue(), folder=target) == concepts else None
    except (YAMLError, ConfigError, TypeError, AttributeError, ValueError):
        return None


def _with_rules(document: Any, concept: Concept, changed: dict[str, Any]) -> Any:
    if not isinstance(document, CommentedMap):  # the file is a list of names alone
        document = CommentedMap({"names": document})
    if not isinstance(document.get("concepts"), CommentedMap):
        document["concepts"] = CommentedMap()
    concepts = document["concepts"]
    rules = concepts.get(concept.name)
    if not isinstance(rules, CommentedMap):
        rules = concepts[concept.name] = CommentedMap()
    elif any(rules is other for name, other in concepts.items() if name != concept.name):
        rules = concepts[concept.name] = copy.copy(rules)  # an alias: only this class changes
    for key, value in changed.items():
        if key == "exemplars" and isinstance(rules[key], CommentedMap):
            kind = "labels" if "labels" in rules[key] else "references"
            rules[key][kind] = value
        else:
            rules[key] = value
    return document


def _header(calibration: Calibration) -> list[str]:
    rows = [f"#   {result.name}: {'; '.join(describe(result))}" for result in calibration.classes]
    return [
        f"{_HEADER} {version('sam3label')} against {Path(calibration.truth).name}",
        f"# for {calibration.sought}. F is cross-validated over images; brackets are 95 % intervals.",
        *rows,
        _END,
    ]


def _without_header(text: str) -> str:
    """Return the text without what an earlier calibration wrote above it."""
    lines = text.splitlines(keepends=True)
    if not text.startswith(_HEADER):
        return text
    ends = [i for i, line in enumerate(lines) if line.rstrip() == _END]
    return "".join(lines[ends[0] + 1 :]) if ends else text

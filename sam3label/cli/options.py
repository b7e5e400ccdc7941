"""What several verbs ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sam3label.core.records import ConceptList


Photos = Annotated[
    list[str],
    typer.Argument(metavar="PHOTOS...", help="Files, folders, globs in quotes, or @list.txt (a path a line)."),
]


ConceptFile = Annotated[
    Path | None,
    typer.Option("--concepts", "-c", help="Concept list (YAML; a YOLO data.yaml is one). Make one: sam3label init"),
]


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder made by `sam3label run`.")]


def read_concepts(path: Path | None, ontology: str | None, settings: list[str]) -> ConceptList:
    """The concept list of the command line: a file, or an ontology. Raises `ConfigError`."""
    from sam3label.concepts import concept_list as concept_lists
    from sam3label.errors import ConfigError

    if (path is None) == (ontology is None):
        raise ConfigError(
            "say what to look for: -c concepts.yaml (make one with: sam3label init), or --ontology '{...}'"
        )
    if path is not None:
        return concept_lists.load_concepts(path, settings)
    assert ontology is not None
    return concept_lists.parse_ontology(ontology, settings)

"""What a user may choose about an export, checked as a whole. Nothing heavy is imported: the command line reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

from sam3label.core import checks
from sam3label.core.problems import Problem
from sam3label.export.splits import Splits

Placement = Literal["hardlink", "upright", "copy", "symlink", "none"]
Segmentation = Literal["rle", "polygon", "uncompressed"]


@dataclass(frozen=True, slots=True)
class Options:
    """How labels become a dataset. Defaults lose nothing. Raises `ConfigError` with every problem at once.

    `images`: how photos get there, None for the format's own way. `classes`: names of the run to keep, all if empty.
    `map`: the run's class names to the dataset's; several may become one. `every` or `fps`: of videos, every so many
    frames, or so many a second. `flat`: no subfolders. `segmentation`: how masks are held, None for the format's own
    way. `simplify`: how far a polygon may leave the mask's border. `overwrite`: replace what people changed, too.
    """

    splits: Splits = field(default_factory=Splits)
    images: Placement | None = None
    classes: tuple[str, ...] = ()
    map: Mapping[str, str] = field(default_factory=dict)
    min_score: float = 0.0
    empty: bool = True
    every: int = 1
    fps: float | None = None
    flat: bool = False
    segmentation: Segmentation | None = None
    simplify: float = 0.0
    append: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        checks.refuse(_problems(self))

    def to_json(self) -> dict[str, Any]:
        """Return what a dataset's marker keeps, so that `validate` knows what was meant to be in it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("splits", "overwrite")}
        values |= {"classes": list(self.classes), "map": dict(self.map)}
        return {"splits": dict(self.splits.shares), "seed": self.splits.seed, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Options:
        """Return the choice of images and labels that `to_json` noted; the defaults where nothing is noted."""
        known = ("map", "min_score", "empty", "every", "fps", "flat")
        return cls(classes=tuple(values.get("classes", ())), **{k: values[k] for k in known if k in values})


def _problems(options: Options) -> Iterator[Problem | None]:
    if options.images is not None:
        yield checks.one_of("--images", options.images, Placement)
    if options.segmentation is not None:
        yield checks.one_of("--segmentation", options.segmentation, Segmentation)
    yield checks.within("--min-score", options.min_score, 0, 1)
    yield checks.zero_or_more("--simplify", options.simplify)
    yield checks.whole("--every", options.every, 1)
    yield checks.above_zero("--fps", options.fps)
    if options.fps is not None and options.every != 1:
        yield Problem("--every", "goes without --fps: give one")
    if options.append and options.overwrite:
        yield Problem("--append", "goes without --overwrite: one adds to a dataset, the other replaces it")
    if blank := [old for old, new in options.map.items() if not new.strip()]:
        yield Problem("--map", f"{', '.join(map(repr, blank))} would have no name")


def parse_classes(texts: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names of `--classes`: each text is a name if there is one like it, else names with commas between."""
    names = [part.strip() for text in texts for part in ((text,) if text in known else text.split(","))]
    return tuple(dict.fromkeys(name for name in names if name))


def parse_map(texts: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the names of `--map OLD=NEW`, each OLD once. A name with = in it is recognized. Raises `ConfigError`."""
    found: dict[str, str] = {}
    problems = list[Problem]()
    for text in texts:
        cuts = [(text[:at].strip(), text[at + 1 :].strip()) for at, sign in enumerate(text) if sign == "="]
        old, new = next((cut for cut in cuts if cut[0] in known), cuts[0] if cuts else (text, ""))
        if not cuts or not new:
            problems.append(Problem("--map", f"{text!r} is not OLD=NEW, for example truck=vehicle"))
        elif found.setdefault(old, new) != new:
            problems.append(Problem("--map", f"{old!r} is given twice, as {found[old]!r} and {new!r}"))
    checks.refuse(problems)
    return found


def unknown_names(option: str, names: Iterable[str], known: Sequence[str]) -> Problem | None:
    """Check that the run has all these names."""
    if not (unknown := [name for name in names if name not in known]):
        return None
    near = get_close_matches(unknown[0], known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return Problem(option, f"{', '.join(map(repr, unknown))} not in {', '.join(known)}.{hint}")

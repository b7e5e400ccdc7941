"""Holds what several verbs ask for in the same words: one name, one meaning, one type, one help text."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.labelling.options import DType, VideoMode

if TYPE_CHECKING:
    from sam3label.core.records import ConceptList

INPUT, MODEL, SPEED, VIDEO, OUTPUT = "Input", "Model", "Speed", "Video", "Output"  # panels of the help


def run_folders(incomplete: str) -> Iterator[str]:
    """Complete a run folder: the folders below what is typed, runs first where there are any."""
    parent = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    folders = [path for path in (*parent.glob("*/"), *Path("runs").glob("*/")) if str(path).startswith(incomplete)]
    runs = [path for path in folders if (path / "run.sqlite").is_file()]
    yield from dict.fromkeys(str(path) for path in runs or folders)


def format_names(incomplete: str) -> Iterator[str]:
    """Complete the name of an export format."""
    from sam3label.export.registry import FORMATS

    yield from (name for name in FORMATS if name.startswith(incomplete))


def file_names(incomplete: str) -> Iterator[str]:
    """Complete a path on this machine; options with it take addresses in storage too."""
    yield from sorted(glob.glob(f"{glob.escape(incomplete)}*"))  # noqa: PTH207 - Path has no absolute patterns


def _refuse_conf(value: str | None) -> None:
    if value is not None:
        raise typer.BadParameter(
            f"a threshold belongs to a class: --set defaults.conf={value} for all classes, "
            f"--set concepts.NAME.conf={value} for one"
        )


Photos = Annotated[
    list[str],
    typer.Argument(
        metavar="PHOTOS",
        help="Files, folders, globs in quotes, or @list.txt with a path a line; also s3://bucket/photos and the like.",
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run folder made by sam3label run.",
        autocompletion=run_folders,
    ),
]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN",
        help="A run folder made by sam3label run; several, such as shards, are read as one.",
        autocompletion=run_folders,
    ),
]
PhotosNow = Annotated[
    str | None,
    typer.Option(
        "--photos",
        metavar="FOLDER",
        autocompletion=file_names,
        help="Read the photos from here, if they are no longer where they were labelled.",
        rich_help_panel=INPUT,
    ),
]
ConceptFile = Annotated[
    str | None,
    typer.Option(
        "--concepts",
        "-c",
        metavar="PATH",
        autocompletion=file_names,
        help="Look for this concept list: a YAML file, such as sam3label init writes or a YOLO data.yaml.",
        rich_help_panel=INPUT,
    ),
]
OtherConcepts = Annotated[
    str | None,
    typer.Option(
        "--concepts",
        "-c",
        metavar="PATH",
        autocompletion=file_names,
        help="Use the thresholds and classes of this concept list instead of the run's own.",
        rich_help_panel=INPUT,
    ),
]
Vlm = Annotated[str | None, typer.Option(help="Ask this model of the server.", metavar="NAME", rich_help_panel=MODEL)]
MaxRequests = Annotated[int | None, typer.Option(min=1, help="Send no more requests than this.", rich_help_panel=SPEED)]
MaxCost = Annotated[
    float | None, typer.Option(help="Stop at so many US dollars; it needs --price.", rich_help_panel=SPEED)
]
Price = Annotated[
    str | None,
    typer.Option(
        metavar="IN,OUT", help="Count with these US dollars for a million tokens in and out.", rich_help_panel=SPEED
    ),
]
Phrases = Annotated[
    list[str] | None,
    typer.Option(
        "--phrase",
        "-p",
        help="Look for this phrase, as a class of that name, instead of a concept list. May be repeated.",
        rich_help_panel=INPUT,
    ),
]
Ontology = Annotated[
    str | None,
    typer.Option(
        help="""Look for these phrases instead of a concept list: '{"hard hat": "helmet"}', or such a JSON file.""",
        rich_help_panel=INPUT,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the concept list, such as defaults.conf=0.3. May be repeated.",
        rich_help_panel=INPUT,
    ),
]
WrongConf = Annotated[str | None, typer.Option("--conf", hidden=True, callback=_refuse_conf)]
Model = Annotated[
    str,
    typer.Option(help="Load this checkpoint: a hub id, a local folder or file, or demo.", rich_help_panel=MODEL),
]
Revision = Annotated[
    str | None, typer.Option(help="Load this branch, tag or commit of a hub id.", rich_help_panel=MODEL)
]
Device = Annotated[
    str, typer.Option(help="Compute on this device: auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=SPEED)
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Show the model images of this side instead of the checkpoint's own (1008 for SAM 3).",
        rich_help_panel=MODEL,
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        help="Label so many images at a time. With auto it is as many as free memory holds.", rich_help_panel=SPEED
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Decode with so many processes. By default it is one less than the cores, and at most 8.",
        rich_help_panel=SPEED,
    ),
]
MaxMegapixels = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Refuse larger photos. By default it is what fits into half of the free memory at up to 14 bytes a pixel "
        "for each process that decodes, and at least 64.",
        rich_help_panel=SPEED,
    ),
]
VideoChoice = Annotated[
    VideoMode,
    typer.Option(
        help="Say what becomes of videos. auto tracks objects through video files, track through folders of numbered "
        "frames too, frames labels samples as photos, and off leaves them out.",
        rich_help_panel=VIDEO,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="SHARES",
        help="Split the dataset, for example train=0.8,val=0.2. By default everything is in train.",
        rich_help_panel=OUTPUT,
    ),
]
RunOut = Annotated[Path, typer.Option("--out", "-o", help="Make or continue this run folder.", rich_help_panel=OUTPUT)]
ExportFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--export",
        metavar="FORMAT",
        autocompletion=format_names,
        help="Export in this format when done, into RUN/exports/FORMAT. May be repeated.",
        rich_help_panel=OUTPUT,
    ),
]
Precision = Annotated[
    DType,
    typer.Option(
        help="Compute in this precision. auto is bf16 on CUDA (fp16 on cards that have none), else fp32.",
        rich_help_panel=SPEED,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Label at most this many images and videos now.", rich_help_panel=SPEED)
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Throw away what the run folder holds and start over.", rich_help_panel=OUTPUT)
]
GtSplit = Annotated[
    str | None,
    typer.Option(
        "--gt-split",
        help="Take one split of a YOLO truth: train, val or test. By default all of them count.",
        rich_help_panel=INPUT,
    ),
]


def read_concepts(
    path: str | None, ontology: str | None, settings: Sequence[str], phrases: Sequence[str] = ()
) -> ConceptList:
    """Return the concept list that was asked for by a file, an ontology, or phrases. Raises `ConfigError`."""
    from sam3label.errors import ConfigError
    from sam3label.face import Concepts

    given = [source for source in (path, ontology, phrases or None) if source is not None]
    if len(given) != 1:
        raise ConfigError(
            "say what to look for, in one way: -c concepts.yaml (make one with: sam3label init), -p PHRASE, "
            "or --ontology '{...}'"
        )
    if path is not None:
        return Concepts.load(path, *settings)
    if ontology is not None:
        return Concepts.from_ontology(ontology, *settings)
    return Concepts.from_phrases(phrases, *settings)


def images_together(text: str) -> int | None:
    """Return the number of `--batch-size`, None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 on", param_hint="--batch-size")
    return int(text)


def workers_asked(
    gpus: str | None, ray: str | None, replicas: int | None, device: str
) -> tuple[str | None, int | None, str]:
    """Return the options `ray`, `replicas` and `device`, with `--gpus` spelled out."""
    if gpus is None:
        return ray, replicas, device
    if gpus != "all" and (not gpus.isdecimal() or int(gpus) < 1):
        raise typer.BadParameter(f"{gpus!r} is neither all nor a number from 1 on", param_hint="--gpus")
    if ray is not None or replicas is not None or device not in ("auto", "cuda"):
        raise typer.BadParameter(
            "goes without --ray, --replicas and --device: it stands for --ray local --replicas N", param_hint="--gpus"
        )
    return "local", None if gpus == "all" else int(gpus), "cuda"

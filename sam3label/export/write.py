"""A run's labels as a training set, in the format a trainer reads.

`export` streams: it holds one image's labels at a time, whatever the size of the run. Each format is a module with one
`write_*` that knows nothing of runs or other formats; `FORMATS` names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.core.records import ConceptList, LabeledImage
from sam3label.core.whole_folder import MARKER, read_marker, whole_folder
from sam3label.errors import ConfigError, OutputError
from sam3label.export.dataset import Options, Outline, Summary, Tally, Target, samples
from sam3label.export.photos import Placer
from sam3label.export.registry import FORMATS, Format, refuse_unknown_formats

if TYPE_CHECKING:
    from sam3label.run.reader import Run


def export(
    run: Run,
    format: str,
    out: str | Path,
    options: Options | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Write a run's labels to the folder `out`, which appears whole at the end or not at all.

    `progress` is called with the number of images gone through so far. Raises `ConfigError` for an unknown format or
    class, `OutputError` when the folder is not ours to replace, cannot be written, or a photo is gone.
    """
    refuse_unknown_formats([format])
    images = _counted(run.images(), progress)
    return write_dataset(run.concepts, images, format, out, options, run_info=run.info, failed=run.failures())


def write_dataset(
    concepts: ConceptList,
    images: Iterable[LabeledImage],
    format: str,
    out: str | Path,
    options: Options | None = None,
    *,
    run_info: Mapping[str, Any] | None = None,
    failed: Iterable[tuple[str, str]] = (),
) -> Summary:
    """`export` for labels from anywhere: `images` in a stable order, class ids by `concepts`."""
    chosen, options, final = FORMATS[format], options or Options(), Path(out)
    _refuse_senseless(format, chosen, options)
    kept = _kept_names(concepts, options.classes)
    before = _existing_classes(format, chosen, final) if options.append else {}
    classes = _numbered(kept, before, chosen.first_id)
    ids = {name: i for i, name in classes.items()}
    tally, outline, placer = Tally(options.splits.names), Outline(options.simplify_px), Placer(options.images)
    info = _info(run_info or {})
    with whole_folder(final, append=options.append) as folder:
        target = Target(
            folder,
            classes,
            options.splits.names,
            placer,
            outline,
            options.segmentation or chosen.segmentation,
            info,
            options.append,
        )
        class_ids = {c.id: ids[c.name] for c in concepts.concepts if c.name in kept}
        chosen.write(target, samples(images, options, class_ids, tally, chosen.videos))
        if tally.photos_left_out and not any(split.images for split in tally.splits.values()):
            raise OutputError(
                f"there are photos only, and {format} holds videos. Photos go into coco, yolo and others."
            )
        summary = _summary(format, final, classes, tally, outline, placer, options, tuple(failed))
        if not options.append or read_marker(folder):  # another tool's dataset never becomes ours to replace
            _write_marker(folder, summary, options, info)
    return summary


def _counted(images: Iterable[LabeledImage], progress: Callable[[int], None] | None) -> Iterator[LabeledImage]:
    for done, image in enumerate(images, 1):
        yield image
        if progress:
            progress(done)


def _refuse_senseless(format: str, chosen: Format, options: Options) -> None:
    if options.segmentation and not chosen.segmentation:
        raise ConfigError(f"--segmentation is for the COCO formats; {format} holds masks in one way only.")
    if options.append and not chosen.classes:
        able = ", ".join(n for n, f in FORMATS.items() if f.classes)
        raise ConfigError(f"--append is not possible for {format} (only for {able}). Export to a folder of its own.")
    if options.simplify_px < 0:
        raise ConfigError(f"--simplify must be 0 or more pixels, got {options.simplify_px:g}")
    if not 0 <= options.min_score <= 1:
        raise ConfigError(f"--min-score must be between 0 and 1, got {options.min_score:g}")


def _kept_names(concepts: ConceptList, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Names in concept order. Raises `ConfigError` for one that the run does not have."""
    if unknown := [name for name in wanted if name not in concepts.names]:
        near = get_close_matches(unknown[0], concepts.names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--classes: {', '.join(map(repr, unknown))} not in {', '.join(concepts.names)}.{hint}")
    return tuple(name for name in concepts.names if not wanted or name in wanted)


def _existing_classes(format: str, chosen: Format, folder: Path) -> dict[int, str]:
    marker = read_marker(folder)
    if marker and marker.get("format") != format:
        raise OutputError(
            f"{folder} is a {marker.get('format')} dataset; append to it with --format {marker['format']}."
        )
    if not folder.is_dir():
        raise OutputError(f"there is no dataset in {folder} to append to. Leave out --append to make one.")
    assert chosen.classes is not None  # _refuse_senseless checks it
    return chosen.classes(folder)


def _numbered(names: Iterable[str], before: Mapping[int, str], first_id: int) -> dict[int, str]:
    """Class ids of the dataset: an existing dataset keeps its own, new classes follow. Names decide, not numbers."""
    known = {name: i for i, name in before.items()}
    folded = {name.casefold().strip(): name for name in before.values()}
    problems = []
    if len(known) != len(before):
        problems.append("two of its classes have the same name")
    if sorted(before) != list(range(first_id, first_id + len(before))):
        problems.append(
            f"its class ids are {sorted(before)}, where this format wants them from {first_id} without gaps"
        )
    for name in names:
        twin = folded.get(name.casefold().strip())
        if twin is not None and twin != name:
            problems.append(f"its class {twin!r} and {name!r} of this run differ only in spelling")
    if before and problems:
        raise OutputError("the dataset cannot be appended to: " + "; ".join(problems) + ". Nothing was changed.")
    new = [name for name in names if name not in known]
    return {**before, **{first_id + len(before) + i: name for i, name in enumerate(new)}}


def _info(run_info: Mapping[str, Any]) -> dict[str, Any]:
    """What the dataset says about its origin. No date of writing: the same run gives the same bytes again."""
    tool = f"sam3label {version('sam3label')}"
    checkpoint = run_info.get("checkpoint")
    origin = f" with checkpoint {checkpoint}" if checkpoint else ""
    return {
        "description": f"Labelled by {tool}{origin}",
        "version": tool,
        "checkpoint": checkpoint,
        "date_created": run_info.get("created"),
    }


def _summary(
    format: str,
    folder: Path,
    classes: Mapping[int, str],
    tally: Tally,
    outline: Outline,
    placer: Placer,
    options: Options,
    failed: tuple[tuple[str, str], ...],
) -> Summary:
    notes = []
    if len(options.splits.names) == 1 and (format.startswith("yolo") or format == "coco-roboflow"):
        where = "val: in data.yaml points to the training photos" if format.startswith("yolo") else "valid/ is missing"
        notes.append(f"No --split was given, so everything is in train ({where}). Trainers need a validation split.")
    if placer.copied_instead:
        notes.append(f"{placer.copied_instead} photos were copied: the file system did not allow hard links.")
    if tally.hollow:
        notes.append(f"{tally.hollow} labels without a single pixel were left out.")
    if tally.photos_left_out:
        notes.append(f"{tally.photos_left_out} photos were left out: this format holds videos.")
    for name in [s for s, count in tally.splits.items() if not count.images]:
        notes.append(f"The split {name} is empty.")
    cost = (outline.iou_sum / outline.drawn, outline.iou_min) if outline.drawn else None
    return Summary(format, folder, classes, tally.splits, failed, tuple(notes), cost)


def _write_marker(folder: Path, summary: Summary, options: Options, info: Mapping[str, Any]) -> None:
    """Marks the folder as ours to replace, and tells `validate` what was meant to be in it."""
    marker = {
        "tool": "sam3label",
        "format": summary.format,
        "info": info,
        "classes": {str(i): name for i, name in summary.classes.items()},
        "options": {
            "splits": dict(options.splits.shares),
            "seed": options.splits.seed,
            "classes": list(options.classes),
            "min_score": options.min_score,
            "keep_empty": options.keep_empty,
            "simplify_px": options.simplify_px,
            "images": options.images,
            "appended": options.append,
        },
        "images": summary.images,
        "instances": summary.instances,
        "failed": len(summary.failed),
    }
    whole = folder / f"{MARKER}.whole"
    whole.write_text(json.dumps(marker, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    whole.replace(folder / MARKER)

"""A run's labels as a training set, in the format a trainer reads.

`export` streams: it holds one image's labels at a time, whatever the size of the run. Each format is a module with one
`write_*` that knows nothing of runs or other formats; `FORMATS` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3label.core.files import write_whole
from sam3label.core.records import ConceptList, LabeledImage
from sam3label.core.text import count, one_line
from sam3label.core.whole_folder import read_marker, whole_folder, write_marker
from sam3label.errors import ConfigError, OutputError
from sam3label.export import card
from sam3label.export.dataset import Outline, Summary, Tally, Target, dataset_names, selection
from sam3label.export.frames import UNKNOWN_RATE, FrameChoice
from sam3label.export.options import Options
from sam3label.export.photos import Placer
from sam3label.export.registry import FORMATS, Format, refuse_unknown_formats
from sam3label.media import storage

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
    class, `OutputError` when the folder is not ours to replace, cannot be written, a photo is gone, or no image
    would be in the dataset.
    """
    refuse_senseless([format], options or Options())
    if options is None or options.images != "none":
        _refuse_links(run, options or Options())
        _refuse_changed(run)
    images, coverage = _counted(run.images(), progress), run.coverage()
    return write_dataset(
        run.concepts, images, format, out, options,
        run_info=run.info, failed=run.failures(), wait=coverage.wait, notes=tuple(coverage.notes()),
    )  # fmt: skip


def _refuse_links(run: Run, options: Options) -> None:
    """Raise `OutputError` where photos are to be linked and lie in storage, which has no links."""
    if options.images not in ("hardlink", "symlink"):
        return
    if far := next((item.path for item in run.items() if storage.is_remote(item.path)), None):
        raise OutputError(
            f"{far} lies in storage and cannot be linked to. --images copy downloads the photos into the dataset, "
            "--images none leaves them where they are."
        )


def _refuse_changed(run: Run) -> None:
    """Raise `OutputError` where photos are not what was labelled: their labels would be of other pictures."""
    if changed := run.changed_photos():
        lines = "".join(f"\n  {one_line(item_id)}: {what}" for item_id, what in changed[:10])
        more = f"\n  ... and {len(changed) - 10} more" if len(changed) > 10 else ""
        raise OutputError(
            f"{count(len(changed), 'photo')} of the run cannot be exported:{lines}{more}\n"
            "Replaced ones are labelled again by the same sam3label run; if the folder has moved, give the new place "
            "with --photos FOLDER. Or export labels alone: --images none."
        )


def write_dataset(
    concepts: ConceptList,
    images: Iterable[LabeledImage],
    format: str,
    out: str | Path,
    options: Options | None = None,
    *,
    run_info: Mapping[str, Any] | None = None,
    failed: Iterable[tuple[str, str]] = (),
    wait: str | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """Do what `export` does for labels from anywhere: `images` in a stable order, class ids by `concepts`.

    `wait` is a sentence on images that are not among `images` yet, `notes` are more to say of the labels.
    """
    chosen, options, final = FORMATS[format], options or Options(), Path(out)
    refuse_senseless([format], options)
    names = dataset_names(concepts, options)
    before = _existing_classes(format, chosen, final) if options.append else {}
    classes = _numbered(names, before, chosen.first_id)
    tally, frames = Tally(options.splits.names), FrameChoice(options.every, options.fps)
    info = _info(run_info or {})
    with (
        whole_folder(final, append=options.append, overwrite=options.overwrite) as folder,
        Placer(options.images or chosen.images) as placer,
    ):
        target = Target(
            folder,
            classes,
            options.splits.names,
            placer,
            Outline(options.simplify),
            options.segmentation or next(iter(chosen.segmentations), None),
            info,
            options.append,
            frame_rate=frames.rate,
        )
        selected = selection(concepts, options, {name: i for i, name in classes.items()}, chosen.videos)
        chosen.write(target, selected.samples(images, frames, tally))
        placer.finish()
        left_out = (f"Not in the dataset: {wait}.",) if wait else ()
        notes = (*left_out, *notes, *_notes(format, tally, target, frames, options))
        outline = target.outline
        cost = (outline.iou_sum / outline.drawn, outline.iou_min) if outline.drawn else None
        summary = Summary(format, final, classes, tally.splits, tuple(failed), notes, cost)
        _refuse_empty(summary, tally, options, wait)
        _describe(folder, summary, options, info, card.part(concepts, run_info or {}, options, summary))
    return summary


def refuse_senseless(formats: Iterable[str], options: Options) -> None:
    """Raise `ConfigError` for unknown formats, and for options that would do nothing in one of `formats`."""
    formats = list(formats)
    refuse_unknown_formats(formats)
    problems = []
    for name, chosen in ((name, FORMATS[name]) for name in formats):
        if options.segmentation and options.segmentation not in chosen.segmentations:
            ways = ", ".join(chosen.segmentations)
            holds = f"holds masks as {ways}" if ways else "holds masks in one way only"
            problems.append(f"--segmentation {options.segmentation} is not possible for {name}, which {holds}.")
        if options.append and not chosen.classes:
            able = ", ".join(n for n, f in FORMATS.items() if f.classes)
            problems.append(f"--append is not possible for {name} (only for {able}). Export to a folder of its own.")
        if options.simplify and not chosen.draws_polygons(options.segmentation):
            add = "; add --segmentation polygon" if "polygon" in chosen.segmentations else ""
            problems.append(f"--simplify is for polygons, and {name} would have none{add}.")
    if problems:
        raise ConfigError("\n".join(problems))


def _counted(images: Iterable[LabeledImage], progress: Callable[[int], None] | None) -> Iterator[LabeledImage]:
    for done, image in enumerate(images, 1):
        yield image
        if progress:
            progress(done)


def _existing_classes(format: str, chosen: Format, folder: Path) -> dict[int, str]:
    marker = read_marker(folder)
    if marker and marker.get("format") != format:
        raise OutputError(
            f"{folder} is a {marker.get('format')} dataset; append to it with --format {marker['format']}."
        )
    if not folder.is_dir():
        raise OutputError(f"there is no dataset in {folder} to append to. Leave out --append to make one.")
    assert chosen.classes is not None  # refuse_senseless checks it
    return chosen.classes(folder)


def _numbered(names: Iterable[str], before: Mapping[int, str], first_id: int) -> dict[int, str]:
    """Return the dataset's class ids: an old dataset keeps its own, new classes follow. Names decide, not numbers."""
    known = {name: i for i, name in before.items()}
    folded = {name.casefold().strip(): name for name in before.values()}
    problems = []
    if len(known) != len(before):
        problems.append("two of its classes have the same name")
    if sorted(before) != list(range(first_id, first_id + len(before))):
        problems.append(
            f"its class ids are {sorted(before)}, where this format wants them from {first_id} without gaps"
        )
    new = [name for name in names if name not in known]
    for name in new:
        if twin := folded.get(name.casefold().strip()):
            one = f"if they are one: --map {name}={twin}"
            problems.append(f"its class {twin!r} and {name!r} of this run differ only in spelling ({one})")
    if before and problems:
        raise OutputError("the dataset cannot be appended to: " + "; ".join(problems) + ". Nothing was changed.")
    return {**before, **{first_id + len(before) + i: name for i, name in enumerate(new)}}


def _info(run_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the dataset says about its origin. No date of writing: the same run gives the same bytes again."""
    tool = f"sam3label {version('sam3label')}"
    checkpoint = run_info.get("checkpoint")
    origin = f" with checkpoint {checkpoint}" if checkpoint else ""
    return {
        "description": f"Labelled by {tool}{origin}",
        "version": tool,
        "checkpoint": checkpoint,
        "date_created": run_info.get("created"),
    }


def _notes(format: str, tally: Tally, target: Target, frames: FrameChoice, options: Options) -> Iterator[str]:
    if len(options.splits.names) == 1 and (format.startswith("yolo") or format == "coco-roboflow"):
        where = "val: in data.yaml points to the training photos" if format.startswith("yolo") else "valid/ is missing"
        yield (
            f"No --split was given, so everything is in train ({where}). Trainers need a validation split: "
            "--split train=0.8,val=0.2"
        )
    images = {name: held.images for name, held in tally.splits.items()}
    if off := options.splits.far_off(images, tally.groups):
        yield off
    if target.placer.copied_instead:
        copied = count(target.placer.copied_instead, "photo was", "photos were")
        yield f"{copied} copied: the file system did not allow hard links."
    if target.placer.turned:
        yield f"{count(target.placer.turned, 'photo')} turned by EXIF, written upright: not every reader looks at EXIF."
    if tally.hollow:
        yield f"{count(tally.hollow, 'label')} without a single pixel left out."
    if tally.twice:
        yield f"{count(tally.twice, 'label')} left out: with --map an object had two of the same class."
    if tally.photos_left_out:
        yield f"{count(tally.photos_left_out, 'photo')} left out: this format holds videos."
    if tally.frames_left_out:
        yield f"{count(tally.frames_left_out, 'frame')} of videos left out, as chosen."
    if frames.unknown:
        shown = ", ".join(frames.unknown[:5]) + (", ..." if len(frames.unknown) > 5 else "")
        yield f"The frame rate of {shown} could not be read and is taken for {UNKNOWN_RATE:g}."
    yield from target.notes
    for name in [s for s, held in tally.splits.items() if not held.images]:
        yield f"The split {name} is empty: another --seed splits otherwise."
    if not any(held.instances for held in tally.splits.values()):
        yield "There is not one label in it: every image is background."


def _refuse_empty(summary: Summary, tally: Tally, options: Options, wait: str | None) -> None:
    if summary.images:
        return
    if tally.photos_left_out:
        raise OutputError(
            f"there are photos only, and {summary.format} holds videos. Photos go into coco, yolo and others."
        )
    why = wait or "no image of the run has been labelled"
    if not options.empty or tally.frames_left_out:
        why = "no image passes what was chosen (--classes, --min-score, --no-empty, --every, --fps)"
    raise OutputError(f"there is nothing to export: {why}. No dataset was written.")


def _describe(
    folder: Path, summary: Summary, options: Options, info: Mapping[str, Any], part: Mapping[str, Any]
) -> None:
    """Mark the folder as ours to replace, tell `validate` what was meant to be in it, and people what it is."""
    before = read_marker(folder)
    if options.append and before is None:
        return  # another tool's dataset never becomes ours to replace
    marker = {
        "format": summary.format,
        "info": dict(info),
        "classes": {str(i): name for i, name in summary.classes.items()},
        "options": options.to_json(),
        "images": summary.images + (before or {}).get("images", 0),
        "instances": summary.instances + (before or {}).get("instances", 0),
        "failed": len(summary.failed),
        "parts": [*(before or {}).get("parts", []), dict(part)],
    }
    write_marker(folder, marker)
    text = folder / card.FILE
    if before is None or not text.exists() or text.read_bytes() == card.text(before).encode():
        write_whole(text, card.text(marker))  # one that a person changed stays

"""`sam3label status`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sam3label.cli.options import OUTPUT, RunFolders
from sam3label.cli.tables import SPLIT, console, failure_lines, full_answers, near_copies, program
from sam3label.core.text import count, one_line, verb

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.core.records import Processor
    from sam3label.run.reader import Coverage, Run

WATCH_SECONDS = 2.0
MADE_BY = ("model", "checkpoint", "version", "created", "sources", "options", "command")  # keys of a run's `info`


def status(
    run: RunFolders,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show it again and again until the run ends. Ctrl-C ends the watching.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write all of it to this file, - for here.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Show what a run holds: progress, objects per class, failures. It is safe while the run is going on."""
    if json_out is not None:
        _write_json(run, json_out)
    elif watch:
        _watch(run)
    else:
        show(run, console())


def _watch(run: Sequence[Path]) -> None:
    """Show the run every two seconds; on a terminal each time in place of the last."""
    screen = console()
    try:
        while True:
            if sys.stdout.isatty():
                screen.clear()
            going_on = show(run, screen)
            if not going_on:
                return
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def show(run: Sequence[Path], screen: Console) -> bool:
    """Print how a run is, and return whether a process is labelling into it."""
    from rich.table import Table

    from sam3label.face import open_run

    with open_run(run) as labelled:
        running = labelled.is_growing
        screen.print(
            f"{', '.join(map(str, run))}: {labelled.extent()}, {count(labelled.totals().candidates, 'candidate')}",
            soft_wrap=True,
        )
        for line in (*_made_by(labelled, running), *_computed_on(labelled.processors())):
            screen.print(line, soft_wrap=True)
        table = Table("class", "objects", "images")
        for class_name, (objects, images) in labelled.count_objects().items():
            table.add_row(class_name, str(objects), str(images))
        screen.print(table)
        for line in (*_coverage(labelled.coverage()), *full_answers(labelled), *near_copies(labelled)):
            screen.print(line, soft_wrap=True)
        for trust in labelled.trust().values():
            screen.print(trust.sentence())
        failures = labelled.failures()
        next_step = _next_step(labelled, running)
    rest = f"sam3label report {' '.join(map(str, run))} lists them, and so does --json OUT"
    for line in failure_lines(failures, rest=rest):
        screen.print(line, soft_wrap=True)
    if next_step:
        screen.print(f"Next: {next_step}", soft_wrap=True)
    return bool(running)


def _next_step(labelled: Run, running: bool | None) -> str | None:
    """Return what to type when all is labelled; before, the line about who is at it says what to do."""
    if running or not labelled.extent().is_complete or labelled.coverage().waiting or not len(labelled):
        return None
    folders = shlex.join(map(str, labelled.folders))
    return f"{program()} export {folders} --format yolo -o DATASET --split {SPLIT}"


def _made_by(labelled: Run, running: bool | None) -> Iterator[str]:
    info = labelled.info
    shard = f", shard {info['shard']}" if "shard" in info and len(labelled.folders) == 1 else ""
    yield f"model {info.get('model')} ({info.get('checkpoint')}), started {info.get('created')}{shard}"
    options = {name: value for name, value in info.get("options", {}).items() if name != "model"}
    if options:
        yield f"options: {', '.join(f'{name} {value}' for name, value in options.items())}"
    if info.get("command"):
        yield f"last command: {info['command']}"
    if running:
        yield "A process is labelling into it now."
    elif running is False and not labelled.extent().is_complete:
        yield "Nobody is labelling into it now: the same command continues."


def _coverage(coverage: Coverage) -> Iterator[str]:
    """Say which prompts were put to how much of the run."""
    if coverage.units and not coverage.waiting and not coverage.unsought:
        each = verb(len(coverage.asked), "", "each ")
        yield f"{count(len(coverage.asked), 'prompt')} of the list, {each}asked of {_all(coverage.units)}"
    for key, asked in coverage.asked.items():
        if asked < coverage.units:
            yield f"{one_line(key)}: asked of {asked:,} of {count(coverage.units, 'image')}"
    if coverage.wait:
        yield coverage.wait
    yield from coverage.notes()
    if coverage.unlisted:
        yield f"asked once and no longer on the list, not exported: {', '.join(map(one_line, coverage.unlisted))}"


def _all(units: int) -> str:
    return f"all {count(units, 'image')}" if units > 1 else "the one image"


def _computed_on(processors: Sequence[tuple[Processor, int]]) -> Iterator[str]:
    """What computed a run, by kind of device, where that is more than one device."""
    if len(processors) < 2:
        return
    kinds: dict[str, list[int]] = {}
    for processor, units in processors:
        kinds.setdefault(processor.kind, []).append(units)
    listed = (f"{len(units)} x {one_line(kind)} ({count(sum(units), 'unit')})" for kind, units in kinds.items())
    yield f"computed on {', '.join(listed)}"


def _write_json(run: Sequence[Path], out: Path) -> None:
    from sam3label.core.files import write_whole
    from sam3label.face import open_run

    with open_run(run) as labelled:
        text = json.dumps(as_json(labelled), ensure_ascii=False, indent=1) + "\n"
    if str(out) == "-":
        sys.stdout.write(text)
    else:
        write_whole(out, text)


def as_json(labelled: Run) -> dict[str, Any]:
    """Return all that `status` knows. Keys stay as they are, for other programs (docs/howto/runs.md lists them)."""
    extent, info, coverage = labelled.extent(), labelled.info, labelled.coverage()
    return {
        "run": " ".join(map(str, labelled.folders)),
        "running": labelled.is_growing,
        "complete": extent.is_complete and not coverage.waiting,
        "images": {"done": extent.images_done, "failed": extent.images_failed, "total": extent.images},
        "videos": {"done": extent.videos_done, "failed": extent.videos_failed, "total": extent.videos},
        "frames": {"done": extent.frames_done, "total": extent.frames},
        "candidates": labelled.totals().candidates,
        "corrections": len(labelled.corrections()),
        "classes": {
            name: {"objects": objects, "images": images} for name, (objects, images) in labelled.count_objects().items()
        },
        "asked": {**coverage.asked},
        "waiting": list(coverage.waiting),
        "not_looked_for": dict(coverage.unsought),
        "full": [{"id": item_id, "frame": frame, "prompt": key} for item_id, frame, key in labelled.full()],
        "near_copies": len(labelled.near_copies()),
        "failures": [{"id": item_id, "reason": reason} for item_id, reason in labelled.failures()],
        **{
            key: info.get(key) for key in ("model", "checkpoint", "version", "created", "sources", "options", "command")
        },
    }

"""`sam3label status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sam3label.cli.options import RunFolders
from sam3label.cli.tables import console, full_answers
from sam3label.core.text import count, one_line

if TYPE_CHECKING:
    from sam3label.core.records import Processor
    from sam3label.run.reader import Coverage

SHOWN_FAILURES = 50


def _coverage(coverage: Coverage) -> Iterator[str]:
    """Say which prompts were put to how much of the run, where not all of them were put to all of it."""
    for key, asked in coverage.asked.items():
        if asked < coverage.units:
            yield f"{one_line(key)}: asked of {asked:,} of {count(coverage.units, 'image')}"
    if coverage.wait:
        yield coverage.wait
    if coverage.unlisted:
        yield f"asked once and no longer on the list, not exported: {', '.join(map(one_line, coverage.unlisted))}"


def _computed_on(processors: Sequence[tuple[Processor, int]]) -> Iterator[str]:
    """What computed a run, by kind of device, where that is more than one device."""
    if len(processors) < 2:
        return
    kinds: dict[str, list[int]] = {}
    for processor, units in processors:
        kinds.setdefault(processor.kind, []).append(units)
    listed = (f"{len(units)} x {one_line(kind)} ({sum(units):,} units)" for kind, units in kinds.items())
    yield f"computed on {', '.join(listed)}"


def status(run: RunFolders) -> None:
    """Show what a run holds: progress, objects per class, failures. It is safe while the run is going on."""
    from rich.table import Table

    from sam3label.face import open_run

    screen = console()
    with open_run(run) as labelled:
        totals, info = labelled.totals(), labelled.info
        screen.print(
            f"{', '.join(map(str, run))}: {count(totals.done, 'image')} labelled, {totals.failed} failed, "
            f"{count(totals.candidates, 'candidate')}",
            soft_wrap=True,
        )
        shard = f", shard {info['shard']}" if "shard" in info and len(run) == 1 else ""
        screen.print(f"model {info.get('model')} ({info.get('checkpoint')}), started {info.get('created')}{shard}")
        for line in _computed_on(labelled.processors()):
            screen.print(line, soft_wrap=True)
        table = Table("class", "objects", "images")
        for class_name, (objects, images) in labelled.count_objects().items():
            table.add_row(class_name, str(objects), str(images))
        screen.print(table)
        for line in (*_coverage(labelled.coverage()), *full_answers(labelled)):
            screen.print(line, soft_wrap=True)
        for trust in labelled.trust().values():
            screen.print(trust.sentence())
        failures = labelled.failures()
    for item_id, reason in failures[:SHOWN_FAILURES]:
        screen.print(f"failed  {one_line(item_id)}: {one_line(reason)}", soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        named = " ".join(map(str, run))
        screen.print(f"... and {len(failures) - SHOWN_FAILURES} more: sam3label report {named} lists them")

"""`sam3label validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3label.cli.options import INPUT, OUTPUT, PhotosNow, file_names
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import console
from sam3label.core.files import write_whole
from sam3label.core.text import count, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.validate import Report


def validate(
    dataset: Annotated[
        Path,
        typer.Argument(help="Any format that export writes, whoever wrote it: a folder, .json or .yaml."),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Compare with the run it came from, by the IoU of the round trip.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            "--concepts",
            "-c",
            metavar="PATH",
            autocompletion=file_names,
            help="Read the run by this concept list, with which it was exported, instead of its own.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    photos: PhotosNow = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write everything to this file too.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Load a dataset as trainers do and say what they would drop. Exit code 3 if they would, 1 if it is unreadable."""
    from sam3label import face

    with progress_display(False, "reading the dataset as trainers do ..."):
        if run is None:
            report = face.validate_dataset(dataset)
        else:
            with face.open_run(run, concepts, photos=photos) as opened:
                report = opened.validate(dataset)
    print_report(report)
    if json_out is not None:
        text = json.dumps(report.as_json(), ensure_ascii=False, indent=1) + "\n"
        write_whole(json_out, text.encode("utf-8", "backslashreplace"))  # names may hold half a surrogate pair
    if not report.clean:
        raise typer.Exit(3)


def print_report(report: Report) -> None:
    """Print counts per split and class, what each consumer made of it, what is broken, and the round trip."""
    screen = console()
    _print_counts(report, screen)
    for consumer in report.consumers:
        screen.print(f"{consumer.name}: {consumer.result}", soft_wrap=True)
    _print_findings(report, screen)
    if report.round_trip:
        _print_round_trip(report, screen)
    trip = report.round_trip
    if trip and (trip.lost or trip.images_missing):
        screen.print("Not all of the run is in this dataset: export it again if it should be.", style="yellow")
    screen.print(_verdict(report), style="green" if report.clean else "red")


def _verdict(report: Report) -> str:
    if any(f.effect == "drops" for f in report.findings):
        return "Something would be dropped: see above."
    if not report.clean:
        return "Nothing would be dropped, but labels would be read turned against their photos: see above."
    return "Nothing would be dropped; see the notes above." if report.findings else "Clean: nothing would be dropped."


def _print_counts(report: Report, screen: Console) -> None:
    from rich.table import Table

    screen.print(f"{report.dataset} ({report.kind})", soft_wrap=True)
    table = Table("")
    for split in report.splits:
        table.add_column(split.name, justify="right")
    table.add_row("images", *(str(s.images) for s in report.splits))
    table.add_row("of these empty", *(str(s.empty) for s in report.splits))
    table.add_row("instances", *(str(s.instances.total()) for s in report.splits))
    table.add_section()
    for name in list(report.classes.values())[:40]:
        table.add_row(one_line(name), *(str(s.instances[name]) for s in report.splits))
    screen.print(table)


def _print_findings(report: Report, screen: Console) -> None:
    """Print a line a finding, never folded: file names in it can be copied."""
    from rich.text import Text

    for f in report.findings:
        times = f" ({f.count} times)" if f.count > 1 else ""
        style = "yellow" if f.effect == "note" else "red"
        screen.print(Text(f"{f.effect:<5}  {f.who}: {f.what}{times}", style), soft_wrap=True)
        for example in f.examples[:3]:
            screen.print(Text(f"         {example}", style), soft_wrap=True)


def _print_round_trip(report: Report, screen: Console) -> None:
    trip = report.round_trip
    assert trip is not None
    if trip.mean is None or trip.minimum is None:
        screen.print("Round trip: the run has no labels to compare.")
        return
    screen.print(
        f"Round trip of {count(trip.labels, 'label')}: {trip.measure} {trip.mean:.4f} on average, "
        f"{trip.minimum:.4f} at worst; "
        f"{trip.lost} lost, {count(trip.extra, 'extra instance')}, {count(trip.images_missing, 'image')} missing."
        + (" The worst:" if trip.worst else ""),
        soft_wrap=True,
    )
    for match in trip.worst:
        screen.print(f"  {match.iou:.4f}  {match.class_name}  {match.image}  ({match.label_id})", soft_wrap=True)

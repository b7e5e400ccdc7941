"""`sam3label validate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sam3label.validate import Report


def validate(
    dataset: Annotated[Path, typer.Argument(help="COCO .json or folder, YOLO data.yaml or folder; any origin.")],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="The run it came from: adds the IoU of the round trip.")
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option("--concepts", "-c", help="The concept list it was exported with, if another.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write everything here.")] = None,
) -> None:
    """Load a dataset as trainers do and say what they would drop. Exit code 3 if they would, 1 if it is unreadable."""
    from sam3label.concepts.concept_list import load_concepts
    from sam3label.errors import OutputError
    from sam3label.run.reader import open_run
    from sam3label.validate import validate as check

    if run is None:
        report = check(dataset)
    else:
        with open_run(run, load_concepts(concepts) if concepts else None) as labelled:
            report = check(dataset, labelled)
    print_report(report)
    if json_out is not None:
        try:
            json_out.write_text(json.dumps(report.as_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{json_out} cannot be written ({error.strerror}).") from error
    if not report.clean:
        raise typer.Exit(3)


def print_report(report: Report) -> None:
    """Counts per split and class, what each consumer made of it, what is broken, and the round trip."""
    from rich.console import Console

    console = Console(highlight=False)
    _print_counts(report, console)
    for consumer in report.consumers:
        console.print(f"{consumer.name}: {consumer.result}", markup=False, soft_wrap=True)
    _print_findings(report, console)
    if report.round_trip:
        _print_round_trip(report, console)
    trip = report.round_trip
    if trip and (trip.lost or trip.images_missing):
        console.print("Not all of the run is in this dataset: export it again if it should be.", style="yellow")
    verdict = "Clean: nothing would be dropped." if report.clean else "Something would be dropped: see above."
    console.print(verdict, style="green" if report.clean else "red")


def _print_counts(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"{report.dataset} ({report.kind})", markup=False, soft_wrap=True)
    table = Table("")
    for split in report.splits:
        table.add_column(split.name, justify="right")
    table.add_row("images", *(str(s.images) for s in report.splits))
    table.add_row("of these empty", *(str(s.empty) for s in report.splits))
    table.add_row("instances", *(str(s.instances.total()) for s in report.splits))
    table.add_section()
    for name in list(report.classes.values())[:40]:
        table.add_row(escape(name), *(str(s.instances[name]) for s in report.splits))
    console.print(table)


def _print_findings(report: Report, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not report.findings:
        return
    table = Table()
    for column in ("effect", "who", "what", "times", "for example"):
        table.add_column(column, overflow="fold")
    for f in report.findings:
        style = "red" if f.effect == "drops" else "yellow"
        table.add_row(f.effect, f.who, f.what, str(f.count), escape("\n".join(f.examples[:3])), style=style)
    console.print(table)


def _print_round_trip(report: Report, console: Console) -> None:
    trip = report.round_trip
    assert trip is not None
    if trip.mean is None or trip.minimum is None:
        console.print("Round trip: the run has no labels to compare.")
        return
    console.print(
        f"Round trip of {trip.labels} labels: {trip.measure} {trip.mean:.4f} on average, {trip.minimum:.4f} at worst; "
        f"{trip.lost} lost, {trip.extra} extra instances, {trip.images_missing} images missing. The worst:",
        soft_wrap=True,
    )
    for match in trip.worst:
        console.print(
            f"  {match.iou:.4f}  {match.class_name}  {match.image}  ({match.label_id})", markup=False, soft_wrap=True
        )

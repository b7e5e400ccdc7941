"""`sam3label status`."""

from __future__ import annotations

from sam3label.cli.options import RunFolder


def status(run_folder: RunFolder) -> None:
    """What a run holds: progress, objects per class, failures. Safe while the run is going on."""
    from rich.console import Console
    from rich.table import Table

    from sam3label.labelling.reference_check import Trust
    from sam3label.run.reader import count_objects, open_run

    console = Console()
    with open_run(run_folder) as labelled:
        totals, info = labelled.totals(), labelled.info
        console.print(
            f"{run_folder}: {totals.done} images labelled, {totals.failed} failed, {totals.candidates} candidates"
        )
        console.print(
            f"model {info.get('model')} ({info.get('checkpoint')}), started {info.get('created')}", markup=False
        )
        table = Table("class", "objects", "images")
        for name, (objects, images) in count_objects(labelled).items():
            table.add_row(name, str(objects), str(images))
        console.print(table)
        for figures in (labelled.note("trust") or {}).values():
            console.print(Trust.from_json(figures).sentence(), markup=False, highlight=False)
        for item_id, reason in labelled.failures():
            console.print(f"failed  {item_id}: {reason}", markup=False, highlight=False)

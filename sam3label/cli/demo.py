"""`sam3label demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(min=1, help="How many synthetic photos to make and label.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Other photos for another seed.")] = 0,
) -> None:
    """See the main job at work, without the real weights: synthetic photos, right labels, known truth."""
    from sam3label.cli.run import progress_display
    from sam3label.demo.job import demo as job

    with progress_display(quiet=False) as show:
        result = job(out, images, seed, on_progress=show)
    metrics = result.metrics
    typer.echo(f"\n{metrics.images} synthetic photos labelled in {metrics.seconds:.1f} s with the demo checkpoint.")
    typer.echo(
        f"Against the truth: F1 {metrics.f1:.3f}, mean mask IoU {metrics.mean_iou:.3f}, "
        f"presence MCC {metrics.presence_mcc:.3f}\n"
    )
    places = {
        "look at this": result.contact_sheet,
        "photos": result.photos,
        "concept list": result.concepts,
        "run": result.runs,
        **{f"{name} dataset": path for name, path in result.exports.items()},
        "figures": result.metrics_file,
    }
    for what, path in places.items():
        typer.echo(f"  {what + ':':15} {path}")
    typer.echo(
        f"\nNext, other words on the same photos:\n"
        f'  sam3label run {result.photos} --ontology \'{{"yellow shape": "yellow"}}\' --model demo -o {out}/yellow\n'
        "and, with access to the real weights, your own photos:\n"
        "  sam3label init && sam3label run PHOTOS -c concepts.yaml -o runs/first --export yolo"
    )

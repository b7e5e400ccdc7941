"""`sam3label demo`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sam3label.cli.options import OUTPUT
from sam3label.cli.progress import progress_display
from sam3label.cli.tables import SPLIT, program
from sam3label.core.text import count


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Put everything into this folder, not runs/demo, demo-video or demo-verify.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Make and label so many synthetic photos (24, or 48 for --verify), or videos (2).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Draw by this seed: another one gives other photos.", rich_help_panel=OUTPUT)
    ] = 0,
    videos: Annotated[
        bool, typer.Option("--videos", help="Track objects through synthetic videos instead.", rich_help_panel=OUTPUT)
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Label too freely instead, and let the demo's own verifier judge it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """See the main job at work, without the real weights: synthetic photos, right labels, known truth."""
    if videos and verify:
        raise typer.BadParameter("choose one of --videos and --verify")
    if verify:
        _verified(out or Path("runs/demo-verify"), number, seed)
    elif videos:
        _videos(out or Path("runs/demo-video"), number, seed)
    else:
        _photos(out or Path("runs/demo"), number, seed)


def _photos(out: Path, number: int | None, seed: int) -> None:
    from sam3label import face

    with progress_display(False, "loading the demo model ...") as display:
        result = face.demo_photos(out, number, seed, on_progress=display.job)
    metrics = result.metrics
    typer.echo(
        f"\n{count(metrics.images, 'synthetic photo')} labelled in {metrics.seconds:.1f} s with the demo checkpoint."
    )
    typer.echo(
        f"Against the truth: F1 {metrics.f1:.3f}, mean mask IoU {metrics.mean_iou:.3f}, "
        f"presence MCC {metrics.presence_mcc:.3f}\n"
    )
    places = {
        "look at this": result.contact_sheet,
        "photos": result.photos,
        "their truth": result.truth,
        "concept list": result.concepts,
        "run": result.runs,
        **{f"{name} dataset": path for name, path in result.exports.items()},
        "figures": result.metrics_file,
    }
    _show(places)
    typer.echo(
        f"\nNext, other words on the same photos:\n"
        f"  {_typed('run', result.photos, '-p', 'yellow shape', '--model', 'demo', '-o', out / 'yellow')}\n"
        "and, with access to the real weights, your own photos:\n"
        f"  {_typed('init')}\n"
        f"  {_typed('run', 'PHOTOS', '-c', 'concepts.yaml', '-o', 'runs/first', '--export', 'yolo', '--split', SPLIT)}"
    )


def _verified(out: Path, number: int | None, seed: int) -> None:
    from sam3label import face

    with progress_display(False, "loading the demo model ...") as display:

        def tell(done: int, total: int) -> None:
            display.step("verify", done, total, "questions")

        result = face.demo_verified(out, number, seed, on_progress=display.job, on_verdict=tell)
    before, after = result.before, result.after
    typer.echo(
        f"\nLabelled at a threshold that lets false alarms through, half of it reviewed by a simulated person, and "
        f"judged by the demo's own verifier: {count(result.verdicts, 'verdict')}."
    )
    for line in result.trust.sentences():
        typer.echo(f"  {line}")
    typer.echo(
        f"On the {count(after.images, 'photo')} that nobody reviewed, against the truth: F1 {before.f1:.3f} without "
        f"verdicts, {after.f1:.3f} with them; presence MCC {before.presence_mcc:.3f} and {after.presence_mcc:.3f}\n"
    )
    _show({"run": result.runs, "concept list": result.concepts})
    typer.echo(
        f"\nNext, what it said and who decided what:\n  {_typed('report', result.runs)}\n"
        "the same verifier, asked as a real server is:\n"
        f"  {_typed('verify', result.runs, '--server', 'demo')}\n"
        "and a real one on labels of your own:\n"
        f"  {_typed('verify', 'RUN', '--server', 'http://localhost:8000/v1', '--vlm', 'NAME')}"
    )


def _videos(out: Path, number: int | None, seed: int) -> None:
    from sam3label import face

    with progress_display(False, "loading the demo model ...") as display:
        result = face.demo_videos(out, number, seed, on_progress=display.job)
    metrics = result.metrics
    typer.echo(
        f"\n{count(metrics.videos, 'synthetic video')}, {count(metrics.frames, 'frame')}, tracked in "
        f"{metrics.seconds:.1f} s with the demo checkpoint."
    )
    typer.echo(
        f"Against the truth: HOTA {metrics.hota:.3f} (detection {metrics.det_a:.3f}, association {metrics.ass_a:.3f}), "
        f"{count(metrics.id_switches, 'identity switch', 'identity switches')},\n"
        f"{metrics.borders_broken} of {count(metrics.borders_passed, 'identity', 'identities')} lost from one clip to "
        "the next\n"
    )
    places = {
        "look at this": result.contact_sheet,
        "and watch this": result.rendered,
        "videos": result.videos,
        "concept list": result.concepts,
        "run": result.runs,
        **{f"{name} dataset": path for name, path in result.exports.items()},
        "figures": result.metrics_file,
    }
    _show(places)
    typer.echo(
        f"\nNext, other words on the same videos:\n"
        f"  {_typed('run', result.videos, '-p', 'red shape', '--model', 'demo', '-o', out / 'red')}\n"
        f"  {_typed('render', out / 'red', '-o', out / 'red-rendered')}\n"
        "and, with access to the real weights, your own videos:\n"
        f"  {_typed('init')}\n"
        f"  {_typed('run', 'VIDEOS', '-c', 'concepts.yaml', '-o', 'runs/first', '--export', 'ytvis')}"
    )


def _typed(*words: str | Path) -> str:
    """Return a command of this program as it can be typed here."""
    return f"{program()} {shlex.join(map(str, words))}"


def _show(places: Mapping[str, Path]) -> None:
    for what, path in places.items():
        typer.echo(f"  {what + ':':15} {path}")

"""How many corrected photos teach the demo checkpoint things it does not know, and what becomes of what it knew.

    python scripts/bench/bench_finetune.py --learn 30 --judge 10 --work build/finetune     # one point of the curve
    python scripts/bench/bench_finetune.py --learn 30 --judge 10 --shuffled --work build/finetune
    python scripts/bench/bench_finetune.py --plot docs/assets/finetune.png --work build/finetune
    python scripts/bench/bench_finetune.py --draws 4 8 16 --work build/finetune    # how often so many photos pass each

A run holds scenes of `strange_scenes`, and ordinary ones, which are the demo's own. Simulated reviewers correct some of
the strange ones; `sam3label finetune` learns from some of these and is judged by the others; nobody reviews the rest of
the run. Then base and checkpoint label 200 more strange scenes, and 200 ordinary ones, with nothing strange in them.
With --shuffled each corrected photo gets the corrections of another, and must be refused.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reviewers import review
from strange_scenes import CLASSES, KNOWN, NEW, write_strange_scenes

import sam3label as sl
from sam3label.annotations.coco import Truth, read_coco
from sam3label.demo.shapes import write_scenes
from sam3label.quality.compare import cgf1_change, table_of

TAUGHT, TESTED, ORDINARY = 510_000, 900_000, 9_500_000  # seeds of scenes; of 500_000 on, 40 hold 6 plus signs
REST = 9_800_000  # of ordinary scenes that nobody reviews
SIZE_HW = (240, 320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", type=int, default=30, help="corrected scenes that are learned from")
    parser.add_argument("--judge", type=int, default=10, help="corrected scenes that judge")
    parser.add_argument("--rest", type=int, default=110, help="scenes of the run that nobody reviews, half ordinary")
    parser.add_argument("--test", type=int, default=200, help="scenes of each kind that base and checkpoint label")
    parser.add_argument("--shuffled", action="store_true", help="give each photo another's corrections")
    parser.add_argument("--errors", type=float, default=0.0, help="share of the reviewers' decisions that are wrong")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/finetune"))
    parser.add_argument("--draws", type=int, nargs="+", help="judge what was measured so far by so many test scenes")
    parser.add_argument("--plot", type=Path, help="draw the curve of all points measured so far")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / "results.jsonl"
    if args.plot:
        draw([json.loads(line) for line in results.read_text().splitlines()], args.plot)
        return
    if args.draws:
        draw_judges(args.work, args.test, args.draws)
        return
    row = measure(args)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Correct, train, and test; return the figures."""
    count = args.learn + args.judge
    name = f"{args.method}-{args.learn}-{args.judge}" + ("-shuffled" if args.shuffled else "")
    folder = args.work / name
    photos = folder / "photos"
    ordinary = args.rest // 2
    truth = read_coco(write_strange_scenes(photos, count + args.rest - ordinary, TAUGHT, SIZE_HW))
    write_scenes(photos / "ordinary", ordinary, REST, {name: name for name in KNOWN}, SIZE_HW)
    run = folder / "run"
    if not (run / "run.sqlite").exists():
        labelled = sl.label(photos, list(CLASSES), out=run, model="demo", workers=0)
        corrected = shuffled(truth) if args.shuffled else truth
        reviewed = [image.file_name for image in truth.images.values()][:count]
        corrections = review(labelled, corrected, reviewed, args.errors)
    else:
        corrections = sum(one.action not in ("reviewed", "approved") for one in sl.open_run(run).corrections())
    begun, cpu = time.monotonic(), time.process_time()
    out = folder / "checkpoint"
    made = sl.finetune(
        run, out, method=args.method, steps=args.steps, rate=args.rate, held_out=args.judge / count,
        on_message=print, on_course=lambda c: print(c, flush=True) if c.step % 25 == 0 else None,
    )  # fmt: skip
    spent = {"minutes": (time.monotonic() - begun) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    verdict = made.verdict
    assert verdict is not None
    row: dict[str, Any] = {
        "method": args.method, "learned_from": made.photos, "judged_by": made.held_out, "rest": args.rest,
        "corrections": corrections, "shuffled": args.shuffled, "errors": args.errors, **spent,
        "kept": made.checkpoint is not None, "against": list(verdict.against), "gate": verdict.comparison.to_json(),
    }  # fmt: skip
    if made.checkpoint is not None:
        row["megabytes"] = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6
        row["strange"] = test(args.work, "strange", args.test, str(out), folder)
        row["ordinary"] = test(args.work, "ordinary", args.test, str(out), folder)
    return row


def shuffled(truth: Truth) -> Truth:
    """Return the truth with each photo's objects given to the next one."""
    images = list(truth.images)
    after = dict(zip(images, [*images[1:], images[0]], strict=True))
    return replace(truth, objects={(after[image], category): found for (image, category), found in
                                   truth.objects.items()})  # fmt: skip


def test(work: Path, kind: str, count: int, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Label test scenes with base and checkpoint, and return F1 and presence MCC by class of both."""
    photos = work / f"test-{kind}-{count}"
    if kind == "strange":
        truth = photos.with_name(f"{photos.name}.json")
        if not truth.exists():
            write_strange_scenes(photos, count, TESTED, SIZE_HW)
        classes = list(CLASSES)
    else:
        truth = photos / "truth.json"
        if not truth.exists():
            write_scenes(photos, count, ORDINARY, {name: name for name in KNOWN}, SIZE_HW)
        classes = [*KNOWN, *NEW]
    return {
        name: figures(model, photos, truth, classes, out)
        for name, model, out in (
            ("before", "demo", work / f"run-{kind}-{count}"),
            ("after", checkpoint, folder / f"run-{kind}-{count}"),
        )
    }


def figures(model: str, photos: Path, truth: Path, classes: list[str], out: Path) -> dict[str, Any]:
    run = sl.label(photos, classes, out=out, model=model, workers=0)
    judged = run.evaluate(truth).figures["segm"]
    assert judged is not None
    by_class = {name: {"F1": one["F1@0.5"], "MCC": one["IL_MCC"]} for name, one in judged["by_class"].items()}
    false = sum(bool(image.labels) and any(label.class_name in NEW for label in image.labels) for image in run)
    return {"cgF1": judged["cgF1"], "F1": judged["F1@0.5"], "MCC": judged["IL_MCC"], "classes": by_class,
            "photos_with_new": false}  # fmt: skip


def draw_judges(work: Path, count: int, sizes: list[int], times: int = 1000) -> None:
    """Print how much each checkpoint gains on all strange test scenes, and how often some of them would pass it."""
    truth, chance = read_coco(work / f"test-strange-{count}.json"), np.random.default_rng(0)
    with sl.open_run(work / f"run-strange-{count}") as run:
        before = table_of(run, truth)
    for folder in sorted(work.glob(f"*/run-strange-{count}")):
        with sl.open_run(folder) as run:
            after = table_of(run, truth)
        print(f"{folder.parent.name}: cgF1 {cgf1_change(before, after).gain:+.3f}", flush=True)
        for size in sizes:
            drawn = [chance.choice(count, size, replace=False) for _ in range(times)]
            passed = sum(cgf1_change(before[rows], after[rows]).interval[0] > 0 for rows in drawn)
            print(f"  {size} scenes pass it in {passed / times:.1%} of {times} draws", flush=True)


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Plot F1 of new and known classes on the strange test scenes by how many scenes were learned from."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kept = sorted((row for row in rows if "strange" in row and row["method"] == "lora" and not row["errors"]),
                  key=lambda row: row["learned_from"])  # fmt: skip
    figure, axes = plt.subplots(figsize=(7, 4))
    for names, style in ((NEW, "o-"), (KNOWN, ".--")):
        for name in names:
            points = [(0, kept[0]["strange"]["before"]["classes"][name]["F1"])]
            points += [(row["learned_from"], row["strange"]["after"]["classes"][name]["F1"]) for row in kept]
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel="corrected scenes learned from", ylabel="F1 at mask IoU 0.5", ylim=(0, 1))
    axes.legend(ncols=2, fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()

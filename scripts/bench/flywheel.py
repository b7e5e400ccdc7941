"""The whole loop from the command line, with simulated reviewers: label, review, fine-tune, label again, three turns.

    python scripts/bench/flywheel.py --work build/flywheel

Each turn labels new scenes with the newest checkpoint (`sam3label run`), asks which of them to review
(`sam3label review next`), has them corrected from truth by reviewers who err in 5 % of their decisions, fine-tunes on
all that was reviewed so far (`sam3label finetune`), and evaluates on scenes that no turn has seen (`sam3label run`,
`sam3label evaluate`). Nothing is done by hand; a killed script goes on where it was. Prints a table, and
`sam3label history`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from reviewers import review
from strange_scenes import CLASSES, NEW, write_strange_scenes

import sam3label as sl
from sam3label.annotations.coco import read_coco

SEED, TESTED = 700_000, 900_000


def cli(*words: str, refused: bool = False) -> str:
    """Run a command of the program, and return what it printed. `refused`: it may end with 1."""
    print("$ sam3label", *words, flush=True)
    made = subprocess.run([sys.executable, "-m", "sam3label", *words], capture_output=True, text=True)
    if made.returncode not in ((0, 1) if refused else (0,)):
        sys.exit(f"it ended with {made.returncode}:\n{made.stdout}{made.stderr}")
    return made.stdout


def phrases(names: tuple[str, ...]) -> list[str]:
    return [word for name in names for word in ("-p", name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--photos", type=int, default=60, help="new scenes a turn")
    parser.add_argument("--review", type=int, default=16, help="of which so many are reviewed")
    parser.add_argument("--errors", type=float, default=0.05, help="share of the reviewers' decisions that are wrong")
    parser.add_argument("--test", type=int, default=100, help="scenes that no turn has seen")
    parser.add_argument("--steps", type=int, default=200, help="of each fine-tuning")
    parser.add_argument("--work", type=Path, default=Path("build/flywheel"))
    args = parser.parse_args()
    project = args.work
    truth = project / "test.json"
    if not truth.exists():
        write_strange_scenes(project / "test", args.test, TESTED)
    model, runs, rows = "demo", list[str](), [tested(project, 0, "demo", truth)]
    for turn in range(1, args.turns + 1):
        rows.append(one_turn(args, turn, model, runs) | {"turn": turn})
        if rows[-1]["kept"]:
            model = str(project / f"checkpoint-{turn}")
        rows[-1] |= tested(project, turn, model, truth)
    (project / "turns.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("turn  corrections  kept  cgF1 on unseen scenes  F1", *NEW, sep="  ")
    for number, row in enumerate(rows):
        told = (f"{row['classes'][name]:.3f}" for name in NEW)
        print(f"{number:4}  {row.get('corrections', '-'):>11}  {row.get('kept', '-')!s:>4}  {row['cgF1']:21.3f}", *told,
              sep="  ")  # fmt: skip
    print(cli("history", str(project)))


def one_turn(args: argparse.Namespace, turn: int, model: str, runs: list[str]) -> dict[str, Any]:
    """Label, choose, correct and fine-tune; return what it came to."""
    project = args.work
    photos, run = project / f"photos-{turn}", project / f"run-{turn}"
    truth = project / f"photos-{turn}.json"
    if not truth.exists():
        write_strange_scenes(photos, args.photos, SEED + 1000 * turn)
    cli("run", str(photos), *phrases(CLASSES), "--model", model, "-o", str(run), "--workers", "0", "-q")
    runs.append(str(run))
    chosen = project / f"review-{turn}.txt"
    if not chosen.exists():
        cli("review", "next", str(run), "-n", str(args.review), "-o", str(chosen))
        with sl.open_run(run) as opened:
            names = {Path(line).name for line in chosen.read_text().splitlines()}
            review(opened, read_coco(truth), sorted(names), args.errors, seed=turn)
    with sl.open_run(run) as opened:
        corrections = sum(one.action not in ("reviewed", "approved") for one in opened.corrections())
    out = project / f"checkpoint-{turn}"
    if not out.exists():
        print(cli("finetune", *runs, "-o", str(out), "--steps", str(args.steps), "-q", refused=True))
    return {"corrections": corrections, "kept": out.exists()}


def tested(project: Path, turn: int, model: str, truth: Path) -> dict[str, Any]:
    """Return cgF1 and F1 by class of a checkpoint on scenes that no turn has seen."""
    run, figures = project / "tests" / f"turn-{turn}", project / "tests" / f"turn-{turn}.json"
    cli("run", str(project / "test"), *phrases(CLASSES), "--model", model, "-o", str(run), "--workers", "0", "-q")
    cli("evaluate", str(run), "--gt", str(truth), "--json", str(figures))
    found = json.loads(figures.read_text())["segm"]
    return {"cgF1": found["cgF1"], "classes": {name: found["by_class"][name]["F1@0.5"] for name in CLASSES}}


if __name__ == "__main__":
    main()

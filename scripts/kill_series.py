"""Kills a labelling run by SIGKILL again and again, and compares what it ends with to a run nobody disturbed.

    python scripts/kill_series.py [--kills 50] [--photos 400] [--seed 0]

The demo checkpoint labels synthetic photos on the CPU. Each round starts `sam3label run`, waits until it has committed
something new, and kills it a random moment later. In the end nothing may be lost, doubled or different: the script
prints its figures, and leaves with 1 where the two runs differ.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam3label.errors import StoreError
from sam3label.run.repair import examine
from sam3label.run.store import Store

LIST = "names: [cat, dog]\ndefaults: {conf: 0.3}\n"


def write_photos(folder: Path, number: int) -> None:
    """Small photos of noise, no two alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(number):
        cv2.imwrite(str(folder / f"{n:04d}.jpg"), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60)))


def command(place: Path, out: Path, model: str) -> list[str]:
    (place / "list.yaml").write_text(LIST)
    arguments = ["run", str(place / "photos"), "-c", str(place / "list.yaml"), "-o", str(out), "--model", model]
    return [sys.executable, "-m", "sam3label", *arguments, "--workers", "1", "--device", "cpu", "--batch-size", "2"]


def labelled(out: Path) -> int:
    """Units that are committed; 0 where there is no run yet."""
    try:
        with Store.open(out) as store:
            return store.totals().done
    except StoreError:
        return 0


def kill_once(start: Sequence[str], out: Path, chance: random.Random, longest: float) -> bool:
    """Start the run, and kill it some moment after it committed something. False when it ended first."""
    before = labelled(out)
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while labelled(out) <= before:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        time.sleep(chance.uniform(0, longest))
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return killed


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs, by item: units, ids, masks, scores, presences."""
    with Store.open(one) as a, Store.open(other) as b:
        left, right = ({unit.item.id: unit for unit in store.units()} for store in (a, b))
        found = [f"{id_}: in one run only" for id_ in sorted(left.keys() ^ right.keys())]
        for id_ in sorted(left.keys() & right.keys()):
            x, y = ({c.id: c for c in store.candidates(units[id_])} for store, units in ((a, left), (b, right)))
            if x != y:  # to the last bit of every score: batches are cut from the whole list
                found.append(f"{id_}: other candidates")
            elif a.presence(left[id_]).tobytes() != b.presence(right[id_]).tobytes():
                found.append(f"{id_}: other presences")
        if a.totals() != b.totals():
            found.append(f"totals: {a.totals()} and {b.totals()}")
    return found


def series(place: Path, model: str, kills: int, photos: int, seed: int, longest: float = 0.3) -> tuple[int, list[str]]:
    """Kill a run so many times or until it is done, finish it, and compare. Returns the kills and what differs."""
    write_photos(place / "photos", photos)
    chance, out, calm = random.Random(seed), place / "killed", place / "calm"
    start = command(place, out, model)
    done = 0
    while done < kills and kill_once(start, out, chance, longest):
        done += 1
    for run in (out, calm):
        subprocess.run(command(place, run, model), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sound = examine(out)
    return done, [*differences(out, calm), *map(str, sound.problems), *sound.lost]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        killed, different = series(Path(place), chosen.model, chosen.kills, chosen.photos, chosen.seed)
    print(f"{killed} kills, {chosen.photos} photos, {len(different)} differences, {time.monotonic() - began:.0f} s")
    print("\n".join(different[:20]))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()

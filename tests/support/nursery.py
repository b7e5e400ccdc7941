"""Labelling jobs that die: one process that has torch imported forks a child for each, which kills itself at a place.

A process of its own takes seconds to import; a fork of one that did takes none. Its parent must not have computed with
several threads, so it is not the test's own process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sam3label.concepts.concept_list import load_concepts
from sam3label.labelling import job, photos, writer
from sam3label.labelling.options import LabelOptions
from sam3label.run import database
from sam3label.run.store import Store
from sam3label.run.unit_writer import UnitWriter

# by name: whose function it is, and whether the job dies when it is called or when it has returned
PLACES: dict[str, tuple[Any, str, bool]] = {
    "the database is made": (database, "statements", False),
    "the run has begun": (Store, "begin", True),
    "a photo is read": (photos, "read_photo", False),
    "a unit is written": (UnitWriter, "_write_candidates", True),
    "a unit is half written": (UnitWriter, "_write_candidates", False),
    "a transaction is committed": (Store, "write", True),
}


class Nursery:
    """Starts jobs. Use it as a context: it ends its process."""

    def __enter__(self) -> Nursery:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def killed(self, place: str, call: int, source: Path, concepts: Path, out: Path, **options: Any) -> bool:
        """Label until `place` is reached for the `call`-th time, and die there. False for a job that ended before."""
        assert self.process.stdin and self.process.stdout
        command = [place, call, str(source), str(concepts), str(out), options]
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        assert code in (0, -signal.SIGKILL), f"the job failed: {place}, call {call}"
        return code != 0


def _dying(function: Callable[..., Any], call: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


def _label(place: str, call: int, source: str, concepts: str, out: str, options: dict[str, Any]) -> None:
    writer.COMMIT_SECONDS = 0  # each batch a transaction, so that there is something to lose
    owner, name, after = PLACES[place]
    setattr(owner, name, _dying(getattr(owner, name), call, after))
    job.label([source], load_concepts(concepts), out, LabelOptions(**{"device": "cpu", "workers": 0, **options}))


@cache
def _warm_up(model: str) -> None:
    """Load the model once in the parent, and forget it: so no child imports anything."""
    from sam3label.model.checkpoint import resolve
    from sam3label.model.detector import Detector
    from sam3label.model.track_rules import Rules
    from sam3label.model.tracker import Tracker

    checkpoint = resolve(model, None)
    Tracker.load(checkpoint, Detector.load(checkpoint, device="cpu"), Rules.of("official", ()), False)


def _main() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        _warm_up(json.loads(line)[-1]["model"])
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        try:
            _label(*json.loads(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    _main()

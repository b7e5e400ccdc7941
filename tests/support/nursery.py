"""Commands and jobs for tests to kill: one process that has torch imported forks a child for each.

A process of its own takes six seconds of a core to import; a fork of one that did takes none. Its parent must not have
computed with several threads, so it is not the test's own process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sam3label.cli import main
from sam3label.concepts.concept_list import load_concepts
from sam3label.labelling import job, photos, writer
from sam3label.labelling.options import LabelOptions
from sam3label.model.both_ways import Spool
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
OF_BOTH_WAYS: dict[str, tuple[Any, str, bool]] = {"a frame is gone through backwards": (Spool, "read", False)}


@dataclass
class Command:
    """A `sam3label` command in a process of its own: its pid, and where its output goes."""

    nursery: Nursery
    pid: int
    said: Path
    code: int | None = None

    def lives(self) -> bool:
        if self.code is None:
            self.code = self.nursery.ask("poll", self.pid)
        return self.code is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self) -> tuple[int, str]:
        """Wait for it. Its exit code (minus the signal that killed it), and all it printed."""
        if self.code is None:
            self.code = self.nursery.ask("wait", self.pid)
        assert self.code is not None
        return self.code, self.said.read_text()


class Nursery:
    """Starts commands, and jobs that kill themselves. Use it as a context: it ends its process."""

    def __enter__(self) -> Nursery:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, kind: str, *what: Any) -> int | None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([kind, *what]) + "\n")
        self.process.stdin.flush()
        answer: int | None = json.loads(self.process.stdout.readline())
        return answer

    def command(
        self, said: Path, model: Path, *arguments: object, environment: dict[str, str] | None = None
    ) -> Command:
        """Start `sam3label` with these arguments and `--model`; what it prints goes into the file `said`.

        It commits every tenth of a second and takes its time, so that there is something to lose and a run of few
        photos still goes on when it is looked at.
        """
        pid = self.ask("start", str(model), str(said), [*map(str, arguments), "--model", str(model)], environment or {})
        assert pid
        return Command(self, pid, said)

    def killed(self, place: str, call: int, source: Path, concepts: Path, out: Path, **options: Any) -> bool:
        """Label until `place` is reached for the `call`-th time, and die there. False for a job that ended before."""
        code = self.ask("die", options["model"], place, call, str(source), str(concepts), str(out), options)
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
    owner, name, after = (PLACES | OF_BOTH_WAYS)[place]
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


def _run_command(said: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Be the command, with nothing to read and everything it prints in a file."""
    from sam3label.model.detector import Detector

    with Path(os.devnull).open("rb") as nothing, Path(said).open("wb") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    writer.COMMIT_SECONDS = 0.1
    encode = Detector.encode_images

    def slowly(self: Any, pixels: Any, *rest: Any) -> Any:
        time.sleep(0.03 * len(pixels))
        return encode(self, pixels, *rest)

    setattr(Detector, "encode_images", slowly)  # noqa: B010
    os.environ.update(environment)
    sys.argv = ["sam3label", *arguments]
    main()


def _main() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        kind, *what = json.loads(line)
        if kind in ("poll", "wait"):
            pid, status = os.waitpid(what[0], os.WNOHANG if kind == "poll" else 0)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        _warm_up(what.pop(0))
        pid = os.fork()
        if not pid and kind == "start":
            _run_command(*what)
            sys.exit()
        elif not pid:
            try:
                _label(*what)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid if kind == "start" else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()

"""What people see of several workers: how fast, which is slow, which died."""

from __future__ import annotations

from sam3label.cli.progress import workers_lines
from sam3label.labelling.progress import Progress, WorkerPace

STILL = Progress(total=9, done=0, failed=0, objects={}, seconds=1.0, stages={})


def shown(*workers: WorkerPace) -> list[str]:
    return workers_lines(Progress(9, 0, 0, {}, 1.0, {}, workers=workers))


def test_one_process_has_no_line_of_workers() -> None:
    assert workers_lines(STILL) == []


def test_workers_have_a_pace_and_the_slow_and_the_dead_are_named() -> None:
    even = [WorkerPace(f"worker {n} on node-{n}", "labelling", 50, 5.0) for n in range(3)]
    assert shown(*even) == ["workers: 3 of 3 labelling, 5.0 images/s each"]
    slow = WorkerPace("worker 4 on node-x", "labelling", 9, 2.0)
    dead = WorkerPace("worker 5", "died, starts again", 9, 2.0)
    pace = "workers: 4 of 5 labelling, 5.0 images/s each"
    assert shown(*even, slow, dead) == [f"{pace}; slowest worker 4 on node-x with 2.0; worker 5: died, starts again"]
    assert shown(dead) == ["workers: 0 of 1 labelling, 0.0 images/s each; worker 5: died, starts again"]

"""The only door to Ray: a copy of the model on every GPU of a machine or a cluster, and one driver that writes.

    driver: leases -> actor.label(chunk), two in flight -> answers -> writer      actor: a `Replica`, one a GPU

Ray places the actors, restarts those that die, and says so; who has what, what is tried again and what is given up is
`leases`. Rows come back, never pixels, and no actor opens the store: so what is committed is committed once.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sam3label.core.records import MediaItem, Stamp, UnitResult
from sam3label.core.text import count, one_line
from sam3label.errors import ConfigError, ExtraMissingError, InputError, Sam3LabelError
from sam3label.labelling.near_copies import NearCopies
from sam3label.labelling.options import LabelOptions
from sam3label.labelling.photos import PhotoBatch
from sam3label.labelling.progress import JobTally, WorkerPace
from sam3label.labelling.videos import VideoWork
from sam3label.labelling.workers.leases import MOST_DEATHS, Lease, Leases
from sam3label.labelling.workers.node_checkpoint import (
    CheckpointSource,
    MissingCheckpointError,
    files_of,
    pieces_of,
)
from sam3label.labelling.workers.replica import Greeting, LostError, Replica, Stretch, greet
from sam3label.labelling.workers.work import Answered, Assignment, Facts, Say, Work
from sam3label.media.stamps import stamp_of

CHUNK_PHOTOS = 32  # at least so many in a chunk for a GPU; on a CPU a batch is one
BURST_PHOTOS = 8  # but so many where a chunk's photos are compared with each other
IN_FLIGHT = 2  # chunks that a worker has at a time: one computes, one is decoded
LEAST_PATIENCE = 300.0  # seconds until a worker counts as hanging, however fast it was;
PATIENCE = 30  # or so many times what its work should take
LOADING_PATIENCE = 3600.0
PLACING_SECONDS = 30.0  # that the start waits for workers that have no place yet
_SHOWN_SECONDS = 0.5  # between two looks at how fast each worker is
LOOK_AROUND = 5.0  # seconds between two looks at who has joined and who hangs
_MOST_STARTS = 6  # deaths in a row without work done, after which a worker is not started again
_LOCAL_STORE = 256 << 20  # bytes of shared memory for results on their way, on one machine


class ModelActor:
    """A replica in a process that Ray looks after. Errors meant for people come back as values."""

    def __init__(self) -> None:
        self._replica: Replica | None = None

    def greet(self, first: MediaItem | None, stamp: Stamp | None, wanted_version: str) -> Greeting:
        return greet(first, stamp, wanted_version)

    def load(
        self, assignment: Assignment, source: CheckpointSource, gpus_here: int, parts: Sequence[tuple[str, Any]] | None
    ) -> Facts | Sam3LabelError | None:
        """Load the model. None where this node lacks the checkpoint; then it is called again with its parts."""
        import ray

        files = None if parts is None else ((name, (ray.get(ref) for ref in refs)) for name, refs in parts)
        readers = assignment.options.workers or min(8, max(1, (os.cpu_count() or 1) // max(1, gpus_here)))
        try:
            self._replica = Replica(assignment, source, readers if gpus_here else 1, files)
        except MissingCheckpointError:
            return None
        except Sam3LabelError as error:
            return _plain(error)
        return self._replica.facts

    def check_references(self, n_images: int, known: Mapping[str, Any]) -> tuple[list[str], Any]:
        """Return what is to be said, and the figures with what other workers need, or an error."""
        said: list[str] = []
        try:
            return said, self._loaded.check_references(n_images, known, said.append)
        except Sam3LabelError as error:
            return said, _plain(error)

    def take(self, prepared: Any) -> None:
        self._loaded.take(prepared)

    def label(
        self, batches: Sequence[PhotoBatch], known: Mapping[str, str], copies: NearCopies | None
    ) -> Stretch | Sam3LabelError:
        try:
            return self._loaded.label(batches, known, copies)
        except Sam3LabelError as error:
            return _plain(error)

    def watch(
        self, ticket: int, work: VideoWork | None, batch_size: int, copies: NearCopies | None
    ) -> Stretch | Sam3LabelError:
        try:
            return self._loaded.watch(ticket, work, batch_size, copies)
        except Sam3LabelError as error:
            return _plain(error)

    @property
    def _loaded(self) -> Replica:
        if self._replica is None:
            raise LostError
        return self._replica


def _plain(error: Sam3LabelError) -> Sam3LabelError:
    """Return an error that can be sent: of a class whose one argument is its text."""
    kind = type(error) if type(error).__init__ is Sam3LabelError.__init__ else ConfigError
    return kind(str(error))


@dataclass(slots=True)
class _Call:
    """Something a worker was asked: which of its methods, about which lease, and since when it works on that."""

    what: str
    lease: Lease | None = None
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Worker:
    """An actor as the driver knows it. `state` is what progress shows."""

    number: int
    actor: Any
    state: str = "waiting for a place"
    host: str = ""
    calls: dict[Any, _Call] = field(default_factory=dict)  # by Ray's reference to the answer, in order
    facts: Facts | None = None
    is_ready: bool = False  # for photos
    starts: int = 0  # since it did something
    steps: int = 0  # photos and frames
    busy_since: float = 0.0
    refusal: Sam3LabelError | None = None

    @property
    def name(self) -> str:
        return f"worker {self.number} on {self.host}" if self.host else f"worker {self.number}"

    @property
    def is_gone(self) -> bool:
        return self.refusal is not None


class RayWorkers:
    """Copies of the model on a Ray cluster, and the driver's side of their work. Made by `on_ray`."""

    facts: Facts

    def __init__(self, assignment: Assignment, first: MediaItem | None, say: Say) -> None:
        """Place and load the copies. Raises a `Sam3LabelError` where that cannot be, naming the node."""
        from sam3label.model.checkpoint import resolve

        options = assignment.options
        self._say, self._first = say, first
        self._stamp = _stamp(first)
        checkpoint = resolve(options.model, options.revision, options.image_size)
        self._source = CheckpointSource.of(options.model, options.revision, checkpoint)
        self._shipped: list[tuple[str, list[Any]]] | None = None
        self._prepared: Any = None
        self._on_gpus = self._choose_device(options)
        device = "cuda" if self._on_gpus else "cpu"
        self._assignment = replace(assignment, options=replace(options, device=device))
        self._workers: list[_Worker] = []
        self._given_up: list[tuple[MediaItem, str]] = []
        self._seconds = deque[float]([], 256)  # that a photo of a chunk took, lately
        self._looked = time.monotonic()
        self._leases = Leases((), ())
        self._tally, self._batch_size = JobTally(assignment.concepts, 0), 1
        self._add(options.replicas or self._gpus())
        self._start()

    # ---- start

    def _choose_device(self, options: LabelOptions) -> bool:
        """Return whether workers get a GPU each. Raises ConfigError where what is asked for is not there."""
        gpus = self._gpus()
        if options.device == "cpu" or (options.device == "auto" and not gpus):
            if options.replicas is None:
                raise ConfigError("say how many copies of the model are to work on CPUs: --replicas N")
            return False
        if options.device not in ("auto", "cuda"):
            raise ConfigError(
                f"device {options.device!r}: Ray gives each worker a GPU of its own. Leave out --device, or give "
                "--device cpu with --replicas N."
            )
        if not gpus and options.ray == "local":
            raise ConfigError("this machine has no GPU that Ray can see: --ray local --replicas N --device cpu")
        if options.ray == "local" and options.replicas and options.replicas > gpus:
            raise ConfigError(f"{count(options.replicas, 'GPU')} asked for, and this machine has {gpus}: --gpus all")
        if not gpus and options.replicas is None:
            raise ConfigError("the cluster has no GPU yet: --replicas N waits for N of them, --device cpu does without")
        return True

    def _gpus(self) -> int:
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def _add(self, wanted: int) -> None:
        import ray

        made = ray.remote(ModelActor).options(
            num_cpus=1,
            num_gpus=1 if self._on_gpus else 0,
            max_restarts=-1,
            max_task_retries=0,  # what is lost is leased again, by us
            max_concurrency=IN_FLIGHT + 2,
        )
        for _ in range(wanted):
            worker = _Worker(len(self._workers) + 1, made.remote())
            self._workers.append(worker)
            self._greet(worker)

    def _greet(self, worker: _Worker) -> None:
        worker.is_ready = False
        worker.facts = None
        self._call(worker, "greet", None, self._first, self._stamp, version("sam3label"))

    def _call(self, worker: _Worker, what: str, lease: Lease | None, *arguments: Any) -> None:
        method = getattr(worker.actor, what)
        if what == "greet":  # waits for an actor that is being started again; all else fails then, and is leased again
            method = method.options(max_task_retries=-1)
        ref = method.remote(*arguments)
        worker.calls[ref] = _Call(what, lease)

    def _start(self) -> None:
        """Wait until the workers that have a place are loaded; the others join when they can."""
        began, told = time.monotonic(), False
        while True:
            self._turn()
            refused = [worker for worker in self._workers if worker.refusal is not None]
            if refused and refused[0].refusal is not None:
                raise refused[0].refusal
            waiting = [worker for worker in self._workers if not worker.host]
            loaded = [worker for worker in self._workers if worker.facts is not None]
            late = time.monotonic() - began > PLACING_SECONDS
            if loaded and len(loaded) + (len(waiting) if late else 0) >= len(self._workers):
                break
            if late and not told and len(waiting) == len(self._workers):
                self._say("waiting for the first worker to start; has the cluster room for one? ...")
                told = True
        if waiting:
            workers = count(len(self._workers), "worker")
            self._say(f"no place yet for {len(waiting)} of {workers}, which join when there is room")
        self.facts = next(worker.facts for worker in loaded if worker.facts is not None)
        hosts = sorted({worker.host for worker in loaded})
        self._say(f"{count(len(loaded), 'worker')} on {', '.join(hosts[:5])}{', ...' if len(hosts) > 5 else ''}")

    # ---- what workers answer

    def _turn(self, seconds: float = 0.2) -> list[Answered]:
        """Wait a moment for answers, and take those that are there."""
        import ray

        owners = {ref: worker for worker in self._workers for ref in worker.calls}
        if not owners:
            time.sleep(seconds)
            return []
        refs = list(owners)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready:
            ready, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        answers: list[Answered] = []
        for ref in ready:
            if ref in owners[ref].calls:  # else the worker died meanwhile
                answers += self._take(owners[ref], ref)
        if time.monotonic() - self._looked > LOOK_AROUND:
            self._looked = time.monotonic()
            self._look_around()
        return answers

    def _take(self, worker: _Worker, ref: Any) -> Sequence[Answered]:
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

        try:
            value = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LostError):
                self._died(worker, "it was started anew")
            elif isinstance(cause, RuntimeError | OSError | MemoryError):  # a device that failed fails on
                self._restart(worker, _in_short(cause))
            else:
                raise
            return ()
        except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
            self._died(worker, _cause(error))
            return ()
        except RayError:  # the answer went with its node, and the worker may live
            call = worker.calls.pop(ref)
            if call.lease is None or call.lease.is_alone:
                self._restart(worker, "its answer was lost")
            else:
                self._leases.back([call.lease])
            return ()
        call = worker.calls.pop(ref)
        if isinstance(value, Sam3LabelError):
            raise type(value)(f"{worker.name}: {value}") if call.what != "load" else value
        for later in worker.calls.values():
            later.since = max(later.since, time.monotonic())
            break
        return self._heard(worker, call, value)

    def _heard(self, worker: _Worker, call: _Call, value: Any) -> Sequence[Answered]:
        if call.what == "greet":
            self._greeted(worker, value)
        elif call.what == "load":
            self._load_again(worker) if value is None else self._loaded(worker, value)
        elif call.what == "take":
            self._ready(worker)
        elif call.lease is not None:
            return self._labelled(worker, call, call.lease, value)
        return ()

    def _greeted(self, worker: _Worker, greeting: Greeting) -> None:
        worker.host = greeting.host
        if greeting.problem:
            self._retire(worker, InputError(f"the node {greeting.host} {greeting.problem}."))
            return
        worker.state = "loading"
        self._call(worker, "load", None, self._assignment, self._source, self._gpus_on(worker), None)

    def _gpus_on(self, worker: _Worker) -> int:
        import ray

        if not self._on_gpus:
            return 0
        return max(
            (int(n["Resources"].get("GPU", 0)) for n in ray.nodes() if n["NodeManagerHostname"] == worker.host),
            default=1,
        )

    def _load_again(self, worker: _Worker) -> None:
        import ray

        if self._shipped is None:
            self._shipped = [
                (path.name, [ray.put(piece) for piece in pieces_of(path)])
                for path in files_of(Path(self._source.folder))
            ]
        self._call(worker, "load", None, self._assignment, self._source, self._gpus_on(worker), self._shipped)

    def _loaded(self, worker: _Worker, facts: Facts) -> None:
        other = next((w for w in self._workers if w.facts is not None), None)
        if other is not None and other.facts is not None and dict(other.facts.numbers) != dict(facts.numbers):
            differ = [key for key, value in facts.numbers.items() if other.facts.numbers.get(key) != value]
            self._retire(
                worker,
                ConfigError(
                    f"{worker.name} would label with another {', '.join(differ)} than {other.name}"
                    f"{': give all of them one --dtype' if 'dtype' in differ else ''}."
                ),
            )
            return
        worker.facts = facts
        worker.state = "loaded"
        if self._prepared is not None:
            self._call(worker, "take", None, self._prepared)
        elif not self._assignment.examples:
            self._ready(worker)

    def _ready(self, worker: _Worker) -> None:
        worker.is_ready = True
        worker.state = "labelling"
        worker.busy_since = worker.busy_since or time.monotonic()

    def _labelled(self, worker: _Worker, call: _Call, lease: Lease, value: Stretch) -> Sequence[Answered]:
        worker.starts = 0
        self._tally.frames += value.frames
        worker.steps += value.frames
        ready = sum(w.is_ready for w in self._workers) or 1
        for name, seconds in value.stages.items():
            self._tally.stages[name] += seconds / ready  # of one worker, as if all others did the same
        if lease.tried is not None:
            self._leases.done(lease)
            return ()
        if value.answers:
            self._leases.progressed(lease)
        if lease.video is not None and not value.is_over:
            self._call(worker, "watch", lease, id(lease), None, self._batch_size, None)
            return value.answers
        self._leases.done(lease)
        if lease.photos:
            worker.steps += lease.photos
            self._seconds.append((time.monotonic() - call.since) / lease.photos)
        return value.answers

    # ---- workers that die

    def _died(self, worker: _Worker, cause: str) -> None:
        """Take its leases back, and wait for Ray to start it again."""
        leases = [call.lease for call in worker.calls.values() if call.lease is not None]
        worker.calls.clear()
        self._given_up += self._leases.died(leases, cause)
        worker.starts += 1
        lost = (
            f"; {count(sum(lease.photos or 1 for lease in leases), 'file')} will be labelled by others"
            if leases
            else ""
        )
        self._say(f"{worker.name} died ({cause}){lost}")
        if worker.starts >= _MOST_STARTS:
            self._retire(worker, ConfigError(f"{worker.name} died {worker.starts} times in a row: {cause}"))
            return
        worker.state, worker.host = "died, starts again", ""
        self._greet(worker)

    def _restart(self, worker: _Worker, cause: str) -> None:
        import ray

        ray.kill(worker.actor, no_restart=False)
        self._died(worker, cause)

    def _retire(self, worker: _Worker, refusal: Sam3LabelError) -> None:
        import ray

        self._leases.back([call.lease for call in worker.calls.values() if call.lease is not None])
        worker.calls.clear()
        worker.is_ready, worker.refusal, worker.state = False, refusal, "left out"
        ray.kill(worker.actor)
        if all(one.is_gone for one in self._workers):
            raise refusal
        if any(one.busy_since for one in self._workers):
            self._say(f"{refusal} It is left out, and the others go on.")

    def _look_around(self) -> None:
        """Make copies for GPUs that joined, and restart workers that hang."""
        if self._on_gpus and self._assignment.options.replicas is None:
            self._add(max(0, self._gpus() - sum(not worker.is_gone for worker in self._workers)))
        for worker in self._workers:
            call = next(iter(worker.calls.values()), None)
            if call is not None and worker.host and time.monotonic() - call.since > self._patience(call):
                waited = time.monotonic() - call.since
                self._restart(worker, f"no answer for {waited:.0f} s")

    def _patience(self, call: _Call) -> float:
        if call.what in ("greet", "load", "take"):
            return LOADING_PATIENCE
        pace = statistics.median(self._seconds) if self._seconds else 0.0
        return max(LEAST_PATIENCE, PATIENCE * pace * (call.lease.photos if call.lease else 0))

    # ---- the job

    def check_references(self, n_images: int, known: Mapping[str, Any], say: Say) -> dict[str, Any]:
        """See `Workers`. One worker reads the reference images; the others get what they come down to."""
        import ray

        said, found = self._references(n_images, known)
        for sentence in said:
            say(sentence)
        if isinstance(found, Sam3LabelError):
            raise found
        figures, prepared = found
        self._prepared = ray.put(prepared)
        for one in self._workers:
            if one.facts is not None:
                self._call(one, "take", None, self._prepared)
        return dict(figures)

    def _references(self, n_images: int, known: Mapping[str, Any]) -> tuple[list[str], Any]:
        import ray
        from ray.exceptions import RayActorError

        for attempt in range(1, MOST_DEATHS + 1):
            while not any(worker.facts for worker in self._workers):
                self._turn()
            worker = next(worker for worker in self._workers if worker.facts is not None)
            try:
                said, found = ray.get(worker.actor.check_references.remote(n_images, known))
                return list(said), found
            except RayActorError as error:
                self._died(worker, _cause(error))
                if attempt == MOST_DEATHS:
                    raise InputError("the reference images took a worker down three times: look at them.") from error
        raise AssertionError

    def label(self, work: Work, tally: JobTally, stopped: Callable[[], bool]) -> Iterator[Answered]:
        """See `Workers`. A stop waits for chunks in flight, and gives up the clip of a video."""
        self._leases, self._tally, self._batch_size = self._leases_of(work), tally, work.batch_size
        shown = 0.0
        while not self._leases.is_over:
            if not stopped():
                self._give(work)
            elif not any(
                c.lease and c.lease.batches and not c.lease.tried for w in self._workers for c in w.calls.values()
            ):
                return
            answers = self._turn()
            if time.monotonic() - shown > _SHOWN_SECONDS or self._leases.is_over:
                shown, tally.workers = time.monotonic(), self._paces()
                answers = answers or [Answered((), ())]
            yield from answers
            while self._given_up:
                yield _failed(work, *self._given_up.pop())

    def _leases_of(self, work: Work) -> Leases:
        least = CHUNK_PHOTOS if self._on_gpus else BURST_PHOTOS if work.copies is not None else 1
        return Leases(work.batches, work.videos, least)

    def _give(self, work: Work) -> None:
        """Fill up every worker that is ready."""
        for worker in self._workers:
            while worker.is_ready and len(worker.calls) < IN_FLIGHT:
                if any(call.lease is not None and call.lease.is_alone for call in worker.calls.values()):
                    break
                lease = self._leases.give(idle=not worker.calls)
                if lease is None:
                    break
                if lease.video is not None:
                    standing, copies = work.standing(lease.video), _compared(work, [lease.video])
                    self._call(worker, "watch", lease, id(lease), standing, self._batch_size, copies)
                elif lease.tried is not None:
                    alone = PhotoBatch(lease.batches[0].keys, (lease.tried,))
                    self._call(worker, "label", lease, (alone,), {}, None)
                else:
                    copies = _compared(work, [item for batch in lease.batches for item in batch.items])
                    self._call(worker, "label", lease, lease.batches, lease.known, copies)

    def _paces(self) -> tuple[WorkerPace, ...]:
        now = time.monotonic()
        return tuple(
            WorkerPace(w.name, w.state, w.steps, w.steps / max(now - w.busy_since, 1e-3) if w.busy_since else 0.0)
            for w in self._workers
        )

    def close(self) -> None:
        """End the workers."""
        import ray

        for worker in self._workers:
            if not worker.is_gone:
                ray.kill(worker.actor)


def _stamp(first: MediaItem | None) -> Stamp | None:
    try:
        return None if first is None else stamp_of(first)
    except OSError:  # the decoder will say so
        return None


def _compared(work: Work, items: Sequence[MediaItem]) -> NearCopies | None:
    """Return what a worker compares images with, where near-copies are left out: what it has itself."""
    return None if work.copies is None else work.copies.among(items)


def _failed(work: Work, video: MediaItem, reason: str) -> Answered:
    start = work.standing(video).start
    return Answered([UnitResult(video, start, start + 1, None, error=reason)], [()])


def _cause(error: BaseException) -> str:
    """Return why a worker died, in a few words: Ray has a paragraph for each."""
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError" or "low on memory" in text:
        return "its node ran out of memory"
    return "its node is gone" if "its node has died" in text else "its process ended"


def _in_short(error: BaseException) -> str:
    """Return the first line of what Ray or a worker says that tells why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "exit" in line.lower() or "killed" in line.lower() or "node" in line.lower()]
    text = one_line((telling or lines or [type(error).__name__])[0])
    return text if len(text) <= 160 else text[:157] + "..."


# ---- Ray itself


@contextmanager
def on_ray(assignment: Assignment, first: MediaItem | None, say: Say) -> Iterator[RayWorkers]:
    """Workers on Ray, started on this machine or joined; in the end they are gone, and a Ray that was started too.

    `first` is a file that every node must be able to read. Raises a `Sam3LabelError`.
    """
    if find_spec("ray") is None:
        raise ExtraMissingError("ray", "several GPUs or machines")
    import ray

    joined = ray.is_initialized()
    if not joined:
        _init(assignment.options.ray or "local", assignment.options.replicas or 1)
    try:
        with _quietly():
            workers = RayWorkers(assignment, first, say)
            try:
                yield workers
            finally:
                workers.close()
    finally:
        if not joined:
            ray.shutdown()


def _init(address: str, replicas: int) -> None:
    """Start Ray on this machine, on loopback and without its dashboard and statistics; or join a cluster."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if address == "local":
        cores = max(os.cpu_count() or 1, replicas)
        quiet |= {"num_cpus": cores, "object_store_memory": _LOCAL_STORE, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **quiet)
    except ConnectionError as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise ConfigError(
            f"there is no Ray cluster {where} ({_in_short(error)}): start one with `ray start --head`, "
            "or let this machine work alone: --ray local"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"Ray does not start ({_in_short(error)}).") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep Ray from printing on stdout what it thinks of workers that die: we say it.

    There is no public way (Ray 2.60): the thread that listens for these errors starts with every driver and prints
    whatever `log_to_driver`, `logging_level` and the environment say. Where a version has no such function, it prints.
    """
    from ray._private import worker

    usual = getattr(worker, "print_to_stdstream", None)
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = usual

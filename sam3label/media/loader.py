"""Photos decoded ahead of the model, by worker processes that may die.

    items -> DataLoader workers (read_photo) -> uint8 [H, W, 3] through shared memory -> batches, in order

Each item is a task of its own, so a batch is decoded by all workers at once, and its images keep their sizes. Workers
are forked from a clean server process, not from this one: safe beside CUDA and threads, and a worker that dies is no
child of ours, so torch cannot raise its death in the middle of model or store code. It is found within five seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from sam3label.core.records import Frame, MediaItem, Stamp, Undecodable
from sam3label.errors import UndecodableError
from sam3label.media.ahead import ahead
from sam3label.media.image import Photo, read_photo

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[str], Photo]
Place = torch.Tensor | Path  # pixels in shared memory, or in a file
E = TypeVar("E", Frame, Frame | Undecodable)

PINNED = 1 << 29  # bytes of page-locked memory that wait for the model, or one photo
_MOST_WORKERS = 16
_AHEAD = 2  # images each worker decodes ahead
ROOM = 64 << 20  # bytes of shared memory to leave per worker
_SHARED_MEMORY = "/dev/shm"
_LITTLE_ROOM = (
    f"there is little shared memory here ({_SHARED_MEMORY}): decoded photos go through files, which is slower. "
    "Give a container more: docker run --ipc=host, or --shm-size=8g"
)
CRASHED = "the decoder crashed on this file"


@dataclass(frozen=True, slots=True)
class Unread:
    """Why there is no photo, and whether another try could go better. What a worker sends instead of one."""

    reason: str
    lasting: bool


Value = tuple[Place, Stamp | None] | Unread


class _CannotStartError(Exception):
    """No process for decoding can be had here."""


def default_workers(count: int) -> int:
    """Return decoding processes for `count` images: the cores we may use less one, from 1 to 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores - 1), max(1, count))


def batches(
    items: Sequence[MediaItem],
    batch_size: int,
    workers: int,
    pin: bool = False,
    decode: Decode = read_photo,
) -> Iterator[list[Frame | Undecodable]]:
    """Yield the items in order, `batch_size` at a time, decoded; Undecodable, with the reason, where that fails.

    With `workers` 0 this process decodes, and a decoder that crashes takes it along. So it does, and
    warns, where worker processes cannot start. `pin` puts pixels in page-locked memory where there is CUDA.
    """
    decoded = entries(items, workers, pin, decode)
    while batch := list(islice(decoded, batch_size)):
        yield batch


def entries(
    items: Sequence[MediaItem], workers: int, pin: bool = False, decode: Decode = read_photo
) -> Iterator[Frame | Undecodable]:
    """Return what `batches` puts together, one by one."""
    found = _decode_here(items, decode) if workers == 0 else _decode_ahead(items, workers, decode)
    return pinned(found) if pin and torch.cuda.is_available() else found


def pinned(entries: Iterable[E]) -> Iterator[E]:
    """Yield entries with their pixels in page-locked memory, put there by a thread, some ahead of their use."""
    return ahead(map(_pinned, entries), PINNED, lambda one: one.pixels.nbytes if isinstance(one, Frame) else 0)


def _pinned(entry: E) -> E:
    if not isinstance(entry, Frame):
        return entry
    try:
        pixels = torch.from_numpy(entry.pixels).pin_memory().numpy()
    except RuntimeError:  # a machine that lets nobody lock so much: copies are slower, and right
        return entry
    return replace(entry, pixels=pixels)


def _decode_here(items: Sequence[MediaItem], decode: Decode) -> Iterator[Frame | Undecodable]:
    for item in items:
        photo = _attempt(decode, item.path)
        yield _entry(item, photo if isinstance(photo, Unread) else (torch.from_numpy(photo.pixels), photo.stamp))


def _decode_ahead(items: Sequence[MediaItem], workers: int, decode: Decode) -> Iterator[Frame | Undecodable]:
    """Decode by workers; after a death, decode one by one what it may have held, then go on."""
    with tempfile.TemporaryDirectory(prefix="sam3label-") as folder:
        task = _Task(decode, Path(folder), workers * ROOM)
        done, warned = 0, False
        while done < len(items):
            for value in _until_death(task, items[done:], workers):
                if not isinstance(value, Unread) and isinstance(value[0], Path) and not warned:
                    warnings.warn(_LITTLE_ROOM, RuntimeWarning, stacklevel=2)
                    warned = True
                yield _entry(items[done], value)
                done += 1
            for item in items[done : done + workers * _AHEAD]:
                try:
                    value = _decode_alone(task, item.path)
                except _CannotStartError as error:
                    warnings.warn(
                        f"{error}: decoding goes on in this process, more slowly", RuntimeWarning, stacklevel=2
                    )
                    yield from _decode_here(items[done:], decode)
                    return
                yield _entry(item, value)
                done += 1


def _until_death(task: _Task, items: Sequence[MediaItem], workers: int) -> Iterator[Value]:
    """Yield the values of `items` in order, ending early when a worker dies."""
    stream: Iterator[Value] | None = None
    while True:
        try:
            stream = stream or _start_workers(task, items, workers)
            value = next(stream)
        except (StopIteration, RuntimeError, OSError, EOFError):  # the task raises nothing: what comes is the transport
            return
        yield value


def _start_workers(task: _Task, items: Sequence[MediaItem], workers: int) -> Iterator[Value]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than the cores: as asked
        loader = DataLoader(
            task,
            batch_size=None,
            sampler=[item.path for item in items],
            num_workers=workers,
            prefetch_factor=_AHEAD,
            worker_init_fn=_start_worker,
            multiprocessing_context=_context(),
            generator=torch.Generator(),  # its own: the caller's random state stays as it was
        )
        with _not_the_script():
            return iter(loader)


@contextmanager
def _not_the_script() -> Iterator[None]:
    """Start processes that do not run the user's script again: they need this room only, and it may have no guard.

    A child imports the main module of its parent so that it can unpickle what is defined there. Nothing of ours is.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _context() -> Any:
    """Return a fork server that has imported this room once; where there is none, each worker imports it."""
    methods = torch.multiprocessing.get_all_start_methods()
    context = torch.multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    return context


def _start_worker(_number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which finishes its batch first
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg remarks on every flaw straight to the terminal
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End a worker with its run: a run that is killed must leave none behind. Torch watches forks of the run alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


class _Task(Dataset[Value]):
    """What a worker does with a path. Never raises. Indexed by path, so a million items need not be sent to workers."""

    def __init__(self, decode: Decode, folder: Path, room: int) -> None:
        self.decode, self.folder, self.room = decode, folder, room

    def __getitem__(self, path: str) -> Value:
        photo = _attempt(self.decode, path)
        if isinstance(photo, Unread):
            return photo
        if _free_shared_memory() > max(self.room, photo.pixels.nbytes * 2):
            shared: torch.Tensor = torch.from_numpy(photo.pixels).share_memory_()  # type: ignore[no-untyped-call]
            return shared, photo.stamp
        return self.spill(photo.pixels), photo.stamp

    def spill(self, pixels: Pixels) -> Path:
        """Pass pixels through a file: containers often get 64 MB of shared memory, and a write beyond it kills."""
        handle, name = tempfile.mkstemp(suffix=".npy", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            np.save(file, pixels)
        return Path(name)


def _attempt(decode: Decode, path: str) -> Photo | Unread:
    try:
        return decode(path)
    except UndecodableError as error:
        return Unread(str(error), error.lasting)
    except Exception as error:  # one file must not end a run of a million
        return Unread(f"the decoder failed ({type(error).__name__}: {error})", lasting=False)


def _free_shared_memory() -> int:
    try:
        room = os.statvfs(_SHARED_MEMORY)
    except (OSError, AttributeError):  # no such file system here (Windows has not even the call), so not a small one
        return 1 << 62
    return room.f_bavail * room.f_frsize


def _entry(item: MediaItem, value: Value) -> Frame | Undecodable:
    if isinstance(value, Unread):
        return Undecodable(item, value.reason, value.lasting)
    place, stamp = value
    if isinstance(place, Path):
        pixels = torch.from_numpy(np.load(place))
        place.unlink()
        place = pixels
    if stamp is not None and item.version:
        stamp = replace(stamp, version=item.version)
    return Frame(item, 0, place.numpy(), stamp)


def _decode_alone(task: _Task, path: str) -> Value:
    """Decode in a process of its own, so that a death has one possible cause; twice, since it may be bad luck."""
    for _ in range(2):
        value = _one_process(task, path)
        if value is not None:
            return value
    return Unread(CRASHED, lasting=False)


def _one_process(task: _Task, path: str) -> Value | None:
    """Decode in one process; None if it died on the file. Raises _CannotStartError if it did not even start."""
    receiver, sender = _context().Pipe(duplex=False)
    process = _context().Process(target=_work_alone, args=(task, path, sender), daemon=True)
    try:
        with _not_the_script():
            process.start()
        sender.close()
        receiver.recv()  # it lives
    except (EOFError, OSError, RuntimeError) as error:
        raise _CannotStartError(
            f"the processes that decode photos cannot start ({error or 'they end at once'})"
        ) from error
    try:
        value: Value = receiver.recv()
        return value
    except (EOFError, OSError):
        return None
    finally:
        process.join()
        receiver.close()


def _work_alone(task: _Task, path: str, sender: Connection) -> None:
    _start_worker(0)
    sender.send("started")
    photo = _attempt(task.decode, path)
    sender.send(photo if isinstance(photo, Unread) else (task.spill(photo.pixels), photo.stamp))

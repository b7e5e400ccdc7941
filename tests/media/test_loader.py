"""The loader with real worker processes, some of which die."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from support import oddfiles

from sam3label.core.records import Frame, MediaItem, Undecodable
from sam3label.media import loader
from sam3label.media.discovery import discover
from sam3label.media.image import Photo, read_photo
from sam3label.media.loader import CRASHED, batches

Pixels = npt.NDArray[np.uint8]


def die_on_some(path: str) -> Photo:
    """The decoder, except that a name says when it kills its process, and how."""
    name = Path(path).stem
    if "kill" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "segfault" in name:
        ctypes.string_at(0)
    if "once" in name and not Path(path).with_suffix(".mark").exists():
        Path(path).with_suffix(".mark").touch()
        os._exit(1)
    return read_photo(path)


def stumble(path: str) -> Photo:
    if "odd" in Path(path).stem:
        raise RuntimeError("a bug in the decoder")
    return read_photo(path)


def slow(path: str) -> Photo:
    time.sleep(0.05)
    return read_photo(path)


def count_threads(path: str) -> Photo:
    """Not a picture: what a worker is set to."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return Photo(np.full((1, 1, 3), (torch.get_num_threads(), ignored, 0), np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., list[MediaItem]]:
    """Makes numbered photos whose sizes tell them apart; named numbers get a word in their names."""

    def make(count: int, **named: int | list[int]) -> list[MediaItem]:
        words = {n: word for word, numbers in named.items() for n in np.atleast_1d(numbers).tolist()}
        for n in range(count):
            pixels = np.full((10 + n, 20, 3), n, np.uint8)
            (tmp_path / f"{n:03}{words.get(n, '')}.png").write_bytes(oddfiles.encoded(pixels, "PNG"))
        return discover([tmp_path])

    return make


def entries(stream: Iterator[list[Frame | Undecodable]]) -> list[Frame | Undecodable]:
    return [entry for batch in stream for entry in batch]


def check(got: list[Frame | Undecodable], items: list[MediaItem], failed: dict[int, str]) -> None:
    """Every item once, in order, with its own pixels or its own reason."""
    assert [entry.item for entry in got] == items
    for n, entry in enumerate(got):
        if n in failed:
            assert isinstance(entry, Undecodable) and entry.reason == failed[n]
        else:
            assert isinstance(entry, Frame) and entry.index == 0
            assert entry.pixels.shape == (10 + n, 20, 3) and (entry.pixels == n).all()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_complete_in_order_and_of_different_sizes(
    workers: int, photos: Callable[..., list[MediaItem]]
) -> None:
    items = photos(23)
    Path(items[4].path).write_bytes(b"")
    got = list(batches(items, 5, workers))
    assert [len(batch) for batch in got] == [5, 5, 5, 5, 3]
    check(entries(iter(got)), items, {4: "empty file (0 bytes)"})


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_to_decode(workers: int) -> None:
    assert list(batches([], 4, workers)) == []


def test_odd_files_come_through_the_workers_as_they_do_here(tmp_path: Path) -> None:
    expected = {file.name: file for file in oddfiles.write(tmp_path)}
    items = discover([tmp_path])
    here, there = entries(batches(items, 8, 0)), entries(batches(items, 8, 2))
    assert len(there) == len(expected)
    for a, b in zip(here, there, strict=True):
        assert a.item == b.item
        if isinstance(a, Frame):
            assert isinstance(b, Frame) and (a.pixels == b.pixels).all()
            assert b.size_hw == expected[a.item.id].size_hw
        else:
            assert a == b and expected[a.item.id].reason in a.reason


def test_a_file_that_kills_its_worker_is_named_and_its_neighbours_are_not(
    photos: Callable[..., list[MediaItem]],
) -> None:
    items = photos(20, kill=[0, 11], segfault=12, once=15)
    check(entries(batches(items, 6, 2, decode=die_on_some)), items, dict.fromkeys((0, 11, 12), CRASHED))


def test_a_worker_killed_from_outside_costs_nothing(photos: Callable[..., list[MediaItem]]) -> None:
    items = photos(40)
    stream = batches(items, 4, 2, decode=slow)
    got = next(stream)
    killed = 0
    for batch in stream:
        got += batch
        if len(got) == 12:
            workers = [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
            workers[-1].kill()
            killed += 1
    assert killed == 1
    check(got, items, {})


def is_worker(process: psutil.Process) -> bool:
    """The fork server's children are the workers."""
    parent = process.parent()
    return parent is not None and parent.pid != os.getpid()


def test_no_process_outlives_the_batches(photos: Callable[..., list[MediaItem]]) -> None:
    stream = batches(photos(30), 4, 2, decode=slow)
    next(stream)
    assert [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
    del stream  # as a run does that is told to stop
    assert not [p for p in psutil.Process().children(recursive=True) if is_worker(p)]


def run_script(folder: Path, text: str, argument: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    command = [sys.executable, "-W", "error", str(script), str(argument)]
    return subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=120, check=False)


KILLED = """
    import os, signal, sys
    import psutil
    from sam3label.media.loader import batches
    from sam3label.media.discovery import discover

    if __name__ == "__main__":
        stream = batches(discover([sys.argv[1]]), 4, 2)
        next(stream)
        print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_a_run_that_is_killed(
    photos: Callable[..., list[MediaItem]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photos(30)
    result = run_script(tmp_path_factory.mktemp("script"), KILLED, tmp_path)
    pids = [int(pid) for pid in result.stdout.split()]
    assert result.returncode == -signal.SIGKILL and len(pids) >= 3  # the server and its two workers
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_the_decoder_is_a_reason_too(workers: int, photos: Callable[..., list[MediaItem]]) -> None:
    items = photos(6, odd=3)
    reason = "the decoder failed (RuntimeError: a bug in the decoder)"
    check(entries(batches(items, 6, workers, decode=stumble)), items, {3: reason})


def test_little_shared_memory_is_no_obstacle(
    photos: Callable[..., list[MediaItem]], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Containers often have 64 MB of it. Then pixels travel through files, which are gone afterwards."""
    folder = tmp_path_factory.mktemp("spill")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(loader, "ROOM", 1 << 60)
    items = photos(9)
    stream = batches(items, 3, 2)
    with pytest.warns(RuntimeWarning, match=r"little shared memory here \(/dev/shm\).+: docker run --ipc=host") as said:
        got = next(stream)
    assert len(said) == 1 and list(folder.glob("sam3label-*"))
    check(got + entries(stream), items, {})
    assert not list(folder.glob("sam3label-*"))


def test_page_locked_photos_wait_for_the_model_by_their_bytes(
    photos: Callable[..., list[MediaItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[int] = []
    monkeypatch.setattr(loader, "PINNED", 3 * 40 * 60 * 3)

    def lock(tensor: torch.Tensor) -> torch.Tensor:
        if len(locked) == 6:
            raise RuntimeError("CUDA error: no memory can be locked")
        locked.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", lock)
    made = (Frame(MediaItem(str(n), str(n)), n, np.full((40, 60, 3), n, np.uint8)) for n in range(9))
    given = loader.pinned(made)
    assert next(given).index == 0
    time.sleep(0.2)
    assert len(locked) <= 5  # one was taken, three wait, and one more is in hand
    assert [frame.index for frame in given] == list(range(1, 9)) and len(locked) == 6


def test_workers_use_one_thread_and_leave_ctrl_c_to_the_parent(photos: Callable[..., list[MediaItem]]) -> None:
    (frame,) = entries(batches(photos(1), 1, 1, decode=count_threads))
    assert isinstance(frame, Frame) and frame.pixels[0, 0].tolist() == [1, 1, 0]


def test_the_callers_random_state_is_left_alone(photos: Callable[..., list[MediaItem]]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    list(batches(photos(4), 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_pinning_without_cuda_is_no_error(photos: Callable[..., list[MediaItem]]) -> None:
    items = photos(5)
    for workers in (0, 2):
        check(entries(batches(items, 2, workers, pin=True)), items, {})


def test_default_workers_leave_a_core_and_never_outnumber_the_images() -> None:
    cores = len(os.sched_getaffinity(0))
    assert loader.default_workers(10**6) == min(8, max(1, cores - 1))
    assert loader.default_workers(1) == loader.default_workers(0) == 1


CTRL_C = """
    import os, signal, sys
    from sam3label.media.loader import batches
    from sam3label.media.discovery import discover

    if __name__ == "__main__":
        stop = []
        signal.signal(signal.SIGINT, lambda *_: stop.append(1))
        seen = 0
        for batch in batches(discover([sys.argv[1]]), 4, 2):
            seen += len(batch)
            if seen == 8:
                os.killpg(0, signal.SIGINT)  # what a terminal does: every process of the group gets it
        print(seen, len(stop))
"""


def test_ctrl_c_reaches_the_parent_only(
    photos: Callable[..., list[MediaItem]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photos(24)
    result = run_script(tmp_path_factory.mktemp("script"), CTRL_C, tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("24 1\n", "", 0)


UNGUARDED = """
    import sys
    from sam3label.media.loader import batches
    from sam3label.media.discovery import discover

    for batch in batches(discover([sys.argv[1]]), 4, 1):
        print(len(batch))
"""


def test_a_script_without_a_main_guard_is_run_once(
    photos: Callable[..., list[MediaItem]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photos(6)
    result = run_script(tmp_path_factory.mktemp("script"), UNGUARDED, tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("4\n2\n", "", 0)


def test_where_no_process_can_start_this_one_decodes_and_says_so(
    photos: Callable[..., list[MediaItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(multiprocessing.get_context("forkserver").Process, "start", refuse)
    with pytest.warns(RuntimeWarning, match=r"cannot start \(no more processes\): decoding goes on in this process"):
        decoded = [entry for batch in batches(photos(6), 4, 2) for entry in batch]
    assert len(decoded) == 6 and all(isinstance(entry, Frame) for entry in decoded)

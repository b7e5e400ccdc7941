"""A pretend CUDA device: it computes on the CPU and keeps CUDA's rules, so that what only a GPU runs is run in tests.

    with pretend_cuda() as device:
        label(..., device="cuda")
    assert not device.races and not device.waits_on_side_streams

A `Pretend` tensor says that it lies on cuda:0 and holds a tensor of the CPU. torch's own dispatch sees a CUDA tensor:
its autocast is the real one. What a GPU refuses is refused: operands on two devices, numpy of a device tensor. Streams
and events are vector clocks: reading what another stream wrote without an event between is a race, and so is memory
that goes back while another stream may still use it. A copy to the host that nobody waits for arrives only when
somebody does: a host that reads too early reads `STALE`. Every wait of the host for the device is noted: what for, in
which function of ours, on which stream.

What it cannot see: the numbers of real kernels (it computes as the CPU does, so a batch's size changes nothing here
that it would not change there), real memory and its fragmentation, the order in which a busy device really works, how
deep a launch queue is, time, Triton, cuDNN, CUDA graphs, page-locked memory that is written again before it was sent,
a second card. What it says runs on a GPU may still be slow there; `scripts/gpu_check.py` is for that.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PACKAGE = str(Path(__file__).parents[2] / "sam3label")
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
STALE = 77  # what a buffer on the host holds while a copy into it is under way

Clock = dict[int, int]  # stream -> how far it is known to have come


def _merge(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


# ---- streams and events


class Stream:
    """A queue of work on the device, with what it knows of the others' progress."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.number = len(_here().streams)
        self.clock: Clock = {self.number: 0}
        _here().streams.append(self)

    def tick(self) -> int:
        self.clock[self.number] += 1
        return self.clock[self.number]

    def wait_event(self, event: Event) -> None:
        _merge(self.clock, event.clock)

    def wait_stream(self, other: Stream) -> None:
        _merge(self.clock, other.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _here().wait("synchronize a stream", self.clock)


class Event:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or _here().current
        stream.tick()
        self.clock = dict(stream.clock)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _here().current).wait_event(self)

    def synchronize(self) -> None:
        """Wait until the device has come so far, unless the host has seen it there."""
        if not self.query():
            _here().wait("synchronize an event", self.clock)

    def query(self) -> bool:
        """As late as can be: only what the host has waited for is known to be done."""
        return all(_here().host.get(stream, 0) >= tick for stream, tick in self.clock.items())

    def elapsed_time(self, _other: Event) -> float:
        return 1.0


# ---- what happened


@dataclass(frozen=True, slots=True)
class Wait:
    """The host waited: what for, in which function of ours (`model/ask.py:score`), on a side stream or not."""

    what: str
    place: str
    aside: bool


@dataclass(frozen=True, slots=True)
class Race:
    what: str
    place: str


@dataclass
class _Block:
    """A block of device memory: by which stream it was made, who wrote it last and who has read it since."""

    home: int
    wrote: tuple[int, int] | None = None
    read: Clock = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)


class Device:
    """The pretend device: what it did, and what went wrong."""

    def __init__(self, memory: float, shapes_only: bool) -> None:
        self.memory, self.home = int(memory), torch.device("meta") if shapes_only else CPU
        self.waits: Counter[Wait] = Counter()
        self.lines: dict[Wait, set[str]] = defaultdict(set)  # file:line of each wait, for whoever has to find it
        self.operations: Counter[str] = Counter()
        self.races: list[Race] = []
        self.streams: list[Stream] = []
        self.refuse: Callable[[int], bool] = lambda _number: False  # which operations find no memory
        self.emptied = 0  # how often the cache of memory was given back
        self.host: Clock = {}  # what the host has seen finish
        self._blocks: dict[int, _Block] = {}
        self._under_way: list[tuple[int, int, Callable[[], None]]] = []  # copies to the host: stream, tick, arrival
        self.pinned: set[int] = set()  # addresses of page-locked memory

    def start(self) -> None:
        self.main = self.current = Stream()

    @property
    def waits_on_side_streams(self) -> dict[Wait, int]:
        return {wait: count for wait, count in self.waits.items() if wait.aside}

    def waits_by_place(self) -> Counter[str]:
        places: Counter[str] = Counter()
        for wait, count in self.waits.items():
            places[wait.place] += count
        return places

    def forget(self) -> None:
        """Count waits, operations and races from here on."""
        self.waits.clear()
        self.lines.clear()
        self.operations.clear()
        self.races.clear()

    # ---- waiting

    def wait(self, what: str, clock: Clock | None = None) -> None:
        """The host waits until a stream (by default the current one) has come as far as it has been told to."""
        wait = Wait(what, _place(), self.current is not self.main)
        self.waits[wait] += 1
        self.lines[wait].add(_line())
        self.arrive(self.current.clock if clock is None else clock)

    def arrive(self, clock: Clock) -> None:
        _merge(self.host, clock)
        done = [entry for entry in self._under_way if entry[1] <= self.host.get(entry[0], 0)]
        self._under_way = [entry for entry in self._under_way if entry not in done]
        for _, _, arrival in done:
            arrival()

    def send(self, source: Tensor, target: Tensor) -> None:
        """Copy to the host without waiting: `target` is stale until somebody waits."""
        copied = source.clone()
        target.fill_(STALE)
        self._under_way.append((self.current.number, self.current.tick(), lambda: _overwrite(target, copied)))

    # ---- memory

    def access(self, held: Tensor, *, write: bool) -> None:
        """The current stream reads or writes memory; what other streams did to it must be known to it."""
        stream, block = self.current, self._block(held)
        if block.wrote is not None and not self._known(*block.wrote):
            self._race("write" if write else "read")
        if not write:
            block.read[stream.number] = stream.clock[stream.number]
            return
        if any(not self._known(number, tick) for number, tick in block.read.items()):
            self._race("write over what another stream reads")
        block.wrote, block.read = (stream.number, stream.clock[stream.number]), {}

    def record(self, held: Tensor, stream: Stream) -> None:
        self._block(held).recorded.add(stream.number)

    def _block(self, held: Tensor) -> _Block:
        storage = held.untyped_storage()
        if storage._cdata not in self._blocks:
            self._blocks[storage._cdata] = _Block(self.current.number)
            weakref.finalize(storage, self._freed, storage._cdata)
        return self._blocks[storage._cdata]

    def _freed(self, key: int) -> None:
        block = self._blocks.pop(key, None)
        if block is None or _device is not self:
            return
        users = dict(block.read)
        if block.wrote is not None:
            _merge(users, dict([block.wrote]))
        for stream, tick in users.items():
            if stream not in {block.home, *block.recorded} and self.host.get(stream, 0) < tick:
                self._race("memory given back while another stream may use it")

    def _known(self, stream: int, tick: int) -> bool:
        now = self.current
        return stream == now.number or max(now.clock.get(stream, 0), self.host.get(stream, 0)) >= tick

    def _race(self, what: str) -> None:
        self.races.append(Race(f"unordered {what}", _place()))


_device: Device | None = None


def _here() -> Device:
    assert _device is not None, "outside `with pretend_cuda()`"
    return _device


def _overwrite(target: Tensor, source: Tensor) -> None:
    with torch.inference_mode(target.is_inference()):
        target.copy_(source)


def _place() -> str:
    """The innermost function of the package that is at work, but those that only carry between host and device."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE) and not frame.f_code.co_filename.endswith("model/device.py"):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside the package"


def _line() -> str:
    """The innermost line that is neither torch's nor this file's."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and "/torch/" not in name and not name.startswith("<"):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


# ---- tensors


class Pretend(torch.Tensor):
    """A tensor on cuda:0, whose numbers are those of `held`, a tensor of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretend:
        with torch._C._DisableTorchDispatch(), torch.inference_mode(False):
            shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
            made = torch.Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=CUDA)
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _EveryCall(TorchDispatchMode):
    """Also what has no Pretend among its arguments yet: `torch.zeros(3, device="cuda")`, `tensor.to("cuda")`."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


VIEWS = {
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "as_strided", "expand", "alias", "detach"),
    *("t", "transpose", "permute", "select", "slice", "narrow", "unsqueeze", "squeeze"),
    *("unbind", "split", "split_with_sizes"),
}
_READ_BY_THE_HOST = {"_local_scalar_dense", "item", "is_nonzero", "equal"}
_SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave"}
_MAY_MIX = {"_to_copy", "copy_", "to", "index", "index_put", "index_put_", "_index_put_impl_"}


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    device, name = _here(), func._schema.name.removeprefix("aten::")
    if name == "prim::device":
        return CUDA
    if name == "record_stream":
        return device.record(args[0].held, args[1])
    if name == "is_pinned":
        return False
    leaves = tree_leaves((args, kwargs))
    ours = [value for value in leaves if isinstance(value, Pretend)]
    plain = [value for value in leaves if isinstance(value, Tensor) and not isinstance(value, Pretend)]
    target = _target(name, args, kwargs)
    _refuse_mixture(name, args, ours, plain)
    device.operations[name] += 1
    device.current.tick()
    if (ours or target == "cuda") and name not in VIEWS and device.refuse(device.operations.total()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    _note_waits(device, name, args, ours)
    _note_accesses(device, func, args, name)
    inward, outward = _direction(name, args, ours, plain, target)
    if outward and bool(kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])):
        return _copy_out(device, func, name, args, kwargs)
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if inward and plain and not _sends_freely(device, name, args, kwargs, plain):
        device.wait("copy to the device")
    if outward:
        device.wait("copy to the host")
    if name == "copy_" or _in_place(func, args):
        return args[0]
    if outward or not (ours or target == "cuda"):
        return result
    wrapped = tree_map(lambda value: Pretend(value) if isinstance(value, Tensor) else value, result)
    if name not in VIEWS:
        for value in tree_leaves(wrapped):
            if isinstance(value, Pretend):
                device.access(value.held, write=True)
    return wrapped


def _held(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return _here().home
    return value.held if isinstance(value, Pretend) else value


def _target(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """The kind of device that a call names."""
    if name == "to" and any(isinstance(value, Tensor) for value in args[1:2]):
        return "cuda" if isinstance(args[1], Pretend) else "cpu"
    named = kwargs.get("device") or next((value for value in args if isinstance(value, torch.device)), None)
    return None if named is None else torch.device(named).type


def _direction(
    name: str, args: Sequence[Any], ours: Sequence[Tensor], plain: Sequence[Tensor], target: str | None
) -> tuple[bool, bool]:
    """Whether a call copies to the device, and whether it copies to the host."""
    inward, outward = target == "cuda" and not ours, target == "cpu" and bool(ours)
    if name == "copy_":
        inward |= isinstance(args[0], Pretend) and any(value.dim() for value in plain)
        outward |= not isinstance(args[0], Pretend) and bool(ours)
    return inward, outward


def _refuse_mixture(name: str, args: Sequence[Any], ours: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    if name == "index" and ours and not isinstance(args[0], Pretend):
        raise RuntimeError(f"indices should be on the CPU like what they index, at {_place()}")
    if ours and name not in _MAY_MIX and any(value.dim() for value in plain):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {name} at {_place()}"
        )


def _note_waits(device: Device, name: str, args: Sequence[Any], ours: Sequence[Tensor]) -> None:
    if not ours:
        return
    if name in _READ_BY_THE_HOST:
        device.wait(f"{name} reads a value")
    known = name == "repeat_interleave" and len(args) > 1 and not isinstance(args[1], Tensor)
    if name in _SIZED_BY_VALUES and not known:
        device.wait(f"{name} asks how many")
    if name in ("index", "index_put", "index_put_", "_index_put_impl_") and isinstance(args[0], Pretend):
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, Pretend) and index.dim() for index in indices):
            device.wait("index copied to the device")
        if name == "index" and any(index.dtype == torch.bool for index in indices):
            device.wait("index by truth asks how many")


def _note_accesses(device: Device, func: Any, args: Sequence[Any], name: str) -> None:
    if name in VIEWS:
        return
    for place, parameter in enumerate(func._schema.arguments[: len(args)]):
        written = parameter.alias_info is not None and parameter.alias_info.is_write
        for value in tree_leaves(args[place]):
            if isinstance(value, Pretend):
                device.access(value.held, write=written)


def _sends_freely(
    device: Device, name: str, args: Sequence[Any], kwargs: dict[str, Any], plain: Sequence[Tensor]
) -> bool:
    """Copies from page-locked memory that need not be waited for are not; those from other memory always are."""
    free = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    return bool(free) and all(value.untyped_storage().data_ptr() in device.pinned for value in plain if value.dim())


def _copy_out(device: Device, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    if name == "copy_":
        device.send(args[1].held.to(args[0].dtype), args[0])
        return args[0]  # type: ignore[no-any-return]
    result: Tensor = func(*tree_map(_held, args), **tree_map(_held, kwargs)).clone()
    device.send(result, result)
    return result


def _in_place(func: Any, args: Sequence[Any]) -> bool:
    """Whether a call hands its first argument back, changed."""
    own = func._schema.arguments[0].alias_info if func._schema.arguments else None
    returned = func._schema.returns[0].alias_info if len(func._schema.returns) == 1 else None
    return own is not None and own.is_write and returned is not None and isinstance(args[0], Tensor)


# ---- torch.cuda, and what moves whole models


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    device = _here()
    before, device.current = device.current, stream
    try:
        yield
    finally:
        device.current = before


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    copied = tensor.clone()
    storage = copied.untyped_storage()
    _here().pinned.add(storage.data_ptr())
    weakref.finalize(storage, _here().pinned.discard, storage.data_ptr())
    return copied


_tolist, _to = torch.Tensor.tolist, torch.nn.Module.to


def _list(tensor: Tensor) -> Any:
    if isinstance(tensor, Pretend):
        _here().wait("tolist")
        return _tolist(tensor.held)
    return _tolist(tensor)


def _moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`Module.to`, with new parameters: data of a Pretend cannot be put in place of a tensor's."""
    values = (*args, *kwargs.values())
    where = next((torch.device(value) for value in values if isinstance(value, str | torch.device)), None)
    dtype = next((value for value in values if isinstance(value, torch.dtype)), None)
    made: dict[Tensor, Tensor] = {}  # shared parameters stay shared

    def new(value: Tensor) -> Tensor:
        if value not in made:
            cast = value.detach().to(dtype) if dtype is not None and value.is_floating_point() else value.detach()
            made[value] = cast if where is None else cast.to(where)
        return made[value]

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(new(parameter), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else new(buffer)
    return module


def _patches(device: Device) -> dict[Any, dict[str, Any]]:
    def empty() -> None:
        device.emptied += 1

    return {
        torch.cuda: {
            "is_available": lambda: True,
            "_lazy_init": lambda: None,
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_name": lambda *_: "Pretend",
            "get_device_capability": lambda *_: (9, 0),
            "get_arch_list": lambda: ["sm_80", "sm_90"],
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda _: None,
            "set_sync_debug_mode": lambda _: None,
            "set_per_process_memory_fraction": lambda *_: None,
            "mem_get_info": lambda *_: (device.memory, device.memory),
            **dict.fromkeys(
                ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), lambda *_: 0
            ),
            "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": empty,
            "Stream": Stream,
            "Event": Event,
            "current_stream": lambda *_: device.current,
            "stream": _stream,
            "synchronize": lambda *_: device.wait("synchronize the device"),
        },
        torch.cuda.amp.common: {"amp_definitely_not_available": lambda: False},
        torch.Tensor: {
            "record_stream": lambda tensor, stream: device.record(tensor.held, stream),
            "pin_memory": _pin,
            "tolist": _list,
        },
        torch.nn.Module: {"to": _moved},
    }


@contextmanager
def pretend_cuda(memory: float = 80e9, shapes_only: bool = False) -> Iterator[Device]:
    """Give this process one CUDA device with so many bytes of free memory, and say what happened on it.

    `shapes_only`: nothing is computed, and nothing can be read: for a model that is too large for that.
    """
    global _device
    assert _device is None, "one at a time"
    torch._C._ensureCUDADeviceGuardSet()
    _device = Device(memory, shapes_only)
    _device.start()
    with ExitStack() as stack:
        for owner, replaced in _patches(_device).items():
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_EveryCall())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        try:
            yield _device
        finally:
            _device = None

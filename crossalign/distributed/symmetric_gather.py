"""The compiled extension's gather: ranks of one machine read one another's memory.

csrc/gather_negatives.cpp holds the operators, shared_memory.py the buffers; this file has the order
of calls and the time-out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.distributed.liveness import dead_rank
from crossalign.distributed.shared_memory import (
    HEADER_BYTES,
    SharedMemory,
    open_shared_memory,
)

_SLICE_S = 0.2  # a wait on the CPU is cut into these, for signals and for a look at the peers
_GRANULE_BYTES = 2**21  # what GPUs map at once
_MAX_RANKS = 72  # kMaxRanks of csrc/tensor_checks.h
_EXCHANGES = 2**23  # kExchanges of csrc/barrier_flags.h

# Of the operators in csrc/gather_negatives.cpp. An editable install keeps what was built earlier.
_NUM_ARGUMENTS = {"publish_rows": 4, "pull_rows": 4, "sum_rows": 5, "barrier": 8}

_log = logging.getLogger(__name__)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("crossalign._gather_negatives")
    except ModuleNotFoundError:
        return None, (
            "not built; `pip install crossalign` builds it where PyTorch and a C++ compiler are"
        )
    except (ImportError, OSError) as error:
        return None, f"built, but it does not load: {error}"
    operators = torch.ops.crossalign_ext
    for name, count in _NUM_ARGUMENTS.items():
        if not hasattr(operators, name) or _num_arguments(getattr(operators, name)) != count:
            return None, "built from the sources of another version; install crossalign again"
    for name in _NUM_ARGUMENTS:
        # All of them write into given tensors, so there is no result to describe.
        torch.library.register_fake(f"crossalign_ext::{name}", lambda *_, **__: None)
    archs = module.cuda_archs
    built = f"built with PyTorch {module.built_with_torch}"
    return module, f"loaded; {built}, {f'CUDA for {archs}' if archs else 'without CUDA'}"


def _num_arguments(operator: Any) -> int:
    return len(operator.default._schema.arguments)


def load_extension() -> ModuleType | None:
    """The compiled module, or None; extension_status() says why."""
    return _load()[0]


def extension_status() -> str:
    """One line: what the extension was built with, or why there is none."""
    return _load()[1]


class SymmetricWorkspace:
    """This rank's shared buffer, its peers' addresses, and the count of their barriers."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self.rank = memory.rank
        self.buffer = memory.buffer
        self.data_addresses = [address + HEADER_BYTES for address in memory.addresses]
        self.capacity = memory.num_bytes - HEADER_BYTES
        self.barriers = 0
        self.exchange = 0  # what the next barriers belong to: 2 * call, + 1 in its backward pass
        self.timeout_s = memory.timeout_s
        # A GPU reports a missing peer through host memory, which is read without waiting for it.
        is_cuda = self.buffer.is_cuda
        self.status = torch.zeros(1, dtype=torch.int32, pin_memory=is_cuda)
        # The same for this rank's own kernels, which would wait for the bus.
        self.failed = torch.zeros(1, dtype=torch.int32, device=self.buffer.device)
        self.last_use = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def gather(self, x: Tensor, rows: Sequence[int], dtype: torch.dtype, normalize: bool) -> Tensor:
        """(N_r, D) -> (sum of rows, D) in `dtype`; normalize scales each row to unit length."""
        ops = torch.ops.crossalign_ext
        gathered = x.new_empty((sum(rows), x.shape[1]), dtype=dtype)
        with self._in_stream_order():
            self._barrier()  # everybody has read what the buffers held before
            ops.publish_rows(x, normalize, self._data(x.shape, dtype), self.failed)
            self._barrier()  # everybody has published
            ops.pull_rows(self.data_addresses, list(rows), gathered, self.failed)
        return gathered

    def reduce(self, grad: Tensor, rows: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(sum of rows, D) on every rank -> (N_r, D) in `dtype`: this rank's rows of their sum."""
        ops = torch.ops.crossalign_ext
        total = grad.new_empty((rows[self.rank], grad.shape[1]), dtype=dtype)
        first = sum(rows[: self.rank])
        with self._in_stream_order():
            self._barrier()
            ops.publish_rows(grad, False, self._data(grad.shape, grad.dtype), self.failed)
            self._barrier()
            ops.sum_rows(self.data_addresses, first, grad.dtype, total, self.failed)
        return total

    def _data(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        data = self.buffer[HEADER_BYTES : HEADER_BYTES + num_bytes]
        return data.view(dtype).view(shape[0], shape[1])

    def _barrier(self) -> None:
        """Waits, on the device, until every rank has come here."""
        self._raise_if_missed()
        self.barriers += 1
        if self.buffer.is_cuda:
            self._wait(self.timeout_s)
        else:
            self._wait_in_slices()
        self._raise_if_missed()

    def all_came(self) -> bool:
        """A barrier on the CPU; False if a rank is in another exchange, and then the ranks can go
        on as if none had come."""
        self._raise_if_missed()
        self.barriers += 1
        self._wait_in_slices()
        if int(self.status) < 0:
            if self.memory.a_rank_went_on():  # else all have come, and all see it
                self.memory.withdraw()
                self.barriers -= 1
            self.status.zero_()
            return False
        self._raise_if_missed()
        return True

    def _wait_in_slices(self) -> None:
        """Between two slices Ctrl-C is heard, and a peer whose process has ended, or which has
        begun another call, is missed at once.

        A slice that ends too early leaves nothing behind: coming again to a barrier is the same.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            left = deadline - time.monotonic()
            self._wait(min(_SLICE_S, max(left, 1e-3)))
            missing = int(self.status)
            if missing <= 0 or left <= _SLICE_S:
                return
            self.status.zero_()
            dead = dead_rank(self.memory.processes, self.rank)
            if dead is None and not self.memory.a_rank_went_on():
                continue
            self._wait(1e-3)  # it may have come here before
            if int(self.status) <= 0:
                return
            self.status.fill_(-missing if dead is None else 1 + dead)
            if dead is None:
                return
            pid = self.memory.processes[dead]["pid"]
            raise RuntimeError(
                f"gather_negatives: rank {dead} of the group died: its process {pid} has ended; "
                "look for its own error"
            )

    def _wait(self, timeout_s: float) -> None:
        torch.ops.crossalign_ext.barrier(
            self.buffer,
            self.memory.addresses,
            self.rank,
            self.barriers,
            self.exchange % _EXCHANGES,
            timeout_s,
            self.failed,
            self.status,
        )

    def _raise_if_missed(self) -> None:
        """On a GPU it may be too early to know: the results are then NaN, and the next call raises.

        CROSSALIGN_CHECK=1 waits for the GPU, so that the call itself raises.
        """
        if self.buffer.is_cuda and os.environ.get("CROSSALIGN_CHECK") == "1":
            torch.cuda.synchronize(self.buffer.device)
        missing = int(self.status)
        if missing < 0:
            raise RuntimeError(
                f"gather_negatives: rank {-1 - missing} of the group is in another exchange than "
                f"rank {self.rank}; every rank must make every call, and run backward of each that "
                "needs it"
            )
        if missing:
            raise RuntimeError(
                f"gather_negatives: rank {missing - 1} of the group did not come within "
                f"{self.timeout_s:g} s; it died, or its backward never reached the gather. "
                "CROSSALIGN_GATHER=collective uses PyTorch's collectives instead"
            )

    @contextlib.contextmanager
    def _in_stream_order(self) -> Iterator[None]:
        """There is one buffer, so calls on different streams wait for one another."""
        if self.last_use is None:
            yield
            return
        stream = torch.cuda.current_stream(self.buffer.device)
        stream.wait_event(self.last_use)
        yield
        self.last_use.record(stream)


_workspaces: weakref.WeakKeyDictionary[
    dist.ProcessGroup, dict[tuple[str, ...], SymmetricWorkspace | str]
] = weakref.WeakKeyDictionary()


def open_workspace(
    group: dist.ProcessGroup, devices: Sequence[str], num_bytes: int
) -> SymmetricWorkspace | str:
    """A workspace whose ranks can publish `num_bytes` each, or why there is none.

    devices: of every rank, in rank order. Every rank must call with the same arguments: the first
    call, and one that needs more room, are collective.
    """
    known = _workspaces.setdefault(group, {})
    found = known.get(tuple(devices))
    if isinstance(found, str) or (found is not None and found.capacity >= num_bytes):
        return found
    grown = 0 if found is None else 2 * found.capacity
    capacity = -(-max(num_bytes, grown) // _GRANULE_BYTES) * _GRANULE_BYTES
    device = torch.device(devices[dist.get_rank(group)])
    opened: SymmetricWorkspace | str
    with torch.inference_mode(False):
        problem = _why_not(group, device)
        memory = open_shared_memory(group, device, capacity + HEADER_BYTES, problem)
    if isinstance(memory, str):
        opened = memory
        _log.info("gather_negatives uses PyTorch's collectives: %s", opened)
    else:
        # A peer may still read the smaller buffer; all of those together are smaller than this.
        memory.keep_alive.append(found)
        opened = SymmetricWorkspace(memory)
    known[tuple(devices)] = opened
    return opened


def _why_not(group: dist.ProcessGroup, device: torch.device) -> str:
    """What this rank knows against the extension before it tries; empty if nothing."""
    module = load_extension()
    if module is None:
        return f"the extension is {extension_status()}"
    if dist.get_world_size(group) > _MAX_RANKS:
        return f"the extension serves groups of up to {_MAX_RANKS} ranks"
    if device.type == "cpu":
        return ""
    if device.type != "cuda" or not module.cuda_archs:
        return f"the extension has no code for {device.type} ({extension_status()})"
    try:  # a barrier of one rank: launching fails if there is no code for this GPU
        status = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        flag = torch.zeros(1, dtype=torch.int64, device=device)
        failed = torch.zeros(1, dtype=torch.int32, device=device)
        torch.ops.crossalign_ext.barrier(flag, [flag.data_ptr()], 0, 1, 0, 1.0, failed, status)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""

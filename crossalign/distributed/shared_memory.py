"""Memory of one machine that every rank of a group can address: one buffer per rank.

On GPUs it is PyTorch's symmetric memory, on the CPU a shared file per rank. Opening it is a series
of steps; after each, every rank hears whether one of them failed, so that all go on or none does.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.distributed.liveness import longest_wait, process_record
from crossalign.distributed.rank_agreement import exchange_records, history_of, one_line

HEADER_BYTES = 1024  # stands before the data: one int64 flag a rank, and at its end the calls begun
_CALLS_BEGUN = HEADER_BYTES // 8 - 1

_Records = list[dict[str, Any]]


class SharedMemory:
    """This rank's buffer and the address of every rank's, as this process sees them."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, num_bytes: int) -> None:
        # The group itself is not kept: it is the key under which this memory is remembered.
        self.rank = dist.get_rank(group)
        self.device = device
        self.num_bytes = num_bytes
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.addresses: list[int] = []
        self.keep_alive: list[object] = []
        self.headers: tuple[Tensor, ...] = ()  # of every rank's buffer, int64; on the CPU only
        self.processes: _Records = []  # process_record() of every rank
        self.timeout_s = longest_wait(group, device)

    def allocate(self, records: _Records) -> dict[str, object]:
        """This rank's buffer, all zeros; returns what the peers must know of it."""
        raise NotImplementedError

    def check_peers(self, records: _Records) -> dict[str, object]:
        """Raises RuntimeError if this process cannot reach a peer's buffer."""
        return {}

    def connect(self, records: _Records, group: dist.ProcessGroup) -> dict[str, object]:
        """The addresses of the peers' buffers."""
        raise NotImplementedError

    def a_rank_went_on(self) -> bool:
        """Whether a rank has begun a later call than this one: it will not come to a barrier of
        what this rank is in."""
        begun = [int(header[_CALLS_BEGUN]) for header in self.headers]
        return bool(begun) and max(begun) > begun[self.rank]

    def withdraw(self) -> None:
        """Takes this rank's flag back from a barrier that nobody will pass."""
        for header in self.headers:
            header[self.rank] = 0

    def clean_up(self) -> None:
        """What is left to do when every rank is connected, or one has failed."""


class GpuMemory(SharedMemory):
    """PyTorch's symmetric memory, mapped over NVLink or PCIe."""

    def allocate(self, records: _Records) -> dict[str, object]:
        import torch.distributed._symmetric_memory as symmetric_memory

        with torch.cuda.device(self.device):  # PyTorch takes the memory pool of the current one
            buffer = symmetric_memory.empty(self.num_bytes, dtype=torch.uint8, device=self.device)
            self.buffer = buffer.zero_()
            torch.cuda.synchronize()
        return {"gpu": _gpu_name(self.device.index)}

    def check_peers(self, records: _Records) -> dict[str, object]:
        """Asks about every GPU that this process can see; of others, the mapping will tell."""
        visible = {_gpu_name(index): index for index in range(torch.cuda.device_count())}
        mine = self.device.index
        for rank, record in enumerate(records):
            peer = visible.get(record["gpu"], mine)
            if peer != mine and not torch.cuda.can_device_access_peer(mine, peer):
                raise RuntimeError(f"its GPU cannot read the memory of rank {rank}'s GPU")
        return {}

    def connect(self, records: _Records, group: dist.ProcessGroup) -> dict[str, object]:
        import torch.distributed._symmetric_memory as symmetric_memory

        with torch.cuda.device(self.device):
            handle = symmetric_memory.rendezvous(self.buffer, group)
        self.addresses = list(handle.buffer_ptrs)
        self.keep_alive.append(handle)
        if self.addresses[self.rank] != self.buffer.data_ptr():
            raise RuntimeError("symmetric memory mapped another buffer than the one it was given")
        return {}


class HostMemory(SharedMemory):
    """An anonymous file per rank, mapped by every process; it is gone with the last of them,
    however that one ends."""

    file = -1

    def allocate(self, records: _Records) -> dict[str, object]:
        self.file = os.memfd_create("crossalign")
        os.posix_fallocate(self.file, 0, self.num_bytes)  # a lack of memory must fail here
        path = f"/proc/{os.getpid()}/fd/{self.file}"
        self.buffer = self._map(path)
        return {"path": path}

    def connect(self, records: _Records, group: dist.ProcessGroup) -> dict[str, object]:
        buffers = [self._map(record["path"]) for record in records]
        buffers[self.rank] = self.buffer
        self.addresses = [buffer.data_ptr() for buffer in buffers]
        self.keep_alive.append(buffers)
        self.headers = tuple(buffer[:HEADER_BYTES].view(torch.int64) for buffer in buffers)
        history, mine = history_of(group), self.headers[self.rank][_CALLS_BEGUN:]
        mine.fill_(history.calls)
        history.posted_to.append(mine)
        return {}

    def clean_up(self) -> None:
        if self.file >= 0:
            os.close(self.file)

    def _map(self, path: str) -> Tensor:
        return torch.from_file(path, shared=True, size=self.num_bytes, dtype=torch.uint8)


def open_shared_memory(
    group: dist.ProcessGroup, device: torch.device, num_bytes: int, problem: str = ""
) -> SharedMemory | str:
    """Memory for all ranks, or for none and why. Collective.

    problem: why this rank already knows that it cannot take part.
    """
    memory = (GpuMemory if device.type == "cuda" else HostMemory)(group, device, num_bytes)
    records: _Records = []
    try:
        connect = functools.partial(memory.connect, group=group)
        for step in (memory.allocate, memory.check_peers, connect):
            sent: dict[str, object] = {"machine": _machine(), **process_record()}
            try:
                if not problem:
                    sent |= step(records)
            except (ImportError, OSError, RuntimeError) as error:
                problem = str(error).partition("\n")[0] or type(error).__name__
            sent["problem"] = one_line(problem)
            received = exchange_records(sent, group)
            for rank, record in enumerate(received):
                if record["problem"]:
                    return f"rank {rank} of the group: {record['problem']}"
            if len({record["machine"] for record in received}) > 1:
                return "the group spans several machines"
            records = records or received  # what allocate() returned on every rank
        memory.processes = records
    finally:
        memory.clean_up()
    return memory


def _gpu_name(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def _machine() -> str:
    """The same in all processes of one running machine, whatever container they are in."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()

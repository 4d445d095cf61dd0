"""What the ranks of a group tell one another before they exchange tensors.

A collective in which one rank has another width, dtype or option hangs, or is silently wrong. So
every rank first sends one small record; all read all of them and come to the same verdict.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.operators.transforms import transforms_are_active

RECORD_BYTES = 1024  # room for the facts of one call; a fixed size needs one collective, not two


def graph_break(function: Callable[..., Any]) -> Callable[..., Any]:
    """function, which torch.compile then calls without looking into it: its graph breaks there.

    How many rows other ranks have is known only at run time. Without torch.compile at work its
    module, a second to import, is not imported.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    hidden: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return hidden


def check_group(function: str, group: Any) -> None:
    """A rank outside the group gets no process group from torch.distributed.new_group; and what
    other ranks must take part in is nothing that torch.func could call again as it likes."""
    if transforms_are_active():
        raise RuntimeError(
            f"{function}: group must be None under the transforms of torch.func, which may run a "
            "call any number of times; use backward() or torch.autograd.grad with a group"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{function}: group must be a torch.distributed process group that this rank belongs "
            f"to, got {group!r}"
        )


def transport_device(group: dist.ProcessGroup, device: torch.device) -> torch.device:
    """Where this group's collectives find tensors that live on `device`: gloo wants them on the
    CPU, NCCL on this process's GPU."""
    backends = dict(entry.split(":") for entry in dist.get_backend_config(group).split(","))
    if backends.get(device.type, "gloo") != "gloo":
        return device
    return torch.device("cpu" if "cpu" in backends else next(iter(backends)))


class GroupHistory:
    """What a group has begun so far: the same on every rank, unless one of them skipped a part."""

    def __init__(self) -> None:
        self.calls = 0  # calls of this library with the group
        self.backward_passes = 0  # of these, those that ran without an exchange of records
        self.posted_to: list[Tensor] = []  # (1,) int64 that peers read: the number of calls

    def set_calls(self, calls: int) -> None:
        self.calls = calls
        for place in self.posted_to:
            place.fill_(self.calls)


_histories: weakref.WeakKeyDictionary[dist.ProcessGroup, GroupHistory] = weakref.WeakKeyDictionary()


def history_of(group: dist.ProcessGroup) -> GroupHistory:
    return _histories.setdefault(group, GroupHistory())


def refuse_capture(function: str) -> None:
    """Under the capture of a CUDA graph: what a replay waits for is a barrier of an old number."""
    is_initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if is_initialized and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{function}: it must not run with a group while a CUDA graph is captured, forward or "
            "backward, since ranks agree through the host and barriers count calls; call it "
            "outside of the capture"
        )


MISSING = "a rank of the group died, or did not"


def is_of_a_missing_rank(error: BaseException) -> bool:
    """Whether a collective failed, of this library's or of any other's: gloo's errors have no
    class of their own."""
    text = str(error)
    is_plain = isinstance(error, RuntimeError) and any(each in text for each in (MISSING, "gloo"))
    return is_plain or isinstance(error, dist.DistError)


@contextlib.contextmanager
def missing_rank_named(what: str) -> Iterator[None]:
    """The error of a collective as one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{what}: {MISSING} come within the group's timeout; look "
            f"for its own error ({one_line(str(error))})"
        ) from error


def one_line(text: str) -> str:
    """A message as it fits into a record."""
    return " ".join(text.split()).encode("ascii", "replace").decode()[:400]


def all_gather_single(output: Tensor, shard: Tensor, group: dist.ProcessGroup) -> None:
    """output = every rank's shard, one after the other."""
    # PyTorch 2.13 renamed it, and warns of the old name.
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(output, shard, group=group)


def exchange_records(
    record: Mapping[str, object], group: dist.ProcessGroup
) -> list[dict[str, Any]]:
    """Every rank's record, in rank order; equal ones may be one object.

    One small collective; only with NCCL does the host wait for it.
    """
    # Compressed: a call with many options has more to tell than its room in plain text.
    text = zlib.compress(json.dumps(record).encode())
    assert len(text) <= RECORD_BYTES, f"record of {len(text)} bytes: {record}"
    device = transport_device(group, torch.device("cpu"))
    mine = torch.frombuffer(bytearray(text.ljust(RECORD_BYTES)), dtype=torch.uint8).to(device)
    everyone = torch.empty(dist.get_world_size(group) * RECORD_BYTES, dtype=torch.uint8)
    received = everyone.to(device)
    all_gather_single(received, mine, group)
    everyone.copy_(received)
    texts = ctypes.string_at(everyone.data_ptr(), everyone.numel())

    @functools.cache  # thousands of ranks say the same
    def parse(padded: bytes) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(zlib.decompressobj().decompress(padded))
        return found

    return [
        parse(texts[start : start + RECORD_BYTES]) for start in range(0, len(texts), RECORD_BYTES)
    ]


_EVERY_CALL = "; every rank must make every call, and run backward of each that needs it"
_HINTS = {"exchange": _EVERY_CALL, "backward passes": _EVERY_CALL}


def agree(
    function: str,
    facts: Mapping[str, object],
    group: dist.ProcessGroup,
    *,
    may_differ: Sequence[str] = (),
    problem: Exception | None = None,
    backward_of: int | None = None,
) -> list[dict[str, Any]]:
    """Every rank's facts, in rank order, after checking that they agree.

    Args:
        function: the public function that calls; ranks that are in different ones do not agree.
        facts: plain values by name, of this rank's arguments; one that is None or left out agrees
            with every value.
        may_differ: the facts that may differ between ranks.
        problem: what is wrong with this rank's arguments. It is raised here, and the other ranks
            hear of it, instead of waiting for a collective that this rank never joins.
        backward_of: the call (GroupHistory.calls) whose backward pass begins; None: a new call. A
            rank that left a backward out is thereby met in a record, not in a tensor of another
            size.

    Raises:
        ValueError: facts differ, or another rank has a problem; the same text on all those ranks.
        RuntimeError: a rank is dead or did not come; or a CUDA graph is being captured.
    """
    refuse_capture(function)
    history = history_of(group)
    begun = f"the backward of call {backward_of}"
    if backward_of is None:
        history.set_calls(history.calls + 1)
        begun = f"call {history.calls}"
    sent: dict[str, object] = {"function": function, "exchange": begun, **facts}
    sent |= {"calls": history.calls, "backward passes": history.backward_passes}
    if problem is not None:
        text = one_line(f"{type(problem).__name__}: {problem}")
        sent = {"function": function, "problem": text}
    try:
        records = exchange_records(sent, group)
    except RuntimeError as error:
        raise problem or RuntimeError(
            f"{function}: {MISSING} call {function} within the group's "
            f"timeout, for {begun}: {one_line(str(error))}"
        ) from error
    # A rank that left a call out is told so once, and is then in step with the others again.
    history.set_calls(max(history.calls, *(record.get("calls", 0) for record in records)))
    if problem is not None:
        raise problem
    for rank, record in enumerate(records):
        if "problem" in record:
            raise ValueError(f"{function}: rank {rank} of the group stopped: {record['problem']}")
    distinct = list({id(record): record for record in records}.values())
    for name in dict.fromkeys(name for record in distinct for name in record):
        values = dict.fromkeys(record.get(name) for record in distinct)
        values.pop(None, None)
        if name not in (*may_differ, "calls") and len(values) > 1:
            listing = "; ".join(
                f"{value} on rank "
                + ", ".join(str(r) for r, record in enumerate(records) if record.get(name) == value)
                for value in values
            )
            raise ValueError(
                f"{records[0]['function']}: {name} must be the same on every rank of the group, "
                f"got {listing}" + _HINTS.get(name, "")
            )
    return records

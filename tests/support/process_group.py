"""Real processes in a gloo group on the loopback interface, for tests across ranks.

    results = run_ranks(worker, 3, argument, ...)     # worker(rank, argument, ...) on every rank

Workers are functions of a test module; what they return must be picklable or hold tensors. They
fork from a server that has imported PyTorch, so a run costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# The third one is what torch.use_deterministic_algorithms() imports, which takes seconds; so does
# what the alignment loop needs.
PRELOADED: tuple[str, ...] = (
    "torch",
    "torch.distributed",
    "torch._inductor.config",
    "crossalign.distributed.gather",
)
PRELOADED += ("transformers.models.gpt2.modeling_gpt2", "accelerate", "torch.distributed.fsdp")
PRELOADED += ("crossalign.alignment.run_directory", "crossalign.evaluation.in_context")
_STILL_RUNNING = "still running"
START_TIMEOUT_S = 60.0  # processes start slowly where many share two cores


class RankError(NamedTuple):
    """What a worker raised."""

    kind: str
    message: str
    trace: str


def run_ranks(
    worker: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    timeout_s: float = 60.0,
    group_timeout_s: float = 30.0,
    expect_errors: bool = False,
) -> list[Any]:
    """What worker(rank, *arguments) returned, by rank.

    timeout_s: of the whole run; what still runs then is killed. group_timeout_s: of a collective.
    expect_errors: give a RankError for a rank that raised, None for one that died; otherwise either
    fails the test, with the traceback of every rank that raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        place = (rank, world_size, store.port, group_timeout_s)
        process = context.Process(target=_run, args=(theirs, place, worker, arguments))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        deadline = time.monotonic() + timeout_s + START_TIMEOUT_S
        outcomes = _collect([ours for _, ours in ranks], deadline)
    finally:
        for process, ours in ranks:
            ours.close()
            process.join(timeout=5)
            process.kill()
            process.join()
    if any(outcome is _STILL_RUNNING for outcome in outcomes):
        raise AssertionError(f"ranks still running after {timeout_s:g} s: {outcomes}")
    errors = {r: o for r, o in enumerate(outcomes) if o is None or isinstance(o, RankError)}
    if errors and not expect_errors:
        traces = [f"rank {r}: {e.trace if e else 'died'}" for r, e in errors.items()]
        raise AssertionError("\n".join(traces))
    return [
        outcome[0] if isinstance(outcome, tuple) and not isinstance(outcome, RankError) else outcome
        for outcome in outcomes
    ]


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    """Per rank: (result,), a RankError, None if it died, or _STILL_RUNNING."""
    outcomes: list[Any] = [_STILL_RUNNING] * len(pipes)
    open_pipes = dict(zip(pipes, range(len(pipes)), strict=True))
    while open_pipes and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(open_pipes), timeout=left):
            assert isinstance(pipe, Connection)
            rank = open_pipes.pop(pipe)
            try:
                outcomes[rank] = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            except EOFError:
                outcomes[rank] = None
    return outcomes


def _run(
    pipe: Connection,
    place: tuple[int, int, int, float],
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    rank, world_size, port, group_timeout_s = place
    gc.freeze()  # what the server imported stays, and need not be looked through
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # accelerate warns where it is not set
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # unwritten memory holds NaN, as in the other tests
    outcome: Any
    try:
        dist.init_process_group(
            "gloo",
            store=dist.TCPStore("127.0.0.1", port, is_master=False),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=group_timeout_s),
        )
        outcome = (worker(rank, *arguments),)
    except Exception as error:
        outcome = RankError(type(error).__name__, str(error), traceback.format_exc())
    sent = io.BytesIO()
    torch.save(outcome, sent)
    pipe.send_bytes(sent.getvalue())
    with contextlib.suppress(Exception):
        dist.destroy_process_group()

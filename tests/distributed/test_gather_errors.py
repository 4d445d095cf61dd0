"""Misuse of gather_negatives ends on every rank, with the same words, and soon."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from crossalign.distributed import symmetric_gather
from crossalign.distributed.gather import GatherBackend, agree_on_backward, gather_negatives
from crossalign.distributed.rank_agreement import agree, history_of
from tests.support.built_extension import extension_folder, use_extension
from tests.support.process_group import RankError, run_ranks

X = torch.zeros(2, 3)
DISAGREEMENTS: dict[str, tuple[tuple[Any, Any], tuple[Any, Any], str]] = {
    "columns": (
        ([X], {}),
        ([X[:, :2]], {}),
        "columns must be the same .* 3 on rank 0; 2 on rank 1",
    ),
    "dtype": (([X], {}), ([X.double()], {}), r"dtype must .* torch.float32 on .*; torch.float64"),
    "backend": (([X], {}), ([X], {"backend": "collective"}), "backend must be .* auto on rank 0"),
    "normalize": (([X], {}), ([X], {"normalize": True}), "normalize must .* False on rank 0; True"),
    "shape": (([X], {}), ([X[0]], {}), r"rank 1 of the group stopped: ValueError: .* \(N, D\)"),
    "type": (([X], {}), ([None], {}), "rank 1 of the group stopped: TypeError: .* got NoneType"),
}


def disagree(rank: int) -> dict[str, tuple[str, str]]:
    """Every misuse in one group: none may leave a rank waiting, nor spoil what comes after."""
    raised = {}
    for name, calls in DISAGREEMENTS.items():
        arguments, options = calls[:2][rank]
        try:
            gather_negatives(*arguments, **options)
        except (TypeError, ValueError) as error:
            raised[name] = type(error).__name__, str(error)
    with torch.set_grad_enabled(rank == 0), pytest.raises(ValueError, match="gradient mode must"):
        gather_negatives(X)
    assert torch.equal(gather_negatives(X), torch.zeros(4, 3))
    return raised


def test_arguments_that_differ_raise_on_every_rank() -> None:
    # A wait for the group's timeout would outlast the run, which then fails.
    ours, theirs = run_ranks(disagree, 2, timeout_s=180, group_timeout_s=600)
    for name, (_, _, message) in DISAGREEMENTS.items():
        kind, text = ours[name]
        assert kind == "ValueError"
        assert re.match(f"gather_negatives: {message}", text), text
        if name not in ("shape", "type"):  # there, rank 1 raises its own error
            assert theirs[name] == ours[name]
    assert theirs["type"][0] == "TypeError"


def gather_without_extension(rank: int, folder: Path) -> None:
    use_extension(folder)
    if rank == 1:
        setattr(symmetric_gather, "_load", lambda: (None, "not built; pip builds it"))  # noqa: B010
    gathered = gather_negatives(X)
    assert gathered.shape == (4, 3)
    gather_negatives(X, backend="extension")


def test_extension_that_one_rank_lacks_raises_on_every_rank() -> None:
    errors = run_ranks(gather_without_extension, 2, extension_folder(), expect_errors=True)
    for error in errors:
        assert error.kind == "RuntimeError"
        assert error.message == (
            'gather_negatives: backend="extension" cannot run here: rank 1 of the group: the '
            "extension is not built; pip builds it"
        )


def die_before_the_gather(rank: int, backend: GatherBackend, folder: Path) -> None:
    use_extension(folder)
    gather_negatives(X, backend=backend)
    if rank == 1:
        os._exit(1)
    gather_negatives(X, backend=backend)


def stay_away_from_the_gather(rank: int, backend: GatherBackend, folder: Path) -> None:
    if rank == 0:
        gather_negatives(X, backend=backend)
    time.sleep(5)


def skip_the_backward(rank: int, backend: GatherBackend, folder: Path) -> None:
    use_extension(folder)
    x = X.clone().requires_grad_()
    gathered = gather_negatives(x, backend=backend)
    if rank == 0:
        gathered.sum().backward()
    time.sleep(6)  # longer than the group's timeout


@pytest.mark.parametrize(
    ("worker", "backend", "message"),
    [
        (die_before_the_gather, "collective", "a rank of the group died, or did not call gather"),
        (die_before_the_gather, "extension", "a rank of the group died, or did not call gather"),
        (stay_away_from_the_gather, "collective", "a rank of the group died, or did not call"),
        (skip_the_backward, "extension", "rank 1 of the group did not come within 4 s; it died"),
        (skip_the_backward, "collective", "[Tt]imed out|[Cc]onnection"),
    ],
)
def test_missing_rank_raises_within_the_timeout(worker: Any, backend: str, message: str) -> None:
    errors = run_ranks(
        worker, 2, backend, extension_folder(), group_timeout_s=4, expect_errors=True
    )
    assert isinstance(errors[0], RankError)
    assert re.search(message, errors[0].message), errors[0].message


SKIPPED = "; every rank must make every call, and run backward of each that needs it"


def skip_a_backward_and_go_on(rank: int, folder: Path) -> list[str]:
    """One rank leaves a backward out and calls again, or runs the backward of an earlier call."""
    use_extension(folder)
    messages = []
    for earlier in (False, True):
        x = (X + rank).requires_grad_()
        first, second = (gather_negatives(x, backend="extension") for _ in range(2))
        with pytest.raises(ValueError, match="exchange must be") as raised:
            if rank == 1:
                second.sum().backward()
            elif earlier:
                first.sum().backward()
            else:
                gather_negatives(x, backend="extension")
        messages.append(str(raised.value))
        x = (X + rank).requires_grad_()  # and nothing of it remains
        gathered = gather_negatives(x, backend="extension")
        rows = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])[:, None].expand(6, 3)
        assert torch.equal(gathered.detach(), rows)
        gathered.sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full((2, 3), 3.0))
    return messages


def test_a_skipped_backward_is_one_error_on_every_rank() -> None:
    """It was a wait for the group's timeout; with two calls open, a gradient of another call."""
    # A wait for the group's timeout would outlast the run, which then fails.
    ranks = run_ranks(
        skip_a_backward_and_go_on, 3, extension_folder(), timeout_s=120, group_timeout_s=250
    )
    start = "gather_negatives: exchange must be the same on every rank of the group, got "
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] == [
        f"{start}call 3 on rank 0, 2; the backward of call 2 on rank 1{SKIPPED}",
        f"{start}the backward of call 5 on rank 0, 2; the backward of call 6 on rank 1{SKIPPED}",
    ]


def skip_a_backward_on_a_gpu(rank: int) -> str:
    """There the host never waits in a backward, so the next call compares how many there were."""
    gather_negatives(X)
    assert dist.group.WORLD is not None
    history_of(dist.group.WORLD).backward_passes += rank
    with pytest.raises(ValueError, match="backward passes must be") as raised:
        gather_negatives(X)
    return str(raised.value)


def test_the_next_call_names_the_backward_that_a_gpu_skipped() -> None:
    ours, theirs = run_ranks(skip_a_backward_on_a_gpu, 2)
    assert ours == theirs
    assert (
        f"must be the same on every rank of the group, got 0 on rank 0; 1 on rank 1{SKIPPED}"
        in ours
    )


def die_before_the_backward(rank: int, folder: Path) -> None:
    use_extension(folder)
    x = X.clone().requires_grad_()
    gathered = gather_negatives(x, backend="extension")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gathered.sum().backward()


def test_a_peer_that_died_is_named_at_once() -> None:
    """The others used to wait 300 s, whatever the group's timeout was."""
    # A wait for the group's timeout would outlast the run, which then fails.
    folder = extension_folder()
    error, _ = run_ranks(
        die_before_the_backward, 2, folder, timeout_s=120, group_timeout_s=250, expect_errors=True
    )
    assert re.search(
        r"rank 1 of the group died: its process \d+ has ended; look for its own error",
        error.message,
    )


def interrupt_a_wait(rank: int, folder: Path, mark: Path) -> None:
    """Ctrl-C in a rank that waits for another one, which comes only when that has ended."""
    use_extension(folder)
    x = X.clone().requires_grad_()
    gathered = gather_negatives(x, backend="extension")
    if rank == 0:
        # A shell starts what runs in the background with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            gathered.sum().backward()
        mark.touch()
    else:
        while not mark.exists():
            time.sleep(0.05)


def test_ctrl_c_ends_a_wait(tmp_path: Path) -> None:
    run_ranks(interrupt_a_wait, 2, extension_folder(), tmp_path / "ended", group_timeout_s=250)


def open_and_forget(rank: int, folder: Path) -> list[int]:
    """Numbers of mapped anonymous files with one group after another."""
    use_extension(folder)
    counts = []
    for _ in range(3):
        group = dist.new_group([0, 1])
        gather_negatives(X, group, backend="extension")
        dist.destroy_process_group(group)
        del group
        gc.collect()
        counts.append(Path("/proc/self/maps").read_text().count("memfd:crossalign"))
    return counts


def test_memory_goes_with_its_group() -> None:
    """It was kept for ever: what was remembered for a group held the group."""
    for counts in run_ranks(open_and_forget, 2, extension_folder()):
        assert counts == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": X[0]}, ValueError, r"x must have shape \(N, D\), got \(3,\)"),
        ({"x": X.long()}, ValueError, "x must be float32, .* got torch.int64"),
        ({"x": X[:, :0]}, ValueError, r"x must have at least one column, got shape \(2, 0\)"),
        ({"x": X, "backend": "nccl"}, ValueError, "backend must be one of 'auto', .* got 'nccl'"),
        ({"x": X, "dtype": torch.float64}, ValueError, "dtype must be one of .* got torch.float64"),
        ({"x": X.double(), "dtype": X.dtype}, ValueError, "dtype must be one of torch.float64 for"),
        ({"x": X, "group": 3}, TypeError, "group must be a .* process group .* got 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"gather_negatives: {message}"):
        gather_negatives(**arguments)


def test_a_cuda_graph_that_captures_a_gather_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replay would wait for a barrier of an old number, that is for nobody."""
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    message = r"gather_negatives: .* while a CUDA graph is captured, forward or backward"
    with pytest.raises(RuntimeError, match=message):
        agree("gather_negatives", {}, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=message):
        agree_on_backward("gather_negatives", None)  # type: ignore[arg-type]

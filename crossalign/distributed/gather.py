"""gather_negatives(): every rank's rows on every rank, with the exact gradient.

The adjoint of a gather is a reduce-scatter: rank r's gradient is the sum, over all ranks, of their
gradients of r's rows. Both directions run either over PyTorch's collectives or through the compiled
extension (symmetric_gather.py); the bits of the sum are the same, since both add in rank order, in
float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossalign.argument_checks import check_dims, check_floating, check_option, check_tensor
from crossalign.distributed.rank_agreement import (
    agree,
    all_gather_single,
    check_group,
    graph_break,
    history_of,
    missing_rank_named,
    refuse_capture,
    transport_device,
)
from crossalign.distributed.symmetric_gather import (
    SymmetricWorkspace,
    extension_status,
    load_extension,
    open_workspace,
)
from crossalign.precision import accumulator, concatenated, norm_divisor

__all__ = ["extension_status", "gather_negatives", "load_extension"]

_NAME = "gather_negatives"
GatherBackend = Literal["auto", "extension", "collective"]
BACKENDS: tuple[GatherBackend, ...] = get_args(GatherBackend)


class ShardLayout(NamedTuple):
    """How many rows each rank of a group holds, and the way they travel."""

    group: dist.ProcessGroup
    rank: int
    rows: tuple[int, ...]
    workspace: SymmetricWorkspace | None  # None: PyTorch's collectives
    call: int = 0  # of the group, see rank_agreement.GroupHistory


def gather_negatives(
    x: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    normalize: bool = False,
    dtype: torch.dtype | None = None,
    backend: GatherBackend = "auto",
) -> Tensor:
    """Every rank's rows, on every rank, in rank order.

    Args:
        x: (N_r, D) float16, bfloat16, float32 or float64; any strides. N_r may differ between
            ranks and may be 0; D, dtype and the options may not.
        group: the ranks that take part. None: the default group; a single process if
            torch.distributed is not initialized.
        normalize: scale each row to unit length on the way.
        dtype: what travels and comes back; None: x.dtype. float64 cannot be changed.
        backend: "collective": PyTorch's collectives. "extension": direct reads of the peers'
            memory, on one machine, by the compiled extension. "auto": the extension for CUDA
            tensors where every rank can use it, else the collectives. The environment variable
            CROSSALIGN_GATHER overrides this.

    Returns:
        (sum of N_r, D). Backward gives x the sum of every rank's gradient of this rank's rows,
        added in rank order in float32 (float64 for float64). If any rank's x requires a gradient,
        backward is collective: every rank must run it.

    Raises:
        TypeError: x is not a tensor, or group no process group that this rank belongs to.
        ValueError: wrong shape or dtype, or arguments that differ between ranks: then the same text
            on every rank, and none is left waiting.
        RuntimeError: backend="extension" cannot run here, or a peer did not come in time.

    Cost: forward, an exchange of sizes that the host waits for, then the gather; backward, one
    reduce-scatter. Nothing is sent twice but the padding of uneven shards. Deterministic.

    Examples:
        >>> gather_negatives(torch.eye(2))  # without a group, this process is all there is
        tensor([[1., 0.],
                [0., 1.]])
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        _check_arguments(x, dtype, backend)
        return _convert(x, normalize, dtype or x.dtype)
    group = dist.group.WORLD if group is None else group
    gathered: Tensor = graph_break(_gather_across_ranks)(x, group, normalize, dtype, backend)
    return gathered


def _gather_across_ranks(
    x: Tensor,
    group: Any,
    normalize: bool,
    dtype: torch.dtype | None,
    backend: GatherBackend,
) -> Tensor:
    check_group(_NAME, group)
    backend = cast(GatherBackend, os.environ.get("CROSSALIGN_GATHER") or backend)
    facts: dict[str, object] = {}
    problem: Exception | None = None
    try:
        _check_arguments(x, dtype, backend)
        dtype = dtype or x.dtype
        facts = {
            **{"rows": x.shape[0], "columns": x.shape[1], "dtype": str(x.dtype)},
            **{"device": str(x.device), "device type": x.device.type, "backend": backend},
            **{"normalize": normalize, "dtype to gather": str(dtype)},
            **{"needs gradient": x.requires_grad, "gradient mode": torch.is_grad_enabled()},
        }
    except (TypeError, ValueError) as error:
        problem = error
    differs = ("rows", "device", "needs gradient")
    records = agree(_NAME, facts, group, may_differ=differs, problem=problem)
    assert dtype is not None
    if len(records) == 1:
        return _convert(x, normalize, dtype)
    layout = shard_layout(
        group,
        [record["rows"] for record in records],
        [record["device"] for record in records],
        row_bytes=x.shape[1] * dtype.itemsize,
        backend=backend,
    )
    if not x.requires_grad and any(record["needs gradient"] for record in records):
        x = x.detach().requires_grad_()  # so that this rank, too, takes part in the backward
    gathered: Tensor = _GatherRows.apply(x, layout, normalize, dtype)  # type: ignore[no-untyped-call]
    return gathered


def shard_layout(
    group: dist.ProcessGroup,
    rows: Sequence[int],
    devices: Sequence[str],
    *,
    row_bytes: int,
    backend: GatherBackend = "auto",
) -> ShardLayout:
    """Chooses how rows travel. Collective: every rank gives the same arguments.

    rows, devices: of every rank, in rank order. row_bytes: of the widest row that will travel.
    """
    rank = dist.get_rank(group)
    layout = ShardLayout(group, rank, tuple(rows), None, history_of(group).calls)
    is_cuda = torch.device(devices[rank]).type == "cuda"
    if backend == "collective" or (backend == "auto" and not is_cuda) or sum(rows) == 0:
        return layout
    workspace = open_workspace(group, devices, sum(rows) * row_bytes)
    if isinstance(workspace, SymmetricWorkspace):
        workspace.exchange = 2 * layout.call
        return layout._replace(workspace=workspace)
    if backend == "extension":
        raise RuntimeError(f'{_NAME}: backend="extension" cannot run here: {workspace}')
    return layout


def gather_rows(
    x: Tensor, layout: ShardLayout, *, normalize: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """(N_r, D) -> (sum of N_r, D), without autograd. Integers travel over collectives."""
    dtype = dtype or x.dtype
    if layout.workspace is not None and x.is_floating_point():
        return layout.workspace.gather(x.contiguous(), layout.rows, dtype, normalize)
    columns, most_rows = x.shape[1], max(layout.rows)
    if most_rows == 0:
        return x.new_empty((0, columns), dtype=dtype)
    shard = _convert(x, normalize, dtype).to(transport_device(layout.group, x.device)).contiguous()
    if x.shape[0] < most_rows:  # collectives want shards of one size
        shard = concatenated([shard, shard.new_zeros((most_rows - x.shape[0], columns))])
    received = shard.new_empty((len(layout.rows) * most_rows, columns))
    # As bytes: no backend has to know the dtype, and nothing is changed on the way.
    with missing_rank_named(f"gather of call {layout.call}"):
        all_gather_single(received.view(torch.uint8), shard.view(torch.uint8), layout.group)
    if min(layout.rows) < most_rows:
        shards = received.view(-1, most_rows, columns)
        received = concatenated([shards[r, :count] for r, count in enumerate(layout.rows)])
    return received.to(x.device)


def reduce_rows(grad: Tensor, layout: ShardLayout, dtype: torch.dtype) -> Tensor:
    """(sum of N_r, D) on every rank -> (N_r, D): this rank's rows of the sum over ranks.

    Added in rank order in float32 (float64 for float64), then rounded to `dtype`.
    """
    wide = accumulator(grad.dtype)
    if layout.workspace is not None:
        direct = dtype if dtype in (grad.dtype, wide) else wide
        return layout.workspace.reduce(grad.contiguous(), layout.rows, direct).to(dtype)
    of_rank = exchange_rows(grad, layout)
    total = of_rank[0].to(wide, copy=True)
    for rank in range(1, len(layout.rows)):
        total += of_rank[rank]
    return total.to(dtype)


def exchange_rows(x: Tensor, layout: ShardLayout) -> Tensor:
    """(sum of N_r, D) on every rank -> (ranks, N_r, D): what each has for this rank's rows."""
    num_ranks, mine, columns = len(layout.rows), layout.rows[layout.rank], x.shape[1]
    if sum(layout.rows) == 0:
        return x.new_empty((num_ranks, 0, columns))
    sent = x.to(transport_device(layout.group, x.device)).contiguous()
    received = sent.new_empty((num_ranks * mine, columns))
    with missing_rank_named(f"reduction of call {layout.call}"):
        dist.all_to_all_single(
            received.view(torch.uint8),
            sent.view(torch.uint8),
            [mine] * num_ranks,
            list(layout.rows),
            group=layout.group,
        )
    return received.to(x.device).view(num_ranks, mine, columns)


def agree_on_backward(function: str, layout: ShardLayout) -> None:
    """Raises on every rank where one of them is elsewhere than in the backward pass of this call.

    On a GPU the extension asks nobody, since the host never waits there: its barriers find another
    exchange, and the next call compares how many backward passes each rank has run.
    """
    refuse_capture(function)
    workspace = layout.workspace
    if workspace is not None:
        workspace.exchange = 2 * layout.call + 1
        if workspace.buffer.is_cuda:
            history_of(layout.group).backward_passes += 1
            return
        if workspace.all_came():
            return
    agree(function, {}, layout.group, backward_of=layout.call)


class _GatherRows(torch.autograd.Function):
    """gather_rows, and reduce_rows as its adjoint."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layout: ShardLayout, normalize: bool, dtype: torch.dtype
    ) -> Tensor:
        ctx.layout, ctx.input_dtype = layout, x.dtype
        ctx.save_for_backward(*([x] if normalize else []))
        return gather_rows(x.detach(), layout, normalize=normalize, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        agree_on_backward(_NAME, ctx.layout)
        if not ctx.saved_tensors:
            return reduce_rows(grad, ctx.layout, ctx.input_dtype), None, None, None
        grad_unit = reduce_rows(grad, ctx.layout, accumulator(grad.dtype))
        with torch.enable_grad():
            wide = ctx.saved_tensors[0].detach().to(grad_unit.dtype).requires_grad_()
            unit = _unit_rows(wide)
        (grad_x,) = torch.autograd.grad(unit, wide, grad_unit)
        return grad_x.to(ctx.input_dtype), None, None, None


def _convert(x: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """x itself where nothing is to be done; a row is normalized before it is rounded to dtype."""
    return (_unit_rows(x.to(accumulator(x.dtype))) if normalize else x).to(dtype)


def _unit_rows(x: Tensor) -> Tensor:
    return x / norm_divisor(torch.linalg.vector_norm(x, dim=1, keepdim=True))


def _check_arguments(x: Any, dtype: torch.dtype | None, backend: str) -> None:
    check_option(_NAME, "backend", backend, BACKENDS)
    check_tensor(_NAME, "x", x)
    check_dims(_NAME, "x", x, "(N, D)")
    check_floating(_NAME, "x", x)
    if x.shape[1] == 0:
        raise ValueError(f"{_NAME}: x must have at least one column, got shape {tuple(x.shape)}")
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    allowed = (torch.float64,) if x.dtype == torch.float64 else narrow
    if dtype is not None and dtype not in allowed:
        names = ", ".join(str(one) for one in allowed)
        raise ValueError(f"{_NAME}: dtype must be one of {names} for {x.dtype} rows, got {dtype}")

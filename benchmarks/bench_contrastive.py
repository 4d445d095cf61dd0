"""How fast, and in how much memory, is the contrastive loss against plain PyTorch and its peers?

python -m benchmarks.bench_contrastive --preset cpu
python -m benchmarks.bench_contrastive --preset h200      # one NVIDIA GPU, about five minutes
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.accuracy import Verdict, allowed_error, relative_error
from benchmarks.command_line import arguments_of, harness_of
from benchmarks.contrastive_cases import (
    EQUAL_WORK,
    OURS,
    PLAIN,
    PRESETS,
    SIGMOID,
    TEMPERATURE,
    Case,
    Inputs,
    make_inputs,
)
from benchmarks.contrastive_implementations import Loss, eager_sigmoid, implementation, is_installed
from benchmarks.contrastive_implementations import eager as plain_loss
from benchmarks.harness import Harness, Work
from benchmarks.timing import Trial
from crossalign import reference

CHECK_ROWS = 2048  # the dense reference in float64 holds a few matrices of this size squared
LOSS_CHECK_ROWS = 131_072  # above it even the chunked loss takes longer than the measurement


def work(case: Case) -> dict[str, Work]:
    """The least that a loss which keeps no N x M matrix must do. Products: one forward, and the
    gradients of queries and keys; symmetric, the logits once more, since no column's sum is known
    before the last row; of a side's own logits half of each, for they are symmetric.
    Bytes: embeddings in, gradients out."""
    product = 2.0 * case.n * (case.n + case.h) * case.d
    backward = (3 if case.symmetric else 2) - (case.option == "locked key")
    backward += {"two directions": 1, "four directions": 5}.get(case.option, 0)
    embeddings = (2 * case.n + case.h) * case.d * getattr(torch, case.dtype).itemsize
    least = {
        "forward": Work(product, embeddings),
        "backward": Work(backward * product, 2 * embeddings),
        "both": Work((1 + backward) * product, 3 * embeddings),
    }
    return {name: least[name] for name in case.passes}


def results(loss: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def check(name: str, loss: Loss, case: Case, inputs: Inputs) -> Verdict:
    """Loss and every gradient against the float64 reference on fewer rows, then the loss of the
    whole problem against one that is summed up by row blocks."""
    small = make_inputs(case.resized(min(case.n, CHECK_ROWS)), inputs.query.device)
    error = relative_error(results(lambda: loss(small), small.leaves), truth(name, small))
    allowed = allowed_error(plain_error(name, case, inputs.query.device), inputs.query.dtype)
    if CHECK_ROWS < case.n <= LOSS_CHECK_ROWS and case.option == "plain" and name != SIGMOID:
        expected = loss_by_row_blocks(case, inputs.query.device)
        error = max(error, relative_error([loss(inputs).detach()], [expected]))
    return Verdict(error, allowed)


def truth(name: str, inputs: Inputs) -> list[Tensor]:
    """float64 loss and gradients; those of losses that normalize include it."""

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    temperature = inputs.options["temperature"]
    options = {
        **inputs.options,
        "temperature": double(temperature) if isinstance(temperature, Tensor) else temperature,
        "normalize": (name.startswith("crossalign") or name in EQUAL_WORK)
        and inputs.options.get("normalize", True),
    }
    options.pop("return_stats", None)
    negatives = None if inputs.negatives is None else double(inputs.negatives)
    exact = Inputs(double(inputs.query), double(inputs.key), negatives, options)
    if name == SIGMOID:
        return results(lambda: eager_sigmoid(exact.query, exact.key), exact.leaves)
    dense = reference.contrastive_loss
    return results(
        lambda: dense(exact.query, exact.key, exact.negatives, **options)[0], exact.leaves
    )


@functools.cache
def plain_error(name: str, case: Case, device: torch.device) -> float:
    """How wrong plain PyTorch is in this dtype; the yardstick for everyone."""
    plain = Case("check", min(case.n, CHECK_ROWS), case.d, (), case.dtype, case.symmetric)
    inputs = make_inputs(plain, device)
    query, key = inputs.query, inputs.key
    if name == SIGMOID:
        got = results(lambda: eager_sigmoid(query, key), inputs.leaves)
        return relative_error(got, truth(SIGMOID, inputs))
    got = results(lambda: plain_loss(query, key, case.symmetric), inputs.leaves)
    return relative_error(got, truth("eager", inputs))


@functools.lru_cache(maxsize=1)
def loss_by_row_blocks(case: Case, device: torch.device) -> Tensor:
    """The plain loss of the whole problem in float32 products and float64 sums."""
    inputs = make_inputs(case, device)
    query, key = (tensor.detach().float() for tensor in (inputs.query, inputs.key))
    total = -(query.double() * key.double()).sum() / TEMPERATURE
    columns = torch.full((case.n,), float("-inf"), dtype=torch.float64, device=device)
    rows = torch.zeros((), dtype=torch.float64, device=device)
    for block in query.split(CHECK_ROWS):
        logits = block @ key.T / TEMPERATURE
        rows += logits.logsumexp(1).double().sum()
        columns = torch.logaddexp(columns, logits.logsumexp(0).double())
    if case.symmetric:
        return (total + (rows + columns.sum()) / 2) / case.n
    return (total + rows) / case.n


def measure(harness: Harness, case: Case, name: str) -> None:
    dtype = getattr(torch, case.dtype)
    if not is_installed(name):
        harness.skip(case.row(), name, dtype, "not installed")
        return
    loss = implementation(name, case.symmetric)
    bytes_per_set = work(case)[case.passes[0]].bytes
    sets = [make_inputs(case, harness.device) for _ in range(harness.rotations(bytes_per_set))]
    trials = [Trial(functools.partial(loss, inputs), inputs.leaves) for inputs in sets]
    verdict = functools.partial(check, name, loss, case, sets[0])
    harness.measure(case.row(), name, trials, dtype, work(case), verdict, once=case.once)


def main() -> None:
    arguments = arguments_of(__doc__, PRESETS)
    harness = harness_of("contrastive", arguments)
    cases = [
        case
        for case in PRESETS[arguments.preset]()
        if not arguments.group or case.group in arguments.group
    ]
    # Ours and plain PyTorch in every case first: what a run out of time leaves out are peers.
    for are_peers in (False, True):
        for case in cases:
            for name in case.implementations:
                if (name not in (OURS, PLAIN)) == are_peers:
                    measure(harness, case, name)
    sys.exit(harness.close())


if __name__ == "__main__":
    main()

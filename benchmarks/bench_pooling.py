"""How close does mean pooling come to the memory's speed, and what does one call cost at least?

python -m benchmarks.bench_pooling --preset cpu
python -m benchmarks.bench_pooling --preset h200
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.accuracy import Verdict, allowed_error, relative_error
from benchmarks.command_line import arguments_of, harness_of
from benchmarks.harness import Harness, Work
from benchmarks.timing import Trial
from crossalign import reference
from crossalign.pooling.functions import masked_mean_pool, mean_pool_varlen

CHECK_SENTENCES = 8


@dataclass(frozen=True)
class Case:
    """b sentences of 32 to t tokens (uniform), or of t tokens where t <= 32; width c."""

    group: str
    layout: str  # "padded" (B, T, C) or "packed" (tokens, C)
    b: int
    t: int
    c: int
    dtype: str = "bfloat16"
    implementations: tuple[str, ...] = ("crossalign", "eager", "torch.compile")


class Inputs(NamedTuple):
    hidden: Tensor  # (B, T, C), or (tokens, C) packed
    where: Tensor  # (B, T) mask, or (B + 1,) cu_seqlens
    lengths: Tensor  # (B,)


def make_inputs(case: Case, device: torch.device) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    low = min(32, case.t)
    lengths = torch.randint(low, case.t + 1, (case.b,), device=device, generator=generator)
    if case.layout == "padded":
        shape: tuple[int, ...] = (case.b, case.t, case.c)
        where = torch.arange(case.t, device=device) < lengths[:, None]
    else:
        shape = (int(lengths.sum()), case.c)
        where = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    hidden = torch.randn(shape, device=device, generator=generator)
    return Inputs(hidden.to(getattr(torch, case.dtype)).requires_grad_(), where, lengths)


def eager_padded(hidden: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / lengths[:, None].to(hidden.dtype)


def eager_packed(hidden: Tensor, cu_seqlens: Tensor, lengths: Tensor) -> Tensor:
    sentence = torch.repeat_interleave(lengths, output_size=hidden.shape[0])
    sums = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=torch.float32)
    return (sums.index_add(0, sentence, hidden.float()) / lengths[:, None]).to(hidden.dtype)


def implementation(name: str, layout: str) -> Callable[[Inputs], Tensor]:
    if name == "crossalign":
        ours = masked_mean_pool if layout == "padded" else mean_pool_varlen
        return lambda inputs: ours(inputs.hidden, inputs.where)
    plain: Callable[..., Tensor] = eager_padded if layout == "padded" else eager_packed
    if name == "torch.compile":
        torch.compiler.reset()
        plain = torch.compile(plain, dynamic=False)
    return lambda inputs: plain(*inputs)


def work(case: Case, inputs: Inputs) -> dict[str, Work]:
    """Bytes: forward reads the unmasked tokens and writes the result; backward reads the result's
    gradient and writes that of every position, padding included."""
    tokens, size = int(inputs.lengths.sum()), inputs.hidden.element_size()
    pooled = case.b * case.c * size
    forward = tokens * case.c * size + pooled
    backward = inputs.hidden.numel() * size + pooled
    return {
        "forward": Work(0, forward),
        "backward": Work(0, backward),
        "both": Work(0, forward + backward),
    }


def results(pool: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    pooled = pool(inputs)
    generator = torch.Generator(pooled.device).manual_seed(1)
    upstream = torch.randn(pooled.shape, device=pooled.device, generator=generator)
    (grad,) = torch.autograd.grad(pooled, [inputs.hidden], upstream.to(pooled.dtype))
    return [pooled.detach(), grad]


def check(pool: Callable[[Inputs], Tensor], case: Case, device: torch.device) -> Verdict:
    """Pooled vectors and gradients of a few sentences against the float64 reference."""
    small = make_inputs(replace(case, b=min(case.b, CHECK_SENTENCES)), device)
    padded = case.layout == "padded"
    dense = reference.masked_mean_pool if padded else reference.mean_pool_varlen
    plain = eager_padded if padded else eager_packed
    exact = small._replace(hidden=small.hidden.detach().double().requires_grad_())
    truth = results(lambda inputs: dense(inputs.hidden, inputs.where), exact)
    plain_error = relative_error(results(lambda inputs: plain(*inputs), small), truth)
    error = relative_error(results(pool, small), truth)
    return Verdict(error, allowed_error(plain_error, small.hidden.dtype))


def measure(harness: Harness, case: Case, name: str) -> None:
    pool = implementation(name, case.layout)
    first = make_inputs(case, harness.device)
    least = work(case, first)
    more = range(1, harness.rotations(least["forward"].bytes))
    sets = [first, *(make_inputs(case, harness.device) for _ in more)]
    trials = [Trial(functools.partial(pool, inputs), [inputs.hidden]) for inputs in sets]
    row: dict[str, Any] = {key: getattr(case, key) for key in ("group", "layout", "b", "t", "c")}
    verdict = functools.partial(check, pool, case, harness.device)
    harness.measure(row, name, trials, first.hidden.dtype, least, verdict)


def cases(preset: str) -> list[Case]:
    layouts = ("padded", "packed")
    if preset == "smoke":
        plain = ("crossalign", "eager")
        return [Case("size", layout, 3, 40, 16, "float32", plain) for layout in layouts]
    dtype = "bfloat16" if preset == "h200" else "float32"
    sizes = [(256, 512, 4096), (64, 128, 1024)] if preset == "h200" else [(64, 128, 1024)]
    found = [Case("size", layout, *size, dtype) for size in sizes for layout in layouts]
    return found + [Case("overhead", layout, 8, 32, 256, dtype) for layout in layouts]


def main() -> None:
    arguments = arguments_of(__doc__, ("smoke", "cpu", "h200"))
    harness = harness_of("pooling", arguments)
    for case in cases(arguments.preset):
        if not arguments.group or case.group in arguments.group:
            for name in case.implementations:
                measure(harness, case, name)
    sys.exit(harness.close())


if __name__ == "__main__":
    main()

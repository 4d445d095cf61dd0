"""Sizes, options and inputs of the contrastive benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.choices import Direction

TEMPERATURE = 0.05
POSITIVE_COSINE = 0.5  # of a query and its key, as early in training; other pairs are near 0

OURS, PLAIN, COMPILED = "crossalign", "eager", "torch.compile"
# Plain PyTorch that normalizes the embeddings too, as ours does.
EQUAL_WORK = ("eager, normalizing", "torch.compile, normalizing")
PEERS = ("memeff", "inf-cl", "cut-cross-entropy", "cut-cross-entropy exact", "liger-kernel")
SIGMOID = "siglip-kernel"


# Options of the loss that are plain values, by the name of their case.
FURTHER: dict[str, dict[str, Any]] = {
    "margin": {"false_negative_margin": 0.1},
    "smoothing": {"label_smoothing": 0.1},
    "debiasing": {
        "debias": 1e-5
    },  # of so few close negatives most of what is higher hits the floor
    "two directions": {"directions": ("query_to_key", "key_to_query")},
    "four directions": {"directions": get_args(Direction)},
}

DIRECTIONS = ("two directions", "four directions")


@dataclass(frozen=True)
class Case:
    """One problem: n pairs, h extra negatives, width d; who runs it, and which passes."""

    group: str
    n: int
    d: int
    implementations: tuple[str, ...]
    dtype: str = "bfloat16"
    symmetric: bool = True
    option: str = "plain"
    h: int = 0
    passes: tuple[str, ...] = ("forward", "backward", "both")
    once: bool = False

    def resized(self, n: int) -> Case:
        return replace(self, n=n, h=self.h * n // self.n)

    def row(self) -> dict[str, Any]:
        names = ("group", "n", "d", "h", "symmetric", "option")
        return {name: getattr(self, name) for name in names}


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    negatives: Tensor | None
    options: dict[str, Any]  # further arguments of fused_contrastive_loss

    @property
    def leaves(self) -> list[Tensor]:
        """Whatever gets a gradient."""
        tensors = [self.query, self.key, self.negatives, self.options.get("temperature")]
        return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Unit vectors, key[i] at POSITIVE_COSINE from query[i]; leaves that require grad."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def unit_vectors(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, case.d, device=device, generator=generator))

    query = unit_vectors(case.n)
    noise_share = (1 / POSITIVE_COSINE**2 - 1) ** 0.5
    key = F.normalize(query + noise_share * unit_vectors(case.n))
    negatives = unit_vectors(case.h) if case.h else None
    query, key = (tensor.to(dtype).requires_grad_() for tensor in (query, key))
    if negatives is not None:
        negatives = negatives.to(dtype).requires_grad_()
    if case.option == "locked key":
        key = key.detach()
    return Inputs(query, key, negatives, make_options(case, device, generator))


def make_options(case: Case, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    def integers(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), device=device, generator=generator)

    options: dict[str, Any] = {"temperature": TEMPERATURE, "symmetric": case.symmetric}
    if case.option == "ids":
        options["ids"] = integers(case.n, case.n)
    elif case.option == "positives":
        options |= {"ids": torch.arange(case.n, device=device) // 2, "same_id": "positive"}
    elif case.option == "weights":
        options["weights"] = torch.rand(case.n, device=device, generator=generator)
    elif case.option in ("owners", "unshared"):
        options["negative_owner"] = integers(case.n, case.h)
        options["hard_negative_weight"] = 0.1
        options["share_negatives"] = case.option == "owners"
    elif case.option == "learned temperature":
        options["temperature"] = torch.tensor(TEMPERATURE, device=device, requires_grad=True)
    elif case.option == "dot product":
        options["normalize"] = False
    elif case.option == "stats":
        options["return_stats"] = True
    elif case.option in FURTHER:
        options |= FURTHER[case.option]
    elif case.option not in ("plain", "negatives", "locked key"):
        raise ValueError(f"unknown option {case.option!r}")
    return options


def _options(n: int, d: int, dtype: str) -> Iterator[Case]:
    """Each option against the plain call; extra negatives make the plain problem larger."""
    for option in ("plain", "dot product", "ids", "positives", "weights", "learned temperature"):
        yield Case("options", n, d, (OURS,), dtype, option=option, passes=("both",))
    yield Case("options", n, d, (OURS,), dtype, option="locked key", passes=("both",))
    yield Case("options", n, d, (OURS,), dtype, option="stats", passes=("both",))
    for option in ("negatives", "owners", "unshared"):
        yield Case("options", n, d, (OURS,), dtype, option=option, h=n // 4, passes=("both",))


def _h200() -> Iterator[Case]:
    """What must be shown comes first: a run that runs out of time loses its tail."""
    every = ("forward", "backward", "both")
    yield Case("headline", 65_536, 1024, (OURS, PLAIN, COMPILED, "memeff", "inf-cl"), passes=every)
    yield Case("sigmoid", 65_536, 768, (OURS, SIGMOID))
    yield Case("peers", 32_768, 1024, (OURS, PLAIN, COMPILED, *PEERS), passes=("both",))
    one_way = Case("peers", 32_768, 1024, (OURS, PLAIN, COMPILED, *PEERS), symmetric=False)
    yield replace(one_way, passes=("both",))
    yield Case("size", 16_384, 1024, (OURS, PLAIN, COMPILED), passes=every)
    for d in (256, 512, 2048, 4096):
        yield Case("width", 65_536, d, (OURS, PLAIN), passes=every)
    yield from _options(32_768, 1024, "bfloat16")
    for n in (1024, 2048, 4096, 8192, 32_768, 131_072):
        yield Case("size", n, 1024, (OURS, PLAIN), passes=every)
    yield Case("dtype", 16_384, 1024, (OURS, PLAIN, "crossalign torch"), "float32")
    yield Case("dtype", 16_384, 1024, (OURS, PLAIN), "float16")
    yield Case("million", 2**20, 1024, (OURS,), passes=("both",), once=True)


def _cpu() -> Iterator[Case]:
    for n in (8192, 16_384):
        for symmetric in (False, True):
            implementations = (OURS, PLAIN, COMPILED) if n == 8192 else (OURS, PLAIN)
            # Both passes at once: one way, ours forms its gradients in the forward pass.
            yield Case("cpu", n, 256, implementations, "float32", symmetric, passes=("both",))


def _cpu_sweep() -> Iterator[Case]:
    """Against N at three widths, both ways, with equal work; and what a key side without gradient
    saves. At 16,384 the logits of plain PyTorch take gigabytes: a group of its own."""
    for n in (2**k for k in range(8, 15)):
        for d in (128, 256, 768):
            for symmetric in (False, True):
                group = "size" if n <= 8192 else "large"
                names = (OURS, *EQUAL_WORK)
                yield Case(group, n, d, names, "float32", symmetric, passes=("both",))
    for symmetric in (False, True):
        for option in ("plain", "locked key"):
            yield Case("locked", 8192, 256, (OURS,), "float32", symmetric, option, passes=("both",))


def _cpu_options() -> Iterator[Case]:
    """What the options of the loss cost, in one direction unless they name more."""
    for option in ("plain", "ids", "margin", "smoothing", "debiasing", *DIRECTIONS):
        yield Case("further", 8192, 256, (OURS,), "float32", False, option, passes=("both",))


def _smoke() -> Iterator[Case]:
    """Every implementation that a CPU runs without compiling, and every option, in seconds."""
    for symmetric in (False, True):
        yield Case("size", 128, 32, (OURS, PLAIN, *PEERS, SIGMOID), "float32", symmetric)
    yield from _options(128, 32, "float32")
    for case in _cpu_options():
        yield replace(case, n=128, d=32)


PRESETS = {
    **{"h200": _h200, "cpu": _cpu, "cpu-sweep": _cpu_sweep, "cpu-options": _cpu_options},
    "smoke": _smoke,
}

"""Launches the kernels through Triton's compiler, with a driver that runs nothing.

The launchers get CPU tensors and believe in a GPU: Triton binds their arguments, specializes and
compiles as it would there, and checks shared memory; the launch itself is only noted. So this
shows without a GPU what the interpreter and hand-written signatures cannot: that every launch fits
its kernel, and which calls compile anew. What a kernel computes is never looked at.

    python -m tests.support.kernels.recorded_launches 90  # a JSON list, an object a launch, sm_90
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver

from benchmarks.kernel_resources import SHARED_LIMIT
from crossalign.contrastive.problem import ContrastiveGrads, GradientNeeds
from crossalign.kernels import contrastive_forward as forward_kernels
from crossalign.kernels import contrastive_gradient as gradient_kernels
from crossalign.kernels import masked_mean_pool, masked_mean_pool_backward, tiles
from crossalign.kernels.contrastive_backward import contrastive_bwd
from crossalign.kernels.contrastive_coefficients import PairGradient
from crossalign.kernels.contrastive_forward import contrastive_fwd
from crossalign.kernels.masked_mean_pool import masked_mean_pool_fwd, mean_pool_varlen_fwd
from crossalign.kernels.masked_mean_pool_backward import masked_mean_pool_bwd, mean_pool_varlen_bwd
from crossalign.kernels.pair_terms import pair_terms_bwd, pair_terms_fwd
from tests.support.contrastive_cases import make_problem

MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Launch:
    case: str
    call: int  # which of the case's calls
    kernel: str
    compiled: int  # a number of its own for everything that Triton compiled


class RecordingDriver(DriverBase):
    """A driver for one architecture that loads and launches nothing."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.case, self.call = "", 0
        self.launches: list[Launch] = []
        self.num_loaded = 0

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    @property
    def utils(self) -> RecordingDriver:
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self.arch]}

    def load_binary(self, *unused: Any) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, largest block); the function is a number."""
        self.num_loaded += 1
        return 0, self.num_loaded, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, stream: int, function: int, *unused: Any) -> None:
            assert 0 < x < 2**31 and (y, z) == (1, 1), (metadata.name, x, y, z)
            self.launches.append(Launch(self.case, self.call, metadata.name, function))

        return launch


def pretend_gpu(arch: int) -> RecordingDriver:
    """Makes the launchers choose what they would on a GPU of this architecture."""
    for module in (tiles, masked_mean_pool, masked_mean_pool_backward):
        module.compute_capability = lambda tensor: arch  # type: ignore[attr-defined]
    for module in (tiles, gradient_kernels, forward_kernels):
        module.program_slots = lambda tensor: MULTIPROCESSORS  # type: ignore[attr-defined]
    recorder = RecordingDriver(arch)
    driver.set_active(recorder)
    return recorder


def contrastive(
    num_queries: int,
    num_candidates: int,
    dtype: torch.dtype = torch.bfloat16,
    width: int = 1024,
    with_stats: bool = False,
    need_scale_grad: bool = False,
    with_ids: bool = False,
    with_owners: bool = False,
    with_limits: bool = False,
    with_guides: bool = False,
    with_terms: bool = False,
    **options: Any,
) -> None:
    """The forward and the backward pass."""
    query, candidates = (
        torch.randn(size, width).to(dtype) for size in (num_queries, num_candidates)
    )
    if with_ids:
        options["query_ids"] = torch.arange(num_queries)
        options["candidate_ids"] = torch.arange(num_candidates)
    if with_owners:
        options["negative_owner"] = torch.zeros(num_candidates - num_queries, dtype=torch.int64)
    if with_limits:
        options |= dict.fromkeys(("row_limit", "column_limit"), torch.zeros(num_queries))
    if with_guides:
        options["query_guide"] = torch.randn(num_queries, 40)
        options["candidate_guide"] = torch.randn(num_candidates, 40)
        limits = ("row_guide_limit", "column_guide_limit")
        options |= dict.fromkeys(limits, torch.zeros(num_queries))
    problem = make_problem(num_queries, dtype, **options)
    needs = GradientNeeds(True, True, need_scale_grad)
    if with_terms:  # as the mean of all terms has them
        terms = torch.empty(num_queries)
        sums = contrastive_fwd(query, candidates, problem, None, with_stats, None, terms)
        grads = ContrastiveGrads(*[torch.empty(0)] * len(ContrastiveGrads._fields))
        grads = grads._replace(positive_logit=torch.empty(num_queries))
        pairs = PairGradient(torch.ones(()))
        given = (query, candidates, problem, sums, grads, needs, None, pairs, num_queries)
        contrastive_bwd(*given)
        return
    sums = contrastive_fwd(query, candidates, problem, None, with_stats)
    grads = pair_terms_bwd(torch.ones_like(pair_terms_fwd(sums)), sums)
    contrastive_bwd(query, candidates, problem, sums, grads, needs)


def padded(
    num_sentences: int, num_tokens: int, mask_dtype: torch.dtype, normalize: bool = False
) -> None:
    hidden = torch.randn(num_sentences, num_tokens, 64, dtype=torch.bfloat16)
    mask = torch.ones(num_sentences, num_tokens, dtype=mask_dtype)
    pooled, unit, scale = masked_mean_pool_fwd(hidden, mask, normalize)
    masked_mean_pool_bwd(pooled, mask, unit if normalize else None, scale)


def packed(num_sentences: int, num_tokens: int, normalize: bool = False) -> None:
    hidden = torch.randn(num_sentences * num_tokens, 64, dtype=torch.bfloat16)
    offsets = torch.arange(num_sentences + 1, dtype=torch.int32) * num_tokens
    pooled, unit, scale = mean_pool_varlen_fwd(hidden, offsets, normalize)
    mean_pool_varlen_bwd(pooled, offsets, unit if normalize else None, scale, hidden.shape[0])


LOSS_SIZES = [(300, 301), (1024, 2048), (1000, 9001)]
POOL_SIZES = [(3, 17), (64, 128)]
BEST: dict[str, Any] = {
    "with_stats": True, "with_ids": True, "multi_positive": True, "exclude_label": True,
    "symmetric": False,
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "with_stats": True, "need_scale_grad": True, "with_ids": True, "with_owners": True,
    "multi_positive": True, "share_negatives": False, "hard_negative_weight": 0.5, "bound": None,
    "with_limits": True, "with_logit_sums": True, "hardness": 2.0,
}  # fmt: skip
Call = tuple[str, Callable[..., None], list[tuple[int, int]], dict[str, Any]]
CALLS: list[Call] = [
    ("plain", contrastive, LOSS_SIZES, {}),
    ("one way", contrastive, LOSS_SIZES, {"symmetric": False}),
    ("mean of terms", contrastive, LOSS_SIZES, {"with_terms": True}),
    ("mean of terms, one way", contrastive, LOSS_SIZES, {"with_terms": True, "symmetric": False}),
    ("raw products", contrastive, LOSS_SIZES, {"normalize": False, "bound": None}),
    ("statistics", contrastive, LOSS_SIZES, {"with_stats": True}),
    ("temperature", contrastive, LOSS_SIZES, {"need_scale_grad": True}),
    ("ids", contrastive, LOSS_SIZES, {"with_ids": True}),
    ("owners", contrastive, LOSS_SIZES, {"with_owners": True, "hard_negative_weight": 0.5}),
    ("guides", contrastive, LOSS_SIZES, {"with_guides": True}),
    ("everything", contrastive, LOSS_SIZES, EVERYTHING),
    ("positives of ids", contrastive, LOSS_SIZES, BEST),
    ("100 features", contrastive, LOSS_SIZES, {"width": 100}),
    ("float16", contrastive, LOSS_SIZES, {"dtype": torch.float16}),
    ("float32", contrastive, LOSS_SIZES, {"dtype": torch.float32}),
    ("bool mask", padded, POOL_SIZES, {"mask_dtype": torch.bool}),
    ("integer mask", padded, POOL_SIZES, {"mask_dtype": torch.int64}),
    ("float mask", padded, POOL_SIZES, {"mask_dtype": torch.float32, "normalize": True}),
    ("packed", packed, POOL_SIZES, {}),
    ("packed to unit length", packed, POOL_SIZES, {"normalize": True}),
]
# Name -> calls that differ in the size of the batch only.
CASES: dict[str, list[Callable[[], None]]] = {
    name: [partial(call, *size, **options) for size in sizes]
    for name, call, sizes, options in CALLS
}


def main(arch: int) -> None:
    recorder = pretend_gpu(arch)
    for name, calls in CASES.items():
        for index, call in enumerate(calls):
            recorder.case, recorder.call = name, index
            begin = time.perf_counter()
            call()
            print(f"{name} {index}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    print(json.dumps([asdict(launch) for launch in recorder.launches]))


if __name__ == "__main__":
    main(int(sys.argv[1]))

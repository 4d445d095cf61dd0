"""Which tiles, plans and chunk sizes are fastest on this GPU? One process per candidate.

A candidate that asks for too much shared memory, or hangs, costs only itself. JSON lines go to
tiles.jsonl in $OUT or benchmarks/results/, as they come, widths and passes in the order of value.

    python -m benchmarks.sweep_tiles --seconds 140
    python -m benchmarks.sweep_tiles --steps 3    # as shipped, for a profiler
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

from benchmarks.provenance import RESULTS, ROOT, provenance
from benchmarks.timing import Clock

# block_n, block_m, block_d, warps, stages, programs per multiprocessor. The first is what ships.
FORWARD = [
    (128, 256, 64, 8, 3, 1), (128, 128, 64, 4, 3, 2), (128, 128, 64, 8, 4, 1),
    (128, 256, 64, 8, 4, 1), (256, 128, 64, 8, 3, 1), (128, 128, 32, 4, 4, 2),
]  # fmt: skip
BACKWARD = [
    (128, 256, 64, 8, 3, 1), (128, 128, 32, 4, 4, 2), (128, 128, 64, 8, 4, 1),
    (128, 128, 64, 4, 2, 2), (128, 128, 32, 4, 5, 2),
]  # fmt: skip
WIDTHS = (1024, 256, 4096)
PASSES = ("one way", "symmetric", "online")
CANDIDATE_SECONDS = 30


def candidates() -> list[dict[str, Any]]:
    """By width, so that a sweep out of time has compared all tiles at the first widths."""
    return [
        {"width": width, "kernel": kernel, "tiles": tiles}
        for width in WIDTHS
        for kernel, table in (("forward", FORWARD), ("backward", BACKWARD))
        for tiles in table
    ]


def inputs(rows: int, width: int, device: str) -> list[torch.Tensor]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = (torch.nn.functional.normalize(torch.randn(rows, width, device=device)) for _ in "qk")
    return [x.to(dtype).requires_grad_() for x in made]


def step(query: torch.Tensor, key: torch.Tensor, name: str) -> None:
    """Forward and backward; the kernel of interest is the only one whose tiles differ."""
    from crossalign import fused_contrastive_loss

    temperature = 0.01 if name == "online" else 0.05
    symmetric = name != "one way"
    loss = fused_contrastive_loss(
        query, key, temperature=temperature, symmetric=symmetric, backend="triton"
    )
    torch.autograd.grad(loss, [query, key])


def use(candidate: dict[str, Any]) -> None:
    """Makes the launchers take the candidate's tiles and number of programs."""
    from crossalign.kernels import contrastive_backward, contrastive_forward, contrastive_gradient
    from crossalign.kernels.tiles import Tiles, program_slots

    *sizes, per_multiprocessor = candidate["tiles"]
    is_forward = candidate["kernel"] == "forward"
    chooser = "forward_tiles" if is_forward else "backward_tiles"
    setattr(
        contrastive_forward if is_forward else contrastive_backward,
        chooser,
        lambda *_: Tiles(*sizes),
    )
    launcher = contrastive_forward if is_forward else contrastive_gradient
    setattr(launcher, "program_slots", lambda x: per_multiprocessor * program_slots(x))  # noqa: B010


def time_candidate(candidate: dict[str, Any], rows: int, device: str) -> dict[str, Any]:
    use(candidate)
    clock = Clock(torch.device(device), 0.2)
    query, key = inputs(rows, candidate["width"], device)
    result: dict[str, Any] = {**candidate, "rows": rows, **provenance(torch.device(device))}
    for name in PASSES:
        try:
            times = clock.times(partial(step, query, key, name))
            result[name] = statistics.median(times)
        except Exception as error:  # one that does not fit is an answer too
            result[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return result


def sweep(seconds: float, rows: int, device: str) -> None:
    end = time.monotonic() + seconds
    folder = os.environ.get("OUT") or RESULTS
    with open(os.path.join(folder, "tiles.jsonl"), "a") as file:
        for candidate in candidates():
            left = end - time.monotonic()
            if left < 1:
                print("out of time")
                return
            command = [sys.executable, "-m", "benchmarks.sweep_tiles", "--rows", str(rows)]
            command += ["--device", device, "--one", json.dumps(candidate)]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True,
                    timeout=min(left, CANDIDATE_SECONDS),
                )  # fmt: skip
                text = done.stdout or f"{candidate}: {done.stderr[-300:]}\n"
            except subprocess.TimeoutExpired:
                text = f"{candidate}: no end within its time\n"
            print(text, end="", flush=True)
            if text.startswith('{"'):
                file.write(text)
                file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for the whole sweep")
    parser.add_argument("--rows", type=int, default=65_536, help="pairs (default 65,536)")
    parser.add_argument("--width", type=int, default=1024, help="features, of --steps")
    parser.add_argument("--steps", type=int, help="run so many steps as shipped, and no sweep")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        candidate = json.loads(arguments.one)
        print(json.dumps(time_candidate(candidate, arguments.rows, arguments.device)))
    elif arguments.steps:
        query, key = inputs(arguments.rows, arguments.width, arguments.device)
        for name in PASSES * arguments.steps:
            step(query, key, name)
    else:
        sweep(arguments.seconds, arguments.rows, arguments.device)


if __name__ == "__main__":
    main()

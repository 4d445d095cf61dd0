"""How much faster, and in how much less memory, is one alignment step than the plain way of it?

python -m benchmarks.bench_train_step --preset cpu --seconds 20     # two cores, ten minutes
python -m benchmarks.bench_train_step --preset gemma-cpu --group sides   # Gemma 3 270M's shape
python -m benchmarks.bench_train_step --preset gpu                  # XGLM-564M, random weights

"eager" runs all blocks on the sentences with output_hidden_states=True, takes one layer, mean
pools, and forms the N x N cosine matrix and all logits of the texts. "crossalign" is the step of
crossalign.align, "crossalign before" that of commit ccb28b9. In between, every part is switched
by itself: added to the plain step, or taken out of ours. Model, batch, AdamW and clipping are the
same throughout, precision but for "bf16" too, and every token of the texts is a label. All must
agree with the plain step in the next higher precision, loss and gradients, before any is timed; in
bfloat16 the rule counts with the error of the plain step in it. On a CPU each peak is that of a
fresh process.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import Verdict, allowed_error, relative_error
from benchmarks.command_line import arguments_of
from benchmarks.harness import Harness
from benchmarks.timing import Trial
from benchmarks.train_step_cases import PRESETS, Case, least_work, make_inputs, make_model
from benchmarks.train_step_implementations import (
    Step,
    implementations,
    loss_and_gradients,
    peak_in_this_process,
)

SIDES = ("eager", "crossalign", "crossalign before", "crossalign with bf16")
GROUPS = ("sides", "parts")
HIGHER = {"float32": torch.float64, "bfloat16": torch.float32}


class StepHarness(Harness):
    """Measures steps; on a CPU their memory in a fresh process each."""

    case: Case
    implementation: str
    step: Step

    def _peak_mib(self, prepare: Callable[[], None], call: Callable[[], Any]) -> float | None:
        if self.device.type != "cpu":
            return super()._peak_mib(prepare, call)
        self.step.optimizer.state.clear()  # makes room; the next step makes it anew
        # Forked from a server that has imported what is needed and run nothing.
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([peak_in_this_process.__module__, "transformers"])
        with ProcessPoolExecutor(1, processes) as fresh:
            arguments = (self.case, self.implementation, torch.get_num_threads())
            return fresh.submit(peak_in_this_process, *arguments).result()


def run_case(harness: StepHarness, case: Case, groups: Sequence[str] = GROUPS) -> None:
    dtype = getattr(torch, case.dtype)
    batch = make_inputs(case, harness.device)
    higher = make_model(case, harness.device, HIGHER[case.dtype])
    truth = loss_and_gradients(Step(higher, batch, frozenset(), case.layer))
    del higher
    model = make_model(case, harness.device, dtype)

    def rule(parts: frozenset[str]) -> float:
        plain = loss_and_gradients(Step(model, batch, parts, case.layer))
        return allowed_error(relative_error(plain, truth), torch.bfloat16 if parts else dtype)

    allowed = {False: rule(frozenset())}
    if harness.device.type == "cpu":
        allowed[True] = rule(frozenset({"bf16"}))
    initial = [weight.detach().clone() for weight in model.parameters()]
    for name, parts in implementations(harness.device).items():
        if GROUPS[name not in SIDES] not in groups:
            continue
        with torch.no_grad():
            for weight, value in zip(model.parameters(), initial, strict=True):
                weight.copy_(value)
        step = Step(model, batch, parts, case.layer)
        harness.case, harness.implementation, harness.step = case, name, step

        def check(step: Step = step) -> Verdict:
            error = relative_error(loss_and_gradients(step), truth)
            return Verdict(error, allowed["bf16" in step.parts])

        work = {"step": least_work(case, model)}
        harness.measure(case._asdict(), name, [Trial(step, ())], dtype, work, check)


def summary(path: Path) -> str:
    """Steps per second and memory of every row, and how each compares with eager in its case."""
    lines = []
    plain: dict[str, dict[str, Any]] = {}
    for row in map(json.loads, path.read_text().splitlines()):
        label = f"{row['name']}: {row['implementation']}"
        if row["status"] != "ok":
            lines.append(f"{label:62} {row['status']}")
            continue
        eager = plain.setdefault(row["name"], row)  # the first of its case
        text = f"{label:62} {1000 / row['median_ms']:8.3f} steps/s"
        text += f", {eager['median_ms'] / row['median_ms']:5.2f} x"
        if row["peak_mib"] is not None:
            text += f", {row['peak_mib']:9,.0f} MiB, {row['peak_mib'] / eager['peak_mib']:4.0%}"
        lines.append(text)
    return "\n".join(lines)


def main() -> None:
    arguments = arguments_of(__doc__, PRESETS)
    harness = StepHarness(
        "train_step",
        arguments.device,
        arguments.output,
        seconds=arguments.seconds,
        budget_seconds=arguments.budget_seconds,
    )
    for case in PRESETS[arguments.preset]:
        run_case(harness, case, arguments.group or GROUPS)
    print(summary(harness.path))
    sys.exit(harness.close())


if __name__ == "__main__":
    main()

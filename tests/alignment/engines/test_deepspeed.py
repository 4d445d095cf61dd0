"""DeepSpeed on real ranks against one process: ZeRO-2, ZeRO-3, and both with CPU offload.

DeepSpeed keeps float32, so sums in another order show. AdamW's moments are linear in the gradients
and are compared closely; its updates are nearly signs, and are compared by their size.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.engines.deepspeed import DeepSpeedEngine
from crossalign.alignment.finite import NotFiniteError
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.periodic_evaluation import PeriodicEvaluation
from crossalign.alignment.train import AlignmentRun
from tests.support.compared_runs import Result, assert_same_run, moments_of
from tests.support.launched_ranks import (
    ALIKE,
    PAIRS,
    SETTINGS,
    held_out,
    launch,
    some_steps,
    whole_weights,
)
from tests.support.process_group import run_ranks
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import (
    CPU,
    DROPOUT,
    NO_DROPOUT,
    load_last,
    make_config,
    without_seconds,
)

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)

# Smaller than the tiny models, so that there are several of each; nothing stays gathered.
SMALL = {
    **{"reduce_bucket_size": 3000, "allgather_bucket_size": 2000},
    **{"stage3_prefetch_bucket_size": 3000, "stage3_param_persistence_threshold": 0},
    **{"stage3_max_live_parameters": 5000, "stage3_max_reuse_distance": 5000},
    "sub_group_size": 4000,
}
TO_CPU = {"device": "cpu", "pin_memory": False}
OTHERWISE = {"contiguous_gradients": False, "reduce_scatter": False, "allgather_partitions": False}
ZERO: dict[str, dict[str, Any]] = {
    "2": {"stage": 2, **SMALL},
    "3": {"stage": 3, **SMALL},
    "2 offload": {"stage": 2, **SMALL, "offload_optimizer": TO_CPU},
    "3 offload": {"stage": 3, **SMALL, "offload_optimizer": TO_CPU, "offload_param": TO_CPU},
    "2 otherwise": {"stage": 2, **SMALL, **OTHERWISE, "overlap_comm": True},
    "3 otherwise": {"stage": 3, **SMALL, **OTHERWISE, "overlap_comm": False},
}
TWO_PAIRS = ("two pairs for all", "two pairs for all, in chunks")
# By the number of ranks.
CASES = {2: [*itertools.product(("2", "3"), sorted(SETTINGS.keys() - set(TWO_PAIRS)))]}
CASES[2] += itertools.product(("2 offload", "3 offload"), ("whole", "chunks"))
CASES[2] += [("3 offload", "adapters"), ("2 otherwise", "chunks"), ("3 otherwise", "chunks")]
CASES[3] = [*itertools.product(("2", "3"), ("whole", "one text for all", *TWO_PAIRS))]


def launch_deepspeed(rank: int, world_size: int, zero: str, folder: Path) -> None:
    """The environment that accelerate launch gives a rank, with a DeepSpeed JSON file."""
    launch(rank, world_size, "deepspeed")
    path = folder / f"deepspeed-{rank}.json"
    path.write_text(json.dumps({"zero_optimization": ZERO[zero], "gradient_clipping": "auto"}))
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(path)
    # DeepSpeed imports PyTorch's compiler for functions that no test calls, which takes a second,
    # and asks the machine for its sockets in a process of its own with every reduction.
    os.environ |= {"TORCHDYNAMO_DISABLE": "1", "LOCAL_SIZE": str(world_size)}
    gc.freeze()  # of which it collects what it can with every engine


def train(case: str, name: str = "gpt2", **settings: Any) -> Result:
    """Two steps of a fresh tiny model without dropout."""
    model = tiny_model(name, **NO_DROPOUT if name == "gpt2" else {})
    defaults = {"steps": 2, "batch_size": 5, "lm_batch_size": 3, "hard_negative_weight": 0.5}
    config = make_config(**{**defaults, **SETTINGS[case], **settings})
    run = AlignmentRun(model, tiny_tokenizer(), PAIRS, config)
    with contextlib.closing(run.steps(progress=False)) as steps:
        records = [next(steps)]
        first = {name: each["exp_avg"].clone() for name, each in moments_of(run).items() if each}
        records += steps
    held = sum(parameter.numel() for parameter in run.language_model.parameters())
    return Result(records, whole_weights(run), first, moments_of(run), held)


def train_all(rank: int, world_size: int, folder: Path) -> dict[tuple[str, str, str], Result]:
    results = {}
    for zero, case in CASES[world_size]:
        launch_deepspeed(rank, world_size, zero, folder)
        results[zero, case, "gpt2"] = train(case)
        if (zero, case) == ("3", "chunks"):  # whose head is no embedding
            results[zero, case, "llama"] = train(case, "llama", gradient_checkpointing=True)
    return results


@needs_deepspeed
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_make_the_update_of_one_process(world_size: int, tmp_path: Path) -> None:
    """Losses, accuracy, weights and moments; with 3 ranks one has no pair, and two have no text."""
    by_rank = run_ranks(train_all, world_size, world_size, tmp_path, timeout_s=400)
    keys = {(case, name) for _, case, name in by_rank[0]}
    expected = {(case, name): train(case, name) for case, name in keys}
    for (zero, case, name), result in by_rank[0].items():
        assert_same_run(result, expected[case, name])
        for results in by_rank:
            other = results[zero, case, name]
            assert without_seconds(other.records) == without_seconds(result.records)
            assert (other.held == 0) == zero.startswith("3")


STARTED = {"steps": 4, "batch_size": 5, "precision": "bf16", "chunk_size": 2}


def start(model: Any = None, **settings: Any) -> AlignmentRun:
    model = model or tiny_model("gpt2", **DROPOUT)
    return AlignmentRun(model, tiny_tokenizer(), PAIRS, make_config(**{**STARTED, **settings}))


def saved_model(place: Path) -> Any:
    """What `crossalign align --resume` loads before the model is spread."""
    return AutoModelForCausalLM.from_pretrained(place / "checkpoints" / "step-2")


def go_on(rank: int, folder: Path) -> dict[str, tuple[Any, ...]]:
    """Per stage four steps at once; and two, saved, then two of a fresh run, the first of them
    between two evaluations. And the record of a step without dropout."""
    evaluate = PeriodicEvaluation(held_out(folder))
    results = {}
    for zero in ("2", "3 offload"):
        launch_deepspeed(rank, 2, zero, folder)
        place = folder / zero
        place.mkdir(exist_ok=True)
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK as running

        straight, first = some_steps(start(), 4), start()
        depth = len(running)
        scores = [evaluate(first)]
        begun = some_steps(first, 2)
        scores.append(evaluate(first))
        first.passes(lambda: None)
        assert len(running) == depth  # modules that passes left early are forgotten
        Checkpoints(place, is_main=first.engine.is_main).save(first)
        second = start(saved_model(place))
        torch.rand(5)
        load_last(place, second)
        rest = some_steps(second, 2)
        plain = start(tiny_model("gpt2", **NO_DROPOUT))
        loss = some_steps(plain, 1)[0][0]["loss"]
        with torch.no_grad():
            plain.passes("embed", plain.batches.at(1, CPU).source)
        held = sum(parameter.numel() for parameter in plain.language_model.parameters())
        assert (held == 0) == zero.startswith("3")  # though the pass was left early
        results[zero] = straight, begun, rest, scores, loss
    return results


@needs_deepspeed
def test_ranks_go_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """With dropout and bfloat16 arithmetic; evaluation of sharded weights gives the scores of one
    process and changes no step. The checkpoint is one that a single process goes on with."""
    (tmp_path / "pairs.tsv").write_text("".join(f"{p.source}\t{p.target}\n" for p in ALIKE))
    by_rank = run_ranks(go_on, 2, tmp_path, timeout_s=200)
    evaluate = PeriodicEvaluation(held_out(tmp_path))
    losses = [
        some_steps(start(tiny_model("gpt2", **NO_DROPOUT), precision=precision), 1)[0][0]["loss"]
        for precision in ("bf16", "fp32")
    ]
    assert abs(losses[0] / losses[1] - 1) > 1e-4
    for zero in by_rank[0]:
        expected = [evaluate(start(model)) for model in (None, saved_model(tmp_path / zero))]
        for results in by_rank:
            straight, begun, rest, scores, loss = results[zero]
            # Two ranks round other batches to bfloat16 than one process does, all close to it.
            assert abs(loss - losses[0]) < abs(loss - losses[1]) / 2
            assert without_seconds(begun[0] + rest[0]) == without_seconds(straight[0])
            assert scores == expected
        straight, _, rest, *_ = by_rank[0][zero]
        assert straight[1].keys() == rest[1].keys() != set()
        assert all(torch.equal(rest[1][name], straight[1][name]) for name in rest[1])
        alone = start(saved_model(tmp_path / zero))
        load_last(tmp_path / zero, alone)
        assert [record["step"] for record in alone.steps(progress=False)] == [3, 4]


def take_over(rank: int, folder: Path) -> list[dict[str, Any]]:
    """The optimizer's state as gathered again from three ranks that went on from one process."""
    states = []
    for zero in ("2", "3", "2 offload"):
        launch_deepspeed(rank, 3, zero, folder)
        run = start(saved_model(folder))
        before = run.engine.optimizer_state(run.alignment, run.optimizer)
        assert before["state"] == {}
        load_last(folder, run)
        states.append(run.engine.optimizer_state(run.alignment, run.optimizer))
    return states


@needs_deepspeed
def test_ranks_take_over_the_run_of_one_process(tmp_path: Path) -> None:
    """Moments are spread whatever the number of ranks, which here divides no size."""
    alone = start()
    some_steps(alone, 2)
    Checkpoints(tmp_path).save(alone)
    expected = alone.optimizer.state_dict()
    for state in run_ranks(take_over, 3, tmp_path, timeout_s=120)[0]:
        assert state["param_groups"][0].keys() == expected["param_groups"][0].keys()
        assert state["state"].keys() == expected["state"].keys()
        for index, entry in expected["state"].items():
            assert all(torch.equal(state["state"][index][name], entry[name]) for name in entry)


def overflow(rank: int, folder: Path) -> list[tuple[str, bool]]:
    """What a step says whose loss is finite and whose gradients are not; whether it kept all."""
    results = []
    for zero in ("2", "3", "2 offload", "3 offload"):
        launch_deepspeed(rank, 2, zero, folder)
        run = start(contrastive_weight=3e37, precision="fp32")
        before = whole_weights(run)
        with pytest.raises(NotFiniteError) as caught:
            some_steps(run, 1)
        after = whole_weights(run)
        results.append((str(caught.value), all(torch.equal(before[n], after[n]) for n in before)))
    return results


@needs_deepspeed
def test_gradients_that_are_not_finite_leave_the_weights(tmp_path: Path) -> None:
    for results in run_ranks(overflow, 2, tmp_path):
        for message, is_unchanged in results:
            assert "step 1 is not finite" in message and "gradient norm inf" in message
            assert "loss inf" not in message and is_unchanged


@needs_deepspeed
def test_deepspeed_and_the_trainer_must_mean_the_same_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    engine = object.__new__(DeepSpeedEngine)
    engine.device = torch.device("cuda")
    message = "DeepSpeed runs on cpu, but device is cuda; set DS_ACCELERATOR=cuda"
    with pytest.raises(ValueError, match=message):
        engine.prepare(AlignmentModel(tiny_model("gpt2")))

"""Several ranks, as a launcher would start them, against one process: the very same update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from crossalign import reference
from crossalign.alignment.batches import Batches
from crossalign.alignment.checkpoint import STATE_FILE, Checkpoints
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.periodic_evaluation import PeriodicEvaluation, Scores
from crossalign.alignment.train import AlignmentRun
from tests.support.launched_ranks import (
    _NO_DROPOUT,
    ALIKE,
    PAIRS,
    SETTINGS,
    Result,
    held_out,
    launch,
    some_steps,
    train,
)
from tests.support.process_group import run_ranks
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import CPU, DROPOUT, load_last, make_config, without_seconds


def train_all(rank: int, world_size: int) -> dict[tuple[str, str], Result]:
    results = {}
    for strategy in ("ddp", "fsdp2"):
        launch(rank, world_size, strategy)
        for case in SETTINGS:
            results[strategy, case] = train(case)
    return results


def assert_same_run(ours: Result, expected: Result) -> None:
    for mine, other in zip(ours[0], expected[0], strict=True):
        mine, other = ({k: v for k, v in each.items() if k != "seconds"} for each in (mine, other))
        assert mine == pytest.approx(other, rel=1e-6)
    assert ours[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        torch.testing.assert_close(ours[1][name], weight, rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_make_the_update_of_one_process(world_size: int) -> None:
    """Losses, accuracy and weights; with 3 ranks one has no pair, and two have no text."""
    by_rank = run_ranks(train_all, world_size, world_size, timeout_s=200)
    for case in SETTINGS:
        expected = train(case)
        for strategy in ("ddp", "fsdp2"):
            for results in by_rank[: None if strategy == "ddp" else 1]:
                assert_same_run(results[strategy, case], expected)


def go_on(rank: int, directory: Path) -> dict[str, tuple[Result, Result, Result, list[Scores]]]:
    """Per strategy four steps at once; and two, saved, then two of a fresh run, the first of them
    between two evaluations."""
    evaluate = PeriodicEvaluation(held_out(directory))
    results = {}
    for strategy in ("ddp", "fsdp2"):
        launch(rank, 2, strategy)
        config = make_config(steps=4, batch_size=5, precision="bf16", chunk_size=2)
        place = directory / strategy
        place.mkdir(exist_ok=True)

        def start(model: Any = None, config: TrainingConfig = config) -> AlignmentRun:
            model = model or tiny_model("gpt2", **DROPOUT)
            return AlignmentRun(model, tiny_tokenizer(), PAIRS, config)

        straight, first = some_steps(start(), 4), start()
        scores = [evaluate(first)]
        begun = some_steps(first, 2)
        scores.append(evaluate(first))
        Checkpoints(place, is_main=rank == 0).save(first)
        # What `crossalign align --resume` does before the model is spread.
        saved = AutoModelForCausalLM.from_pretrained(place / "checkpoints" / "step-2")
        second = start(saved)
        torch.rand(5)
        load_last(place, second)
        results[strategy] = straight, begun, some_steps(second, 2), scores
    return results


def test_ranks_go_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, whose random numbers are each rank's own, and bfloat16 arithmetic; evaluation
    on every rank gives the scores of one process and changes no step."""
    (tmp_path / "pairs.tsv").write_text("".join(f"{p.source}\t{p.target}\n" for p in ALIKE))
    evaluate, expected = PeriodicEvaluation(held_out(tmp_path)), []
    started = make_config(steps=4, batch_size=5, precision="bf16", chunk_size=2)
    by_rank = run_ranks(go_on, 2, tmp_path, timeout_s=120)
    for folder in (None, tmp_path / "ddp" / "checkpoints" / "step-2"):
        model = AutoModelForCausalLM.from_pretrained(folder) if folder else tiny_model("gpt2")
        expected.append(evaluate(AlignmentRun(model, tiny_tokenizer(), PAIRS, started)))
    for results in by_rank:
        for straight, begun, rest, scores in results.values():
            assert without_seconds(begun[0] + rest[0]) == without_seconds(straight[0])
            assert all(torch.equal(rest[1][name], straight[1][name]) for name in rest[1])
            assert scores == expected
    alone = AlignmentRun(tiny_model("gpt2", **DROPOUT), tiny_tokenizer(), PAIRS, started)
    load_last(tmp_path / "ddp", alone)  # what DDP saved, one process can go on with
    assert [record["step"] for record in alone.steps(progress=False)] == [3, 4]
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step-2" / STATE_FILE)
        for name in ("ddp", "fsdp2")
    ]
    assert [len(state["generators"]) for state in states] == [2, 2]
    assert not torch.equal(*(each[0] for each in states[0]["generators"]))


def whole_run() -> TrainingConfig:
    return make_config(steps=4, batch_size=5, lm_batch_size=3, hard_negative_weight=0.5)


def start_whole(place: Path | None, dtype: torch.dtype = torch.float64) -> AlignmentRun:
    """A fresh run, or one with the weights of the checkpoint of two steps."""
    if place is None:
        model: Any = tiny_model("gpt2", **_NO_DROPOUT["gpt2"])
    else:
        saved = place / "checkpoints" / "step-2"
        model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    return AlignmentRun(model.to(dtype), tiny_tokenizer(), PAIRS, whole_run())


def save_sharded(rank: int, place: Path, dtype: torch.dtype) -> None:
    """Two steps under FSDP2."""
    launch(rank, 2, "fsdp2")
    run = start_whole(None, dtype)
    some_steps(run, 2)
    Checkpoints(place, is_main=rank == 0).save(run)


def go_on_from(rank: int, world_size: int, place: Path) -> Result:
    launch(rank, world_size, "fsdp2")
    run = start_whole(place)
    load_last(place, run)
    return some_steps(run, 2)


def test_moments_of_two_ranks_go_on_with_three_and_with_one(tmp_path: Path) -> None:
    """Each rank saves its own part, and whoever goes on makes the steps of an unbroken run."""
    straight = some_steps(start_whole(None), 4)
    expected = (straight[0][2:], straight[1])
    run_ranks(save_sharded, 2, tmp_path, torch.float64)
    saved = tmp_path / "checkpoints" / "step-2"
    stored = FileSystemReader(saved / "optimizer").read_metadata().state_dict_metadata
    moments = {name: each for name, each in stored.items() if "exp_avg" in name}
    assert len(moments) == 2 * len(start_whole(None).parameters)
    for name, moment in moments.items():  # two halves, by rows
        rows = moment.size[0]
        assert [chunk.sizes[0] for chunk in moment.chunks] == [rows - rows // 2, rows // 2], name
    assert not torch.load(saved / STATE_FILE)["optimizer"]
    assert_same_run(run_ranks(go_on_from, 3, 3, tmp_path)[0], expected)
    alone = start_whole(tmp_path)
    load_last(tmp_path, alone)
    assert_same_run(some_steps(alone, 2), expected)


def test_one_process_updates_what_two_ranks_saved_as_it_always_does(tmp_path: Path) -> None:
    """In float32 it updates in one pass, which sharded moments do not: that setting is its own."""
    straight = some_steps(start_whole(None, torch.float32), 4)[0]
    run_ranks(save_sharded, 2, tmp_path, torch.float32)
    alone = start_whole(tmp_path, torch.float32)
    load_last(tmp_path, alone)
    assert [group["fused"] for group in alone.optimizer.param_groups] == [True]
    for mine, other in zip(some_steps(alone, 2)[0], straight[2:], strict=True):
        assert (mine["step"], mine["pairs"]) == (other["step"], other["pairs"])
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)


def share_what_the_paper_does(rank: int) -> list[Tensor]:
    """Gradients of the paper's scheme on two ranks: every rank's loss of the whole batch, in which
    only its own embeddings have a gradient; the next-token mean of its own texts; averaged."""
    launch(rank, 2, "ddp")
    config = make_config(batch_size=6, lm_batch_size=4)
    model = tiny_model("gpt2", **_NO_DROPOUT["gpt2"]).double()
    tokenizer = tiny_tokenizer()
    batch = Batches(model, tokenizer, ALIKE, None, config, rank=rank, world_size=2).at(0, CPU)
    alignment = AlignmentModel(model)
    sides = []
    assert batch.lm is not None
    for own in (alignment.embed(batch.source), alignment.embed(batch.target)):
        gathered = [torch.zeros_like(own) for _ in range(2)]
        dist.all_gather(gathered, own.detach())
        gathered[rank] = own
        sides.append(torch.cat(gathered))
    contrastive, _ = reference.contrastive_loss(*sides, temperature=0.05)
    (contrastive + 1.5 * alignment.next_token_loss(batch.lm)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient)
    return [gradient / 2 for gradient in gradients]


def ours_at_half_the_weight(rank: int) -> list[Tensor]:
    launch(rank, 2, "ddp")
    config = make_config(batch_size=6, lm_batch_size=4, contrastive_weight=0.5)
    model = tiny_model("gpt2", **_NO_DROPOUT["gpt2"]).double()
    run = AlignmentRun(model, tiny_tokenizer(), ALIKE, config)
    run._backward(run.batches.at(0, CPU))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def both_schemes(rank: int) -> tuple[list[Tensor], list[Tensor]]:
    return share_what_the_paper_does(rank), ours_at_half_the_weight(rank)


def test_contrastive_weight_one_by_w_is_the_papers_balance_on_w_ranks() -> None:
    """Its all-gather has no gradient, so its contrastive gradients are those of one process over
    W, while those of the next-token loss are whole."""
    theirs, ours = run_ranks(both_schemes, 2)[0]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)

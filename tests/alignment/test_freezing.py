"""Frozen parts: neither gradient nor moments, and the others move as they would anyway."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.train import AlignmentRun
from tests.support.command_cases import Run, assert_one_line
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import NO_DROPOUT, load_last, make_config, make_pairs

UNTIED = {"tie_word_embeddings": False}
HEAD, EMBEDDINGS = "lm_head.", ("transformer.wte.",)


def started(freeze: tuple[str, ...], tied: bool, **settings: object) -> AlignmentRun:
    model = tiny_model("gpt2", **NO_DROPOUT, **({} if tied else UNTIED))
    config = make_config(freeze=freeze, steps=1, **settings)
    return AlignmentRun(model, tiny_tokenizer(), make_pairs(9), config)


@pytest.mark.parametrize(
    ("freeze", "tied", "frozen"),
    [
        (("embeddings",), False, EMBEDDINGS),
        (("embeddings",), True, EMBEDDINGS),
        (("head",), False, (HEAD,)),
        (("head",), True, EMBEDDINGS),
        (("blocks:2-",), True, ("transformer.h.1.", "transformer.h.2.")),
        (("blocks:1-2", "head"), False, ("transformer.h.0.", "transformer.h.1.", HEAD)),
        (("blocks:3",), True, ("transformer.h.2.",)),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_only_what_is_frozen_stays(
    freeze: tuple[str, ...], tied: bool, frozen: tuple[str, ...], chunk_size: int | None
) -> None:
    run, whole = started(freeze, tied, chunk_size=chunk_size), started((), tied)
    before = {name: each.clone() for name, each in run.language_model.named_parameters()}
    expected = dict(whole.language_model.named_parameters())
    for each in (run, whole):
        each._backward(each.batches.at(0, each.device))
    for name, weight in run.language_model.named_parameters():
        if name.startswith(frozen):
            assert weight.grad is None, name
        else:
            gradient = expected[name].grad
            bound = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=bound, msg=name)
    run.optimizer.zero_grad()
    list(run.steps(progress=False))
    with_moments = {id(weight) for weight in run.optimizer.state}
    for name, weight in run.language_model.named_parameters():
        is_frozen = name.startswith(frozen)
        assert torch.equal(weight, before[name]) == is_frozen, name
        assert (id(weight) in with_moments) != is_frozen, name


def test_a_frozen_run_is_saved_and_goes_on(tmp_path: Path) -> None:
    run = started(("embeddings", "blocks:3"), True)
    list(run.steps(progress=False))
    Checkpoints(tmp_path).save(run)
    load_last(tmp_path, started(("embeddings", "blocks:3"), True))


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--freeze", "norm"], 2, "--freeze must name embeddings, head, blocks:K, blocks:K-L or"),
        (["--freeze", "blocks:0-"], 2, "got 'blocks:0-'"),
        (["--freeze", "head", "--lora-rank", 2], 2, "--freeze must be empty with --lora-rank"),
        (["--freeze", "blocks:4-"], 1, "freeze blocks:4- must name blocks from 1 to 3"),
        (["--freeze", "blocks:3-2"], 1, "freeze blocks:3-2 must name blocks from 1 to 3"),
    ],
)
def test_what_cannot_be_frozen_is_named(
    align: Run, flags: list[object], status: int, message: str
) -> None:
    ended, _, error = align(*flags)
    assert ended == status
    assert_one_line(error, message)

"""The alignment step's benchmark: it runs, every part gives the gradients of the plain step, and a
wrong step is not timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy import relative_error
from benchmarks.bench_train_step import StepHarness, run_case, summary
from benchmarks.train_step_cases import PRESETS, Case, least_work, make_inputs, make_model
from benchmarks.train_step_implementations import (
    PARTS,
    Step,
    implementations,
    loss_and_gradients,
    parts_of_crossalign,
)
from crossalign.alignment.model import AlignmentModel

CPU = torch.device("cpu")
(SMOKE,) = PRESETS["smoke"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "rows.jsonl"
    harness = StepHarness("train_step", "cpu", path, seconds=0.001)
    run_case(harness, SMOKE)
    assert harness.close() is None
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_benchmark_measures_both_sides_and_every_part(result: Path) -> None:
    rows = {row["implementation"]: row for row in rows_of(result)}
    assert rows.keys() == implementations(CPU).keys()
    for row in rows.values():
        assert row["status"] == "ok" and row["pass"] == "step" and row["name"] == "smoke"
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        is_half = row["implementation"].endswith("with bf16")
        assert row["error"] <= row["error_allowed"] < (0.5 if is_half else 1e-4)
        assert (row["error"] > 1e-4) == is_half
        assert row["peak_mib"] is None or row["peak_mib"] >= 0
        assert row["run"]["subject"] == "train_step" and row["run"]["commit"]


def test_summary_compares_with_eager_in_the_same_case(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"name": "a", "implementation": "eager", "status": "ok", "median_ms": 400, "peak_mib": 80},
        {"name": "a", "implementation": "crossalign", "status": "wrong: not timed"},
        {"name": "b", "implementation": "eager", "status": "ok", "median_ms": 50, "peak_mib": None},
        {"name": "a", "implementation": "x", "status": "ok", "median_ms": 100, "peak_mib": 20},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, wrong, other, last = summary(path).splitlines()
    assert "2.500 steps/s,  1.00 x,        80 MiB, 100%" in first
    assert wrong.endswith("wrong: not timed")
    assert other.endswith("20.000 steps/s,  1.00 x")
    assert last.endswith("10.000 steps/s,  4.00 x,        20 MiB,  25%")


def test_every_part_is_switched_alone() -> None:
    named = implementations(CPU)
    ours = parts_of_crossalign(CPU)
    assert named["eager"] == frozenset() and named["crossalign"] == ours
    for part in PARTS:
        assert named[f"eager with {part}"] == {part}
        name = f"crossalign {'without' if part in ours else 'with'} {part}"
        assert named[name] == ours ^ {part}
    assert named["crossalign before"] == ours - {"optimizer", "rows"}
    on_gpu = torch.device("cuda")
    assert ours - parts_of_crossalign(on_gpu) == {"rows"}
    assert named.keys() - implementations(on_gpu).keys() == {
        *("eager with bf16", "crossalign with bf16"),
        *("crossalign without rows",),
    }


def test_a_wrong_step_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed_a_layer_too_late(step: Step, sentences: dict[str, Tensor]) -> Tensor:
        return AlignmentModel(step.model, layer=step.layer + 1).embed(sentences)

    monkeypatch.setattr(Step, "embed_with_all_blocks", embed_a_layer_too_late)
    harness = StepHarness("train_step", "cpu", tmp_path / "rows.jsonl", seconds=0.001)
    run_case(harness, SMOKE, ["sides"])
    status = {row["implementation"]: row["status"] for row in rows_of(harness.path)}
    assert status["crossalign"] == "wrong: not timed"
    assert "crossalign" in (harness.close() or "")


def test_an_update_changes_the_weights_alike() -> None:
    updated = []
    for name in ("eager", "crossalign"):
        model = make_model(SMOKE, CPU, torch.float32)
        before = [weight.detach().clone() for weight in model.parameters()]
        step = Step(model, make_inputs(SMOKE, CPU), implementations(CPU)[name], 1)
        step()
        assert all(weight.grad is None for weight in model.parameters())
        updated.append([w.detach() - b for w, b in zip(model.parameters(), before, strict=True)])
    assert relative_error(updated[1], [delta.double() for delta in updated[0]]) < 1e-2


def test_a_step_that_is_not_finite_raises() -> None:
    model = make_model(SMOKE, CPU, torch.float32)
    nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(RuntimeError, match="is not finite"):
        Step(model, make_inputs(SMOKE, CPU), frozenset(), 1)()


def test_padded_sentences_have_the_lengths_of_the_case() -> None:
    case = SMOKE._replace(pairs=200, shortest=2, longest=5)
    sentences = make_inputs(case, CPU).source
    lengths = sentences["attention_mask"].sum(dim=1)
    assert torch.equal(lengths, sentences["lengths"])
    assert set(lengths.tolist()) == {2, 3, 4, 5}
    assert sentences["input_ids"][sentences["attention_mask"] == 0].eq(0).all()


def test_least_work_counts_the_products_of_a_step() -> None:
    """Against PyTorch's own count, which takes attention's projections and products as they are."""
    from torch.utils.flop_counter import FlopCounterMode

    case = Case("count", "llama", 3, 48, 2, 512, 8, 16, 16, 2, 64)
    model = make_model(case, CPU, torch.float32)
    model.set_attn_implementation("eager")  # whose products are counted
    parts = parts_of_crossalign(CPU) - {"head"}  # whose backward pass forms the logits again
    step = Step(model, make_inputs(case, CPU), parts, 1)
    with FlopCounterMode(display=False) as counter:
        loss_and_gradients(step)
    assert least_work(case, model).flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_gpu_cases_have_the_shape_of_xglm_564m() -> None:
    for case in PRESETS["gpu"]:
        model = make_model(case, torch.device("meta"), torch.bfloat16)
        assert sum(weight.numel() for weight in model.parameters()) == 564_463_616


def test_the_gemma_case_has_the_shape_of_gemma_3_270m() -> None:
    (case,) = PRESETS["gemma-cpu"]
    model = make_model(case, torch.device("meta"), torch.float32)
    assert sum(weight.numel() for weight in model.parameters()) == 268_098_176
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    block = model.get_decoder().layers[0]
    weights = sum(w.numel() for name, w in block.named_parameters() if name.split(".")[-2] in names)
    labels = case.texts * case.text_length
    blocks = labels * case.blocks + case.pairs * (case.shortest + case.longest) * case.layer
    products = 6 * (weights * blocks + labels * case.vocabulary * case.width)
    # The rest are the products of attention.
    assert products < least_work(case, model).flops < 1.1 * products

"""GradientCache in other people's loops: the weights after training are those of whole batches."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.loss import fused_contrastive_loss

ROWS, WIDTH, STEPS, RATE = 6, 8, 3, 0.5


def loss_of(query: Tensor, key: Tensor) -> Tensor:
    return fused_contrastive_loss(query, key, temperature=0.3)


class Towers(nn.Module):
    """A query and a key tower; the cached form is what a user would write."""

    def __init__(self, *, cached: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.cached = cached

    def forward(self, query: Tensor, key: Tensor) -> dict[str, Tensor]:
        if self.cached:
            return {"loss": GradientCache([self.query, self.key], loss_of, [2, 4])(query, key)}
        return {"loss": loss_of(self.query(query), self.key(key))}

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters()]


def batches(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 2, ROWS, WIDTH)
    return [{"query": q, "key": k} for q, k in torch.randn(shape, generator=generator)]


def expected_weights(accumulation: int) -> list[Tensor]:
    """Plain steps of SGD, written out."""
    towers = Towers(cached=False)
    for start in range(0, STEPS * accumulation, accumulation):
        towers.zero_grad()
        for batch in batches(STEPS * accumulation)[start : start + accumulation]:
            (towers(**batch)["loss"] / accumulation).backward()
        with torch.no_grad():
            for parameter in towers.parameters():
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
    return towers.weights()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_of_transformers(accumulation: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    towers = Towers(cached=True)
    rows = batches(STEPS * accumulation)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        label_names=["key"],  # or it would not ask for a loss when it evaluates
        prediction_loss_only=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        towers, arguments, lambda batch: batch[0], rows, rows[:2], optimizers=(None, None)
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    torch.testing.assert_close(towers.weights(), expected_weights(accumulation))
    before = towers.weights()
    towers.zero_grad()
    plain = Towers(cached=False)
    plain.load_state_dict(towers.state_dict())
    with torch.no_grad():
        mean = sum(float(plain(**batch)["loss"]) for batch in rows[:2]) / 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, towers.weights(), strict=True))
    assert all(parameter.grad is None for parameter in towers.parameters())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_accelerate(accumulation: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # what a Trainer before left behind
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    towers = Towers(cached=True)
    model, optimizer = accelerator.prepare(towers, torch.optim.SGD(towers.parameters(), RATE))
    for batch in batches(STEPS * accumulation):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(towers.weights(), expected_weights(accumulation))


def test_a_gradient_scaler_of_float16() -> None:
    """Its factor reaches every gradient once, and is taken out once."""
    towers = Towers(cached=True)
    optimizer = torch.optim.SGD(towers.parameters(), RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches(STEPS):
        with torch.autocast("cpu", torch.float16):
            loss = towers(**batch)["loss"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1024.0
    torch.testing.assert_close(towers.weights(), expected_weights(1), rtol=0.02, atol=0.01)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_automatic_optimization(tmp_path: Path) -> None:
    if importlib.util.find_spec("pytorch_lightning") is None:
        pytest.skip("pytorch_lightning is not installed")
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.towers = Towers(cached=True)

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = self.towers(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), RATE)

    module = Module()
    trainer = pytorch_lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    # Of a plain list of batches Lightning would make one loader each.
    data: Any = batches(4 * STEPS)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(module, loader)
    torch.testing.assert_close(module.towers.weights(), expected_weights(4))

"""The alignment loop: both losses in memory, one update after the other.

Story of a step: learning rate, both losses and their gradients, the next batch while the device
still works, finite check, clipping, update, record.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossalign.alignment.alignment_model import AlignmentModel
from crossalign.alignment.batches import Batches, StepBatch
from crossalign.alignment.chunked_step import chunked_backward
from crossalign.alignment.data_builders import TrainingItem
from crossalign.alignment.pairs import Pair
from crossalign.alignment.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WARM_UP_SHARE = 0.03
LARGEST_GRADIENT_NORM = 1.0

Record = dict[str, float]


def align(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    config: TrainingConfig,
    *,
    lm_items: Sequence[TrainingItem] | None = None,
    on_step: Callable[[Record], None] | None = None,
    progress: bool = True,
) -> None:
    """Trains a causal LM in place so that sentences and their translations come together.

    Per step: the contrastive loss over a batch of pairs plus lm_weight times the next-token loss
    over as many prompted texts, one AdamW update (no weight decay) at a learning rate that rises
    over the first 3 % of the steps and then falls along a cosine. Gradients are clipped to norm 1;
    on a GPU the model runs in bfloat16 under autocast, the weights stay as they are. Pairs are
    reshuffled in every pass and none is dropped; pairs that share a sentence are never each other's
    negatives. Seeds PyTorch's generators; on the CPU two runs give the same numbers.

    Args:
        model: a Hugging Face causal LM; moved to config.device, put back into its mode at the end.
        tokenizer: its tokenizer; left as it is.
        pairs: at least two. Fewer than config.batch_size: every batch holds all of them.
        config: every setting.
        lm_items: texts of build_items or read_items; None: the pairs as translation tasks.
        on_step: called after each step with its record: step (from 1), loss, contrastive_loss,
            lm_loss, accuracy (share of pairs whose target is nearest among all targets),
            learning_rate, and of this step alone pairs, tokens (without padding) and seconds.
        progress: show a bar where standard error is a terminal.

    Raises:
        ValueError: unusable pairs, items or layer, or a device that is not there.
        RuntimeError: the loss is not finite; the weights are then those before that step.
    """
    run = AlignmentRun(model, tokenizer, pairs, config, lm_items)
    with contextlib.closing(run.steps(progress=progress)) as records:
        for record in records:
            if on_step is not None:
                on_step(record)


class AlignmentRun:
    """A run that can stop after any step and go on from its state; see align for the rest."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        config: TrainingConfig,
        lm_items: Sequence[TrainingItem] | None = None,
    ) -> None:
        self.config = config
        self.language_model: Any = model
        self.tokenizer = tokenizer
        self.device = choose_device(config.device)
        self.batches = Batches(model, tokenizer, pairs, lm_items, config)
        self.model = AlignmentModel(
            model.to(self.device),
            layer=config.layer,
            pooling=config.pooling,
            temperature=config.temperature,
            contrastive_weight=config.contrastive_weight,
            lm_weight=config.lm_weight,
            symmetric=config.symmetric,
            hard_negative_weight=config.hard_negative_weight,
        )
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        if not self.parameters:
            raise ValueError(
                "align: model must have a parameter that requires grad, all are frozen"
            )
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            config.learning_rate,
            weight_decay=0.0,
            fused=self.device.type == "cuda",
        )
        self.step = 0  # updates made
        torch.manual_seed(config.seed)

    def steps(self, *, progress: bool) -> Generator[Record]:
        """Makes the updates up to config.steps, yielding the record of each."""
        from tqdm.auto import tqdm

        was_training = self.language_model.training
        self.model.train()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc="align",
            unit="step",
            disable=None if progress else True,  # None: only where standard error is a terminal
        )
        try:
            batch = self.batches.at(self.step, self.device)
            while self.step < self.config.steps:
                record, batch = self._update(batch)
                bar.set_postfix(
                    contrastive=f"{record['contrastive_loss']:.3f}", lm=f"{record['lm_loss']:.3f}"
                )
                bar.update()
                yield record
        finally:
            bar.close()
            self.language_model.train(was_training)

    def state(self) -> dict[str, Any]:
        """All that load_state needs to go on: copied nowhere, so save it before the next step."""
        generators = [torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up where state() was called; the data position follows from the step."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state["generators"][0].cpu())
        if self.device.type == "cuda" and len(state["generators"]) > 1:
            torch.cuda.set_rng_state(state["generators"][1].cpu(), self.device)

    def _update(self, batch: StepBatch) -> tuple[Record, StepBatch]:
        """One update; the record of it, and the batch of the next step."""
        started = time.perf_counter()
        learning_rate = learning_rate_at(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        values = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.parameters, LARGEST_GRADIENT_NORM)
        # Tokenising the next batch while the device computes hides its time.
        is_last = self.step + 1 == self.config.steps
        following = batch if is_last else self.batches.at(self.step + 1, self.device)
        # The only wait of a step.
        loss, contrastive_loss, lm_loss, accuracy, norm = torch.cat((values, norm[None])).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RuntimeError(
                f"align: step {self.step + 1} is not finite: loss {loss} (contrastive "
                f"{contrastive_loss}, next-token {lm_loss}), gradient norm {norm}; the weights are "
                "those before this step. Lower the learning rate, or look for extreme weights"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        record = {
            "step": self.step,
            "loss": loss,
            "contrastive_loss": contrastive_loss,
            "lm_loss": lm_loss,
            "accuracy": accuracy,
            "learning_rate": learning_rate,
            "pairs": batch.num_pairs,
            "tokens": batch.num_tokens,
            "seconds": time.perf_counter() - started,
        }
        return record, following

    def _backward(self, batch: StepBatch) -> Tensor:
        """Leaves the gradients; (4,): loss, contrastive loss, next-token loss, accuracy."""
        chunk_size = self.config.chunk_size or batch.num_pairs
        is_chunked = chunk_size < batch.num_pairs
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            if is_chunked:
                output = chunked_backward(self.model, batch, chunk_size)
            else:
                inputs = (batch.source, batch.target, batch.negatives, batch.lm)
                output = self.model(*inputs, ids=batch.ids)
        if not is_chunked:
            torch.autograd.backward(output.loss)
        values = (output.loss, output.contrastive_loss, output.lm_loss, output.stats.accuracy)
        return torch.stack([value.detach().float() for value in values])


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Of the update after `step` earlier ones: a linear rise to the peak, then half a cosine."""
    warm_up = math.ceil(WARM_UP_SHARE * config.steps)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / (config.steps - warm_up)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def choose_device(name: str) -> torch.device:
    """ "auto" -> a GPU if there is one, else the CPU; a named device must be there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1, ..., got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return device

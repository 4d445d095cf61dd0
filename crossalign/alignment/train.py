"""The alignment loop: both losses in memory, one update after the other.

Story of a step: learning rate, both losses and their gradients, clipping, the next batch while the
device still works, finite check, update, record.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossalign.alignment.batches import Batches, StepBatch
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.choice import choose_engine
from crossalign.alignment.finite import NotFiniteError, check_finite_weights
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.model_setup import set_up_model
from crossalign.alignment.padding import no_text
from crossalign.alignment.progress import Progress
from crossalign.alignment.schedule import learning_rate_at
from crossalign.alignment.step import chunked_backward
from crossalign.data.builders import TrainingItem
from crossalign.data.pairs import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    config.precision is the arithmetic of autocast, the weights stay as they are. Pairs are
    reshuffled in every pass and none is dropped; pairs that share a sentence are never each other's
    negatives. Seeds PyTorch's generators; on the CPU two runs give the same numbers. Started on
    several ranks by torchrun or `accelerate launch`, the ranks share each batch, and the update is
    that of one process (docs/parallelism.md).

    Args:
        model: a Hugging Face causal LM; moved to config.device, put back into its mode at the end.
            With config.lora_rank its linear layers get adapters, and only they are trained.
        tokenizer: its tokenizer; left as it is.
        pairs: at least two. Fewer than config.batch_size: every batch holds all of them.
        config: every setting.
        lm_items: texts of build_items or read_items; None: the pairs as translation tasks.
        on_step: called after each step with its record: step (from 1), loss, contrastive_loss,
            lm_loss, accuracy (share of pairs whose target is nearest among all targets),
            learning_rate, and of only this step pairs, tokens (without padding) and seconds;
            with such settings also temperature (learned), loss_scale (fp16) and
            pretraining_share (of config.pretraining_tokens, used up to here).
        progress: show a bar where standard error is a terminal.

    Raises:
        ValueError: unusable pairs, items or layer, a device that is not there, or settings that do
            not go together.
        NotFiniteError: a RuntimeError; the weights are then those before that step.
    """
    run = AlignmentRun(model, tokenizer, pairs, config, lm_items)
    with contextlib.closing(run.steps(progress=progress)) as records:
        for record in records:
            if on_step is not None:
                on_step(record)


class AlignmentRun:
    """A run that can stop after any step and go on from its state; see align for the rest.

    adapters: with config.lora_rank, a checkpoint whose adapters to start from.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        config: TrainingConfig,
        lm_items: Sequence[TrainingItem] | None = None,
        *,
        adapters: Path | None = None,
    ) -> None:
        check_finite_weights(model)
        self.config, self.tokenizer = config, tokenizer
        self.engine = engine = choose_engine(config)
        self.device = engine.device
        torch.manual_seed(config.seed)  # adapters are the same on every rank
        self.language_model: Any = engine.place(set_up_model(model, config, adapters))
        self.batches = Batches(
            model,
            tokenizer,
            pairs,
            lm_items,
            config,
            rank=engine.rank,
            world_size=engine.world_size,
        )
        self.batches.check_answers(config.steps)
        self.alignment = AlignmentModel(
            self.language_model,
            special_token_ids=tokenizer.all_special_ids,
            **config.objective,
            group=engine.group,
        )
        engine.place(self.alignment)
        if not any(each.requires_grad for each in self.language_model.parameters()):
            raise ValueError(
                "align: model must have a parameter that requires grad, all are frozen; merge "
                "adapters that were loaded with it first"
            )
        self.passes = engine.prepare(self.alignment)
        self.parameters = [each for each in self.alignment.parameters() if each.requires_grad]
        self.optimizer: Any = engine.optimizer(self.parameters, config.learning_rate)
        self.step = 0  # updates made
        self.tokens = 0  # used for them, on all ranks
        torch.manual_seed(config.seed + engine.rank)

    def steps(self, *, progress: bool) -> Generator[Record]:
        """Makes the updates up to config.steps, yielding the record of each."""
        was_training = self.language_model.training
        self.passes.train()
        shown = progress and self.engine.is_main
        live = Progress(self.config.steps, self.step, shown=shown)
        try:
            batch = self.batches.at(self.step, self.device)
            while self.step < self.config.steps:
                record, batch = self._update(batch)
                live.show(record, self.device)
                yield record
        finally:
            live.close()
            self.language_model.train(was_training)

    def state(self, *, with_weights: bool = True) -> dict[str, Any]:
        """All that load_state needs to go on: copied nowhere, so save it before the next step.

        On several ranks all must call it; that of the main rank is whole, but for moments that are
        sharded (engine.save_shards keeps them). Without the weights those of the language model
        must be kept beside it.
        """
        generators = [torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        scale = self.alignment.logit_scale
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "strategy": self.engine.strategy,
            "optimizer": self.engine.optimizer_state(self.alignment, self.optimizer),
            "scaler": self.engine.scaler.state_dict(),
            "logit_scale": None if scale is None else scale.detach(),
            "generators": self.engine.all_gather_object(generators),
        }
        return {**state, "model": self.language_model.state_dict()} if with_weights else state

    def load_state(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Takes up where state() was called; the data position follows from the step.

        shards: where engine.save_shards put the optimizer's moments, if they are not in the state.
        """
        stored, mine = state["strategy"], self.engine.strategy
        can_go_on = mine != "deepspeed" if shards else (stored == "fsdp2") == (mine == "fsdp2")
        if not can_go_on:
            raise ValueError(
                f"align: the state of a run under {stored} cannot go on under {mine}; start it as "
                "before"
            )
        if "model" in state:
            self.language_model.load_state_dict(state["model"])
        if shards:
            self.engine.load_shards(self.alignment, self.optimizer, shards)
        else:
            self.engine.load_optimizer_state(self.alignment, self.optimizer, state["optimizer"])
        self.engine.scaler.load_state_dict(state["scaler"])
        if self.alignment.logit_scale is not None:
            self.alignment.logit_scale.data.copy_(state["logit_scale"])
        self.step, self.tokens = state["step"], state["tokens"]
        if self.engine.rank < len(state["generators"]):  # more ranks than before: as seeded
            generators = state["generators"][self.engine.rank]
            torch.set_rng_state(generators[0].cpu())
            if self.device.type == "cuda" and len(generators) > 1:
                torch.cuda.set_rng_state(generators[1].cpu(), self.device)

    def pair_indices(self, step: int) -> list[int]:
        """Which pairs, counted from 0, are the batch of a step (counted from 0), on all ranks."""
        size = self.batches.batch_size
        return self.batches.pair_stream.take(step * size, size)

    def _update(self, batch: StepBatch) -> tuple[Record, StepBatch]:
        """One update; the record of it, and the batch of the next step."""
        started = time.perf_counter()
        learning_rate = learning_rate_at(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        values = self._backward(batch)
        norm = self.engine.clip(self.optimizer, self.parameters)
        # Tokenizing the next batch while the device computes hides its time.
        is_last = self.step + 1 == self.config.steps
        following = batch if is_last else self.batches.at(self.step + 1, self.device)
        counts = values.new_tensor([batch.num_pairs, batch.num_tokens]) * self.engine.world_size
        # The only wait of a step.
        values = self.engine.mean(torch.cat((values, norm.detach().to(values)[None], counts)))
        loss, contrastive_loss, lm_loss, accuracy, norm_value, pairs, tokens = values.tolist()
        self._check_finite(loss, contrastive_loss, lm_loss, norm_value)
        self.engine.update(self.optimizer)
        self.step += 1
        self.tokens += round(tokens)
        record = {
            "step": self.step,
            "loss": loss,
            "contrastive_loss": contrastive_loss,
            "lm_loss": lm_loss,
            "accuracy": accuracy,
            "learning_rate": learning_rate,
            "pairs": round(pairs),
            "tokens": round(tokens),
            "seconds": time.perf_counter() - started,
        }
        return record | self._optional_values(), following

    def _backward(self, batch: StepBatch) -> Tensor:
        """Leaves the gradients; (4,): loss, contrastive loss, next-token loss, accuracy."""
        lm = batch.lm
        if lm is None and self.engine.world_size > 1 and self.config.lm_weight > 0:
            lm = no_text(self.device)  # another rank may have texts, and must not wait for this one
        sizes = {
            "chunk_size": self.config.chunk_size,
            "lm_chunk_size": self.config.lm_chunk_size or self.config.chunk_size,
        }
        if self._is_chunked(**sizes):
            batch = batch._replace(lm=lm)
            output = chunked_backward(self.alignment, self.passes, batch, self.engine, **sizes)
        else:
            inputs = (batch.source, batch.target, batch.negatives, lm)
            with self.engine.autocast():
                same = {"ids": batch.ids, "negative_ids": batch.negative_ids}
                output = self.passes("forward", *inputs, **same)
            self.engine.backward(output.loss)
        values = (output.loss, output.contrastive_loss, output.lm_loss, output.stats.accuracy)
        return torch.stack([value.detach().double() for value in values])

    def _is_chunked(self, chunk_size: int | None, lm_chunk_size: int | None) -> bool:
        """Whether the largest share of a rank needs more than one pass: the same on every rank."""
        batches, ranks = self.batches, self.engine.world_size
        sizes = ((batches.batch_size, chunk_size), (batches.lm_batch_size, lm_chunk_size))
        return any(size is not None and -(-rows // ranks) > size for rows, size in sizes)

    def _check_finite(
        self, loss: float, contrastive_loss: float, lm_loss: float, norm: float
    ) -> None:
        if math.isfinite(loss) and (math.isfinite(norm) or self.engine.may_overflow()):
            return
        indices = self.pair_indices(self.step)
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise NotFiniteError(
            f"align: step {self.step + 1} is not finite: loss {loss} (contrastive "
            f"{contrastive_loss}, next-token {lm_loss}), gradient norm {norm}; the weights are "
            "those before this step. Lower the learning rate, or look for extreme weights; its "
            f"pairs were {shown} (counted from 0)"
        )

    def _optional_values(self) -> Record:
        """What a record holds with some settings only."""
        values: Record = {}
        if self.config.learn_temperature:
            values["temperature"] = float(torch.as_tensor(self.alignment.temperature).detach())
        if self.engine.scaler.is_enabled():
            values["loss_scale"] = self.engine.scaler.get_scale()
        if self.config.pretraining_tokens is not None:
            values["pretraining_share"] = self.tokens / self.config.pretraining_tokens
        return values

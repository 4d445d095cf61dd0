"""What a step needs of the machine: device, arithmetic, and the other ranks of the run.

An Engine is one process on its own; AccelerateEngine (accelerate.py) has other ranks, and
DeepSpeedEngine (deepspeed.py) shares weights and moments with them as ZeRO does. choice.py, above
all three, says which of them a process gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossalign.alignment.engines.combinations import Strategy
from crossalign.alignment.engines.sharded_state import load_shards
from crossalign.alignment.model import AlignmentModel
from crossalign.models.gradient_in_place import RowGradients

LARGEST_GRADIENT_NORM = 1.0
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ModelCalls(nn.Module):
    """Every pass through the language model is a forward of this module, which is what
    DistributedDataParallel and FSDP wrap and watch."""

    def __init__(self, alignment: AlignmentModel) -> None:
        super().__init__()
        self.alignment = alignment

    def forward(self, call: str | Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """A method of the alignment model by its name, or any function that runs the model."""
        method = getattr(self.alignment, call) if isinstance(call, str) else call
        if not self.alignment.adds_to_grad:
            return method(*args, **kwargs)
        model: Any = self.alignment.model
        with RowGradients(model.get_input_embeddings().weight):
            return method(*args, **kwargs)


class Engine:
    """One process. Its methods do on one rank what AccelerateEngine's do on several.

    Attributes:
        rank, world_size: of this run; is_main: whether this rank writes files.
        group: of all ranks, for the losses; None: one process.
        device: where this rank computes.
        scaler: of fp16's gradients; switched off otherwise.
    """

    rank = 0
    world_size = 1
    group: dist.ProcessGroup | None = None
    strategy: Strategy = "single"
    shards_optimizer = False  # whether each rank saves its own part of the moments

    def __init__(self, device: torch.device, precision: str) -> None:
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" else "fp32"
        self.device = device
        self.dtype = AUTOCAST[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def place(self, module: nn.Module) -> nn.Module:
        """On the rank's device, unless prepare puts it there part by part."""
        return module.to(self.device)

    def prepare(self, alignment: AlignmentModel) -> nn.Module:
        """The passes through the model, wrapped so that gradients are averaged over ranks."""
        # A GPU has the bandwidth for gradients formed whole, and would wait to know the rows.
        alignment.adds_to_grad = self.device.type == "cpu" and _has_plain_embedding(alignment)
        return ModelCalls(alignment)

    def chunk_passes(self, passes: nn.Module) -> nn.Module:
        """The same for chunks, after the last of which average_gradients must be called."""
        return passes

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """After the chunks of a step: each parameter's mean over ranks, where not yet formed."""

    def optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> Any:
        """AdamW without weight decay, after prepare."""
        # One pass over weights and moments; on a CPU not tested with sharded ones.
        is_fused = self.device.type == "cuda" or (
            self.device.type == "cpu" and not self.shards_optimizer
        )
        return torch.optim.AdamW(parameters, learning_rate, weight_decay=0.0, fused=is_fused)

    def max_over_ranks(self, count: int) -> int:
        """How many passes a rank must make whose ranks only run together; else its own count."""
        return count

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """As outside of any autocast: it would change the dtype of the backward's products."""
        with torch.autocast(self.device.type, enabled=False):
            torch.autograd.backward(self.scaler.scale(loss))

    def clip(self, optimizer: Any, parameters: Sequence[Tensor]) -> Tensor:
        """() float32: the gradients' norm before they were clipped to norm 1.

        Where it can, the update divides by what is set here, which saves a pass.
        """
        self.scaler.unscale_(optimizer)
        gradients = [each.grad for each in parameters if each.grad is not None]
        can_divide = optimizer.defaults.get("fused") and not self.shards_optimizer
        can_divide = can_divide and not self.scaler.is_enabled()
        if not can_divide or any(each.dtype != torch.float32 for each in gradients):
            return nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT_NORM)
        norm = nn.utils.get_total_norm(gradients)
        # The inverse of clip_grad_norm_'s factor.
        divisor = ((norm + 1e-6) / LARGEST_GRADIENT_NORM).clamp(min=1.0)
        optimizer.grad_scale = divisor.float()
        return norm

    def may_overflow(self) -> bool:
        """Whether gradients that are not finite only ask for a smaller scale."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def update(self, optimizer: Any) -> None:
        """One step of the optimizer; none where fp16 gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.grad_scale = None
        optimizer.zero_grad()

    def mean(self, values: Tensor) -> Tensor:
        """Over ranks."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every rank."""
        return [value]

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Whole weights for the main rank; None: those the model holds."""
        return None

    def optimizer_state(self, alignment: nn.Module, optimizer: Any) -> dict[str, Any]:
        """Whole on the main rank."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state(self, alignment: nn.Module, optimizer: Any, state: Any) -> None:
        optimizer.load_state_dict(state)
        _update_as_here(optimizer)

    def save_shards(self, alignment: nn.Module, optimizer: Any, folder: Path) -> None:
        """Where shards_optimizer is set: this rank's part of the moments, into the folder."""
        raise NotImplementedError

    def load_shards(self, alignment: nn.Module, optimizer: Any, folder: Path) -> None:
        """What any number of ranks saved with save_shards, as this rank needs it."""
        load_shards(alignment, optimizer, folder)
        _update_as_here(optimizer)


def _update_as_here(optimizer: Any) -> None:
    """In one pass or in several: not as where its state comes from, on another device maybe."""
    for group in optimizer.param_groups:
        group["fused"] = optimizer.defaults["fused"]


def _has_plain_embedding(alignment: AlignmentModel) -> bool:
    """Whether tokens are looked up in a trained nn.Embedding, which adapters do not wrap."""
    model: Any = alignment.model
    embedding = model.get_input_embeddings()
    return isinstance(embedding, nn.Embedding) and embedding.weight.requires_grad

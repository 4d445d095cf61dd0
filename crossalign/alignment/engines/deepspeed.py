"""Several ranks under DeepSpeed, as `accelerate launch` asks for it: ZeRO-2 or ZeRO-3, with what
they keep on the CPU.

The trainer's steps stay as they are. Each of their passes is a forward of DeepSpeed's engine, each
backward adds to the partitions of the gradients, and an update ends the step.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.accelerate import AccelerateEngine
from crossalign.alignment.engines.combinations import Strategy
from crossalign.alignment.engines.deepspeed_settings import deepspeed_settings
from crossalign.alignment.engines.one_process import ModelCalls
from crossalign.alignment.engines.zero_state import (
    flat_partitions,
    gather_optimizer_state,
    spread_optimizer_state,
)
from crossalign.alignment.model import AlignmentModel

_SWITCH = "ACCELERATE_USE_DEEPSPEED"
_OLDER_NAMES = r".torch\.distributed\.(all_gather_into|reduce_scatter)_tensor. is deprecated"


class DeepSpeedEngine(AccelerateEngine):
    """One rank of several; see Engine."""

    def __init__(self, config: TrainingConfig, strategy: Strategy) -> None:
        # accelerate starts the process group, prepare starts DeepSpeed with checked settings.
        asked_for = os.environ.pop(_SWITCH, "true")
        try:
            super().__init__(config, strategy)
        finally:
            os.environ[_SWITCH] = asked_for
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)  # else it takes a GPU it sees
        self.settings = deepspeed_settings(config)
        self.learning_rate = config.learning_rate
        self.trained: list[nn.Parameter] = []
        self.zero: Any = None

    def place(self, module: nn.Module) -> nn.Module:
        return module if self._shares_weights else super().place(module)

    @property
    def _shares_weights(self) -> bool:
        stage: int = self.settings["zero_optimization"]["stage"]
        return stage == 3

    def prepare(self, alignment: AlignmentModel) -> nn.Module:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().device_name() != self.device.type:
            raise ValueError(
                f"align: DeepSpeed runs on {get_accelerator().device_name()}, but device is "
                f"{self.device.type}; set DS_ACCELERATOR={self.device.type}"
            )
        # PyTorch would say with every step that DeepSpeed calls two collectives by older names.
        warnings.filterwarnings("ignore", _OLDER_NAMES, FutureWarning)
        # For the CPU DeepSpeed would compile an all-reduce of its own; gloo has one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        passes = ModelCalls(alignment)
        if self._shares_weights:  # one parameter at a time: the GPU never holds the whole model
            deepspeed.zero.Init(module=passes, config_dict_or_path=self.settings)
            for buffer in passes.buffers():
                buffer.data = buffer.data.to(self.device)
        self.trained = [each for each in passes.parameters() if each.requires_grad]
        optimizer = super().optimizer(self.trained, self.learning_rate)
        engine, self.zero, *_ = deepspeed.initialize(
            model=passes, optimizer=optimizer, config=self.settings
        )
        if self._shares_weights:
            # The next-token loss reads them outside of the head's own forward.
            model: Any = alignment.model
            head = model.get_output_embeddings()
            for parameter in head.parameters() if head is not None else ():
                deepspeed.zero.register_external_parameter(engine.module, parameter)
        return _DeepSpeedCalls(engine, self)

    def optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> Any:
        return self.zero

    def autocast(self) -> AbstractContextManager[Any]:
        # Cached copies of the weights would be the whole model on every rank.
        return torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype is not None, cache_enabled=False
        )

    def clip(self, optimizer: Any, parameters: Sequence[Tensor]) -> Tensor:
        """As Engine.clip, but the clipping itself is done by the update, with this norm."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        optimizer.finalize_gradient_accumulation_boundary()
        if self._shares_weights:
            norm = combine_grad_norm_groups(optimizer._get_norm_groups())
        else:
            norm = optimizer.scaled_global_norm()
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.device)
        return torch.where(norm < 0, torch.inf, norm)  # how DeepSpeed says that it is not finite

    def update(self, optimizer: Any) -> None:
        optimizer.step()
        optimizer.zero_grad()
        # A parameter that the first backward of a step does not reach is added to by a later one,
        # and DeepSpeed leaves the last step's gradient there.
        stale = [flat.grad for flat in flat_partitions(optimizer)]
        stale += [getattr(optimizer, "grad_partitions_flat_buffer", None)]
        stale += getattr(optimizer, "accumulated_grads_in_cpu", {}).values()
        for gradient in stale:
            if gradient is not None:
                gradient.zero_()

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        from deepspeed.runtime.zero import GatheredParameters

        whole: dict[str, Tensor] = {}
        copies: dict[int, Tensor] = {}  # tied weights stay one tensor
        for name, tensor in model.state_dict(keep_vars=True).items():
            with GatheredParameters(tensor):
                if self.is_main and id(tensor) not in copies:
                    copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
            if self.is_main:
                whole[name] = copies[id(tensor)]
        return whole

    def optimizer_state(self, alignment: nn.Module, optimizer: Any) -> dict[str, Any]:
        return gather_optimizer_state(optimizer, self.trained, is_main=self.is_main)

    def load_optimizer_state(self, alignment: nn.Module, optimizer: Any, state: Any) -> None:
        spread_optimizer_state(optimizer, self.trained, state)


class _DeepSpeedCalls(nn.Module):
    """ModelCalls through DeepSpeed's engine, which would switch off an autocast it did not open."""

    def __init__(self, engine: Any, own: DeepSpeedEngine) -> None:
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        super().__init__()
        self.engine = engine
        self.own = own
        self.running = FWD_MODULE_STACK  # modules whose forward ZeRO-3 believes to be running
        self.depth = len(FWD_MODULE_STACK)

    def forward(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        alignment = self.engine.module.alignment

        def run() -> Any:
            with self.own.autocast():
                method = getattr(alignment, call) if isinstance(call, str) else call
                return method(*args, **kwargs)

        # Sentences leave modules before their end, and so does the forward of checkpointed blocks.
        del self.running[self.depth :]
        with torch.autocast(self.own.device.type, enabled=False):
            return self.engine(call=run)

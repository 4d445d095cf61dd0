"""Several ranks, as torchrun or `accelerate launch` started them: DDP, or FSDP2.

accelerate reads the launcher's settings, joins the other ranks and wraps the model for DDP. FSDP2
is applied here, block by block, since a pass may leave the model after any block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.tensor import DTensor

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.combinations import Strategy, check_combination
from crossalign.alignment.engines.one_process import Engine, ModelCalls
from crossalign.alignment.engines.sharded_state import save_shards
from crossalign.alignment.model import AlignmentModel
from crossalign.models.hidden_states import find_blocks
from crossalign.models.loading import choose_device

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class AccelerateEngine(Engine):
    """One rank of several; see Engine."""

    def __init__(self, config: TrainingConfig, strategy: Strategy) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        device_type = choose_device(config.device).type
        check_combination(config, strategy, device_type)
        # Without the next-token loss, the blocks past the aligned layer get no gradient.
        wrapping = DistributedDataParallelKwargs(find_unused_parameters=config.lm_weight == 0)
        self.accelerator = Accelerator(
            mixed_precision="no",  # config.precision decides, in autocast
            cpu=device_type == "cpu",
            kwargs_handlers=[wrapping],
        )
        super().__init__(self.accelerator.device, config.precision)
        self.strategy = strategy
        self.shards_optimizer = strategy == "fsdp2"
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.group.WORLD

    def prepare(self, alignment: AlignmentModel) -> nn.Module:
        passes = ModelCalls(alignment)
        if self.strategy == "ddp":
            wrapped: nn.Module = self.accelerator.prepare_model(passes)
            return wrapped
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        plugin = self._fsdp_plugin()
        options = {
            "mesh": init_device_mesh(self.device.type, (self.world_size,)),
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_policy": plugin.cpu_offload,
        }
        for block in find_blocks(alignment.model)[1]:
            fully_shard(block, **options)
        fully_shard(passes, **options)
        return passes

    def _fsdp_plugin(self) -> Any:
        from accelerate import FullyShardedDataParallelPlugin

        return FullyShardedDataParallelPlugin()  # from the launcher's environment

    def chunk_passes(self, passes: nn.Module) -> nn.Module:
        """DDP's own reduction is left out: chunks would reduce once each, ranks may have more of
        them than others, and a chunk of sentences does not reach every block."""
        module: Any = passes
        return module.module if self.strategy == "ddp" else module  # type: ignore[no-any-return]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.strategy != "ddp":
            return  # FSDP reduces, and frees, with every chunk
        parameters = list(parameters)
        used = torch.tensor([each.grad is not None for each in parameters], device=self.device)
        used = used.to(torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        waits = []
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if is_used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad /= self.world_size
                waits.append(dist.all_reduce(parameter.grad, async_op=True))
        for wait in waits:
            wait.wait()

    def max_over_ranks(self, count: int) -> int:
        if self.strategy == "ddp":
            return count
        largest = torch.tensor(count, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def clip(self, optimizer: Any, parameters: Sequence[Tensor]) -> Tensor:
        norm = super().clip(optimizer, parameters)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def mean(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def all_gather_object(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        if not self.shards_optimizer:
            return None
        whole: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
        return whole

    def optimizer_state(self, alignment: nn.Module, optimizer: Any) -> dict[str, Any]:
        return {} if self.shards_optimizer else super().optimizer_state(alignment, optimizer)

    def save_shards(self, alignment: nn.Module, optimizer: Any, folder: Path) -> None:
        save_shards(alignment, optimizer, folder)

"""AdamW's moments under ZeRO, gathered into the state_dict that one process has, and spread again.

So a run may go on with another number of ranks, another ZeRO stage, or without DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather_optimizer_state(
    zero: Any, parameters: Sequence[nn.Parameter], *, is_main: bool
) -> dict[str, Any]:
    """What state_dict() of an AdamW over these parameters would hold; whole on the main rank.

    zero: DeepSpeed's optimizer, stage 2 or 3. All ranks must call it: one moment of one parameter
    at a time is whole on the device.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    inner = zero.optimizer
    options = {name: value for name, value in inner.param_groups[0].items() if name != "params"}
    groups = [{**options, "params": list(range(len(parameters)))}]
    state: dict[int, dict[str, Tensor]] = {}
    first = inner.state.get(flat_partitions(zero)[0])
    for index, parameter in enumerate(parameters if first else ()):
        moments = {}
        for name in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, name)
            if is_main:
                moments[name] = whole.cpu()
        state[index] = {"step": first["step"].cpu().clone(), **moments}
    return {"state": state, "param_groups": groups}


def spread_optimizer_state(
    zero: Any, parameters: Sequence[nn.Parameter], state: dict[str, Any]
) -> None:
    """Gives each rank its part of what gather_optimizer_state, or one process, had."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    entries = state["state"]
    if not entries:
        return
    steps = max(float(entry["step"]) for entry in entries.values())
    for flat in flat_partitions(zero):
        is_fused = bool(zero.optimizer.param_groups[0]["fused"])
        step = torch.tensor(steps, device=flat.device if is_fused else None)
        empty = {name: torch.zeros_like(flat, requires_grad=False) for name in MOMENTS}
        zero.optimizer.state[flat] = {"step": step, **empty}
    if not is_stage_3(zero):
        zero._hp_optimizer_states_linked = False  # else as before the first update
        zero._lazy_init_hp_params_optimizer_state()
    for index, parameter in enumerate(parameters):
        for name in MOMENTS if index in entries else ():
            whole = entries[index][name]
            if is_stage_3(zero):
                part = _own_part(parameter, whole)
                safe_set_local_optimizer_state(parameter, part, name)
            else:
                safe_set_full_optimizer_state(parameter, whole, name)


def flat_partitions(zero: Any) -> list[Tensor]:
    """This rank's part of the weights, in one tensor or several: what AdamW updates."""
    name = "fp32_partitioned_groups_flat" if is_stage_3(zero) else "single_partition_of_fp32_groups"
    flat: list[Tensor] = getattr(zero, name)
    return flat


def is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _own_part(parameter: Any, whole: Tensor) -> Tensor:
    """ZeRO-3 gives each rank an equal part of each parameter, the last ones padded with zeros."""
    size = parameter.ds_tensor.numel()
    start = dist.get_rank() * size
    part = whole.flatten()[start : start + size]
    return torch.cat([part, part.new_zeros(size - part.numel())])

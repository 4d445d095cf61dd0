"""The launcher's DeepSpeed settings: what of them is taken, what is set here, what is refused.

Losses, arithmetic, clipping, optimizer and schedule are the trainer's own and those of one process;
DeepSpeed decides only where weights, gradients and moments lie and how they travel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.one_process import LARGEST_GRADIENT_NORM

_ZERO = "zero_optimization"
# These settings do not change results: they set message sizes, data placement, and reporting.
_FREE = {"steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer"}
_FREE_ZERO = {
    *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm"),
    *("reduce_bucket_size", "reduce_scatter", "stage3_gather_16bit_weights_on_model_save"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "sub_group_size"),
}
_HALVES = ("fp16", "bf16", "amp", "torch_autocast")
_OFFLOADS = ("offload_optimizer", "offload_param")
_CHECKED = ("stage", "round_robin_gradients")
_OWN = {
    "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it, and scales nothing by it
    "gradient_accumulation_steps": 1,
    "gradient_clipping": LARGEST_GRADIENT_NORM,
    # A backward never ends a step by itself: the step has several, and ends when it is told to.
    "managed_gradient_accumulation": False,
    # PyTorch's AdamW also updates what is offloaded, so that nothing is compiled on first use.
    "zero_force_ds_cpu_optimizer": False,
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
}


def deepspeed_settings(config: TrainingConfig) -> dict[str, Any]:
    """For deepspeed.initialize, from the environment that `accelerate launch` gives its processes.

    Raises:
        ValueError: a setting that contradicts the trainer's, or one that no test covers, by name.
    """
    from accelerate import DeepSpeedPlugin

    given = copy.deepcopy(DeepSpeedPlugin().deepspeed_config)
    for reason in _contradictions(given):
        raise ValueError(f"align: DeepSpeed's {reason}")
    if not config.allow_untested:
        for name in _untested(given):
            raise ValueError(
                f"align: DeepSpeed's {name} is not tested (docs/parallelism.md); "
                "--allow-untested runs it"
            )
    given.pop("train_batch_size", None)
    # "auto" leaves a choice to the caller, who leaves it to DeepSpeed.
    given[_ZERO] = {name: value for name, value in given[_ZERO].items() if value != "auto"}
    return {**given, **copy.deepcopy(_OWN)}


def _contradictions(given: dict[str, Any]) -> Iterator[str]:
    stage = given[_ZERO].get("stage")
    if stage not in (2, 3):
        yield f"{_ZERO}.stage must be 2 or 3, got {stage}"
    if _is_on(given[_ZERO].get("round_robin_gradients", False)):
        # DeepSpeed 0.19.8 trains rightly with it, but hands out moments of other parameters.
        yield f"{_ZERO}.round_robin_gradients must be false: no checkpoint could be formed"
    for name in ("optimizer", "scheduler"):
        if name in given:
            yield f"{name} must be left out: AdamW and its schedule are those of --learning-rate"
    for name in _HALVES:
        if _is_on(given.get(name, {}).get("enabled", False)):
            yield f"{name}.enabled must be false or auto: --precision decides, weights are float32"
    if given.get("communication_data_type") not in (None, "fp32"):
        yield (
            "communication_data_type must be fp32 or left out, got "
            f"{given['communication_data_type']!r}: gradients are averaged as one process sums them"
        )
    for name, own, instead in (
        ("gradient_accumulation_steps", 1, "--chunk-size takes its place"),
        ("gradient_clipping", LARGEST_GRADIENT_NORM, "gradients are clipped to that norm"),
        ("train_batch_size", "auto", "--batch-size decides"),
        ("train_micro_batch_size_per_gpu", "auto", "--batch-size and --chunk-size decide"),
    ):
        if given.get(name, own) not in (own, "auto"):
            yield f"{name} must be {own} or left out, got {given[name]}: {instead}"


def _untested(given: dict[str, Any]) -> Iterator[str]:
    known = {*_FREE, *_OWN, *_HALVES, _ZERO, "train_batch_size", "communication_data_type"}
    yield from sorted(given.keys() - known)
    zero = given[_ZERO]
    yield from (f"{_ZERO}.{n}" for n in sorted(zero.keys() - {*_FREE_ZERO, *_OFFLOADS, *_CHECKED}))
    for name in _OFFLOADS:
        offload = zero.get(name) or {}
        if offload.get("device") not in (None, "none", "cpu"):
            yield f"{_ZERO}.{name}.device {offload['device']}"
        extra = {key for key, value in offload.items() if value is not None}
        yield from (f"{_ZERO}.{name}.{each}" for each in sorted(extra - {"device", "pin_memory"}))


def _is_on(value: Any) -> bool:
    return str(value).lower() not in ("false", "auto")

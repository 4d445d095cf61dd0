"""Which backend runs a call: the kernels have every option but a few, which PyTorch's passes do."""

from __future__ import annotations

from crossalign.backends import choose_backend
from crossalign.contrastive.options import LossArguments

_NAME = "fused_contrastive_loss"


def takes_triton(arguments: LossArguments) -> bool:
    """Raises where backend="triton" is asked for and cannot run the tensors or an option."""
    options = arguments.options
    use_triton = choose_backend(_NAME, options.backend, arguments.query) == "triton"
    lacking = _option_without_kernel(arguments)
    if use_triton and lacking and options.backend == "triton":
        raise ValueError(
            f'{_NAME}: backend="triton" has no kernel for {lacking}; use backend="auto" or "torch"'
        )
    return use_triton and not lacking


def _option_without_kernel(arguments: LossArguments) -> str:
    options = arguments.options
    further = [name for name in options.directions if name in ("query_to_query", "key_to_key")]
    asked = {
        "directions": bool(further),
        "false_negative_margin": options.false_negative_margin is not None,
        "hardness": options.hardness != 0,
        "label_smoothing": options.label_smoothing != 0,
        "debias": options.is_debiased,
        "exclude_self": options.exclude_self,
        "key_ids": arguments.key_ids is not None,
        "guide_query": arguments.guide_query is not None,
    }
    return next((name for name, is_asked in asked.items() if is_asked), "")

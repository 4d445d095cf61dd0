"""How this process was started: what torchrun and accelerate say in the environment."""

from __future__ import annotations

import os

from crossalign.alignment.engines.combinations import Strategy


def launched_strategy() -> Strategy:
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        return "deepspeed"
    if _is_set("ACCELERATE_USE_FSDP"):
        return "fsdp2" if os.environ.get("FSDP_VERSION") == "2" else "fsdp1"
    return "ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "single"


def is_main_process() -> bool:
    """Known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_node() -> bool:
    """Of the ranks on one machine, which read the same files."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")

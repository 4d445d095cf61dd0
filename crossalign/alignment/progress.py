"""The live line of a run: both losses, accuracy, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def progress_bar(steps: int, done: int, progress: bool) -> Any:
    """A tqdm bar, shown where standard error is a terminal, or nowhere."""
    from tqdm.auto import tqdm

    return tqdm(
        total=steps, initial=done, desc="align", unit="step", disable=None if progress else True
    )


def show(bar: Any, record: Mapping[str, float], device: torch.device) -> None:
    """One step further, with the values of its record."""
    if not bar.disable:
        bar.set_postfix(summary(record, device))
    bar.update()


def summary(record: Mapping[str, float], device: torch.device) -> dict[str, str]:
    """The values worth watching, formatted. Speed is that of this step."""
    values = {
        "contrastive": f"{record['contrastive_loss']:.3f}",
        "lm": f"{record['lm_loss']:.3f}",
        "accuracy": f"{record['accuracy']:.1%}",
        "pairs/s": f"{record['pairs'] / record['seconds']:.0f}",
        "tokens/s": f"{record['tokens'] / record['seconds']:.0f}",
        "memory": f"{peak_memory_gib(device):.1f}GiB",
    }
    if "pretraining_share" in record:
        values["pretraining"] = f"{1000 * record['pretraining_share']:.3f}‰"
    return values


def peak_memory_gib(device: torch.device) -> float:
    """Largest so far: of PyTorch on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux

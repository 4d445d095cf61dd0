"""What a run tells while it goes on: its sizes, then losses, accuracy, speed and memory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import torch

from crossalign.alignment.config import TrainingConfig

LINE_EVERY_S = 30.0  # where no live line can be shown


class Progress:
    """A live line where standard error is a terminal, else a line of its own every half minute."""

    def __init__(self, steps: int, done: int, *, shown: bool) -> None:
        from tqdm.auto import tqdm

        self.steps, self.shown = steps, shown
        self.bar = tqdm(
            total=steps, initial=done, desc="align", unit="step", disable=None if shown else True
        )
        self.last_line = time.monotonic()

    def show(self, record: Mapping[str, float], device: torch.device) -> None:
        """One step further, with the values of its record."""
        if not self.bar.disable:
            self.bar.set_postfix(summary(record, device))
        elif self.shown and time.monotonic() - self.last_line >= LINE_EVERY_S:
            values = ", ".join(f"{name} {text}" for name, text in summary(record, device).items())
            print(f"step {record['step']} of {self.steps}: {values}", file=sys.stderr, flush=True)
            self.last_line = time.monotonic()
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def sizes_line(config: TrainingConfig, batch_size: int, lm_batch_size: int, ranks: int) -> str:
    """The sizes of a batch by name, and the loss of a model that has not learned anything yet."""
    per_rank = f" ({math.ceil(batch_size / ranks)} on each of {ranks} ranks)" if ranks > 1 else ""
    chunks = _chunks("sentences", config.chunk_size)
    texts = f"{lm_batch_size} texts" if lm_batch_size else "no texts"
    lm_chunks = _chunks("texts", config.lm_chunk_size) if lm_batch_size else ""
    plural = "s" if len(config.layers) > 1 else ""
    return (
        f"batch: {batch_size} pairs{per_rank}{chunks}, {texts}{lm_chunks}; aligned layer{plural}: "
        f"{', '.join(map(str, config.layers))}; chance-level contrastive loss: "
        f"ln {batch_size} = {math.log(batch_size):.2f}"
    )


def _chunks(what: str, size: int | None) -> str:
    return "" if size is None else f", {size} {what} in a pass"


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

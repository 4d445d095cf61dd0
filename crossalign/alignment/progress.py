"""What a run tells while it goes on: its sizes, then losses, accuracy, speed and memory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import torch

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.live_line import LiveLine

LINE_EVERY_S = 30.0  # where no live line can be shown


class Progress:
    """A live line where standard error is a terminal, else a line of its own every half minute."""

    def __init__(self, steps: int, done: int, *, shown: bool) -> None:
        self.steps, self.done, self.shown = steps, done, shown
        self.started = self.last_line = time.monotonic()
        self.live = LiveLine() if shown and sys.stderr.isatty() else None

    def show(self, record: Mapping[str, float], device: torch.device) -> None:
        """The values of a step's record."""
        if not self.shown:
            return
        now = time.monotonic()
        made = record["step"] - self.done
        left = (self.steps - record["step"]) * (now - self.started) / max(made, 1)
        parts = summary(record, device, left)
        if self.live is not None:
            self.live.show([f"{record['step']}/{self.steps}", *parts])
        elif now - self.last_line >= LINE_EVERY_S:
            told = f"step {record['step']} of {self.steps}: {', '.join(parts)}"
            print(told, file=sys.stderr, flush=True)
            self.last_line = now

    def close(self) -> None:
        if self.live is not None:
            self.live.close()


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


def summary(record: Mapping[str, float], device: torch.device, left_s: float) -> list[str]:
    """The values worth watching, the most important first. Speed is that of this step."""
    parts = [
        f"contrastive {record['contrastive_loss']:.3f}",
        f"lm {record['lm_loss']:.3f}",
        f"accuracy {record['accuracy']:.0%}",
        f"{duration(left_s)} left",
        f"{rate(record['pairs'] / record['seconds'])} pairs/s",
        f"{peak_memory_gib(device):.1f} GiB",
        f"{rate(record['tokens'] / record['seconds'])} tokens/s",
    ]
    if "pretraining_share" in record:
        parts.append(f"pretraining {1000 * record['pretraining_share']:.3f}‰")
    return parts


def rate(value: float) -> str:
    """Two digits at least: 0.058, 1.9, 29, 4107."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 2:41:10."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def peak_memory_gib(device: torch.device) -> float:
    """Largest so far: of PyTorch on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux

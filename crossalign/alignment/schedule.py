"""The learning rate of each step."""

from __future__ import annotations

import math

from crossalign.alignment.config import TrainingConfig

WARM_UP_SHARE = 0.03


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Of the update after `step` earlier ones: a linear rise to the peak, then half a cosine."""
    warm_up = math.ceil(WARM_UP_SHARE * config.steps)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    progress = (step - warm_up) / (config.steps - warm_up)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

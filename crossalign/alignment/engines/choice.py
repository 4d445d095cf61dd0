"""Which engine a process gets: the one module that knows all of them."""

from __future__ import annotations

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.combinations import check_combination
from crossalign.alignment.engines.launch import launched_strategy
from crossalign.alignment.engines.one_process import Engine
from crossalign.models.loading import choose_device


def choose_engine(config: TrainingConfig) -> Engine:
    """What the launcher of this process asks for: torchrun and accelerate say it in the
    environment; without them one process.

    Raises:
        ValueError: a combination that does not work or is not tested, with the reason.
    """
    strategy = launched_strategy()
    if strategy == "single":
        device = choose_device(config.device)
        check_combination(config, strategy, device.type)
        return Engine(device, config.precision)
    if strategy == "deepspeed":
        # Imported where it is needed: a single process needs neither of the two.
        from crossalign.alignment.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(config, strategy)
    from crossalign.alignment.engines.accelerate import AccelerateEngine

    return AccelerateEngine(config, strategy)

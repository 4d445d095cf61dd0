"""How a step runs: one process, accelerate, or DeepSpeed."""

__all__: list[str] = []

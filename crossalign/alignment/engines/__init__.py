"""How a step runs: one process, accelerate, or DeepSpeed."""

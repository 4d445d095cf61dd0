"""The contrastive loss in plain PyTorch, a chunk of rows of logits at a time."""

from __future__ import annotations

__all__: list[str] = []

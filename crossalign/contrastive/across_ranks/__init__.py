"""The contrastive loss of a batch spread over a process group."""

__all__: list[str] = []

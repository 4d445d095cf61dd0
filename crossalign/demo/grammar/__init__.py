"""The grammar that writes the demo corpus in four languages."""

__all__: list[str] = []

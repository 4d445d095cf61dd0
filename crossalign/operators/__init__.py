"""Registered operators: the helper that registers them, and who watches or transforms a call."""

__all__: list[str] = []

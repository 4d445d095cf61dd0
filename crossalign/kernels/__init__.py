"""Triton kernels and their launchers; imported only when a call runs on the Triton backend."""

__all__: list[str] = []

"""Triton kernels and their launchers; imported only when a call runs on the Triton backend."""

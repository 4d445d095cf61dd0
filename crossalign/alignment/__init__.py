"""Aligning a causal language model: configuration, data, loop, checkpoint."""

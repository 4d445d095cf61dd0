"""Embeddings and agreement across the ranks of a process group."""

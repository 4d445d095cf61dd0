"""Evaluation tasks: items, release files, hub data sets and prompts."""

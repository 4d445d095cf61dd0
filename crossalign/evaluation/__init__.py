"""Measuring whether languages came together."""

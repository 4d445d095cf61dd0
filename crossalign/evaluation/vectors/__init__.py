"""Measures of sentence vectors: retrieval, margin, geometry, projection."""

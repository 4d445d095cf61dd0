"""Sentence vectors from token vectors."""

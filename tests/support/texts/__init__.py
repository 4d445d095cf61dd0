"""Sentences that tests share."""

"""Keeps other libraries quiet, so that a command's own words are read."""

from __future__ import annotations

import logging
import sys


def quiet_transformers() -> None:
    """No bars where nobody watches, no warning of every retry, which would bury the one line that
    tells what failed, and nothing of DeepSpeed where it is merely installed."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_no_word_on_cpus)


def _is_no_word_on_cpus(record: logging.LogRecord) -> bool:
    """Transformers imports DeepSpeed to save a model, which says on standard output that there is
    no GPU."""
    return not record.getMessage().startswith("Setting accelerator to CPU")

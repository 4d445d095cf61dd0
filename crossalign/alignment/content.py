"""What a run reads, by content: kept with each checkpoint, compared when the run goes on.

    checkpoints/step-500/content.json: {"pairs": SHA-256, "texts": ..., "evaluation": ...}

Files may move while a run stands still. What they hold may not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from crossalign.alignment.train import AlignmentRun
from crossalign.data.indexed_data import data_fingerprint
from crossalign.files.text import DataError

CONTENT_FILE = "content.json"
_NAMES = {
    "pairs": "the pairs (--pairs), or their languages,",
    "texts": "the texts for the next-token loss (--lm-data)",
    "evaluation": "the evaluation data (--evaluate-pairs, --evaluate-data)",
    "model": "the weights of the base model (--model)",
}


def content_of(run: AlignmentRun) -> dict[str, str]:
    """Of the run's training data."""
    batches = run.batches
    return {"pairs": data_fingerprint(batches.pairs), "texts": data_fingerprint(batches.lm_items)}


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the parameters by their names: that of the model, wherever its files are."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        weights = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}\n".encode())
        digest.update(weights.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_content(path: Path, found: Mapping[str, str]) -> None:
    """Compares what a run finds now with what a checkpoint says of it.

    Raises:
        DataError: something differs; the message names it.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for name, value in found.items():
        if stored.get(name) != value:
            raise DataError(
                f"{path}: {_NAMES[name]} are not those that this run was trained on; files may "
                "move, but what they hold may not change: name the right ones, or start another "
                "run in a new --output"
            )

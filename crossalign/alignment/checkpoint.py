"""A run's state on disk: a Hugging Face checkpoint, and all that --resume needs beside it.

The state file holds the weights too. So it alone decides where a run goes on, and a save that is
cut off between two files cannot pair the weights of one step with the optimiser of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from crossalign.alignment.train import AlignmentRun
from crossalign.text_files import DataError

STATE_FILE = "training_state.pt"
ASIDE = ".saving."


def save(directory: Path, run: AlignmentRun) -> None:
    """Writes all files aside, then renames them into place, the state last."""
    for abandoned in directory.glob(f"{ASIDE}*"):  # by a run that was killed while it saved
        shutil.rmtree(abandoned)
    aside = Path(tempfile.mkdtemp(dir=directory, prefix=ASIDE))
    try:
        run.language_model.save_pretrained(aside)
        run.tokenizer.save_pretrained(aside)
        names = sorted(path.name for path in aside.iterdir())
        torch.save({**run.state(), "data": _fingerprint(run)}, aside / STATE_FILE)
        for name in [*names, STATE_FILE]:
            os.replace(aside / name, directory / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(directory: Path, run: AlignmentRun) -> None:
    """Takes the run to where it was saved.

    Raises:
        DataError: no usable state, or the state of a run on other data.
    """
    path = directory / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        is_same_data = state.pop("data") == _fingerprint(run)
    except Exception as error:  # torch.load fails in many ways on a damaged file
        raise DataError(f"{path}: not a usable training state: {error}") from error
    if not is_same_data:
        raise DataError(f"{path}: the pairs or items are not those that this run was trained on")
    run.load_state(state)


def _fingerprint(run: AlignmentRun) -> str:
    """SHA-256 of the run's data."""
    digest = hashlib.sha256()
    for row in (*run.batches.pairs, "items", *run.batches.lm_items):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()

"""A run's checkpoints: checkpoints/step-N, each a Hugging Face checkpoint with the training state.

A checkpoint is written aside and renamed as one directory, so one that has its name is complete,
whenever the run was killed. The model files in the run's own directory are links to (or copies of)
those of one checkpoint.

    DIR/checkpoints/step-500: config.json, model.safetensors, tokenizer.json, training_state.pt, ...
    DIR: config.json, model.safetensors, tokenizer.json, ...
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from crossalign.alignment.train import AlignmentRun
from crossalign.data.indexed_data import data_fingerprint
from crossalign.files.text import DataError

FOLDER = "checkpoints"
STATE_FILE = "training_state.pt"
ASIDE = ".saving."


def steps_of(directory: Path) -> list[int]:
    """Of the complete checkpoints of a run's directory, in ascending order."""
    folder = directory / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [re.fullmatch(r"step-(\d+)", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def path_of(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step}"


def save(directory: Path, run: AlignmentRun) -> None:
    """Writes the checkpoint of this step. All ranks must call it; the main one writes.

    Raises:
        OSError: it could not be written (a full disk, say); every earlier one is as it was.
    """
    state = {**run.state(with_weights=False), "data": _fingerprint(run)}
    weights = run.engine.weights(run.language_model)
    error: Exception | None = None
    if run.engine.is_main:
        try:
            _write(directory, run, state, weights)
        except Exception as caught:  # of many kinds, and the other ranks must not wait
            error = caught
    if run.engine.any(error is not None):
        steps = steps_of(directory)
        last = f"the last complete one is {path_of(directory, steps[-1])}" if steps else "none is"
        reason = error or "the main rank failed"
        raise OSError(
            f"{directory}: the checkpoint of step {run.step} cannot be written: {reason}; {last}"
            + ("" if steps else " there yet")
        ) from error


def _write(directory: Path, run: AlignmentRun, state: dict[str, Any], weights: Any) -> None:
    folder, final = directory / FOLDER, path_of(directory, run.step)
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(directory)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=ASIDE))
    try:
        # Embeddings are none of the adapters' business, and "auto" would ask the Hub about them.
        options = {} if run.config.lora_rank is None else {"save_embedding_layers": False}
        run.language_model.save_pretrained(aside, state_dict=weights, **options)
        run.tokenizer.save_pretrained(aside)
        torch.save(state, aside / STATE_FILE)
        aside.chmod(directory.stat().st_mode)  # mkdtemp's are private
        if final.exists():  # of a run that went on from an earlier step, or saved here before
            final.rename(Path(tempfile.mkdtemp(dir=folder, prefix=ASIDE)) / "replaced")
        aside.rename(final)
    finally:
        remove_abandoned(directory)


def remove_abandoned(directory: Path) -> None:
    """What a run left that was killed while it saved."""
    for parent in (directory, directory / FOLDER):
        for abandoned in parent.glob(f"{ASIDE}*"):
            shutil.rmtree(abandoned, ignore_errors=True)


def publish(directory: Path, step: int) -> None:
    """Makes the model of a checkpoint that of the directory, file by file."""
    aside = Path(tempfile.mkdtemp(dir=directory, prefix=ASIDE))
    try:
        for source in sorted(path_of(directory, step).iterdir()):
            if source.is_file() and source.name != STATE_FILE:
                _link_or_copy(source, aside / source.name)
                os.replace(aside / source.name, directory / source.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def prune(directory: Path, keep: Iterable[int]) -> None:
    """Removes the checkpoints of other steps.

    Each is renamed before deletion, so a half-deleted checkpoint never looks complete.
    """
    for step in set(steps_of(directory)) - set(keep):
        doomed = Path(tempfile.mkdtemp(dir=directory / FOLDER, prefix=ASIDE))
        path_of(directory, step).rename(doomed / "pruned")
        shutil.rmtree(doomed)


def load(directory: Path, run: AlignmentRun) -> None:
    """Takes a run to its last checkpoint, whose weights (or adapters) its model must have.

    Raises:
        DataError: no usable state, or the state of a run on other data.
    """
    path = path_of(directory, steps_of(directory)[-1]) / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        is_same_data = state.pop("data") == _fingerprint(run)
    except Exception as error:  # torch.load fails in many ways on a damaged file
        raise DataError(
            f"{path}: not a usable training state: {error}; without {path.parent} the run goes on "
            "from the checkpoint before"
        ) from error
    if not is_same_data:
        raise DataError(f"{path}: the pairs or items are not those that this run was trained on")
    run.load_state(state)


def _fingerprint(run: AlignmentRun) -> str:
    """Of the run's data."""
    return " ".join(map(data_fingerprint, (run.batches.pairs, run.batches.lm_items)))

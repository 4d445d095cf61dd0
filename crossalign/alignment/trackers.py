"""Reports to TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger("crossalign")


_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises ImportError where the package of a tracker is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(each) for each in _PACKAGES[name]):
            raise ImportError(f"trackers: {name} is not installed; pip install {name}")


class Trackers:
    """The named trackers of a run; none of them on ranks other than the main one.

    Weights & Biases asks for no account where WANDB_MODE=offline.

    Raises:
        ImportError: a tracker's package is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, settings: Mapping[str, Any]) -> None:
        self._trackers: list[Any] = []
        if not names:
            return
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        PartialState()  # asked by every tracker whether this is the main rank
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name == "tensorboard":
                tracker = TensorBoardTracker("crossalign", logging_dir=directory)
            else:
                tracker = WandBTracker("crossalign", dir=str(directory))
            tracker.start()
            self._trackers.append(tracker)
        plain = {name: value for name, value in settings.items() if value is not None}
        for tracker in self._trackers:
            if tracker.name == "wandb":  # TensorBoard would make a run of its own of them
                tracker.store_init_configuration(plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """What a tracker cannot finish is said, and takes the place of no error of the run."""
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:  # of whatever kind the other library raises
                logger.warning("%s could not be closed: %s", tracker.name, error)

"""AdamW's moments in one file a rank: no rank ever holds those of the others.

torch.distributed.checkpoint notes which rows of which moment each file has, so a run goes on with
any number of ranks, each of which reads what it needs.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

_KEY = "optimizer"


def save_shards(alignment: nn.Module, optimizer: Any, folder: Path) -> None:
    """All ranks must call it, with a folder that all of them reach."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    state = get_optimizer_state_dict(alignment, optimizer)
    save({_KEY: state}, checkpoint_id=folder)


def load_shards(alignment: nn.Module, optimizer: Any, folder: Path) -> None:
    """All ranks must call it; the optimizer is fresh."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.checkpoint.state_dict_loader import load

    state = get_optimizer_state_dict(alignment, optimizer)  # makes moments to read into
    with warnings.catch_warnings():  # that one process loads on its own is as meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load({_KEY: state}, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_optimizer_state_dict(alignment, optimizer, state)

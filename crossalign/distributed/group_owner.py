"""A module that holds a process group, which copies share and pickles leave out."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import torch.distributed as dist
from torch import nn

_LEFT_OUT = "_group_was_left_out"


class OwnsGroup(nn.Module):
    """A process group belongs to the running processes, so it can be neither copied nor saved."""

    group: dist.ProcessGroup | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self.group is not None:
            memo[id(self.group)] = self.group
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if state.get("group") is not None:
            state |= {"group": None, _LEFT_OUT: True}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_left_out = state.pop(_LEFT_OUT, False)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if was_left_out:
            warnings.warn(
                f"{type(self).__name__}: its process group was not saved, so it works in this "
                "process only; set .group to spread batches over ranks again",
                UserWarning,
                stacklevel=2,
            )

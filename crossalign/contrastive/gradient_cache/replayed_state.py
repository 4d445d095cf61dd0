"""What a second forward must find as the first one did: random numbers and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RandomState(NamedTuple):
    """Generator states of the CPU and of every accelerator in use."""

    cpu: Tensor
    accelerators: list[Tensor]


class Autocast(NamedTuple):
    """The settings of torch.autocast for one type of device."""

    device_type: str
    dtype: torch.dtype
    enabled: bool
    cache_enabled: bool


def random_state() -> RandomState:
    module = _accelerator_in_use()
    if module is None:
        return RandomState(torch.get_rng_state(), [])
    if hasattr(module, "get_rng_state_all"):
        return RandomState(torch.get_rng_state(), module.get_rng_state_all())
    return RandomState(torch.get_rng_state(), [module.get_rng_state()])


def set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if not state.accelerators:
        return
    module = _accelerator_in_use()
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(state.accelerators)
    elif module is not None:
        module.set_rng_state(state.accelerators[0])


def autocast_state() -> list[Autocast]:
    """Of the CPU and of the accelerator, whatever it is."""
    accelerator = torch.accelerator.current_accelerator()
    types = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [
        Autocast(
            device_type,
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_enabled(device_type),
            torch.is_autocast_cache_enabled(),
        )
        for device_type in types
    ]


@contextmanager
def autocast_as(states: list[Autocast]) -> Iterator[None]:
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(torch.autocast(**state._asdict()))
        yield


def _accelerator_in_use() -> Any:
    """torch.cuda, torch.mps, ...: the module of the accelerator, once something runs on it."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return None
    module = torch.get_device_module(accelerator)
    is_initialized = getattr(module, "is_initialized", lambda: True)
    return module if is_initialized() else None

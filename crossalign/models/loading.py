"""The one way from a name to a model, its tokenizer, its configuration and its device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def choose_device(name: str) -> torch.device:
    """ "auto" -> a GPU if there is one, else the CPU; a named device must be there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1, ..., got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return device


def check_model_name(name: str, flag: str = "") -> None:
    """What can only be a path must be a directory; the hub would be asked for it otherwise.

    flag: where the name was given, in front of the message.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"{flag}{name} is no directory")


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model by its name or directory; for a directory that holds adapters
    only, that of the model they belong to."""
    from transformers import AutoConfig

    check_model_name(name)
    adapters = Path(name) / "adapter_config.json"
    if adapters.is_file():
        name = json.loads(adapters.read_text(encoding="utf-8"))["base_model_name_or_path"]
    config: PreTrainedConfig = AutoConfig.from_pretrained(name)
    return config


def load_model(
    name: str, *, dtype: str = "float32", device: str | torch.device = "cpu", flag: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, with its weights in `dtype` on `device`, and its tokenizer.

    Args:
        name: of a directory, or on the hub.
        dtype: "float32", "bfloat16", ...; training updates float32 whatever the file holds.
        device: as choose_device takes it.
        flag: where the name was given, in front of the message of an error.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_name(name, flag)
    if isinstance(device, str):
        device = choose_device(device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    model.to(device)  # type: ignore[arg-type]
    return model, AutoTokenizer.from_pretrained(name)

"""The one way from a name to a model, its tokenizer, its configuration and its device."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossalign.models.aligned_as import record_choices_of_adapters

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
    """What can only be a path must be a directory, or a .gguf file; the hub would be asked for it
    otherwise.

    flag: where the name was given, in front of the message.
    """
    if is_gguf(name):
        if not Path(name).is_file():
            raise FileNotFoundError(f"{flag}{name} is no file")
        if importlib.util.find_spec("gguf") is None:
            raise ImportError(f"{flag}{name}: reading it needs gguf; pip install gguf")
        return
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"{flag}{name} is no directory")


def is_gguf(name: str) -> bool:
    """Whether the name is that of a file as llama.cpp reads it."""
    return name.lower().endswith(".gguf")


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model by its name, directory or .gguf file; for a directory that holds
    adapters only, that of the model they belong to."""
    check_model_name(name)
    from transformers import AutoConfig

    if is_gguf(name):
        return copy.deepcopy(_gguf_config(name, Path(name).stat().st_mtime_ns))
    base = _adapted_model(name)
    config: PreTrainedConfig = AutoConfig.from_pretrained(base or name)
    if base is not None:
        record_choices_of_adapters(config, Path(name))
    return config


def load_model(
    name: str, *, dtype: str = "float32", device: str | torch.device = "cpu", flag: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, with its weights in `dtype` on `device`, and its tokenizer.

    The weights of a .gguf file are dequantized; the model is then as any other, and
    `save_pretrained` writes a plain checkpoint.

    Args:
        name: of a directory or a .gguf file, or on the hub.
        dtype: "float32", "bfloat16", ...; training updates float32 whatever the file holds.
        device: as choose_device takes it.
        flag: where the name was given, in front of the message of an error.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_name(name, flag)
    if isinstance(device, str):
        device = choose_device(device)
    source, options = _source(name)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, dtype), **options
    )
    if options:  # else transformers would take it for a quantized model and not save it
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
    if _adapted_model(name) is not None:
        record_choices_of_adapters(model.config, Path(name))
    model.to(device)  # type: ignore[arg-type]
    return model, AutoTokenizer.from_pretrained(source, **options)


@functools.lru_cache(maxsize=2)
def _gguf_config(name: str, mtime_ns: int) -> PreTrainedConfig:
    """Kept, as reading the vocabulary that stands in front of it takes most of a minute."""
    from transformers import AutoConfig

    source, options = _source(name)
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, **options)
    return config


def _source(name: str) -> tuple[str, dict[str, str]]:
    """What from_pretrained takes: a name, and for a .gguf file its directory and file name."""
    if not is_gguf(name):
        return name, {}
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def _adapted_model(name: str) -> str | None:
    """The model that the adapters in a directory belong to; None where there are none."""
    adapters = Path(name) / "adapter_config.json"
    if not adapters.is_file():
        return None
    base: str = json.loads(adapters.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return base

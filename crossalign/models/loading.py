"""The one way from a name to a model, its tokenizer, its configuration and its device."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossalign.files.text import DataError
from crossalign.models.aligned_as import record_choices_of_adapters
from crossalign.models.model_files import (
    adapted_model,
    can_only_be_a_path,
    check_weight_files,
    find_bad_json,
    is_gguf,
)

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
    if can_only_be_a_path(name) and not Path(name).is_dir():
        raise FileNotFoundError(f"{flag}{name} is no directory")


def load_config(name: str, flag: str = "") -> PreTrainedConfig:
    """The configuration of a model by its name, directory or .gguf file; for a directory that holds
    adapters only, that of the model they belong to.

    Raises:
        FileNotFoundError: there is no such model, or none that the adapters belong to.
        ValueError: it needs code of its own, or is an encoder-decoder model.
    """
    check_model_name(name, flag)
    from transformers import AutoConfig

    if is_gguf(name):
        return copy.deepcopy(_gguf_config(name, Path(name).stat().st_mtime_ns))
    base = adapted_model(name)
    shown = name if base is None else f"{name}: holds adapters of the model {base}"
    with _errors_named(base or name, flag, shown):
        config: PreTrainedConfig = AutoConfig.from_pretrained(base or name, **_OWN_CODE_ONLY)
    _check_architecture(f"{flag}{base or name}", config)
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
    from transformers import AutoModelForCausalLM

    check_model_name(name, flag)
    if isinstance(device, str):
        device = choose_device(device)
    source, options = _source(name)
    if not options:
        load_config(name, flag)
    check_weight_files(name, flag)
    with _errors_named(name, flag):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **options,
            **_OWN_CODE_ONLY,
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # transformers draws them at random
        raise ValueError(
            f"{flag}{name}: its files lack {len(missing)} weights of a "
            f"{type(model).__name__}, such as {missing[0]}; take a model that was saved with its "
            "language-model head"
        )
    tokenizer = load_tokenizer(name, flag)
    check_token_ids(f"{flag}{name}", tokenizer, model)
    if options:  # else transformers would take it for a quantized model and not save it
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
    if adapted_model(name) is not None:
        record_choices_of_adapters(model.config, Path(name))
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer


def load_without_weights(
    name: str, flag: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What load_model gives, but the model is on the device "meta": its modules, no weights."""
    from transformers import AutoModelForCausalLM

    config, tokenizer = load_config(name, flag), load_tokenizer(name, flag)
    with _errors_named(name, flag), torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(config, **_OWN_CODE_ONLY)
    check_token_ids(f"{flag}{name}", tokenizer, model)
    return model, tokenizer


def load_tokenizer(name: str, flag: str = "") -> PreTrainedTokenizerBase:
    """The tokenizer of a model by its name or directory."""
    check_model_name(name, flag)
    from transformers import AutoTokenizer

    source, options = _source(name)
    with _errors_named(name, flag):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, **options, **_OWN_CODE_ONLY
        )
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ValueError(  # transformers makes an empty one where there is none
            f"{flag}{name}: holds no tokenizer (tokenizer.json); save one there"
        )
    return tokenizer


def check_token_ids(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raises ValueError where a token of the tokenizer has no row in the model's embedding.

    A padding token may lie beyond it: no padding is looked up.
    """
    embedding: Any = model.get_input_embeddings()
    num_rows = embedding.weight.shape[0]  # may be more than the vocab_size of the configuration
    beyond = {each: token for token, each in tokenizer.get_vocab().items() if each >= num_rows}
    beyond.pop(tokenizer.pad_token_id, None)
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"{name}: its tokenizer has the token {beyond[first]!r} of id {first}, but its "
            f"embedding has {num_rows} rows; add them (model.resize_token_embeddings) and save "
            "the model again"
        )


# A model may name code that comes with its files. It is not run, and nobody is asked about it.
_OWN_CODE_ONLY: dict[str, Any] = {"trust_remote_code": False}


@contextlib.contextmanager
def _errors_named(name: str, flag: str = "", shown: str = "") -> Iterator[None]:
    """What transformers says of a name, in one sentence that begins with it, or with `shown`."""
    shown = shown or name
    try:
        yield
    except Exception as error:  # of files of another form many kinds
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{flag}{shown}: needs Python code that comes with the model, which "
                "crossalign does not run; take a model whose class transformers has"
            ) from error
        if "Unrecognized configuration class" in str(error):  # then a list of all that there are
            raise ValueError(
                f"{flag}{shown}: is no causal language model of those that transformers knows"
            ) from error
        if path := find_bad_json(name):
            raise DataError(f"{flag}{path}: damaged: is not JSON") from error
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise FileNotFoundError(
                f"{flag}{shown}: is no directory, and no model of this name came from the Hugging "
                "Face hub; check the spelling, the connection (HF_HUB_OFFLINE) and the access"
            ) from error
        if isinstance(error, (OSError, RuntimeError, ImportError, MemoryError)):
            raise
        told = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{flag}{shown}: cannot be loaded: {told}") from error


def _check_architecture(name: str, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name}: is an encoder-decoder model ({config.model_type}); crossalign takes causal "
            "language models"
        )


@functools.lru_cache(maxsize=2)
def _gguf_config(name: str, mtime_ns: int) -> PreTrainedConfig:
    """Kept, as reading the vocabulary before it takes most of a minute."""
    from transformers import AutoConfig

    source, options = _source(name)
    config: PreTrainedConfig = AutoConfig.from_pretrained(source, **options)
    return config


def _source(name: str) -> tuple[str, dict[str, str]]:
    """What from_pretrained takes: a name, and for a .gguf file its directory and file name."""
    if not is_gguf(name):
        return name, {}
    return str(Path(name).parent), {"gguf_file": Path(name).name}

"""Hidden states of one layer of a causal language model, running no block past it.

Shapes: B sentences, T tokens, C hidden size, L decoder blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from crossalign.models.streams import active_stream


class _Reached(BaseException):
    """Leaves the model's forward with the hidden states. Not an Exception, so that no handler on
    the way (a hook runner, a retry, a fallback) takes it for an error."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def hidden_states_at(model: nn.Module, layer: int, **inputs: Any) -> Tensor:
    """Hidden states after block `layer` of a Hugging Face causal LM, running no block past it.

    The values of `model(**inputs, output_hidden_states=True).hidden_states[layer]`: the model runs
    as always until a hook before the first block that is not needed stops it. Exceptions: the
    tuples of Mamba and RWKV begin after the first block; of Gemma 3n's four streams it gives the
    active one; blocks that a text skips are counted too. The output embedding never runs. Gradients
    flow, gradient checkpointing, autocast and PEFT adapters work.

    Args:
        model: a causal LM or its base model, also with PEFT adapters. Wrap the module that calls
            this function, not `model` itself, in DDP or FSDP.
        layer: 0 = the embedding output, k = after block k, L = after the final norm; negative
            counts from the end, -1 being L.
        inputs: what the model's forward takes: input_ids, attention_mask, position_ids, ...
            The key-value cache is always off.

    Returns:
        (B, T, C), dtype as the model computes it.

    Raises:
        TypeError: layer is not an integer.
        ValueError: layer is out of range, or the model has no list of decoder blocks.
        RuntimeError: the forward never called the block (LayerDrop, for one, may skip it).

    Cost: `layer` blocks; keeps no other layer's states but what autograd needs.

    Examples:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50))
        >>> hidden_states_at(model, 1, input_ids=torch.tensor([[4, 5, 6]])).shape
        torch.Size([1, 3, 16])
    """
    decoder, blocks = find_blocks(model)
    check_layer("hidden_states_at", model, layer)
    index = layer % (len(blocks) + 1)
    with ExitStack() as hooks:
        if index == len(blocks):
            hooks.enter_context(decoder.register_forward_hook(_stop_after_final_norm))
        # The next block may not run: Mllama skips its cross-attention where there is no picture.
        for block in blocks[index:]:
            # In front of every other hook: FSDP must not gather a block that will not run.
            hook = block.register_forward_pre_hook(
                _stop_before_block, prepend=True, with_kwargs=True
            )
            hooks.enter_context(hook)
        try:
            model(**{**inputs, "use_cache": False})
        except _Reached as reached:
            return active_stream(reached.hidden, model)
    raise RuntimeError(
        f"hidden_states_at: layer {layer} was never reached in the forward of "
        f"{type(model).__name__}; a model that skips blocks at random (LayerDrop) must be in eval "
        "mode"
    )


def check_layer(function: str, model: nn.Module, layer: int) -> None:
    """Raises TypeError or ValueError, in the name of `function`, unless the model has the layer."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{function}: layer must be an integer, got {type(layer).__name__}")
    blocks = num_layers(model)
    if not -blocks - 1 <= layer <= blocks:
        raise ValueError(
            f"{function}: layer must lie between {-blocks - 1} and {blocks} for a model of "
            f"{blocks} blocks, got {layer}"
        )


def num_layers(model: nn.Module) -> int:
    """Decoder blocks L of the model; hidden_states_at takes layers 0 to L."""
    return len(find_blocks(model)[1])


def hidden_size(model: nn.Module, layer: int = 0) -> int:
    """Width C of the model's hidden states; OPT may project those of its last layer."""
    config = text_config(model)
    projected = getattr(config, "word_embed_proj_dim", None)
    is_last = layer in (-1, config.num_hidden_layers)
    return int(projected if is_last and projected else config.hidden_size)


def _stop_before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else kwargs["hidden_states"])


def _stop_after_final_norm(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    raise _Reached(output[0])  # last_hidden_state, first in a tuple and in a ModelOutput


def text_config(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"model must be a Hugging Face language model with a config, got "
            f"{type(model).__name__}; unwrap it first if it is wrapped (model.module)"
        )
    return config.get_text_config(decoder=True)


def find_blocks(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder and its list of blocks: the outermost ModuleList of num_hidden_layers entries."""
    wanted = text_config(model).num_hidden_layers
    start: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model
    if not any(isinstance(module, nn.ModuleList) for module in start.modules()):
        start = model  # ModernBERT's decoder calls its output embedding so
    level: list[nn.Module] = [start]
    while level:
        found = [
            (parent, child)
            for parent in level
            for child in parent.children()
            if isinstance(child, nn.ModuleList) and len(child) == wanted
        ]
        if len(found) == 1:
            return found[0]
        if found:
            break
        level = [child for parent in level for child in parent.children()]
    raise ValueError(
        f"{type(model).__name__} must have one list of its {wanted} decoder blocks "
        f"(an nn.ModuleList of config.num_hidden_layers entries), found "
        f"{'several side by side' if level else 'none'}"
    )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, then every module's own mode again (parts of a model may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

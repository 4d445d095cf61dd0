"""Hidden states of one layer of a causal language model, and sentence vectors made of them.

Shapes: B sentences, T tokens, C hidden size, L decoder blocks, n sentences in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossalign.argument_checks import check_option
from crossalign.models.aligned_as import choices_of
from crossalign.models.streams import active_stream
from crossalign.pooling.choices import POOL_TOKENS, POOLINGS, Center, Pooling, PoolTokens
from crossalign.pooling.content_tokens import content_mask, special_tokens
from crossalign.pooling.functions import pool
from crossalign.precision import norm_divisor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_POSITIONS = "max_position_embeddings"  # absent where positions are not bounded (BLOOM)
_NO_LIMIT = 2**31  # a tokenizer that knows no limit claims 1e30


class _Reached(BaseException):
    """Leaves the model's forward with the hidden states. Not an Exception, so that no handler on
    the way (a hook runner, a retry, a fallback) takes it for an error."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def hidden_states_at(model: nn.Module, layer: int, **inputs: Any) -> Tensor:
    """Hidden states after block `layer` of a Hugging Face causal LM, running no block past it.

    The very values of `model(**inputs, output_hidden_states=True).hidden_states[layer]` (but for
    Mamba and RWKV, whose tuple begins after the first block; of Gemma 3n's four streams the active
    one; blocks that a text does not pass are counted too): the model runs as always until a hook
    in front of the first block not needed stops it. The output embedding never runs. Gradients
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


def encode(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    layer: int = 1,
    pooling: Pooling = "mean",
    pool_tokens: PoolTokens | None = None,
    center: Center | None = None,
    batch_size: int = 64,
    normalize: bool = True,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Sentence vectors: pooled hidden states of one layer, in the order of the sentences.

    Unless they are centered, a sentence's vector does not depend on the others: padding goes to the
    right and is masked, whatever the tokenizer's padding side; one without a padding token will do.

    Args:
        model: a Hugging Face causal LM; put into eval mode for the call, then back.
        tokenizer: its tokenizer; left as it is. Sentences beyond the model's or the tokenizer's
            greatest length are truncated.
        sentences: a list of strings.
        layer: as in hidden_states_at.
        pooling: "mean", "last" or "max".
        pool_tokens: "all", or "content": without the tokenizer's special tokens.
        center: "batch" subtracts the mean of the vectors of all sentences; "none" does not. None,
            here and above: as the model was aligned, else "all" and "none".
        batch_size: sentences run at once, sorted by length.
        normalize: scale each vector to unit length.
        device: where to run. The model is moved there and stays there. None: where it is.
        progress: show a bar (needs tqdm).

    Returns:
        (n, C) float32 on the CPU, without gradient. A sentence without tokens gives zeros.

    Raises:
        TypeError: sentences is one string, or holds something else than strings.
        ValueError: batch_size below 1, layer out of range, an unknown choice.
    """
    sentences = _checked_sentences(sentences)
    if batch_size < 1:
        raise ValueError(f"encode: batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(device)
    check_layer("encode", model, layer)
    check_option("encode", "pooling", pooling, POOLINGS)
    pool_tokens, center = choices_of(model, pool_tokens, center)
    check_option("encode", "pool_tokens", pool_tokens, POOL_TOKENS)
    center = "batch" if center == "side" else center  # all sentences are one side here
    check_option("encode", "center", center, ("none", "batch"))
    special = special_tokens(tokenizer, pool_tokens)
    vectors = torch.zeros(len(sentences), hidden_size(model, layer))
    token_ids = tokenize(model, tokenizer, sentences) if sentences else []
    longest_first = sorted(range(len(sentences)), key=lambda i: -len(token_ids[i]))
    batches: Iterable[list[int]] = [
        longest_first[start : start + batch_size] for start in range(0, len(sentences), batch_size)
    ]
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="encode", unit="batch")
    with eval_mode(model), torch.no_grad():
        for rows in batches:
            inputs = pad_right([token_ids[row] for row in rows], input_device(model))
            hidden = hidden_states_at(model, layer, **inputs)
            mask = content_mask(**inputs, special_token_ids=special).to(hidden.device)
            pooled = pool(hidden.float(), mask, pooling, normalize=normalize and center == "none")
            vectors[rows] = pooled.cpu()
    if center == "batch":
        vectors = (vectors - vectors.double().mean(dim=0)).float()
        if normalize:
            vectors /= norm_divisor(vectors.norm(dim=1, keepdim=True))
    return vectors


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


def _checked_sentences(sentences: Sequence[str]) -> list[str]:
    if isinstance(sentences, str):
        raise TypeError(
            "encode: sentences must be a list of strings, got one str; put it in a list"
        )
    sentences = list(sentences)
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise TypeError(
                f"encode: sentences must hold strings, got an entry of type "
                f"{type(sentence).__name__}"
            )
    return sentences


def longest_input(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that both the model and the tokenizer take; None where neither sets a limit."""
    limits = (tokenizer.model_max_length, getattr(text_config(model), _MAX_POSITIONS, None))
    return min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)


def tokenize(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    max_length: int | None = None,
) -> list[list[int]]:
    """Token ids without padding, cut at what the model and the tokenizer take, or at max_length."""
    limits = (longest_input(model, tokenizer), max_length)
    limit = min((limit for limit in limits if limit is not None), default=None)
    encoded = tokenizer(
        sentences, truncation=limit is not None, max_length=limit, return_attention_mask=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pad_right(token_ids: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T); T is at least 1, for sentences without tokens."""
    width = max([1, *(len(ids) for ids in token_ids)])
    # Any id of the vocabulary will do as padding: masked positions are not read.
    input_ids = torch.zeros(len(token_ids), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def input_device(model: Any) -> torch.device:
    """Where the token embedding is: a model spread over several devices takes its input there."""
    device: torch.device = next(model.get_input_embeddings().parameters()).device
    return device


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

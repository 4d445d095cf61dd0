"""Which tokens count in a sentence vector: all, or only those that are content.

In many models the state of the first token, put there by the tokenizer, is many times larger than
all others, so the mean over all tokens says little of the sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossalign.pooling.choices import PoolTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def content_mask(input_ids: Tensor, attention_mask: Tensor, special_token_ids: Tensor) -> Tensor:
    """The mask without special tokens, wherever they are in the sentence.

    Args:
        input_ids: (B, T) integers.
        attention_mask: (B, T), not 0 where there is a token.
        special_token_ids: (K,) integers; K may be 0, then every token is content.

    Returns:
        (B, T), dtype of attention_mask: 0 for padding and special tokens. A sentence of special
        tokens only has no content, and so its vector is zero.
    """
    is_special = torch.isin(input_ids, special_token_ids.to(input_ids.device))
    return attention_mask.masked_fill(is_special.to(attention_mask.device), 0)


def special_tokens(tokenizer: PreTrainedTokenizerBase, pool_tokens: PoolTokens) -> Tensor:
    """(K,) ids of the tokens that do not count in a sentence vector; none for "all"."""
    is_content = pool_tokens == "content"
    return torch.tensor(tokenizer.all_special_ids if is_content else [], dtype=torch.long)

"""Which tokens count in a sentence vector: all, or only those that are content.

In many models the state of the first token, put there by the tokenizer, is many times larger than
all others, so the mean over all tokens says little of the sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def content_mask(input_ids: Tensor, mask: Tensor, special_token_ids: Tensor) -> Tensor:
    """The mask without special tokens, wherever they are in the sentence.

    Args:
        input_ids: (B, T) integers.
        mask: (B, T), not 0 where there is a token.
        special_token_ids: (K,) integers on the device of input_ids; K may be 0.

    Returns:
        (B, T), dtype of mask: 0 for padding and special tokens. A sentence of special tokens only
        has no content, and so its vector is zero.
    """
    return mask.masked_fill(torch.isin(input_ids, special_token_ids).to(mask.device), 0)

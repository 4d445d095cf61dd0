"""The names of what makes a sentence vector, for settings and checks that need no PyTorch."""

from typing import Literal, get_args

Pooling = Literal["mean", "last", "max"]  # how token vectors become one
PoolTokens = Literal["all", "content"]  # which tokens count; content: without special tokens
Center = Literal["none", "batch", "side"]  # the mean that is subtracted
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOL_TOKENS: tuple[PoolTokens, ...] = get_args(PoolTokens)
CENTERS: tuple[Center, ...] = get_args(Center)

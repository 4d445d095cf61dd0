"""MatryoshkaLoss: one embedding whose prefixes are embeddings too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class MatryoshkaLoss(nn.Module):
    """A loss summed over prefixes of the embeddings, so that they can be cut after training.

    loss = sum over d of weight_d * loss(query[:, :d], key[:, :d], negatives[:, :d]). Our losses
    scale every prefix to unit length anew (normalize=True). Each prefix takes a pass of its own:
    their sizes mostly halve, so all together cost at most twice the whole.

    Args:
        loss: a loss of (query, key) or (query, key, negatives): ContrastiveLoss,
            fused_contrastive_loss, fused_sigmoid_loss, or any other of that form.
        dims: sizes of the prefixes, at least 1 each, none twice; the whole size is one of them
            where it shall count.
        weights: of the prefixes, in their order; None: 1 for each.

    Raises:
        TypeError: a size is not an integer.
        ValueError: sizes or weights do not fit.

    Source: Kusupati et al. 2022 (Matryoshka Representation Learning).
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.dims = tuple(dims)
        self.weights = (1.0,) * len(self.dims) if weights is None else tuple(map(float, weights))
        for dim in self.dims:
            if isinstance(dim, bool) or not isinstance(dim, int):
                raise TypeError(f"MatryoshkaLoss: dims must be integers, got {dim!r}")
        if not self.dims or min(self.dims) < 1 or len({*self.dims}) < len(self.dims):
            raise ValueError(
                f"MatryoshkaLoss: dims must be different sizes of at least 1, got {list(dims)}"
            )
        if len(self.weights) != len(self.dims):
            raise ValueError(
                f"MatryoshkaLoss: weights must be one for each of the {len(self.dims)} dims, got "
                f"{len(self.weights)}"
            )

    def forward(
        self, query: Tensor, key: Tensor, negatives: Tensor | None = None, **options: Any
    ) -> Any:
        """The sum over prefixes; options (ids, weights, ...) are for the loss.

        Returns:
            The loss; where the loss returns statistics too, those of the longest prefix beside it.

        Raises:
            ValueError: a prefix is longer than the embeddings.
        """
        sides = [query, key] if negatives is None else [query, key, negatives]
        longest = max(self.dims)
        if longest > query.shape[-1]:
            raise ValueError(
                f"MatryoshkaLoss: dims must be at most the {query.shape[-1]} features of query, "
                f"got {longest}"
            )
        total: Any = 0
        stats: Any = None
        for dim, weight in zip(self.dims, self.weights, strict=True):
            value = self.loss(*(side[..., :dim] for side in sides), **options)
            if isinstance(value, tuple):
                value, found = value
                stats = found if dim == longest else stats
            total = total + weight * value
        return total if stats is None else (total, stats)

    def extra_repr(self) -> str:
        return f"dims={list(self.dims)}, weights={list(self.weights)}"

"""What the passes of the pairwise sigmoid loss are given: the words all backends share.

Shapes: N queries, M keys, D features. With z[i, j] = scale * <q^_i, k^_j> + bias, and y = 1 where
key j is a positive of query i, else -1, the term of query i is

    sum over j of softplus(-y z[i, j])        d term / d z[i, j] = -y * sigmoid(-y z[i, j])

Both are formed from -y z, so that neither is a difference of nearly equal numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from crossalign.backends import Backend
from crossalign.contrastive.problem import ContrastiveProblem, GradientNeeds


class SigmoidArguments(NamedTuple):
    """The arguments of fused_sigmoid_loss, whose docstring describes them."""

    query: Tensor
    key: Tensor
    temperature: float | Tensor
    bias: float | Tensor
    normalize: bool
    ids: Tensor | None
    weights: Tensor | None
    reduction: str
    group: ProcessGroup | None
    gather: str
    backend: Backend


class SigmoidProblem(NamedTuple):
    """Everything that shapes z and y, queries and keys apart."""

    scale: Tensor  # () accumulator dtype: 1 / temperature
    bias: Tensor  # () accumulator dtype
    query_ids: Tensor | None  # (N,) int64; keys of equal id are positives
    key_ids: Tensor | None  # (M,) int64
    label_offset: int  # key i + label_offset is a positive of query i, if there is such a key
    normalize: bool

    def logits(self, num_keys: int) -> ContrastiveProblem:
        """The same in the words of the contrastive loss, whose code forms scale * <q^_i, k^_j>."""
        return ContrastiveProblem(
            scale=self.scale,
            query_ids=self.query_ids,
            candidate_ids=self.key_ids,
            num_keys=num_keys,
            label_offset=self.label_offset,
            multi_positive=self.query_ids is not None,
            normalize=self.normalize,
        )


class SigmoidSums(NamedTuple):
    """What one forward pass yields."""

    terms: Tensor  # (N,)
    query_inverse_norm: Tensor  # (N,) if normalize, else (0,)
    key_inverse_norm: Tensor  # (M,) likewise


def empty_gradients(query: Tensor, key: Tensor, needs: GradientNeeds) -> tuple[Tensor, Tensor]:
    """To be filled; what is not needed has no rows."""
    sides = ((query, needs.query), (key, needs.candidates))
    grad_query, grad_key = (
        x.new_empty((x.shape[0] if need else 0, x.shape[1]), dtype=needs.gradient_dtype(x.dtype))
        for x, need in sides
    )
    return grad_query, grad_key

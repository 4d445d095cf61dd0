"""Losses of sentence-transformers over the fused loss: same names, same arguments.

    from crossalign.integrations.sentence_transformers import MultipleNegativesRankingLoss

Values and gradients are theirs; the scores are never held. With gather_across_devices the batches
of the ranks may differ in size.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.integrations.host import import_host

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]

_host: Any = import_host(
    "sentence-transformers",
    "sentence_transformers.sentence_transformer.losses",
    "sentence_transformers.losses",
)
_util: Any = import_host("sentence-transformers", "sentence_transformers.util")

_DIRECTIONS = {
    "query_to_doc": "query_to_key",
    "doc_to_query": "key_to_query",
    "query_to_query": "query_to_query",
    "doc_to_doc": "key_to_key",
}
_HARDNESS = {"all_negatives": "all", "in_batch_negatives": "in_batch", "hard_negatives": "owned"}


def _checked(host_init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of the host, with its signature; a similarity that is none of ours raises."""

    @functools.wraps(host_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        host_init(self, *args, **kwargs)
        _normalizes(self)

    return init


class MultipleNegativesRankingLoss(_host.MultipleNegativesRankingLoss):
    """sentence_transformers' MultipleNegativesRankingLoss without its matrices of scores.

    Raises:
        ValueError: similarity_fct is neither util.cos_sim nor util.dot_score, or what the host
            refuses.
    """

    __init__ = _checked(_host.MultipleNegativesRankingLoss.__init__)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        return _ranking_loss(self, embeddings)


class CachedMultipleNegativesRankingLoss(_host.CachedMultipleNegativesRankingLoss):
    """The same with gradient caching: the host embeds in mini-batches, the loss takes one pass.

    mini_batch_size bounds what is embedded at a time; show_progress_bar shows the embedding.
    """

    __init__ = _checked(_host.CachedMultipleNegativesRankingLoss.__init__)

    def calculate_loss(
        self, reps: list[list[Tensor]], *args: Any, with_backward: bool = False, **kwargs: Any
    ) -> Tensor:
        loss = _ranking_loss(self, [torch.cat(of_column) for of_column in reps])
        if not with_backward:
            return loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


with warnings.catch_warnings():
    # Deriving from a deprecated class warns, as using it does; the first is not the user's doing.
    warnings.simplefilter("ignore", DeprecationWarning)

    class MultipleNegativesSymmetricRankingLoss(_host.MultipleNegativesSymmetricRankingLoss):
        """The mean of query -> document and document -> query, from one pass."""

        __init__ = _checked(_host.MultipleNegativesSymmetricRankingLoss.__init__)

        def compute_loss_from_embeddings(
            self, embeddings: list[Tensor], labels: Tensor | None = None
        ) -> Tensor:
            both = ("query_to_doc", "doc_to_query")
            return _ranking_loss(self, embeddings, directions=both, partition="per_direction")


def _ranking_loss(
    settings: Any,
    embeddings: Sequence[Tensor],
    *,
    directions: Sequence[str] | None = None,
    partition: str | None = None,
) -> Tensor:
    """settings: the loss of the host, whose older versions lack some of them."""
    if len(embeddings) < 2:
        raise ValueError(f"Expected at least 2 embeddings, got {len(embeddings)}")
    query, key, *others = embeddings
    chosen: Sequence[str] = directions or getattr(settings, "directions", None) or ("query_to_doc",)
    partition = partition or getattr(settings, "partition_mode", "joint")
    mode = getattr(settings, "hardness_mode", None)
    strength = getattr(settings, "hardness_strength", 0.0)
    options: dict[str, Any] = {}
    if partition == "per_direction" and {*chosen} == {"query_to_doc", "doc_to_query"}:
        options["symmetric"] = True
    elif {*chosen} != {"query_to_doc"}:
        # In our order, whatever theirs is: each is one part of a sum.
        options["directions"] = tuple(ours for name, ours in _DIRECTIONS.items() if name in chosen)
        options["partition"] = partition
    if mode is not None and strength > 0:
        options |= {"hardness": strength, "hardness_on": _HARDNESS[mode]}
    negatives = torch.cat(others) if others else None
    if others and {"directions", "hardness"} & options.keys():
        rows = torch.arange(query.shape[0], device=query.device)
        options["negative_owner"] = rows.repeat(len(others))
    elif options.get("hardness_on") == "owned":  # of which there are none
        del options["hardness"], options["hardness_on"]
    loss: Tensor = fused_contrastive_loss(
        query,
        key,
        negatives,
        temperature=1.0 / float(settings.scale),
        normalize=_normalizes(settings),
        group=_group(settings),
        **options,
    )
    return loss


def _normalizes(settings: Any) -> bool:
    """Whether the similarity is the cosine; not so: the dot product."""
    similarity = settings.similarity_fct
    if similarity in (_util.cos_sim, _util.dot_score):
        return bool(similarity is _util.cos_sim)
    raise ValueError(
        f"{type(settings).__name__}: similarity_fct must be util.cos_sim or util.dot_score, got "
        f"{getattr(similarity, '__name__', similarity)}; use the class of sentence_transformers "
        "for another one"
    )


def _group(settings: Any) -> Any:
    if not getattr(settings, "gather_across_devices", False):
        return None
    is_spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if is_spread else None

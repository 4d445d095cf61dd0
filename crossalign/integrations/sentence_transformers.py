"""Losses of sentence-transformers over the fused loss: same names, same arguments.

    from crossalign.integrations.sentence_transformers import MultipleNegativesRankingLoss

Values and gradients are theirs; the scores are not kept. With gather_across_devices the batches
of the ranks may differ in size.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.integrations.guided_terms import GuidedBatch, guided_loss
from crossalign.integrations.host import checked_constructor, import_host
from crossalign.precision import concatenated

__all__ = [
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "GISTEmbedLoss",
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
_BOTH = ("query_to_doc", "doc_to_query")
_HARDNESS = {"all_negatives": "all", "in_batch_negatives": "in_batch", "hard_negatives": "owned"}


def _normalizes(settings: Any) -> bool:
    """Whether the similarity is the cosine; not so: the dot product."""
    similarity = settings.similarity_fct
    if isinstance(similarity, functools.partial) and not (similarity.args or similarity.keywords):
        similarity = similarity.func
    if similarity in (_util.cos_sim, _util.dot_score):
        return bool(similarity is _util.cos_sim)
    raise ValueError(
        f"{type(settings).__name__}: similarity_fct must be util.cos_sim or util.dot_score, got "
        f"{getattr(similarity, '__name__', similarity)}; use the class of sentence_transformers "
        "for another one"
    )


class MultipleNegativesRankingLoss(_host.MultipleNegativesRankingLoss):
    """sentence_transformers' MultipleNegativesRankingLoss without its matrices of scores.

    Raises:
        ValueError: similarity_fct is neither util.cos_sim nor util.dot_score, or what the host
            refuses.
    """

    __init__ = checked_constructor(_host.MultipleNegativesRankingLoss.__init__, _normalizes)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        return _ranking_loss(self, embeddings)


class CachedMultipleNegativesRankingLoss(_host.CachedMultipleNegativesRankingLoss):
    """The same with gradient caching: the host embeds in mini-batches, the loss takes one pass.

    mini_batch_size bounds what is embedded at a time; show_progress_bar shows the embedding.
    """

    __init__ = checked_constructor(_host.CachedMultipleNegativesRankingLoss.__init__, _normalizes)

    def calculate_loss(
        self, reps: list[list[Tensor]], *args: Any, with_backward: bool = False, **kwargs: Any
    ) -> Tensor:
        return _backward_if(
            with_backward, _ranking_loss(self, [concatenated(of_column) for of_column in reps])
        )


with warnings.catch_warnings():
    # Deriving from a deprecated class warns, as using it does; the first is not the user's doing.
    warnings.simplefilter("ignore", DeprecationWarning)

    class MultipleNegativesSymmetricRankingLoss(_host.MultipleNegativesSymmetricRankingLoss):
        """The mean of query -> document and document -> query, from one pass."""

        __init__ = checked_constructor(
            _host.MultipleNegativesSymmetricRankingLoss.__init__, _normalizes
        )

        def compute_loss_from_embeddings(
            self, embeddings: list[Tensor], labels: Tensor | None = None
        ) -> Tensor:
            return _ranking_loss(self, embeddings, directions=_BOTH, partition="per_direction")

    class CachedMultipleNegativesSymmetricRankingLoss(
        _host.CachedMultipleNegativesSymmetricRankingLoss
    ):
        """The same with gradient caching."""

        __init__ = checked_constructor(
            _host.CachedMultipleNegativesSymmetricRankingLoss.__init__, _normalizes
        )

        def calculate_loss(
            self, reps: list[list[Tensor]], *args: Any, with_backward: bool = False, **kwargs: Any
        ) -> Tensor:
            columns = [concatenated(of_column) for of_column in reps]
            loss = _ranking_loss(self, columns, directions=_BOTH, partition="per_direction")
            return _backward_if(with_backward, loss)


class GISTEmbedLoss(_host.GISTEmbedLoss):
    """sentence_transformers' GISTEmbedLoss without its matrices of scores.

    With gather_across_devices an anchor's other anchors are those of its rank, as in the host's.
    """

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        features = list(sentence_features)
        for_guide = [dict(feature) for feature in features]  # a model writes into what it is given
        embeddings = _embed(self.model, features)
        with torch.no_grad():
            if self.must_retokenize:
                for_guide = [self._retokenized(feature) for feature in features]
            guides = _embed(self.guide, for_guide)
        if len(embeddings) not in (2, 3):
            raise ValueError(f"Expected 2 or 3 embeddings, got {len(embeddings)}")
        return _guided_loss(self, embeddings, guides)

    def _retokenized(self, feature: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same sentences as the guide's tokenizer cuts them."""
        tokens: Any = feature["input_ids"]
        if "cu_seq_lens_q" in feature:  # sentences that lie end to end in one row
            tokens = tokens[0].tensor_split(feature["cu_seq_lens_q"][1:-1].cpu().long())
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        cut = getattr(self.guide, "preprocess", None) or self.guide.tokenize
        moved: dict[str, Tensor] = _util.batch_to_device(cut(texts), self.guide.device)
        return moved


class CachedGISTEmbedLoss(_host.CachedGISTEmbedLoss):
    """The same with gradient caching: the host embeds in mini-batches, the loss takes one pass."""

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        reps_guided: list[list[Tensor]],
        *args: Any,
        with_backward: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        if len(reps) != len(reps_guided):
            raise ValueError("reps and reps_guided must have the same length")
        columns = [[concatenated(of_column) for of_column in each] for each in (reps, reps_guided)]
        return _backward_if(with_backward, _guided_loss(self, *columns))


def _embed(model: Any, features: list[dict[str, Tensor]]) -> list[Tensor]:
    """As the host does: in one forward where it can and its version has that."""
    try:
        merged = importlib.import_module("sentence_transformers.base.losses.merged_forward")
    except ModuleNotFoundError:
        return [model(feature)["sentence_embedding"] for feature in features]
    embedded: list[Tensor] = merged.embed_columns(model, features)
    return embedded


def _backward_if(with_backward: bool, loss: Tensor) -> Tensor:
    if not with_backward:
        return loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _guided_loss(settings: Any, embeddings: list[Tensor], guides: list[Tensor]) -> Tensor:
    return guided_loss(
        GuidedBatch(embeddings, [guide.detach() for guide in guides]),
        temperature=settings.temperature,
        margin=getattr(settings, "margin", 0.0),
        margin_type=getattr(settings, "margin_strategy", "absolute"),
        with_queries=getattr(settings, "contrast_anchors", True),
        with_keys=getattr(settings, "contrast_positives", True),
        group=_group(settings),
    )


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
    negatives = concatenated(others) if others else None
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


def _group(settings: Any) -> Any:
    if not getattr(settings, "gather_across_devices", False):
        return None
    is_spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if is_spread else None

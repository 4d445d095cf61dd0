"""The loss of GISTEmbed (Solatorio 2024) as sentence-transformers defines it, from row terms.

Shapes: N pairs, D features, G features of the guide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.choices import Direction
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.integrations.row_terms import mean_over_ranks, union
from crossalign.precision import concatenated


class GuidedBatch(NamedTuple):
    """Columns (N, D) of queries, keys and further negatives, and what the guide makes of them."""

    columns: list[Tensor]
    guides: list[Tensor]


def guided_loss(
    batch: GuidedBatch,
    *,
    temperature: float,
    margin: float,
    margin_type: str,
    with_queries: bool,
    with_keys: bool,
    group: Any,
) -> Tensor:
    """A candidate counts unless the guide finds it closer than the pair, less the margin.

    with_queries: other queries of this rank are candidates too; with_keys: a key's similarity to
    other keys, though not to the further negatives, is one as well.
    """
    query, key, *further = batch.columns
    guide_query, guide_key, *guide_further = batch.guides
    options: dict[str, Any] = {
        "temperature": temperature,
        "guide_query": guide_query,
        "guide_key": guide_key,
        "guide_margin": -margin,
        "guide_margin_type": margin_type,
        "reduction": "none",
    }

    def against(negatives: list[Tensor], guides: list[Tensor], ranks: Any) -> Tensor:
        """Against these only: pairs of one id are no candidates of one another."""
        rows = concatenated(negatives)
        found: Tensor = fused_contrastive_loss(
            query,
            key,
            rows,
            ids=query.new_zeros(query.shape[0], dtype=torch.int64),
            negative_ids=query.new_ones(rows.shape[0], dtype=torch.int64),
            guide_negatives=concatenated(guides),
            group=ranks,
            **options,
        )
        return found

    directions: list[Direction] = ["query_to_key"]
    if with_queries and group is None:
        directions.append("query_to_query")
    if with_keys:
        directions.append("key_to_key")
    is_whole = bool(further) and not with_keys
    terms = fused_contrastive_loss(
        query,
        key,
        concatenated(further) if is_whole else None,
        guide_negatives=concatenated(guide_further) if is_whole else None,
        directions=tuple(directions),
        group=group,
        **options,
    )
    if further and with_keys:  # which would include the further negatives too
        terms = union(terms, against(further, guide_further, group))
    sides = {"query_to_query": guide_query, "key_to_key": guide_key}
    of_selves = [sides[name] for name in directions[1:]]
    terms = _with_selves(terms, batch, of_selves, temperature, margin, margin_type)
    if with_queries and group is not None:
        terms = union(terms, against([query], [guide_query], None))
    return mean_over_ranks(terms, group)


def _with_selves(
    terms: Tensor,
    batch: GuidedBatch,
    sides: list[Tensor],
    temperature: float,
    margin: float,
    margin_type: str,
) -> Tensor:
    """Adds the similarity of a vector to itself, one, where the guide does not leave it out.

    The host's rule knows no diagonal: a row is its own candidate where the guide finds the pair as
    close as the row is to itself, less the margin, which the same text twice or a negative margin
    brings about.
    """
    of_pair = F.cosine_similarity(batch.guides[0], batch.guides[1])
    limit = of_pair - margin * (of_pair.abs() if margin_type == "relative" else 1)
    count = torch.zeros_like(limit)
    for guide in sides:
        count = count + (F.cosine_similarity(guide, guide) <= limit)
    query, key = (column.to(terms.dtype) for column in batch.columns[:2])
    logit = (1 - F.cosine_similarity(query, key)) / temperature
    return torch.logaddexp(terms, logit + count.to(terms.dtype).log())

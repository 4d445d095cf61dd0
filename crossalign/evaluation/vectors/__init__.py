"""Measures of sentence vectors: retrieval, margin, geometry, projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.evaluation.vectors.geometry import (
        alignment,
        center_distance,
        language_identification,
        spread,
        uniformity,
    )
    from crossalign.evaluation.vectors.layer_embeddings import encode_layers, retrieval_by_layer
    from crossalign.evaluation.vectors.margin import MarginScores, margin_scores
    from crossalign.evaluation.vectors.projection import Projection, project_to_plane
    from crossalign.evaluation.vectors.retrieval import RetrievalScores, retrieval_scores
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "MarginScores": "margin",
            "Projection": "projection",
            "RetrievalScores": "retrieval",
            "alignment": "geometry",
            "center_distance": "geometry",
            "encode_layers": "layer_embeddings",
            "language_identification": "geometry",
            "margin_scores": "margin",
            "project_to_plane": "projection",
            "retrieval_by_layer": "layer_embeddings",
            "retrieval_scores": "retrieval",
            "spread": "geometry",
            "uniformity": "geometry",
        },
    )

__all__ = [
    "MarginScores",
    "Projection",
    "RetrievalScores",
    "alignment",
    "center_distance",
    "encode_layers",
    "language_identification",
    "margin_scores",
    "project_to_plane",
    "retrieval_by_layer",
    "retrieval_scores",
    "spread",
    "uniformity",
]

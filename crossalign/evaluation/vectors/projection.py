"""A flat picture of sentence vectors: the plane that keeps most of their variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.argument_checks import check_dims, check_tensor


class Projection(NamedTuple):
    """points: (n, 2) float32 on the CPU. variance_shares: of the total, kept by each axis."""

    points: Tensor
    variance_shares: tuple[float, float]


def project_to_plane(vectors: Tensor) -> Projection:
    """Principal component analysis to two dimensions.

    Args:
        vectors: (n, C) finite, n >= 3 and C >= 2; any device.

    Raises:
        TypeError: vectors is not a tensor.
        ValueError: too few vectors or features, or a value that is not finite.

    The direction of each axis, which the analysis leaves open, is chosen such that its largest
    coefficient is positive. Deterministic; computed in float64.
    """
    check_tensor("project_to_plane", "vectors", vectors)
    check_dims("project_to_plane", "vectors", vectors, "(n, C)")
    if vectors.shape[0] < 3 or vectors.shape[1] < 2:
        raise ValueError(
            "project_to_plane: vectors must have at least 3 rows and 2 columns, got shape "
            f"{tuple(vectors.shape)}"
        )
    vectors = vectors.detach().cpu().double()
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError("project_to_plane: vectors must be finite, got NaN or infinity")
    centered = vectors - vectors.mean(dim=0)
    _, scales, axes = torch.linalg.svd(centered, full_matrices=False)
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    variances = scales.square()
    total = variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    first, second = (variances[:2] / total).tolist()
    return Projection((centered @ axes.T).float(), (first, second))

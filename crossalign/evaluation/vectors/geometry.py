"""The shape of a space of sentence vectors: how near translations are, how spread the rest is.

Every measure is of the unit vectors, those that cosine similarity sees, in float64, block by block.
Shapes: n sentences or pairs, C features. Vectors may be memory-mapped.
Sources: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere", ICML 2020 (alignment, uniformity); Ethayarajh, "How Contextual are
Contextualized Word Representations?", EMNLP 2019 (mean cosine as anisotropy); Rudman et al.,
"IsoScore: Measuring the Uniformity of Embedding Space Utilization", Findings of ACL 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.evaluation.vectors.tiles import (
    check_chunk_size,
    check_vectors,
    computing_device,
    row_blocks,
    unit_rows,
)

Device = torch.device | str | None
MAX_UNIFORMITY_ROWS = 20_000
_NO_SPREAD = 1e-12  # squared distance below which unit vectors differ only by rounding


class Spread(NamedTuple):
    """mean: (C,) float64 on the CPU. mean_cosine: over all pairs of different rows."""

    mean: Tensor
    mean_cosine: float
    iso_score: float


def alignment(
    source: Tensor, target: Tensor, *, chunk_size: int = 1024, device: Device = None
) -> float:
    """Mean squared distance of translations, mean of ||x^_i - y^_i||^2: 0 to 4, lower is nearer.

    Args:
        source: (n, C) floating-point; row i translates row i of target.
        target: (n, C) likewise.
        chunk_size: rows at a time.
        device: where to compute; None: where the vectors are.

    Raises:
        TypeError, ValueError: not (n, C) tensors of equal shape with n > 0.
    """
    _check("alignment", source, chunk_size, name="source")
    _check("alignment", target, chunk_size, name="target")
    if source.shape != target.shape:
        raise ValueError(
            f"alignment: source and target must have the same shape, got {tuple(source.shape)} and "
            f"{tuple(target.shape)}"
        )
    device = computing_device(source, device)
    sums = [
        (unit_rows(source[block], device) - unit_rows(target[block], device)).square().sum()
        for block in row_blocks(len(source), chunk_size)
    ]
    return torch.stack(sums).sum().item() / len(source)


def uniformity(
    vectors: Tensor,
    *,
    max_rows: int | None = MAX_UNIFORMITY_ROWS,
    seed: int = 0,
    chunk_size: int = 1024,
    device: Device = None,
) -> float:
    """log of the mean over pairs i < j of exp(-2 ||x^_i - x^_j||^2): -8 to 0, lower is more even.

    Args:
        vectors: (n, C) floating-point, n >= 2.
        max_rows: of more rows, as many are drawn without replacement and all their pairs used: the
            mean inside the logarithm is then an unbiased estimate. None: always all.
        seed: of that draw.
        chunk_size: rows and columns compared at a time; changes no result beyond rounding.
        device: where to compute; None: where the vectors are.

    Raises:
        TypeError, ValueError: not an (n, C) tensor with n >= 2, or max_rows below 2.
    """
    _check("uniformity", vectors, chunk_size, least_rows=2)
    if max_rows is not None and max_rows < 2:
        raise ValueError(f"uniformity: max_rows must be at least 2 or None, got {max_rows}")
    device = computing_device(vectors, device)
    if max_rows is not None and len(vectors) > max_rows:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(vectors), generator=generator)[:max_rows].sort().values
        vectors = vectors[drawn.to(vectors.device)]
    blocks = row_blocks(len(vectors), chunk_size)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for index, rows in enumerate(blocks):
        queries = unit_rows(vectors[rows], device)
        norms = queries.square().sum(dim=1)  # 1, or 0 of a row of zeros
        for columns in blocks[index:]:
            keys = unit_rows(vectors[columns], device)
            distances = norms[:, None] + keys.square().sum(dim=1) - 2 * (queries @ keys.T)
            terms = (-2 * distances.clamp_min(0)).exp()
            total += terms.triu(diagonal=1).sum() if rows == columns else terms.sum()
    mean = total.item() / math.comb(len(vectors), 2)
    return math.log(mean) if mean > 0 else mean  # NaN stays


def spread(vectors: Tensor, *, chunk_size: int = 1024, device: Device = None) -> Spread:
    """The center of the vectors and two measures of isotropy, in two passes.

    mean_cosine: mean of cos(x_i, x_j) over i != j; 0 where directions are even, 1 where all agree.
    iso_score: 0 where one direction holds all variance, 1 where all C directions hold the same.
    With S the covariance, the score of its source, there made of the eigenvalues of S in five
    steps, is (trace(S)^2 / ||S||_F^2 - 1) / (C - 1): no eigenvalue is needed. 0 where no vector
    differs.

    Args:
        vectors: (n, C) floating-point, n >= 2 and C >= 2.
        chunk_size: rows at a time.
        device: where to compute; None: where the vectors are.

    Raises:
        TypeError, ValueError: not an (n, C) tensor with n >= 2 and C >= 2.

    Cost: n * C^2 multiplications; holds 2 * C^2 float64 numbers and a block.
    """
    _check("spread", vectors, chunk_size, least_rows=2)
    num_rows, width = vectors.shape
    if width < 2:
        raise ValueError(f"spread: vectors must have at least 2 columns, got {width}")
    device = computing_device(vectors, device)
    blocks = [vectors[block] for block in row_blocks(num_rows, chunk_size)]
    total = torch.zeros(width, dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for block in blocks:
        rows = unit_rows(block, device)
        total += rows.sum(dim=0)
        squares += rows.square().sum()
    mean = total / num_rows
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
    for block in blocks:
        centered = unit_rows(block, device) - mean
        covariance.addmm_(centered.T, centered)
    covariance /= num_rows - 1
    mean_cosine = (total.square().sum() - squares) / (num_rows * (num_rows - 1))
    return Spread(mean.cpu(), mean_cosine.item(), _iso_score(covariance))


def center_distance(one: Spread, other: Spread) -> float:
    """Euclidean distance of two languages' mean unit vectors: 0 to 2."""
    distance: float = (one.mean - other.mean).norm().item()
    return distance


def language_identification(
    vectors: Mapping[str, Tensor], *, seed: int = 0, chunk_size: int = 1024, device: Device = None
) -> dict[str, float]:
    """Share of each language's sentences that are nearest to the center of their own language.

    Held out: the lines are split at random into two halves, a line with all its translations; the
    centers (mean unit vectors) of one half classify the other, and the other way round. A tie is a
    miss. By chance 1 / the number of languages; languages that cannot be told apart come near that.

    Args:
        vectors: language -> (n, C), rows translate rows; two languages or more, n >= 2.
        seed: of the split.
        chunk_size: rows at a time.
        device: where to compute; None: where the vectors are.

    Raises:
        TypeError, ValueError: fewer languages or lines, or shapes that differ.
    """
    for language, rows in vectors.items():
        _check("language_identification", rows, chunk_size, least_rows=2, name=language)
    shapes = {tuple(rows.shape) for rows in vectors.values()}
    if len(vectors) < 2 or len(shapes) > 1:
        raise ValueError(
            "language_identification: vectors must hold two languages or more, of one shape, got "
            f"{ {language: tuple(rows.shape) for language, rows in vectors.items()} }"
        )
    ((num_lines, _),) = shapes
    first = next(iter(vectors.values()))
    device = computing_device(first, device)
    blocks = row_blocks(num_lines, chunk_size)
    generator = torch.Generator().manual_seed(seed)
    half = torch.randperm(num_lines, generator=generator).to(device) % 2  # 0 or 1 of each line
    centers = torch.stack(
        [_centers_of_halves(rows, half, blocks, device) for rows in vectors.values()], dim=1
    )
    return {
        language: _hits(rows, index, centers, half, blocks) / num_lines
        for index, (language, rows) in enumerate(vectors.items())
    }


def _hits(
    vectors: Tensor, language: int, centers: Tensor, half: Tensor, blocks: list[slice]
) -> int:
    """Rows of a language nearest to its center of the half they are not in; centers: (2, L, C)."""
    squares = centers.square().sum(dim=2)
    hits = 0
    for block in blocks:
        rows = unit_rows(vectors[block], centers.device)
        # ||x - c||^2 - ||x||^2 to every center, and of these the other half's: (lines, L)
        to_both = squares - 2 * torch.einsum("nc,hlc->nhl", rows, centers)
        distances = to_both[torch.arange(len(rows), device=rows.device), 1 - half[block]]
        own = distances[:, language, None].clone()
        distances[:, language] = torch.inf
        hits += int((distances - own > _NO_SPREAD).all(dim=1).sum())
    return hits


def _centers_of_halves(
    vectors: Tensor, half: Tensor, blocks: list[slice], device: torch.device
) -> Tensor:
    """(2, C): the mean unit vector of each half of the lines."""
    sums = torch.zeros(2, vectors.shape[1], dtype=torch.float64, device=device)
    for block in blocks:
        rows = unit_rows(vectors[block], device)
        for side in (0, 1):
            sums[side] += rows[half[block] == side].sum(dim=0)
    return sums / torch.stack([(half == side).sum() for side in (0, 1)])[:, None]


def _iso_score(covariance: Tensor) -> float:
    trace = covariance.trace().item()
    if trace < _NO_SPREAD:
        return 0.0
    dimensions_used = trace**2 / covariance.square().sum().item()
    return (dimensions_used - 1) / (len(covariance) - 1)


def _check(
    function: str, vectors: Tensor, chunk_size: int, *, least_rows: int = 1, name: str = "vectors"
) -> None:
    check_vectors(function, name, vectors)
    check_chunk_size(function, chunk_size)
    if len(vectors) < least_rows:
        raise ValueError(
            f"{function}: {name} must have at least {least_rows} row{'s'[: least_rows - 1]}, got "
            f"{len(vectors)}"
        )

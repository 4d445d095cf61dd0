"""Cosine similarities of translation pairs, a tile at a time: nothing of size n x n is held.

Shapes: n translation pairs, C features. Vectors may be memory-mapped: a block is read when its turn
comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.argument_checks import check_dims, check_floating, check_tensor


class Tile(NamedTuple):
    """similarity: float32, of the sources in `rows` with the targets in `columns`."""

    rows: slice
    columns: slice
    similarity: Tensor


class TranslationPairs:
    """The vectors of n pairs, and their similarities in tiles.

    own[i] = cos(source[i], target[i]), float32. Similarities are formed in float64 and compared as
    float32: equal vectors tie, whatever the order in which the machine sums.

    Args:
        function: the public function that was called, named in errors.
        source: (n, C) floating-point; row i translates row i of target. Any device.
        target: (n, C) likewise, on the device of source.
        ids: (n,) integers or None. Pairs of equal id mean the same: the similarities between them
            are -inf, apart from own, so that none counts for or against the other.
        chunk_size: rows and columns of a tile; changes no result.
        device: where to compute; None: where the vectors are.
    """

    def __init__(
        self,
        function: str,
        source: Tensor,
        target: Tensor,
        *,
        ids: Tensor | None,
        chunk_size: int,
        device: torch.device | str | None,
    ) -> None:
        _check(function, source, target, ids)
        check_chunk_size(function, chunk_size)
        self.device = computing_device(source, device)
        self.blocks = row_blocks(len(source), chunk_size)
        self._source, self._target = source, target
        self._ids = None if ids is None else ids.to(self.device)
        self.own = torch.cat([self._own(block) for block in self.blocks])

    def tiles(self) -> Iterator[Tile]:
        """Every tile once, in a fixed order."""
        for rows in self.blocks:
            queries = unit_rows(self._source[rows], self.device)
            for columns in self.blocks:
                similarity = (queries @ unit_rows(self._target[columns], self.device).T).float()
                if self._ids is not None:
                    same = self._ids[rows, None] == self._ids[None, columns]
                    similarity.masked_fill_(same, -torch.inf)
                if rows == columns:
                    similarity.diagonal().copy_(self.own[rows])
                yield Tile(rows, columns, similarity)

    def _own(self, block: slice) -> Tensor:
        source, target = (
            unit_rows(vectors[block], self.device) for vectors in (self._source, self._target)
        )
        return (source * target).sum(dim=1).float()


def unit_rows(vectors: Tensor, device: torch.device) -> Tensor:
    """float64 rows of unit length on the device; a row of zeros stays."""
    return torch.nn.functional.normalize(vectors.detach().to(device).double(), dim=1)


def row_blocks(num_rows: int, chunk_size: int) -> list[slice]:
    """Slices of at most chunk_size rows that cover all of them."""
    starts = range(0, num_rows, chunk_size)
    return [slice(start, min(start + chunk_size, num_rows)) for start in starts]


def computing_device(vectors: Tensor, device: torch.device | str | None) -> torch.device:
    """The device asked for, or that of the vectors; the CPU for one that has no float64."""
    chosen = vectors.device if device is None else torch.device(device)
    return torch.device("cpu") if chosen.type == "mps" else chosen


def check_vectors(function: str, name: str, vectors: Tensor) -> None:
    """Raises TypeError or ValueError unless it is a floating-point (n, C) tensor."""
    check_tensor(function, name, vectors)
    check_dims(function, name, vectors, "(n, C)")
    check_floating(function, name, vectors)


def check_chunk_size(function: str, chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"{function}: chunk_size must be at least 1, got {chunk_size}")


def _check(function: str, source: Tensor, target: Tensor, ids: Tensor | None) -> None:
    for name, vectors in (("source", source), ("target", target)):
        check_vectors(function, name, vectors)
    if source.shape != target.shape or source.shape[0] == 0 or source.device != target.device:
        raise ValueError(
            f"{function}: source and target must have the same shape (n, C) with n > 0 and "
            f"be on the same device, got {tuple(source.shape)} on {source.device} and "
            f"{tuple(target.shape)} on {target.device}"
        )
    if ids is None:
        return
    check_tensor(function, "ids", ids)
    if ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise TypeError(f"{function}: ids must be integers, got {ids.dtype}")
    if ids.shape != source.shape[:1]:
        raise ValueError(
            f"{function}: ids must have shape {tuple(source.shape[:1])}, one per pair, got "
            f"{tuple(ids.shape)}"
        )

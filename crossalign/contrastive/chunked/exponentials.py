"""Exponentials of a chunk of logits, a few columns at a time, while these are in a core's cache.

Each pass over a whole chunk reads and writes main memory; over a tile it does not. Limits are
compared here, as factors 0 and 1: on a CPU a mask of booleans costs several times a product.

Shape suffixes: R rows of a chunk, M candidates, K of them keys, T of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk
from crossalign.contrastive.chunked.torch_logits import LogitChunks

TILE_LOGITS = 2**17  # for each thread: of float32 half a MiB, and as much of factors


class _Tile(NamedTuple):
    logits_RT: Tensor  # a view
    columns: slice  # of the chunk's
    keys: slice | None  # of the terms of columns that it serves: all of it does, or nothing


class Exponentials:
    """What is formed from the exponentials of chunk after chunk."""

    def __init__(self, chunks: LogitChunks) -> None:
        num_rows, num_columns = chunks.num_rows, chunks.candidates_MD.shape[0]
        self.width = max(1, num_columns)
        if chunks.candidates_MD.device.type == "cpu":
            share = TILE_LOGITS * torch.get_num_threads() // num_rows
            self.width = max(1, min(self.width, share))
        self.scratch = [chunks.candidates_MD.new_empty(0) for _ in range(2)]

    def of_rows(self, chunk: Chunk, bound: float | None) -> tuple[Tensor, Tensor]:
        """Replaces logits by multiples of their exponentials, 0 beyond the limit of the row.
        Returns (R,) their sum, and its logarithm without the multiple."""
        largest = None
        if bound is None:
            largest = chunk.logits_RM.amax(1)
            largest = largest.masked_fill(largest == -torch.inf, 0)
        total = chunk.logits_RM.new_zeros(chunk.logits_RM.shape[0])
        for tile in self._tiles(chunk):
            logits_RT = tile.logits_RT
            keep_RT = None
            if chunk.row_limit_R is not None:
                keep_RT = self._scratch(0, logits_RT)
                torch.le(logits_RT, chunk.row_limit_R[:, None], out=keep_RT)
            if largest is not None:
                logits_RT.sub_(largest[:, None])
            logits_RT.exp_()
            if keep_RT is not None:
                logits_RT.mul_(keep_RT)
            total += logits_RT.sum(1)
        return total, total.log() if largest is None else total.log().add_(largest)

    def add_sums(self, chunk: Chunk, row_sums_R: Tensor, column_sums: Tensor) -> None:
        """Adds bounded logits' exponentials to the sums of their rows, and of the columns whose
        terms they serve; replaces the logits by them."""
        for tile in self._tiles(chunk):
            logits_RT = tile.logits_RT
            keep_R, keep_K = self._kept(chunk, tile)
            logits_RT.exp_()
            of_rows = logits_RT if keep_R is None else keep_R.mul_(logits_RT)
            row_sums_R += of_rows.sum(1)
            if tile.keys is not None:
                of_columns = logits_RT if keep_K is None else keep_K.mul_(logits_RT)
                column_sums[tile.keys] += of_columns.sum(0)

    def to_gradients(
        self,
        chunk: Chunk,
        row_factor_R: Tensor,
        column_factor: Tensor,
        kept_RM: Tensor | None = None,
    ) -> None:
        """Replaces bounded logits by exp(z) (row factor + column factor), each where it counts.

        kept_RM: exp(z), if known, so that the chunk's logits need not be.
        """
        for tile in self._tiles(chunk):
            logits_RT, keys = tile.logits_RT, tile.keys
            keep_R, keep_K = self._kept(chunk, tile)
            factor = row_factor_R[:, None]
            if keep_R is not None:
                factor = keep_R.mul_(factor)
            if keys is not None:
                of_columns = column_factor[keys]
                if keep_K is not None:
                    of_columns = keep_K.mul_(of_columns)
                factor = torch.add(factor, of_columns, out=self._scratch(0, logits_RT))
            if kept_RM is None:
                logits_RT.exp_().mul_(factor)
            else:
                torch.mul(kept_RM[:, tile.columns], factor, out=logits_RT)

    def _tiles(self, chunk: Chunk) -> Iterator[_Tile]:
        """From the left, cut where columns begin or cease to have terms that they serve."""
        last = chunk.logits_RM.shape[1]
        first_served = min(chunk.column_part.start, last)
        last_served = max(first_served, min(chunk.column_part.stop, last))
        parts = ((0, first_served), (first_served, last_served), (last_served, last))
        for is_served, (start, stop) in zip((False, True, False), parts, strict=True):
            for first in range(start, stop, self.width):
                columns = slice(first, min(first + self.width, stop))
                keys = None
                if is_served:
                    offset = chunk.keys.start - first_served
                    keys = slice(columns.start + offset, columns.stop + offset)
                yield _Tile(chunk.logits_RM[:, columns], columns, keys)

    def _kept(self, chunk: Chunk, tile: _Tile) -> tuple[Tensor | None, Tensor | None]:
        """(R, T) 0 and 1: what counts for the rows and for the columns; None: all of it."""
        of_rows = of_columns = None
        if chunk.row_limit_R is not None:
            of_rows = self._scratch(0, tile.logits_RT)
            torch.le(tile.logits_RT, chunk.row_limit_R[:, None], out=of_rows)
        elif chunk.row_left_out_RM is not None:
            of_rows = self._scratch(0, tile.logits_RT)
            torch.logical_not(chunk.row_left_out_RM[:, tile.columns], out=of_rows)
        if tile.keys is None:
            return of_rows, None
        here = slice(tile.keys.start - chunk.keys.start, tile.keys.stop - chunk.keys.start)
        if chunk.column_limit_K is not None:
            of_columns = self._scratch(1, tile.logits_RT)
            torch.le(tile.logits_RT, chunk.column_limit_K[here], out=of_columns)
        elif chunk.column_left_out_RK is not None:
            of_columns = self._scratch(1, tile.logits_RT)
            torch.logical_not(chunk.column_left_out_RK[:, here], out=of_columns)
        return of_rows, of_columns

    def _scratch(self, which: int, like: Tensor) -> Tensor:
        """(R, T) of the shape and layout of a tile, reused: fresh memory costs more."""
        num_rows, num_columns = like.shape
        if self.scratch[which].numel() < like.numel():
            self.scratch[which] = like.new_empty(num_rows * self.width)
        flat = self.scratch[which][: like.numel()]
        return flat.view(num_columns, num_rows).T

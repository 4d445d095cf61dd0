"""Sentence vectors on disk: more than memory holds, gone when nobody uses them any more."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def memory_mapped_vectors(directory: Path, num_rows: int, width: int) -> Tensor:
    """(num_rows, width) float32 zeros on the CPU, memory-mapped from a file without a name.

    The file is in the file system of `directory` and ends with the tensor or the process, even a
    killed one. Its room is taken at once: a full disk is an error here, not a crash later.

    Raises:
        OSError: there is no room.
    """
    num_bytes = max(1, num_rows * width * 4)
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:  # not on macOS and Windows, where a full disk shows late
                file.truncate(num_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                f"{directory}: no room for {num_bytes / 1e9:.1f} GB of sentence vectors; name an "
                "--output on a larger disk, fewer --layers or a smaller --limit"
            ) from None
        mapped = np.memmap(file, dtype=np.float32, mode="r+", shape=(num_rows, width))
    return torch.from_numpy(mapped)

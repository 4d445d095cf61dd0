"""A rank that dies in the middle of a run: what the others say, and that a run can go on."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command_cases import assert_one_line

SMALL = ["--batch-size", "8", "--device", "cpu", "--steps", "100000", "--save-every", "2"]


def start(rank: int, port: int, flags: list[object]) -> subprocess.Popen[str]:
    """One of two ranks, as torchrun would start it, which would stop the other where one dies."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "crossalign", "align", *map(str, flags), *SMALL],
        env={**os.environ, **address, **ranks},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_is_named_by_the_other(
    tmp_path: Path, model_dir: Path, pairs_file: Path, victim: int
) -> None:
    """By whichever exchange it fails: that of the loss, of gradients, or of a step's end. All but
    the first gave gloo's bare text."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    metrics = tmp_path / "out" / "metrics.jsonl"
    flags = ["--model", model_dir, "--pairs", pairs_file, "--output", tmp_path / "out"]
    ranks = [start(rank, port, flags) for rank in range(2)]
    while all(rank.poll() is None for rank in ranks):
        if metrics.exists() and metrics.read_text().count("\n") >= 4:
            break
        time.sleep(0.01)
    ranks[victim].kill()
    _, error = ranks[1 - victim].communicate(timeout=120)
    ranks[victim].communicate()
    assert ranks[1 - victim].returncode == 1, error
    assert_one_line(error, "a rank of the group died, or did not")
    assert re.search(r"the last complete one is .*step-\d+; --resume goes on from there", error)

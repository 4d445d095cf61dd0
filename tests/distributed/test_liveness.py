"""A process that has ended is missed, also one that nobody has reaped; a living one is not."""

from __future__ import annotations

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from crossalign.distributed.liveness import dead_rank, longest_wait, process_record
from tests.support.process_group import run_ranks


def test_ended_processes_are_missed() -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    mine = process_record()
    started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    records = [mine, {**mine, "pid": child.pid, "started": started}]
    assert mine["pid"] == os.getpid()
    assert dead_rank(records, 0) is None
    assert dead_rank([records[1], mine], 1) is None
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert dead_rank(records, 0) == 1  # not reaped yet
    child.join()
    assert dead_rank(records, 0) == 1
    reused = [mine, {**mine, "pid": 1}]  # a number that another process has by now
    assert dead_rank(reused, 0) == 1


def test_processes_of_another_number_space_are_not_judged() -> None:
    mine = process_record()
    elsewhere = {**mine, "pid": 2**22, "pid namespace": "pid:[1]"}
    assert dead_rank([mine, elsewhere], 0) is None
    assert dead_rank([mine, {}], 0) is None and dead_rank([{}, mine], 0) is None


def wait_of_group(rank: int) -> list[float]:
    groups = [dist.new_group([0], timeout=timedelta(seconds=each)) for each in (7, 4000)]
    return [longest_wait(group, torch.device("cpu")) for group in groups]


def test_the_groups_timeout_bounds_a_wait() -> None:
    assert run_ranks(wait_of_group, 1) == [[7.0, 300.0]]

"""One batch over two processes, whose gradient is that of the whole batch.

python examples/two_processes.py [--steps 20]
"""

import argparse
import os
import tempfile

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from crossalign import fused_contrastive_loss


def train(rank: int, store: str, steps: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # both run on this machine
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    encoder = DistributedDataParallel(torch.nn.Linear(32, 16))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    torch.manual_seed(rank)  # from here on each process has pairs of its own
    for _ in range(steps):
        examples = torch.randn(48 + 16 * rank, 32)  # as many as it likes
        both = encoder(torch.cat([examples, examples + 0.5 * torch.randn_like(examples)]))
        loss, stats = fused_contrastive_loss(
            *both.chunk(2), group=dist.group.WORLD, return_stats=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"accuracy among the 112 keys of both: {stats.accuracy.item():.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (f"{folder}/store", steps), nprocs=2)

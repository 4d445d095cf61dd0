"""Two encoders and one learned temperature, as in CLIP; embedded in chunks of 64 pairs.

python examples/two_towers.py [--steps 100]
"""

import argparse

import torch
from torch import nn

from crossalign import ContrastiveLoss, GradientCache

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

torch.manual_seed(0)
images_of, texts_of = torch.randn(16, 48), torch.randn(16, 32)  # two views of the same 16 factors
towers = nn.ModuleList(
    nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 32)) for width in (48, 32)
)
loss_of = ContrastiveLoss(0.07, learn_temperature=True, symmetric=True)
cache = GradientCache(towers, loss_of, chunk_size=64)
optimizer = torch.optim.AdamW([*towers.parameters(), *loss_of.parameters()], lr=1e-3)
for step in range(steps):
    factors = torch.randn(256, 16)
    loss = cache(factors @ images_of, factors @ texts_of)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0 or step == steps - 1:
        print(f"step {step}: loss {loss.item():.3f}, scale {loss_of.logit_scale.exp().item():.1f}")

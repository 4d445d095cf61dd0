"""Sentence embeddings without labels, as SimCSE: a sentence and itself under other dropout.

python examples/simcse.py [--steps 200]
"""

import argparse

import torch
from torch import nn

from crossalign import fused_contrastive_loss, masked_mean_pool


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 64)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return masked_mean_pool(self.head(self.words(tokens)), tokens != 0)


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

torch.manual_seed(0)
encoder = Encoder()
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
for step in range(steps):
    sentences = torch.randint(1, 500, (128, 12))  # 0 is padding
    sentences[:, 8:] *= torch.rand(128, 4) < 0.5
    loss, stats = fused_contrastive_loss(
        encoder(sentences), encoder(sentences), temperature=0.05, return_stats=True
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == steps - 1:
        print(f"step {step}: loss {loss.item():.3f}, accuracy {stats.accuracy.item():.2f}")

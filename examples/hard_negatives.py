"""A retriever with mined hard negatives, and a queue of documents of earlier batches.

The loss is that of Qwen3-Embedding: other queries and other documents compete too, and what is
closer than the answer by 0.1 is taken for another answer and left out.

python examples/hard_negatives.py [--steps 100]
"""

import argparse

import torch
from torch import nn

from crossalign import NegativeQueue, fused_contrastive_loss

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

torch.manual_seed(0)
documents = torch.randn(2000, 32)
hard = (documents @ documents.T).fill_diagonal_(-1e9).topk(2).indices  # two that are alike
encoder = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
queue = NegativeQueue(512)
for step in range(steps):
    ids = torch.randperm(len(documents))[:128]
    query = encoder(documents[ids] + 0.5 * torch.randn(128, 32))
    key, mined = encoder(documents[ids]), encoder(documents[hard[ids]].flatten(0, 1))
    negatives, negative_ids = mined, hard[ids].flatten()
    if queue.negatives is not None and queue.negative_ids is not None:
        negatives = torch.cat([negatives, queue.negatives])
        negative_ids = torch.cat([negative_ids, queue.negative_ids])
    loss, stats = fused_contrastive_loss(  # a document that is some query's answer is masked by id
        query,
        key,
        negatives,
        ids=ids,
        negative_ids=negative_ids,
        directions=("query_to_key", "query_to_query", "key_to_key"),
        false_negative_margin=0.1,
        return_stats=True,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    queue.push(key, ids)
    if step % 25 == 0 or step == steps - 1:
        print(f"step {step}: loss {loss.item():.3f}, accuracy {stats.accuracy.item():.2f}")

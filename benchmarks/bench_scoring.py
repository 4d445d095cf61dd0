"""How much faster, and in how much less memory, are choices scored than with all logits?

python -m benchmarks.bench_scoring --model MODEL --data ../shared/data/eval --items 12 --seconds 30

"eager" is the plain way: every choice a text, batches in the order of the items, logits of the
whole batch (batch x tokens x vocabulary), their log-softmax in float32, and of that the tokens.
"crossalign" is what `crossalign evaluate` does. Both take the same texts, batch size and weights,
and must agree with the plain way in float64 before either is timed. MODEL is a name, a directory or
a .gguf file; without one, a small random model is taken, to see that everything runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence

from benchmarks.accuracy import Verdict, allowed_error, relative_error
from benchmarks.harness import Harness, Work
from benchmarks.provenance import ROOT
from benchmarks.timing import Trial
from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.prompts import paper_prompt
from crossalign.evaluation.token_scores import Request, continuation_log_probabilities
from crossalign.models.loading import load_model

BATCH_SIZE = 8
TASK, LANGUAGES = "xnli", ("en", "sw", "zh")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    model, tokenizer = named_model(arguments.model)
    requests = all_requests(tokenizer, arguments.data, arguments.items)
    harness = Harness("scoring", "cpu", arguments.output, seconds=arguments.seconds)
    case = {
        "name": f"{len(LANGUAGES) * arguments.items} {TASK.upper()} items",
        "model": Path(arguments.model).name if arguments.model else "random",
        **{"texts": len(requests), "batch_size": BATCH_SIZE},
    }
    plain = torch.tensor(all_logits(model, requests))
    truth = torch.tensor(all_logits(model.double(), requests), dtype=torch.float64)
    model.float()
    allowed = allowed_error(relative_error([plain], [truth]), torch.float32)
    work = {"step": least_work(model, requests)}
    for name, score in (("eager", all_logits), ("crossalign", scored)):

        def call(score: Any = score) -> Tensor:
            return torch.tensor(score(model, requests))

        def check(call: Any = call) -> Verdict:
            return Verdict(relative_error([call()], [truth]), allowed)

        harness.measure(case, name, [Trial(call, ())], torch.float32, work, check)
    sys.exit(harness.close())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "eval")
    parser.add_argument("--items", type=int, default=12, help="of each language")
    parser.add_argument("--seconds", type=float, default=1.0, help="timing of one way")
    parser.add_argument("--output", type=Path, help="result file (default: named by the run)")
    return parser.parse_args(argv)


def named_model(name: str | None) -> tuple[Any, Any]:
    if name is not None:
        model, tokenizer = load_model(name)
        return model.train(False), tokenizer
    from crossalign.demo.corpus import make_corpus
    from crossalign.demo.language_model import new_model, train_tokenizer

    texts = make_corpus(num_texts=200, num_pairs=0, num_held_out=0, seed=0).texts
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.model_max_length = 2048
    return new_model(tokenizer, hidden_size=16, num_blocks=2, seed=0).train(False), tokenizer


def all_requests(tokenizer: Any, data: Path, items: int) -> list[Request]:
    """The choices of the first items of every language, the whole text of each counted."""
    found = []
    for language in LANGUAGES:
        prompt = paper_prompt(TASK, language, tokenizer.eos_token)
        for item in read_split(data, TASK, language, "test").items[:items]:
            for candidate in prompt.candidates(item, []):
                text = candidate.context + candidate.continuation
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                found.append(Request([tokenizer.bos_token_id], ids))
    return found


@torch.no_grad()
def all_logits(model: Any, requests: Sequence[Request]) -> list[float]:
    """The plain way."""
    scores: list[float] = []
    for start in range(0, len(requests), BATCH_SIZE):
        rows = [torch.tensor(each.tokens) for each in requests[start : start + BATCH_SIZE]]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if logits.dtype != torch.float64:
            logits = logits.float()
        of_tokens = log_softmax(logits, dim=2)[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
        scores += (of_tokens * mask[:, 1:]).sum(dim=1).tolist()
    return scores


def scored(model: Any, requests: Sequence[Request]) -> list[float]:
    return continuation_log_probabilities(model, requests, batch_size=BATCH_SIZE)


def least_work(model: Any, requests: Sequence[Request]) -> Work:
    """Each position once that no earlier text has, through the blocks and the head: two operations
    per weight; the weights are read once."""
    positions = {tuple(each.tokens[:end]) for each in requests for end in range(len(each.tokens))}
    weights = sum(weight.numel() for weight in model.parameters())
    return Work(2.0 * weights * len(positions), 4.0 * weights)


if __name__ == "__main__":
    main()

"""What do the drop-ins cost beside the losses of their libraries, forward and backward, on a CPU?

python -m benchmarks.drop_ins.cost [--rows 128 1024 8192] [--seconds 4] [--output FILE.jsonl]

Both sides run in turn on the same inputs with one thread. Times are CPU time of the process, which
other work on the machine hardly changes; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.drop_ins.torchvision_stand_in import torchvision_stand_in
from benchmarks.provenance import provenance, result_path
from benchmarks.resident_memory import peak_resident_mib

WIDTHS = {"MultipleNegativesRankingLoss": 384, "ClipLoss": 512, "NTXentLoss": 128}
MAX_TURNS = 60


class Side(NamedTuple):
    """One class: a call that gives the loss and leaves gradients in the leaves."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]


class Case(NamedTuple):
    name: str
    stage: str
    ours: Side
    host: Side


def columns(rows: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, width, generator=generator)
    key = query + torch.randn(rows, width, generator=generator)
    return [each.requires_grad_() for each in (query, key)]


def cases(rows: int, names: list[str], folder: Path) -> Iterator[Case]:
    with torchvision_stand_in(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import crossalign.integrations.lightly as lightly
        import crossalign.integrations.open_clip as open_clip
        import crossalign.integrations.sentence_transformers as sentences
    embeddings = "MultipleNegativesRankingLoss"
    made: dict[str, Callable[[], Case]] = {
        "MNRL": lambda: _of_columns(
            sentences.MultipleNegativesRankingLoss,
            columns(rows, WIDTHS[embeddings]),
            lambda cls, given: cls(nn.Identity()).compute_loss_from_embeddings(given, None),
        ),
        "CachedMNRL": lambda: _cached_loss_stage(
            sentences.CachedMultipleNegativesRankingLoss, columns(rows, WIDTHS[embeddings])
        ),
        "CachedMNRL step": lambda: _cached_step(
            sentences.CachedMultipleNegativesRankingLoss, rows, folder
        ),
        "ClipLoss": lambda: _of_columns(
            open_clip.ClipLoss,
            columns(rows, WIDTHS["ClipLoss"]),
            lambda cls, given: cls()(*map(nn.functional.normalize, given), torch.tensor(20.0)),
        ),
        "NTXent": lambda: _of_columns(
            lightly.NTXentLoss,
            columns(rows, WIDTHS["NTXentLoss"]),
            lambda cls, given: cls(0.1)(*given),
        ),
    }
    for name in names:
        yield made[name]()


def _of_columns(cls: Any, given: list[Tensor], loss: Callable[[Any, list[Tensor]], Tensor]) -> Case:
    def side(of: Any) -> Side:
        def call() -> Tensor:
            value = loss(of, given)
            value.backward()
            return value.detach()

        return Side(call, given)

    return Case(cls.__name__, "loss", side(cls), side(cls.__mro__[1]))


def _cached_loss_stage(cls: Any, given: list[Tensor]) -> Case:
    def side(of: Any) -> Side:
        loss = of(nn.Sequential(nn.Identity()), mini_batch_size=32)

        def call() -> Tensor:
            reps = [list(column.split(32)) for column in given]
            value: Tensor = loss.calculate_loss(reps, with_backward=True)
            return value.detach()

        return Side(call, given)

    return Case(cls.__name__, "loss", side(cls), side(cls.__mro__[1]))


def _cached_step(cls: Any, rows: int, folder: Path) -> Case:
    """Of a random BERT of two layers of width 64, over sentences of eight words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder, config.vocab_size)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(64)], device="cpu")
    model.eval()  # without dropout both sides see the same
    words = torch.randint(2, 1000, (rows, 8))
    features = [
        {"input_ids": each, "attention_mask": torch.ones_like(each)}
        for each in (words, torch.where(torch.rand(words.shape) < 0.5, words, words.flip(0)))
    ]
    leaves = list(model.parameters())

    def side(of: Any) -> Side:
        loss = of(model, mini_batch_size=32)

        def call() -> Tensor:
            value: Tensor = loss([dict(feature) for feature in features], None)
            value.backward()
            return value.detach()

        return Side(call, leaves)

    return Case(cls.__name__, "step", side(cls), side(cls.__mro__[1]))


def _save_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{f"w{index}": index for index in range(2, size)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


def measure(case: Case, rows: int, seconds: float) -> dict[str, Any]:
    """A row: refuses to time what differs from the host."""
    for name, side in (("ours", case.ours), ("host", case.host)):
        _clear(side)
        value = side.call()
        gradients = [leaf.grad for leaf in side.leaves]
        if name == "ours":
            mine = (value, gradients)
    torch.testing.assert_close(mine[0], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine[1], gradients, rtol=5e-3, atol=1e-5)
    del mine, gradients
    peaks = [_peak_mib(side) for side in (case.ours, case.host)]
    turns: list[tuple[float, float]] = []
    until = time.monotonic() + seconds
    while len(turns) < 3 or (time.monotonic() < until and len(turns) < MAX_TURNS):
        turns.append((_cpu_ms(case.ours), _cpu_ms(case.host)))
    ours, host = (statistics.median(each) for each in zip(*turns, strict=True))
    return {
        **{"loss": case.name, "stage": case.stage, "rows": rows, "turns": len(turns)},
        **{"cpu_ms": ours, "host_cpu_ms": host},
        "host_over_ours": statistics.median(host / ours for ours, host in turns),
        **{"peak_mib": peaks[0], "host_peak_mib": peaks[1]},
    }


def _cpu_ms(side: Side) -> float:
    _clear(side)
    start = time.process_time()
    side.call()
    return (time.process_time() - start) * 1000


def _peak_mib(side: Side) -> float | None:
    _clear(side)
    gc.collect()
    return peak_resident_mib(lambda: None, side.call)


def _clear(side: Side) -> None:
    for leaf in side.leaves:
        leaf.grad = None


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 1024, 8192])
    parser.add_argument("--seconds", type=float, default=4.0)
    names = ["MNRL", "CachedMNRL", "CachedMNRL step", "ClipLoss", "NTXent"]
    parser.add_argument("--losses", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    run = {"subject": "drop_ins", **provenance(torch.device("cpu"))}
    path = arguments.output or result_path("drop_ins", run)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            for case in cases(rows, arguments.losses, Path(folder)):
                row = measure(case, rows, arguments.seconds)
                lines.append(json.dumps({**row, "run": run}))
                print({key: value for key, value in row.items() if key != "run"}, flush=True)
                path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

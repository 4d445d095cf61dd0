"""The batches of a run: shares of ranks, their ids, their order, and where they come from."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.alignment.batches import Batches, StepBatch
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.padding import LENGTHS, share, trimmed
from crossalign.alignment.train import align
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.data.builders import TrainingItem, build_items
from crossalign.data.indexed_data import open_items, open_pairs
from crossalign.data.pairs import Pair
from crossalign.files.output import write_json_lines
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import NO_DROPOUT

CPU = torch.device("cpu")
MODEL, TOKENIZER = tiny_model("gpt2"), tiny_tokenizer()


def make_pairs(count: int, negatives: bool = False) -> list[Pair]:
    """Sources of one to seven words, all different; some targets recur."""
    pairs = []
    for index in range(count):
        source = " ".join(f"w{3 + (index // 9**k) % 9}" for k in range(1 + index % 7))
        target = f"w{50 + index % 30} w{20 + index % 11}"
        pairs.append(Pair(f"w{12 + index % 83} {source}", target, negative="w95" * negatives))
    return pairs


def make_batches(
    pairs: Sequence[Pair],
    items: Sequence[TrainingItem] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    **settings: Any,
) -> Batches:
    config = TrainingConfig(**{"batch_size": 10, "lm_batch_size": 7, "device": "cpu", **settings})
    return Batches(MODEL, TOKENIZER, pairs, items, config, rank=rank, world_size=world_size)


def rows_of(inputs: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The token ids of each row without padding."""
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in rows]


def pairs_of(batch: StepBatch) -> list[tuple[Any, ...]]:
    sides = [batch.source, batch.target] + ([batch.negatives] if batch.negatives else [])
    return list(zip(*(rows_of(side) for side in sides), strict=True))


def same_id_pairs(rows: list[tuple[Any, ...]], ids: list[int]) -> set[tuple[Any, Any]]:
    every = list(zip(rows, ids, strict=True))
    return {(one, other) for one, a in every for other, b in every if a == b}


@pytest.mark.parametrize("world_size", [2, 3, 7, 16])
def test_ranks_share_the_batch_of_one_process(world_size: int) -> None:
    """Every row on one rank, shares that differ by one at most or are empty, ids that agree."""
    pairs = make_pairs(60, negatives=True)
    whole = make_batches(pairs).at(4, CPU)
    assert whole.lm is not None
    parts = [
        make_batches(pairs, rank=rank, world_size=world_size).at(4, CPU)
        for rank in range(world_size)
    ]
    rows = [row for part in parts for row in pairs_of(part)]
    assert sorted(rows) == sorted(pairs_of(whole))
    counts = [part.num_pairs for part in parts]
    assert sum(counts) == 10 and max(counts) - min(counts) <= 1
    texts = [row for part in parts if part.lm for row in rows_of(part.lm)]
    assert sorted(texts) == sorted(rows_of(whole.lm))
    assert sum(part.num_tokens for part in parts) == whole.num_tokens
    ids = torch.cat([part.ids for part in parts]).tolist()
    assert same_id_pairs(rows, ids) == same_id_pairs(pairs_of(whole), whole.ids.tolist())


def test_recurring_sentences_have_one_id_across_ranks() -> None:
    pairs = [Pair(f"w{10 + index}", f"w{50 + index % 3}") for index in range(10)]
    parts = [make_batches(pairs, rank=rank, world_size=4).at(0, CPU) for rank in range(4)]
    targets = [row[1] for part in parts for row in pairs_of(part)]
    ids = [number for part in parts for number in part.ids.tolist()]
    assert len(set(targets)) == len(set(ids)) == len(set(zip(targets, ids, strict=True))) == 3


def test_ids_join_within_the_batch_only() -> None:
    """a-b and b-c in one batch are one meaning; a-b and c-d are one only beside b-c."""
    chain = [Pair("w3", "w4"), Pair("w5", "w6"), Pair("w4", "w5")]
    assert len(set(make_batches(chain, batch_size=3).at(0, CPU).ids.tolist())) == 1
    two = make_batches(chain[:2], batch_size=2).at(0, CPU)
    assert len(set(two.ids.tolist())) == 2


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_negative_that_says_the_same_as_a_pair_is_none_for_it(chunk_size: int | None) -> None:
    """Each negative is the own target: it must not stand against it, but against the other's."""
    pairs = [Pair("w3", "w4", negative="W4"), Pair("w5 w6", "w7", negative=" w7")]
    config = TrainingConfig(
        batch_size=2, chunk_size=chunk_size, lm_weight=0.0, steps=1, device="cpu", layer=2
    )
    batch = Batches(MODEL, TOKENIZER, pairs, None, config).at(0, CPU)
    assert batch.negatives is not None and batch.negative_ids is not None
    assert torch.equal(batch.negative_ids, batch.ids)
    with torch.no_grad():
        alignment = AlignmentModel(MODEL, layer=2)
        sides = [alignment.embed(side) for side in (batch.source, batch.target, batch.negatives)]
        numbers = torch.arange(2)
        expected = fused_contrastive_loss(*sides, ids=numbers, negative_ids=numbers)
        standing = fused_contrastive_loss(*sides, ids=numbers)
    records: list[Any] = []
    align(tiny_model("gpt2", **NO_DROPOUT), TOKENIZER, pairs, config, on_step=records.append)
    assert records[0]["contrastive_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert abs(standing - expected) > 0.01
    bare = make_batches(make_pairs(20)).at(0, CPU)
    assert bare.negatives is None and bare.negative_ids is None


def test_a_step_depends_on_seed_and_step_alone() -> None:
    """So a run continues anywhere: a fresh object gives any step again."""
    pairs = make_pairs(60)
    batches = make_batches(pairs)
    steps = [batches.at(step, CPU) for step in range(13)]
    again = make_batches(pairs)
    for step in 12, 3, 7:
        one, other = steps[step], again.at(step, CPU)
        assert torch.equal(one.ids, other.ids)
        for side in "source", "target", "lm":
            for name, tensor in getattr(one, side).items():
                assert torch.equal(tensor, getattr(other, side)[name])
    seeds = [pairs_of(make_batches(pairs, seed=seed).at(0, CPU)) for seed in (0, 1)]
    assert sorted(seeds[0]) != sorted(seeds[1])


def test_a_pass_over_all_ranks_and_steps_drops_and_repeats_nothing() -> None:
    pairs = make_pairs(60)
    seen = [
        row
        for step in range(6)
        for rank in range(3)
        for row in pairs_of(make_batches(pairs, rank=rank, world_size=3).at(step, CPU))
    ]
    assert len(seen) == len(set(seen)) == 60


def test_rows_stand_in_the_order_of_their_lengths() -> None:
    batch = make_batches(make_pairs(60)).at(0, CPU)
    assert batch.lm is not None
    for lengths in (batch.source[LENGTHS] + batch.target[LENGTHS], batch.lm[LENGTHS]):
        assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
        assert len(set(lengths.tolist())) > 2
    for side in batch.source, batch.lm:
        assert torch.equal(side[LENGTHS], side["attention_mask"].sum(dim=1))


def test_ranks_get_as_much_work() -> None:
    """Token counts of shares of a long-tailed batch; contiguous shares would differ by half."""
    pairs = [Pair(" ".join(["w5"] * (1 + index % 40)), f"w{index % 90}") for index in range(80)]
    tokens = [
        make_batches(pairs, rank=rank, world_size=4, batch_size=80, lm_weight=0.0)
        .at(0, CPU)
        .num_tokens
        for rank in range(4)
    ]
    assert max(tokens) - min(tokens) < 0.1 * max(tokens)


def test_chunks_are_trimmed_and_give_the_same_states() -> None:
    batch = make_batches(make_pairs(60)).at(0, CPU)
    alignment = AlignmentModel(MODEL)
    whole = alignment.embed(batch.source)
    last = {name: tensor[-3:] for name, tensor in batch.source.items()}
    assert trimmed(last)["input_ids"].shape[1] < batch.source["input_ids"].shape[1]
    assert LENGTHS not in trimmed(last)
    torch.testing.assert_close(alignment.embed(last), whole[-3:], rtol=1e-5, atol=1e-6)
    untold = {name: tensor for name, tensor in last.items() if name != LENGTHS}
    assert trimmed(untold)["input_ids"] is untold["input_ids"]
    mask = torch.zeros(2, 1, 6, 6)
    packed = {"input_ids": torch.zeros(2, 6), "mask": mask, LENGTHS: torch.tensor([4, 2])}
    assert {name: tensor.shape[-1] for name, tensor in trimmed(packed).items()} == {
        "input_ids": 4,
        "mask": 4,
    }
    assert trimmed(packed)["mask"].shape == (2, 1, 4, 4)


def test_shares_are_every_nth_row() -> None:
    parts = [list(range(10))[share(10, rank, 4)] for rank in range(4)]
    assert parts == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert list(range(2))[share(2, 3, 4)] == []


def test_data_in_files_gives_the_same_batches(tmp_path: Path) -> None:
    pairs = make_pairs(60, negatives=True)
    rows = [{"source": p.source, "target": p.target, "negative": p.negative} for p in pairs]
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    items = build_items("translation", pairs, repeats=1)
    write_json_lines(tmp_path / "items.jsonl", items)
    opened_pairs = open_pairs([tmp_path / "pairs.jsonl"], (), tmp_path / "cache")
    opened_items = open_items(tmp_path / "items.jsonl", tmp_path / "cache")
    for given, opened in ((None, None), (items, opened_items)):
        one = make_batches(pairs, given, rank=1, world_size=2).at(3, CPU)
        other = make_batches(opened_pairs, opened, rank=1, world_size=2).at(3, CPU)
        assert one.lm is not None and other.lm is not None
        assert pairs_of(one) == pairs_of(other)
        assert rows_of(one.lm) == rows_of(other.lm)
        assert torch.equal(one.ids, other.ids)


def test_batches_of_a_large_file_keep_nothing(tmp_path: Path) -> None:
    """Neither pairs nor the translation tasks made of them."""
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "".join(f"w{index % 90} w{index % 7}\tw{index % 80}\n" for index in range(50_000))
    )
    pairs = open_pairs([path], (), tmp_path / "cache")
    make_batches(pairs).at(0, CPU)
    tracemalloc.start()
    batches = make_batches(pairs)
    batches.at(2, CPU)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches.lm_items) == 50_000
    assert peak < 2**20  # the pairs as objects take some 15 MiB


def test_a_text_without_an_end_token_is_left_open() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    config = TrainingConfig(batch_size=2, device="cpu")
    pairs = [Pair("w3", "w4"), Pair("w5", "w6")]
    open_ended = Batches(MODEL, tokenizer, pairs, None, config).at(0, CPU)
    closed = Batches(MODEL, TOKENIZER, pairs, None, config).at(0, CPU)
    assert open_ended.lm is not None and closed.lm is not None
    assert [(*row, 2) for row in rows_of(open_ended.lm)] == rows_of(closed.lm)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_there_is_an_error(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank must lie in 0 to {world_size - 1}, got {rank}"):
        make_batches(make_pairs(4), rank=rank, world_size=world_size)


def test_pairs_of_a_file_need_negatives_throughout(tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [{"source": "a", "target": "b", "negative": "c"}]
    write_json_lines(tmp_path / "p.jsonl", [*rows, {"source": "d", "target": "e"}])
    pairs = open_pairs([tmp_path / "p.jsonl"], (), tmp_path / "cache")
    with pytest.raises(ValueError, match="either all pairs must have a negative, or none"):
        make_batches(pairs)


def test_unknown_language_of_a_file_is_told_before_training(tmp_path: Path) -> None:
    rows = [{"source": "a", "target": "b", "target_language": code} for code in ("de", "xx")]
    write_json_lines(tmp_path / "p.jsonl", rows)
    pairs = open_pairs([tmp_path / "p.jsonl"], (), tmp_path / "cache")
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        make_batches(pairs)

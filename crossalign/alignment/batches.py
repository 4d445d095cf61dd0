"""The batches of a run: an endless shuffled stream per kind of text, cut into padded tensors.

Which items are in a step depends only on the seed and the step, so a run continues anywhere,
and ranks that know step and rank share a batch without a word to each other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.packing import PADDING, Packing, choose_packing, packed_texts
from crossalign.alignment.padding import LENGTHS, share
from crossalign.data.builders import TrainingItem, TranslationItems
from crossalign.data.indexed_data import num_negatives
from crossalign.data.items import LabeledTokens, label_answers
from crossalign.data.meaning_ids import meaning_ids
from crossalign.data.mixture import pair_stream
from crossalign.data.pairs import Pair
from crossalign.data.permutation import ShuffledStream
from crossalign.models.encode import longest_input, pad_right
from crossalign.models.next_token_loss import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("crossalign")

_TEXTS_CHECKED = 10_000
CPU = torch.device("cpu")
ON_CPU = ("labels", LENGTHS)  # counted there without a wait for the device
Inputs = dict[str, Tensor]


class StepBatch(NamedTuple):
    """What one step reads on one rank. B pairs (may be 0), T tokens, G texts.

    source, target, negatives: input_ids and attention_mask (B, T), padded on the right, and lengths
    (B,); negatives None if pairs have none. lm: input_ids, attention_mask, labels (G, T), lengths
    (G,); of packed texts G blocks as packed_texts makes them; None without an answer token in it.
    labels and lengths are on the CPU. Rows are in the order of their lengths, the longest first,
    so that a chunk of them needs little padding.
    """

    source: Inputs
    target: Inputs
    negatives: Inputs | None
    lm: Inputs | None
    ids: Tensor  # (B,) int64: pairs of equal id mean the same, on whatever rank
    negative_ids: Tensor | None  # (B,) int64: likewise the negatives; None if pairs have none
    num_pairs: int  # of this rank
    num_tokens: int  # in all texts of this rank, without padding


class Batches:
    """The batch of any step of a run.

    Fewer pairs (or texts) than a batch should hold make every batch hold all of them.

    Args:
        model, tokenizer: decide where a text is cut.
        pairs: at least two; read by position, a global batch at a time.
        lm_items: texts for the next-token loss; None: the pairs as translation tasks.
        config: batch_size and lm_batch_size count over all ranks.
        rank, world_size: which part of each global batch `at` gives.

    Raises:
        TypeError: pairs holds something else than Pair.
        ValueError: fewer than two pairs, no texts, or negatives for only some of the pairs.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        lm_items: Sequence[TrainingItem] | None,
        config: TrainingConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(pairs) < 2:
            raise ValueError(f"align: pairs must hold at least two pairs, got {len(pairs)}")
        if not isinstance(pairs[0], Pair):
            raise TypeError(
                "align: pairs must hold crossalign.data.pairs.Pair, got "
                f"{type(pairs[0]).__name__}; Pair(*row) makes one of (source, target)"
            )
        if lm_items is not None and not lm_items:
            raise ValueError("align: lm_items must hold at least one item, or be None")
        if not 0 <= rank < world_size:
            raise ValueError(f"align: rank must lie in 0 to {world_size - 1}, got {rank}")
        if num_negatives(pairs) not in (0, len(pairs)):
            raise ValueError("align: either all pairs must have a negative, or none")
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.rank, self.world_size = rank, world_size
        limit = longest_input(model, tokenizer)
        self.max_length = min(config.max_length, limit or config.max_length)
        self.batch_size = _at_most(config.batch_size, len(pairs), "batch_size", "pairs")
        self.pair_stream = pair_stream(pairs, f"pairs {config.seed}", self.batch_size)
        self.lm_items: Sequence[TrainingItem] = ()
        self.lm_batch_size = 0
        if config.lm_weight > 0:
            if lm_items is None:
                lm_items = TranslationItems(pairs, repeats=1, seed=config.seed)
            self.lm_items = lm_items
            self.lm_stream = ShuffledStream(len(lm_items), f"texts {config.seed}")
            wanted = config.lm_batch_size or self.batch_size
            self.lm_batch_size = _at_most(wanted, len(lm_items), "lm_batch_size", "texts")
        self.block_length, self.packing = 0, Packing(PADDING, "block_length is None")
        if self.lm_items and config.block_length is not None:
            self.block_length = min(config.block_length, limit or config.block_length)
            self.packing = choose_packing(model)
            told = "padded, not packed" if self.packing.way == PADDING else "packed"
            logger.info(
                "the texts of %s are %s: %s", type(model).__name__, told, self.packing.reason
            )

    def check_answers(self, steps: int) -> None:
        """Counts the texts of a run whose answer lies beyond max_length, before its first step.

        Of a long run the texts that come first are counted; a text has about as many tokens as
        bytes at most, so that only long ones are cut into tokens.

        Raises:
            ValueError: no text of those has an answer that is kept.
        """
        drawn = min(steps * self.lm_batch_size, len(self.lm_items), _TEXTS_CHECKED)
        items = [self.lm_items[index] for index in self.lm_stream.take(0, drawn)] if drawn else []
        max_length = min(self.max_length, self.block_length or self.max_length)
        long = [each for each in items if len(each["clm_text"].encode()) + 8 > max_length]
        rows = label_answers(self.tokenizer, long, max_length) if long else []
        lost = sum(map(_has_no_answer, rows))
        if not lost:
            return
        told = f"of {drawn} texts {lost} have no answer within max_length={max_length}"
        if lost == drawn:
            raise ValueError(f"align: {told}, so there is nothing to train on; raise max_length")
        if self.rank == 0:
            logger.warning("%s; raise max_length", told)

    def at(self, step: int, device: torch.device) -> StepBatch:
        """This rank's share of the batch of a step, counted from 0."""
        chosen = self.pair_stream.take(step * self.batch_size, self.batch_size)
        pairs = [self.pairs[index] for index in chosen]
        longest_first = sorted(pairs, key=_pair_size, reverse=True)
        own = share(len(pairs), self.rank, self.world_size)
        ids = torch.tensor(meaning_ids(longest_first), dtype=torch.long)[:, own]
        sides = [
            self._token_ids([pair[side] for pair in longest_first[own]])
            for side in (0, 1, *([4] if pairs[0].negative else []))
        ]
        rows = sorted(range(len(sides[0])), key=lambda row: -sum(len(side[row]) for side in sides))
        ids = ids[:, rows].to(device)
        sentences = [_padded([side[row] for row in rows]) for side in sides]
        lm = self._texts(step) if self.lm_items else None
        parts = [*sentences, *([lm] if lm else [])]
        source, target, negatives = (_to(part, device) for part in (*sentences, {})[:3])
        return StepBatch(
            source=source,
            target=target,
            negatives=negatives or None,
            lm=_to(lm, device) if lm else None,
            ids=ids[0],
            negative_ids=ids[1] if negatives else None,
            num_pairs=len(rows),
            num_tokens=sum(int(part[LENGTHS].sum()) for part in parts),
        )

    def _token_ids(self, sentences: list[str]) -> list[list[int]]:
        if not sentences:  # which a tokenizer does not take
            return []
        encoded = self.tokenizer(
            sentences, truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _texts(self, step: int) -> Inputs | None:
        chosen = self.lm_stream.take(step * self.lm_batch_size, self.lm_batch_size)
        items = [self.lm_items[index] for index in chosen]
        items.sort(key=lambda item: len(item["clm_text"].encode()), reverse=True)
        items = items[share(len(items), self.rank, self.world_size)]
        if not items:
            return None
        max_length = min(self.max_length, self.block_length or self.max_length)
        rows = label_answers(self.tokenizer, items, max_length)
        if all(map(_has_no_answer, rows)):
            return None
        if self.packing.way != PADDING:
            return packed_texts(rows, self.block_length, self.packing)
        rows.sort(key=lambda row: len(row.input_ids), reverse=True)
        texts = _padded([row.input_ids for row in rows])
        labels = [torch.tensor(row.labels) for row in rows]
        texts["labels"] = nn.utils.rnn.pad_sequence(labels, True, IGNORED_LABEL)
        return texts


def _has_no_answer(row: LabeledTokens) -> bool:
    # The first token of a row is predicted by nothing, so its label carries no loss.
    return all(label == IGNORED_LABEL for label in row.labels[1:])


def _pair_size(pair: Pair) -> int:
    """About proportional to its tokens, in any script, and known before they are."""
    return len(pair.source.encode()) + len(pair.target.encode())


def _padded(token_ids: list[list[int]]) -> Inputs:
    lengths = torch.tensor([len(ids) for ids in token_ids], dtype=torch.long)
    return {**pad_right(token_ids, CPU), LENGTHS: lengths}


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    return {
        name: tensor if name in ON_CPU else tensor.to(device, non_blocking=True)
        for name, tensor in inputs.items()
    }


def _at_most(wanted: int, available: int, name: str, things: str) -> int:
    if wanted > available:
        logger.warning(
            "%s is %d, but there are %d %s: every batch holds all of them",
            *(name, wanted, available, things),
        )
    return min(wanted, available)

"""Prompted texts for the next-token loss: their files, and their tokens with labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crossalign.data.builders import TrainingItem
from crossalign.files.text import DataError, json_object, read_lines, text_field
from crossalign.models.next_token_loss import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabeledTokens(NamedTuple):
    """One text: its token ids, and per token the id to predict or IGNORED_LABEL."""

    input_ids: list[int]
    labels: list[int]


def read_items(path: Path) -> list[TrainingItem]:
    """The items of a JSON-lines file of `crossalign data build`; .gz too.

    Read are the keys "clm_text" and "clm_prompt_len"; the sentences may be absent.

    Raises:
        DataError: a line that is no item, naming file, line and reason.
    """
    lines = enumerate(read_lines(path), start=1)
    return [parse_item(line, f"{path}:{number}") for number, line in lines]


def parse_item(line: str, where: str) -> TrainingItem:
    """The item of a line of such a file; raises DataError, naming where, if it holds none."""
    return _checked_item(json_object(line, where), where)


def label_answers(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[TrainingItem], max_length: int
) -> list[LabeledTokens]:
    """Tokens of each clm_text, labeled where they belong to the answer.

    A token belongs to the answer if one of its characters stands behind the first clm_prompt_len
    characters; so the token that spans the border counts. An end-of-sequence token closes a text
    that was not cut at max_length. It counts, as does the beginning-of-sequence token of a
    tokenizer that adds one (in a row of its own nothing stands before it to predict it).

    Raises:
        ValueError: the tokenizer cannot tell which characters a token stands for.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; the "
            "next-token loss needs a fast tokenizer (AutoTokenizer loads one where it exists), or "
            "lm_weight=0"
        )
    encoded = tokenizer(
        [item["clm_text"] for item in items],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    rows = []
    for item, ids, spans in zip(
        items, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        prompt = item["clm_prompt_len"]
        labels = [
            token if end > prompt or token in ends else IGNORED_LABEL
            for token, (_, end) in zip(ids, spans, strict=True)
        ]
        eos = tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos] and len(ids) < max_length:
            ids, labels = [*ids, eos], [*labels, eos]
        rows.append(LabeledTokens(ids, labels))
    return rows


def _checked_item(record: dict[str, object], where: str) -> TrainingItem:
    text = text_field(record, "clm_text", where)
    length = record.get("clm_prompt_len")
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < len(text):
        raise DataError(
            f'{where}: "clm_prompt_len" must be a number of characters below {len(text)}, the '
            f"length of clm_text, got {length!r}"
        )
    return {
        "sent0": str(record.get("sent0", "")),
        "sent1": str(record.get("sent1", "")),
        "clm_text": text,
        "clm_prompt_len": length,
    }

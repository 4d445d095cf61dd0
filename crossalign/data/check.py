"""Looks through data for `align` from end to end: what is in it, and which lines are doubtful.

Memory does not grow with the files (text_statistics says how). A line that `align` would refuse is
counted and named, never passed over in silence.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.data.items import parse_item
from crossalign.data.meaning_ids import normalized
from crossalign.data.pairs import Pair, parse_sentence, parse_tsv, parser_of
from crossalign.data.text_statistics import Lengths, Repeats, TextStatistics
from crossalign.files.streamed_lines import stream_lines
from crossalign.files.text import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_EXAMPLES = 5
_AT_ONCE = 1000  # texts given to the tokenizer
Report = dict[str, Any]


class Columns:
    """How many columns the lines of a TSV file have, and where those of another number stand."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.examples: dict[int, list[str]] = {}

    def add(self, line: str, where: str) -> None:
        count = line.count("\t") + 1
        self.counts[count] += 1
        first = self.examples.setdefault(count, [])
        if len(first) < MOST_EXAMPLES:
            first.append(where)

    def settle(self, doubts: Doubts) -> None:
        """Lines with another number of columns than most are doubtful: a stray TAB inside a
        sentence shifts what stands behind it."""
        most, _ = self.counts.most_common(1)[0]
        for count, lines in self.counts.items():
            if count != most:
                sign = f"{count} columns, where most lines have {most}"
                doubts.counts[sign] = lines
                doubts.examples[sign] = self.examples[count]


class Doubts:
    """How many lines show each doubtful sign, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, sign: str, example: str) -> None:
        self.counts[sign] += 1
        first = self.examples.setdefault(sign, [])
        if len(first) < MOST_EXAMPLES:
            first.append(example)

    def add_characters(self, text: str, where: str) -> None:
        if "\ufffd" in text:
            self.add("replacement character", where)
        if "\ufeff" in text:  # read_lines drops the one at the start of a file
            self.add("byte order mark inside the file", where)
        if not text.isprintable() and any(unicodedata.category(each) == "Cc" for each in text):
            self.add("control character", where)

    def summary(self) -> Report:
        return {
            sign: {"lines": count, "first": self.examples[sign]}
            for sign, count in self.counts.most_common()
        }


def check_pairs(
    paths: Sequence[Path],
    *,
    max_ratio: float,
    languages: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    limit: int | None = None,
) -> Report:
    """The report on pairs as read_pairs reads them.

    Args:
        paths: one file, or two parallel ones.
        languages: of source and target where the pairs name none; () for unknown.
        max_ratio: of the UTF-8 bytes of the two sides, above which a pair is doubtful.
        tokenizer: for lengths in tokens.
        limit: tokens that a model takes.

    Raises:
        DataError: a file cannot be read at all.
    """
    doubts, named, columns = Doubts(), Counter[str](), Columns()
    unnamed = tuple(languages) or ("?", "?")
    with contextlib.ExitStack() as stack:
        statistics = [stack.enter_context(contextlib.closing(TextStatistics())) for _ in range(2)]
        exact, same = (stack.enter_context(contextlib.closing(Repeats())) for _ in range(2))
        usable = _usable(_parsed_pairs(paths, columns), doubts)
        for block in _blocks(usable):
            for where, pair in block:
                for text, side in zip(pair[:2], statistics, strict=True):
                    side.add(text)
                    doubts.add_characters(text, where)
                named["-".join(pair.in_languages(*unnamed)[2:4])] += 1
                exact.add(f"{pair.source}\n{pair.target}")
                forms = (normalized(pair.source), normalized(pair.target))
                same.add("\n".join(forms))
                if forms[0] == forms[1]:
                    doubts.add("identical sides", where)
                sizes = sorted(len(text.encode()) for text in pair[:2])
                if sizes[1] > max_ratio * sizes[0]:
                    doubts.add(f"length ratio above {max_ratio:g}", where)
                if pair.negative and normalized(pair.negative) in forms:
                    doubts.add("negative is a side of its pair", where)
            for number, side in enumerate(statistics):
                texts = [(where, pair[number]) for where, pair in block]
                _count_tokens(texts, tokenizer, limit, side.tokens, doubts)
        if columns.counts:
            columns.settle(doubts)
        source, target = (side.summary() for side in statistics)
        sides = {"source": source, "target": target}
        repeats = {"repeats": exact.count(), "normalized_repeats": same.count()}
    return _report(paths, exact.total, doubts, {**repeats, "languages": dict(named), **sides})


def check_items(
    path: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    limit: int | None = None,
) -> Report:
    """The report on items of `crossalign data build`; see check_pairs."""
    doubts, prompts, answers = Doubts(), Lengths(), Lengths()
    with contextlib.closing(TextStatistics()) as texts:
        parsed = _parsed(path, parse_item)
        count = 0
        for block in _blocks(_usable(parsed, doubts)):
            for where, item in block:
                texts.add(item["clm_text"])
                doubts.add_characters(item["clm_text"], where)
                prompts.add((item["clm_prompt_len"],))
                answers.add((len(item["clm_text"]) - item["clm_prompt_len"],))
                if not item["clm_text"][item["clm_prompt_len"] :].strip():
                    doubts.add("answer of white space", where)
            count += len(block)
            rows = [(where, item["clm_text"]) for where, item in block]
            _count_tokens(rows, tokenizer, limit, texts.tokens, doubts)
        parts = {"prompt": prompts.summary(), "answer": answers.summary()}
        return _report([path], count, doubts, {"text": texts.summary(), "characters": parts})


def _report(paths: Sequence[Path], usable: int, doubts: Doubts, rest: Report) -> Report:
    unusable = doubts.counts.pop("cannot be used", 0)
    return {
        "files": [str(path) for path in paths],
        "usable": usable,
        "unusable": unusable,
        "first_unusable": doubts.examples.get("cannot be used", []),
        **rest,
        "doubtful": doubts.summary(),
    }


def _parsed_pairs(
    paths: Sequence[Path], columns: Columns
) -> Iterator[tuple[str, Pair | DataError]]:
    if len(paths) == 1:
        parse = parser_of(paths[0])

        def counted(line: str, where: str) -> Pair:
            pair = parse(line, where)
            columns.add(line, where)  # of a line that can be used; others are named anyhow
            return pair

        yield from _parsed(paths[0], counted if parse is parse_tsv else parse)
        return
    sides = zip_longest(*(_parsed(path, parse_sentence) for path in paths))
    for sentences in sides:
        missing = [path for path, side in zip(paths, sentences, strict=True) if side is None]
        present = [side for side in sentences if side is not None]
        bad = [side for _, side in present if isinstance(side, DataError)]
        where = present[0][0]
        if bad:
            yield where, bad[0]
        elif missing:
            yield where, DataError(f"{where}: no line to match it in {missing[0]}")
        else:
            yield where, Pair(*(str(text) for _, text in present))


def _parsed(path: Path, parse: Callable[[str, str], Any]) -> Iterator[tuple[str, Any]]:
    """("path:line", what is there, or the DataError that says why it cannot be used)."""
    number = 0
    for number, line in enumerate(stream_lines(path), start=1):
        where = f"{path}:{number}"
        try:
            yield where, parse(line.decode(), where)
        except UnicodeDecodeError as error:
            yield where, DataError(f"{where}: not valid UTF-8 ({error.reason})")
        except DataError as error:
            yield where, error
    if number == 0:
        raise DataError(f"{path}: the file is empty")


def _usable(parsed: Iterable[tuple[str, Any]], doubts: Doubts) -> Iterator[tuple[str, Any]]:
    for where, value in parsed:
        if isinstance(value, DataError):
            doubts.add("cannot be used", str(value))
        else:
            yield where, value


def _blocks(rows: Iterator[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    while block := list(islice(rows, _AT_ONCE)):
        yield block


def _count_tokens(
    texts: list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase | None,
    limit: int | None,
    lengths: Lengths,
    doubts: Doubts,
) -> None:
    if tokenizer is None:
        return
    encoded = tokenizer([text for _, text in texts], return_attention_mask=False, verbose=False)
    for (where, _), ids in zip(texts, encoded["input_ids"], strict=True):
        lengths.add((len(ids),))
        if limit is not None and len(ids) > limit:
            doubts.add(f"more than {limit} tokens, which the model takes", where)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            doubts.add("unknown token", where)

"""Several files of pairs with their languages: how they are named, joined, mixed; bad lines."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from crossalign.data.indexed_data import data_fingerprint, open_items, open_pairs
from crossalign.data.meaning_ids import meaning_ids
from crossalign.data.mixture import MixedStream, Mixing, pair_stream
from crossalign.data.pair_sources import (
    JoinedPairs,
    PairSource,
    open_pair_sources,
    parse_pair_sources,
)
from crossalign.data.pairs import Pair
from crossalign.files.text import DataError


@pytest.fixture
def corpora(tmp_path: Path) -> list[str]:
    """en-de in two parallel files, en-fr in one; the first English sentence is in both."""
    (tmp_path / "t.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "t.de").write_text("eins\nzwei\ndrei\n")
    (tmp_path / "t.tsv").write_text("One\tun\nfour\tquatre\n")
    return [f"en-de:{tmp_path}/t.en,{tmp_path}/t.de", f"en-fr:{tmp_path}/t.tsv"]


def test_sources_name_their_languages(tmp_path: Path) -> None:
    a, b, odd = Path("a"), Path("b"), tmp_path / "en-de:x,y"
    assert parse_pair_sources(["a", "b"], ("en", "de")) == [PairSource((a, b), ("en", "de"))]
    assert parse_pair_sources(["a"]) == [PairSource((a,), ())]
    assert parse_pair_sources(["en-de:a,b", "en-zh:a"]) == [
        PairSource((a, b), ("en", "de")),
        PairSource((a,), ("en", "zh")),
    ]
    odd.write_text("a\tb\n")  # a path that exists is a path
    assert parse_pair_sources([str(odd)]) == [PairSource((odd,), ())]
    assert str(PairSource((a, b), ("en", "de"))) == "en-de:a,b"


@pytest.mark.parametrize(
    ("texts", "languages", "message"),
    [
        (["a", "b", "c"], (), "pairs must be one file or two, got 3; several corpora need their"),
        (["en-de:a", "b"], (), "pairs must all name their languages where one does.* got b"),
        (["en-de:a", "en-zh:b"], ("en", "de"), "languages must not be given where each of pairs"),
        (["en-de:a,b,c"], (), "pairs must name one file or two parallel ones, got en-de:a,b,c"),
        (["en-de:a,"], (), "pairs must name one file or two parallel ones"),
        (["en-xx:a", "en-de:b"], (), "unknown language 'xx'"),
        (["en-de:a", "en-de:a"], (), "pairs must name each source once"),
    ],
)
def test_unusable_sources_are_refused(
    texts: list[str], languages: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pair_sources(texts, languages)


def test_joined_pairs_are_those_of_the_files_in_turn(corpora: list[str], tmp_path: Path) -> None:
    pairs = open_pair_sources(parse_pair_sources(corpora), tmp_path / "cache")
    expected = [
        Pair("one", "eins", "en", "de"),
        Pair("two", "zwei", "en", "de"),
        Pair("three", "drei", "en", "de"),
        Pair("One", "un", "en", "fr"),
        Pair("four", "quatre", "en", "fr"),
    ]
    assert isinstance(pairs, JoinedPairs)
    assert list(pairs) == expected == [pairs[index] for index in range(5)]
    assert pairs[-1] == expected[-1] and pairs[1:4] == expected[1:4]
    assert pairs.sizes == [3, 2] and pairs.named_languages == {"en", "de", "fr"}
    with pytest.raises(IndexError):
        pairs[5]
    (tmp_path / "t.tsv").write_text("One\tun\nfive\tcinq\n")
    changed = open_pair_sources(parse_pair_sources(corpora), tmp_path / "cache")
    assert data_fingerprint(changed) != data_fingerprint(pairs)


def test_one_sentence_with_translations_in_several_files_is_no_negative_of_itself(
    corpora: list[str], tmp_path: Path
) -> None:
    pairs = open_pair_sources(parse_pair_sources(corpora), tmp_path / "cache")
    ids = meaning_ids(list(pairs)).pairs
    assert ids[0] == ids[3] and len(set(ids)) == 4


def drawn(sizes: list[int], mixing: Mixing, count: int, batch: int = 4) -> list[int]:
    """Which source each of the first elements is from."""

    class Pairs(list[int]):
        pass

    pairs = Pairs(range(sum(sizes)))
    pairs.sizes, pairs.mixing = sizes, mixing  # type: ignore[attr-defined]
    numbers = pair_stream(pairs, "seed", batch).take(0, count)
    return [
        next(i for i in range(len(sizes)) if number < sum(sizes[: i + 1])) for number in numbers
    ]


@pytest.mark.parametrize(
    ("mixing", "shares"),
    [
        (Mixing("size"), [0.9, 0.09, 0.01]),
        (Mixing("equal"), [1 / 3, 1 / 3, 1 / 3]),
        # 900 ** 0.5 : 90 ** 0.5 : 10 ** 0.5 = 30 : 9.487 : 3.162
        (Mixing("temperature", 2.0), [0.7034, 0.2224, 0.0741]),
        (Mixing("temperature", 1.0), [0.9, 0.09, 0.01]),
    ],
)
def test_shares_of_the_sources_are_those_asked_for(mixing: Mixing, shares: list[float]) -> None:
    count = 8192  # two cycles
    found = Counter(drawn([900, 90, 10], mixing, count))
    for source, share in enumerate(shares):
        bound = 0.02 if mixing.by == "size" else 2e-3  # a shuffled list has other first halves
        assert found[source] / count == pytest.approx(share, abs=bound)


def test_a_batch_of_one_language_holds_no_other() -> None:
    for by in ("size", "equal"):
        sources = drawn([50, 30], Mixing(by, batch_languages="one"), 400)
        batches = [set(sources[start : start + 4]) for start in range(0, 400, 4)]
        assert all(len(batch) == 1 for batch in batches)
        assert len(set.union(*batches)) == 2


def test_each_source_is_passed_through_before_any_of_its_pairs_comes_again() -> None:
    stream = MixedStream([7, 3], [1.0, 1.0], "seed")
    taken = stream.take(0, 9000)
    for first, size in ((0, 7), (7, 3)):
        own = [number for number in taken if first <= number < first + size]
        for start in range(0, len(own) - size, size):
            assert sorted(own[start : start + size]) == list(range(first, first + size))


@pytest.mark.parametrize("run", [1, 4])
def test_a_stream_goes_on_anywhere(run: int) -> None:
    stream = MixedStream([70, 30, 5], [3.0, 2.0, 1.0], "seed", run=run)
    whole = stream.take(0, 9000)
    for start, length in ((0, 1), (17, 5), (4090, 20), (8190, 100)):
        assert stream.take(start, length) == whole[start : start + length]
    assert MixedStream([70, 30, 5], [3.0, 2.0, 1.0], "other", run=run).take(0, 100) != whole[:100]


BAD = b"a\tb\nno tab\nc\td\n\xff\te\n\t\nf\tg\n"


def test_bad_lines_are_left_out_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, cache = tmp_path / "p.tsv", tmp_path / "cache"
    path.write_bytes(BAD)
    for skip, message in ((0, "p.tsv:2: no TAB"), (2, "p.tsv:5: .*; it is one more than the 2")):
        with pytest.raises(DataError, match=message):
            open_pairs([path], (), cache, skip_bad_lines=skip)
    with caplog.at_level(logging.WARNING, logger="crossalign"):
        pairs = open_pairs([path], (), cache, skip_bad_lines=3)
    assert [pair[:2] for pair in pairs] == [("a", "b"), ("c", "d"), ("f", "g")]
    assert pairs[-1].source == "f" and len(pairs) == 3
    (line,) = caplog.messages
    assert "3 of 6 lines of" in line and "p.tsv:2: no TAB" in line and "p.tsv:4: not valid" in line
    with pytest.raises(DataError, match=r"p.tsv:2: no TAB"):  # by the index that is there now
        open_pairs([path], (), cache)


def test_a_bad_line_leaves_both_of_two_parallel_files(tmp_path: Path) -> None:
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    one.write_text("a\n\nc\nd\n")
    two.write_text("A\nB\n \nD\n")
    pairs = open_pairs([one, two], (), cache, skip_bad_lines=2)
    assert [pair[:2] for pair in pairs] == [("a", "A"), ("d", "D")]
    with pytest.raises(DataError, match=r"2 of 4 lines of .* cannot be used, more than the 1"):
        open_pairs([one, two], (), cache, skip_bad_lines=1)
    two.write_text("A\n")
    with pytest.raises(DataError, match="no line to match"):
        open_pairs([one, two], (), cache, skip_bad_lines=9)


def test_bad_items_and_files_without_a_good_line(tmp_path: Path) -> None:
    path = tmp_path / "i.jsonl"
    path.write_text('{"clm_text": "a = b", "clm_prompt_len": 4}\nno JSON\n')
    items = open_items(path, tmp_path / "cache", skip_bad_lines=1)
    assert len(items) == 1 and items[0]["clm_text"] == "a = b"
    path.write_text("no JSON\n")
    with pytest.raises(DataError, match="every line cannot be used"):
        open_items(path, tmp_path / "cache", skip_bad_lines=1)

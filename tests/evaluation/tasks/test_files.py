"""Task files: every release format is read; the real ones have the items they should."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.items import TASKS
from crossalign.files.text import DataError
from tests.support.evaluation_cases import (
    COPA,
    NLI,
    PARAPHRASES,
    SCHEMAS,
    STORIES,
    schema_row,
    write_pawsx,
    write_tsv,
    write_xcopa,
    write_xnli,
    write_xstorycloze,
    write_xwinograd,
)


def test_xnli_labels_come_from_the_third_column_or_their_own_file(tmp_path: Path) -> None:
    write_xnli(tmp_path / "xnli", "de")
    for split, rows in (("demos", NLI), ("test", NLI[::-1])):
        found = read_split(tmp_path, "xnli", "de", split).items
        labels = ("entailment", "neutral", "contradiction")
        texts = [(each.fields["premise"], each.fields["hypothesis"]) for each in found]
        assert texts == [row[:2] for row in rows]
        assert [labels[each.label] for each in found] == [row[2] for row in rows]
        assert [(each.row, each.id) for each in found] == [(k, str(k)) for k in range(6)]


def test_xnli_is_read_from_the_file_of_all_languages(tmp_path: Path) -> None:
    header = ("language", "gold_label", "promptID", "sentence1", "sentence2")
    rows = [
        (code, label, "1", f"{code} {one}", two) for code in ("de", "en") for one, two, label in NLI
    ]
    write_tsv(tmp_path / "XNLI-1.0" / "xnli.test.tsv", rows, header)
    found = read_split(tmp_path, "xnli", "en", "test")
    assert [each.fields["premise"] for each in found.items] == [f"en {row[0]}" for row in NLI]
    with pytest.raises(DataError, match='no row of the language "fr"'):
        read_split(tmp_path, "xnli", "fr", "test")


def test_pawsx_leaves_out_untranslated_rows_and_counts_them(tmp_path: Path) -> None:
    write_pawsx(tmp_path / "x-final", "fr")
    found = read_split(tmp_path, "pawsx", "fr", "test")
    assert [each.id for each in found.items] == ["11", "15", "19", "20", "21"]
    assert [each.label for each in found.items] == [1, 0, 1, 0, 1]
    assert (found.rows, found.notes) == (len(PARAPHRASES), {"dropped_NS_rows": 1})
    assert [each.row for each in found.items] == [0, 2, 3, 4, 5]  # places in the file


def test_xcopa_questions_are_repaired_from_a_right_language(tmp_path: Path) -> None:
    write_xcopa(tmp_path / "xcopa", "th", wrong=(1, 2, 3))  # item 2 does ask for the effect
    alone = read_split(tmp_path, "xcopa", "th", "test")
    assert "not checked" in alone.notes["repaired_questions"]
    assert [each.fields["question"] for each in alone.items] != [row[3] for row in COPA]
    write_xcopa(tmp_path / "xcopa", "vi")
    found = read_split(tmp_path, "xcopa", "th", "test")
    assert [each.fields["question"] for each in found.items] == [row[3] for row in COPA]
    assert found.notes["repaired_questions"] == 2
    assert found.notes["questions_from"].endswith("test.vi.jsonl")
    assert read_split(tmp_path, "xcopa", "vi", "test").notes == {"repaired_questions": 0}


def test_xcopa_is_not_repaired_from_another_release(tmp_path: Path) -> None:
    write_xcopa(tmp_path / "xcopa", "th")
    write_xcopa(tmp_path / "xcopa", "zh")
    path = tmp_path / "xcopa" / "zh" / "test.zh.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"label": 1, "idx": 1', '"label": 0, "idx": 1'))
    with pytest.raises(DataError, match=r"test\.th\.jsonl:2: idx 1 has another label than in .*zh"):
        read_split(tmp_path, "xcopa", "th", "test")
    path.write_text(whole.replace('"idx": 4', '"idx": 9'))
    with pytest.raises(DataError, match=r"test\.th\.jsonl:5: idx 4 is not in .*test\.zh\.jsonl"):
        read_split(tmp_path, "xcopa", "th", "test")


def copa_xml(ids: range) -> str:
    items = [
        f'  <item id="{k}" asks-for="cause" most-plausible-alternative="{1 + k % 2}">\n'
        f"    <p>Premise {k}.</p>\n    <a1>A {k}.</a1>\n    <a2>B {k}.</a2>\n  </item>\n"
        for k in ids
    ]
    return '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE copa-corpus SYSTEM "copa.dtd">\n' + (
        f'<copa-corpus version="1.0">\n{"".join(items)}</copa-corpus>\n'
    )


def test_english_copa_is_the_english_of_xcopa(tmp_path: Path) -> None:
    (tmp_path / "copa-test.xml").write_text(copa_xml(range(501, 1001)))
    (tmp_path / "copa-dev.xml").write_text(copa_xml(range(1, 501)))
    test = read_split(tmp_path, "xcopa", "en", "test").items
    assert (len(test), test[0].id, test[0].label) == (500, "0", 1)
    assert test[7].fields["premise"] == "Premise 508."
    demos = read_split(tmp_path, "xcopa", "en", "demos").items
    assert (len(demos), demos[0].fields["choice2"]) == (100, "B 401.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('asks-for="cause"', 'asks-for="time"', r"copa-test\.xml:4: asks-for must be one of cause"),
        ("<p>Premise 502.</p>", "<p></p>", r"copa-test\.xml:9: premise is empty"),
        ("</copa-corpus>", "", r"copa-test\.xml:\d+: not valid XML: no element found"),
        ('id="503"', 'id="5o3"', r"copa-test\.xml:14: an item has the id '5o3'"),
        ('id="1000"', 'id="1001"', "500 items with ids from 501 on expected, got 499"),
        ('alternative="1"', 'alternative="0"', "most-plausible-alternative must be one of 1, 2"),
    ],
)
def test_bad_copa_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "copa-test.xml").write_text(copa_xml(range(501, 1001)).replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_split(tmp_path, "xcopa", "en", "test")


def test_xstorycloze_is_read_by_its_header(tmp_path: Path) -> None:
    write_xstorycloze(tmp_path, "ru")
    found = read_split(tmp_path, "xstorycloze", "ru", "test").items
    assert [each.id for each in found] == [row[0] for row in STORIES]
    assert [each.label for each in found] == [int(row[7]) - 1 for row in STORIES]
    assert found[2].fields == {
        "sentence1": "Tom had 2 coins.",
        "sentence2": "He went out.",
        "sentence3": "He saw a toy.",
        "sentence4": "It cost little.",
        "ending1": "He bought it.",
        "ending2": "He swam home.",
    }


def test_xwinograd_is_cut_at_the_pronoun(tmp_path: Path) -> None:
    write_xwinograd(tmp_path, "jp")
    found = read_split(tmp_path, "xwinograd", "ja", "test").items
    assert found[1].fields == {
        "before": "The ball hit the wall because ",
        "after": " was standing still.",
        "option1": "the ball",
        "option2": "the wall",
    }
    assert [each.label for each in found] == [schema[3] for schema in SCHEMAS]


def test_xwinograd_quotes_and_file_of_all_languages(tmp_path: Path) -> None:
    text = 'Tom said "no" to Ben as he left.'
    tokens = '["Tom", "said", "``", "no", "\'\'", "to", "Ben", "as", "he", "left", "."]'
    row = list(schema_row("en", "x x.", 0, ("Tom", "Ben"), 0))
    row[3:6] = [text, tokens, '["he", [8, 9], ["he"]]']
    rows = [schema_row("fr", *SCHEMAS[0]), row, row]
    write_tsv(tmp_path / "dataset.tsv", rows)
    found = read_split(tmp_path, "xwinograd", "en", "test")
    assert found.items[0].fields["before"] == 'Tom said "no" to Ben as '
    assert found.notes == {"exact_duplicates_kept": 1, "repeated_sentences_kept": 1}
    with pytest.raises(DataError, match='no row of the language "zh"'):
        read_split(tmp_path, "xwinograd", "zh", "test")


@pytest.mark.parametrize("name", ["test_2k.tsv.gz", "test_2k.first6.tsv", "test_2k.first6.tsv.gz"])
def test_file_may_be_packed_and_a_part(tmp_path: Path, name: str) -> None:
    write_pawsx(tmp_path / "pawsx", "de")
    folder = tmp_path / "pawsx" / "de"
    content = (folder / "test_2k.tsv").read_bytes()
    (folder / "test_2k.tsv").unlink()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = read_split(tmp_path, "pawsx", "de", "test")
    assert (len(found.items), found.files) == (5, (str(folder / name),))


def test_two_parts_of_one_file_are_refused(tmp_path: Path) -> None:
    write_pawsx(tmp_path / "pawsx", "de")
    folder = tmp_path / "pawsx" / "de"
    (folder / "test_2k.tsv").rename(folder / "test_2k.first6.tsv")
    (folder / "test_2k.first5.tsv").write_text("id\n")
    with pytest.raises(DataError, match=r"several parts of one file: .*first5.*first6"):
        read_split(tmp_path, "pawsx", "de", "test")


XNLI = ("ar", "de", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "vi", "zh")
XCOPA = ("en", "ht", "id", "it", "qu", "sw", "th", "tr", "vi", "zh")
# Task, split -> language -> items, rows: what the folder's description says of its files.
REAL = {
    ("xnli", "test"): dict.fromkeys(XNLI, (1002, 1002)),
    ("xnli", "demos"): dict.fromkeys(XNLI, (2490, 2490)),
    ("pawsx", "test"): {
        **{"de": (988, 1000), "en": (1000, 1000), "es": (1000, 1000)},
        **{"fr": (992, 1000), "zh": (988, 1000)},
    },
    ("pawsx", "demos"): {
        **{"de": (1932, 2000), "en": (2000, 2000), "es": (1962, 2000)},
        **{"fr": (1992, 2000), "zh": (1984, 2000)},
    },
    ("xcopa", "test"): dict.fromkeys(XCOPA, (500, 500)),
    ("xcopa", "demos"): dict.fromkeys(XCOPA, (100, 100)),
    ("xwinograd", "test"): {
        **{"en": (1763, 1763), "fr": (83, 83), "ja": (686, 686)},
        **{"ru": (315, 315), "zh": (16, 16)},
    },
}
REPAIRED = {"th": (52, 250), "tr": (52, 51), "sw": (6, 37), "id": (5, 4), "it": (5, 4)}


@pytest.mark.parametrize(("task", "split"), REAL)
def test_real_files_have_the_items_they_should(data_root: Path, task: str, split: str) -> None:
    found = {
        language: read_split(data_root / "eval", task, language, split)
        for language in REAL[task, split]
    }
    assert {code: (len(each.items), each.rows) for code, each in found.items()} == REAL[task, split]
    labels = {tuple(each.label for each in one.items) for one in found.values()}
    if task in ("xnli", "xcopa"):  # parallel: one list of labels for all languages
        assert len(labels) == 1
    if task == "xcopa":
        for language, (val, test) in REPAIRED.items():
            expected = test if split == "test" else val
            assert found[language].notes["repaired_questions"] == expected
    assert set(found) <= set(TASKS[task].languages)

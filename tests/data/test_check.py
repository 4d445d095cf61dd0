"""`crossalign data check`: what it counts, what it doubts, what it says cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossalign.cli.main import main
from crossalign.data.builders import build_items
from crossalign.data.check import check_items, check_pairs
from crossalign.data.pairs import Pair
from crossalign.files.output import write_json_lines
from crossalign.files.text import DataError
from tests.support.pair_files import FAULTS, write
from tests.support.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    "Hello.\tHallo.",
    "hello.\tHallo.",
    "Hello.\tHallo.",
    "Berlin\tBERLIN",
    "No\tNein, das kommt ueberhaupt nicht in Frage.",
    "Odd \ufffd\tSeltsam",
    "Bell \x07\tKlingel",
]


def test_pairs_are_counted_and_doubted(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "\n".join(ROWS))
    report = check_pairs([path], max_ratio=5.0)
    assert (report["usable"], report["unusable"]) == (7, 0)
    assert (report["repeats"], report["normalized_repeats"]) == (1, 2)
    assert report["source"]["repeats"] == 1
    assert report["source"]["normalized_repeats"] == 2
    assert report["target"]["repeats"] == 2
    assert report["target"]["characters"]["100%"] == len(ROWS[4].split("\t")[1])
    assert report["target"]["scripts"] == {"Latin": 1.0}
    assert report["languages"] == {"?-?": 7}
    assert report["doubtful"] == {
        "identical sides": {"lines": 1, "first": [f"{path}:4"]},
        "length ratio above 5": {"lines": 1, "first": [f"{path}:5"]},
        "replacement character": {"lines": 1, "first": [f"{path}:6"]},
        "control character": {"lines": 1, "first": [f"{path}:7"]},
    }
    assert "length ratio above 30" not in check_pairs([path], max_ratio=30.0)["doubtful"]


def test_languages_and_negatives_are_looked_at(tmp_path: Path) -> None:
    rows = [
        {"source": "one", "target": "eins", "source_language": "en", "target_language": "de"},
        {"source": "two", "target": "zwei", "target_language": "de", "negative": "Zwei "},
    ]
    write_json_lines(tmp_path / "p.jsonl", rows)
    report = check_pairs([tmp_path / "p.jsonl"], max_ratio=5.0)
    assert report["languages"] == {"en-de": 1, "?-de": 1}
    assert report["doubtful"]["negative is a side of its pair"]["lines"] == 1


OF_WHOLE_FILES = {"empty file", "UTF-16", "UTF-16 without a mark", "CR only"}


@pytest.mark.parametrize("case", sorted(FAULTS.keys() - OF_WHOLE_FILES))
def test_every_line_that_cannot_be_used_is_named(tmp_path: Path, case: str) -> None:
    name, content, message = FAULTS[case]
    report = check_pairs([write(tmp_path / name, content)], max_ratio=5.0)
    with pytest.raises(DataError, match=message):
        raise DataError(report["first_unusable"][0])
    data = content if isinstance(content, bytes) else content.encode()
    assert report["usable"] + report["unusable"] == len(data.rstrip(b"\n").split(b"\n"))
    assert report["doubtful"] == {}


def test_parallel_files_are_joined_by_line(tmp_path: Path) -> None:
    english = write(tmp_path / "a.en.gz", "One\nTwo\n \nFour\nFive\n")
    german = write(tmp_path / "a.de", "Eins\nZwei\nDrei\nVier\n")
    report = check_pairs([english, german], max_ratio=5.0)
    assert (report["usable"], report["unusable"]) == (3, 2)
    assert report["first_unusable"] == [
        f"{english}:3: the sentence is empty",
        f"{english}:5: no line to match it in {german}",
    ]


def test_only_the_first_examples_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "same\tsame\n" * 2500 + "bad\n" * 50)
    report = check_pairs([path], max_ratio=5.0)
    assert report["doubtful"]["identical sides"]["lines"] == 2500
    assert len(report["doubtful"]["identical sides"]["first"]) == 5
    assert report["unusable"] == 50 and len(report["first_unusable"]) == 5
    assert report["repeats"] == 2499


def test_items_are_counted_and_doubted(tmp_path: Path) -> None:
    items: list[Any] = build_items("translation", [Pair("eins", "one"), Pair("zwei", "two")])
    items.append({"clm_text": "nothing = ", "clm_prompt_len": 9})
    write_json_lines(tmp_path / "i.jsonl", [*items, {"clm_text": "a", "clm_prompt_len": 1}])
    report = check_items(tmp_path / "i.jsonl")
    assert (report["usable"], report["unusable"]) == (7, 1)
    assert 'i.jsonl:8: "clm_prompt_len" must be' in report["first_unusable"][0]
    assert report["characters"]["answer"]["100%"] == 4
    assert report["characters"]["prompt"]["0%"] == 6
    assert report["text"]["repeats"] == 7 - len({item["clm_text"] for item in items})
    assert report["doubtful"] == {
        "answer of white space": {"lines": 1, "first": [f"{tmp_path / 'i.jsonl'}:7"]}
    }


def test_tokens_are_counted_against_what_the_model_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "w3 w4 w5\tw6\nw7\tw8 odd\n")
    report = check_pairs([path], max_ratio=9.0, tokenizer=tiny_tokenizer(), limit=2)
    assert report["source"]["tokens"]["100%"] == 3
    assert report["target"]["tokens"]["mean"] == 1.5
    assert report["doubtful"] == {
        "more than 2 tokens, which the model takes": {"lines": 1, "first": [f"{path}:1"]},
        "unknown token": {"lines": 1, "first": [f"{path}:2"]},
    }


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be read"):
        check_pairs([tmp_path / "none"], max_ratio=5.0)
    with pytest.raises(DataError, match=r"empty: the file is empty"):
        check_items(write(tmp_path / "empty", ""))


def test_command_prints_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "p.tsv", "\n".join(ROWS))
    assert main(["data", "check", "--pairs", str(path)]) == 0
    text = capsys.readouterr().out
    assert "usable: 7\nunusable: 0\n" in text
    assert "  characters: mean 5.286, 0% 2, " in text
    assert f"  identical sides: lines 1, first {path}:4\n" in text
    assert main(["data", "check", "--pairs", str(path), "--json", "--max-ratio", "30"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == check_pairs([path], max_ratio=30.0)


def test_command_counts_tokens_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    path = write(tmp_path / "i.jsonl", json.dumps({"clm_text": "w3 " * 70, "clm_prompt_len": 3}))
    flags = ["--lm-data", str(path), "--model", str(tmp_path / "model"), "--json"]
    capsys.readouterr()  # what saving a model says
    assert main(["data", "check", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"]["tokens"]["mean"] == 70
    assert "more than 64 tokens, which the model takes" in report["doubtful"]


def test_command_fails_where_align_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "p.tsv", "a\tb\nalone\n")
    assert main(["data", "check", "--pairs", str(path)]) == 1
    output = capsys.readouterr()
    assert "usable: 1\nunusable: 1\n" in output.out
    assert output.err == (
        "crossalign: error: 1 of 2 lines cannot be used, the first: "
        f"{path}:2: no TAB; a line must be source TAB target\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: missing: --pairs or --lm-data (see"),
        (["--pairs", "a", "b", "c"], "--pairs must be one file or two, got 3"),
        (["--pairs", "a", "--lm-data", "b"], "not allowed with argument"),
        (["--pairs", "a", "--max-ratio", "0.5"], "--max-ratio must be at least 1, got 0.5"),
        (["--pairs", "a", "--max-ratio", "nan"], "--max-ratio must be finite, got nan"),
    ],
)
def test_wrong_arguments_exit_with_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_real_pairs_are_described(data_root: Path) -> None:
    report = check_pairs([data_root / "pairs" / "anki" / "cmn-eng.tsv.gz"], max_ratio=5.0)
    assert (report["usable"], report["unusable"]) == (18321, 0)
    assert report["source"]["scripts"]["Latin"] == 1.0
    assert report["target"]["scripts"]["Han"] > 0.98
    assert report["target"]["repeats"] > 1000


def test_stray_tabs_are_found_by_the_number_of_columns(tmp_path: Path) -> None:
    """The line is a pair all the same, and a wrong one: "d" is half of the target."""
    path = tmp_path / "p.tsv"
    path.write_text("a\tb\nc\td\te\nf\tg\nh\ti\tj\tk\n")
    doubtful = check_pairs([path], max_ratio=5)["doubtful"]
    assert doubtful == {
        "3 columns, where most lines have 2": {"lines": 1, "first": [f"{path}:2"]},
        "4 columns, where most lines have 2": {"lines": 1, "first": [f"{path}:4"]},
    }
    path.write_text("a\tb\tnote\nc\td\tnote\n")  # a column of notes in every line is none
    assert check_pairs([path], max_ratio=5)["doubtful"] == {}


def test_byte_order_mark_inside_a_file_is_doubtful(tmp_path: Path) -> None:
    """Files with one each that were put together by `cat`."""
    path = tmp_path / "p.tsv"
    path.write_text("\ufeffa\tb\n\ufeffc\td\n")
    doubtful = check_pairs([path], max_ratio=5)["doubtful"]
    assert doubtful == {"byte order mark inside the file": {"lines": 1, "first": [f"{path}:2"]}}

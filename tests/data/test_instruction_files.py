"""Instruction data in every accepted layout, joined by id; every fault."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from crossalign.data.builders import build_items
from crossalign.data.instruction_files import keep_common_ids, read_records
from crossalign.files.output import write_json_lines
from crossalign.files.text import DataError


def write_json(path: Path, value: Any) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def record(identity: str, instruction: str, context: str, output: str) -> dict[str, str]:
    return {"id": identity, "instruction": instruction, "input": context, "output": output}


@pytest.mark.parametrize("prefix", ["", "alpaca.", "v2.0.alpaca."])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_bactrian_x_is_read(tmp_path: Path, prefix: str, ending: str) -> None:
    rows = [record("1", "Say hi.", "", "Hi."), record("2", "Add.", "1 2", "3")]
    del rows[0]["input"]
    path = tmp_path / f"{prefix}en{ending}"
    if ".jsonl" in ending:
        write_json_lines(tmp_path / "lines", rows)
        data = (tmp_path / "lines").read_bytes()
        path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    else:
        write_json(path, rows)
    write_json(tmp_path / "den.json", [])  # ends in en.json, but is no file of that language
    expected = [record("1", "Say hi.", "", "Hi."), record("2", "Add.", "1 2", "3")]
    assert read_records(tmp_path, ["en"]) == {"en": expected}


def test_seed_tasks_are_read_with_all_their_instances(tmp_path: Path) -> None:
    instances = [{"input": "1 2", "output": "3"}, {"input": "", "output": "0"}]
    rows = [
        {"id": "t0", "name": "sum", "instruction": "Add.", "instances": instances},
        {"id": "t1", "instruction": "Say hi.", "input": "", "output": "Hi."},
    ]
    write_json_lines(tmp_path / "seed_tasks.en.jsonl", rows)
    assert read_records(tmp_path, ["en"])["en"] == [
        record("t0", "Add.", "1 2", "3"),
        record("t0#2", "Add.", "", "0"),
        record("t1", "Say hi.", "", "Hi."),
    ]


def squad(**changes: Any) -> dict[str, Any]:
    answers = [{"text": "two", "answer_start": 0}, {"text": "2", "answer_start": 9}]
    question = {"id": "q1", "question": "How many?", "answers": answers, **changes}
    paragraph = {"context": "two hens, 2", "qas": [question]}
    return {"version": "1.1", "data": [{"title": "x", "paragraphs": [paragraph]}]}


def test_squad_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "xquad.en.json.gz", squad())
    assert read_records(tmp_path, ["en"])["en"] == [record("q1", "How many?", "two hens, 2", "two")]


FAULTS: dict[str, tuple[Any, str]] = {
    "no answers": (squad(answers=[]), r'data 1, paragraphs 1, qas 1: "answers" is empty'),
    "answers no list": (squad(answers="two"), r'qas 1: "answers" must be a list, got str'),
    "answer no object": (squad(answers=["two"]), r"answers 1: not a JSON object but str"),
    "no question": (squad(question=" "), r'qas 1: "question" is empty'),
    "no id": (squad(id=None), r'qas 1: the key "id" is missing'),
    "no paragraphs": ({"data": [{}]}, r'data 1: "paragraphs" must be a list, got NoneType'),
    "instances empty": (
        [{"id": 1, "instruction": "a", "instances": []}],
        '"instances" must be a l',
    ),
    "instance no object": (
        [{"id": 1, "instruction": "a", "instances": [3]}],
        "element 1, instance 1: not a JSON object but int",
    ),
    "instance without output": (
        [{"id": 1, "instruction": "a", "instances": [{"input": "b"}]}],
        'element 1, instance 1: the key "output" is missing',
    ),
    "no instruction": (
        [{"id": 1, "instances": [{"output": "b"}]}],
        'instance 1: "instruction" must be text, got NoneType',
    ),
    "output no text": ([{"id": 1, "instruction": "a", "output": 3}], '"output" must be text, got'),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_names_file_place_and_reason(tmp_path: Path, case: str) -> None:
    content, message = FAULTS[case]
    write_json(tmp_path / "x.de.json", content)
    with pytest.raises(DataError, match=rf"x\.de\.json, .*{message}"):
        read_records(tmp_path, ["de"])


def test_a_language_needs_one_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold one of en\.json, .*; it has none"):
        read_records(tmp_path, ["en"])
    with pytest.raises(DataError, match="it has none"):
        read_records(tmp_path / "missing", ["en"])
    for name in "a.en.json", "en.jsonl":
        write_json(tmp_path / name, [])
    with pytest.raises(DataError, match=r"it has a\.en\.json, en\.jsonl"):
        read_records(tmp_path, ["en"])


def test_ids_that_are_not_everywhere_are_counted() -> None:
    records = {
        "en": [record(str(number), f"en {number}", "", "x") for number in (1, 2, 3)],
        "de": [record(str(number), f"de {number}", "", "x") for number in (3, 4, 1, 5)],
    }
    kept, left_out = keep_common_ids(records)
    assert [row["id"] for row in kept["en"]] == ["1", "3"]
    assert [row["id"] for row in kept["de"]] == ["3", "1"]
    assert left_out == {"en": 1, "de": 2}
    assert len(build_items("bilingual", kept)) == 6
    with pytest.raises(DataError, match="no id is in all of en, fr"):
        keep_common_ids({"en": records["en"], "fr": [record("9", "a", "", "b")]})


def test_real_seed_tasks_join_by_id(data_root: Path) -> None:
    """zh stands in another order and has ids of its own; hu has no instances, and no name."""
    folder, languages = data_root / "instruct" / "seed_tasks", ["en", "tr", "zh"]
    assert len(read_records(folder, ["hu"])["hu"]) == 117
    records, left_out = keep_common_ids(read_records(folder, languages))
    assert left_out == {"en": 4, "tr": 4, "zh": 4}
    items = build_items("crosslingual", records, languages)
    assert len(items) == 3 * 146
    assert any("Answer in Turkish: " in item["clm_text"] for item in items)


def test_real_questions_join_by_id(data_root: Path) -> None:
    records = read_records(data_root / "instruct" / "xquad", ["en", "th"])
    assert [len(rows) for rows in records.values()] == [1190, 1190]
    items = build_items("bilingual", records, repeats=1)
    assert sum(item["clm_text"].count(" Answer in Thai: ") for item in items) > 400

"""The three builders: their texts, their shares, their seeds, every fault."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crossalign.data.builders import Mode, TrainingItem, build_items
from crossalign.data.instruction_files import read_records
from crossalign.data.items import read_items
from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.data.pairs import Pair
from crossalign.files.output import write_json_lines
from crossalign.files.text import DataError

LANGUAGES = ["en", "de", "zh"]


def make_records(languages: list[str], count: int = 40) -> dict[str, list[dict[str, Any]]]:
    """Every text names its record and its language; odd records have an input."""
    return {
        language: [
            {
                "id": f"task-{index}",
                "instruction": f"{language} ask {index}",
                "input": f"{language} input {index}" if index % 2 else "",
                "output": f"{language} answer {index}",
            }
            for index in range(count)
        ]
        for language in languages
    }


def parts(item: TrainingItem) -> tuple[str, str]:
    length = item["clm_prompt_len"]
    return item["clm_text"][:length], item["clm_text"][length:]


@pytest.mark.parametrize("mode", ["bilingual", "crosslingual"])
def test_instruction_text_follows_the_template(mode: Mode) -> None:
    languages = LANGUAGES[:2] if mode == "bilingual" else LANGUAGES
    items = build_items(mode, make_records(languages), languages, repeats=5)
    directions: Counter[Any] = Counter()
    for item in items:
        prompt, answer = parts(item)
        target, _, index = answer.split()
        source = prompt.split()[0]
        given = f" {source} input {index}" if int(index) % 2 else ""
        name = LANGUAGE_NAMES[target]
        assert prompt == f"{source} ask {index}{given} Answer in {name}: "
        directions[source, target] += 1
    assert set(directions) == (
        {(a, b) for a in languages for b in languages}
        if mode == "bilingual"
        else {(a, b) for a in languages for b in languages if "en" in (a, b) or a == b}
    )
    same = sum(count for (source, target), count in directions.items() if source == target)
    assert 0.35 < same / len(items) < 0.65  # one half expected of 200


def test_every_record_is_used_equally_often() -> None:
    items = build_items("bilingual", make_records(["en", "de"]), repeats=3)
    used = Counter(parts(item)[1].split()[2] for item in items)
    assert len(items) == 120
    assert set(used.values()) == {3}


def test_bilingual_pairs_are_differing_instructions_cycled() -> None:
    records = make_records(["en", "de"], 10)
    records["de"][4]["instruction"] = records["en"][4]["instruction"]
    records["de"].reverse()  # joined by id, not by line
    items = build_items("bilingual", records, ["en", "de"], repeats=3)
    assert all(item["sent0"].split()[0] == "en" for item in items)
    assert all(item["sent1"] == item["sent0"].replace("en", "de") for item in items)
    used = Counter(item["sent0"] for item in items)
    assert "en ask 4" not in used
    assert len(used) == 9 and set(used.values()) <= {3, 4}  # 30 items from 9 pairs in turn


def test_crosslingual_pairs_join_the_pivot_and_any_other_language() -> None:
    items = build_items("crosslingual", make_records(LANGUAGES), ["de", "en", "zh"])
    others: Counter[Any] = Counter()
    for item in items:
        assert item["sent0"].startswith("de ")
        other = item["sent1"].split()[0]
        assert item["sent1"].split()[1:] == item["sent0"].split()[1:]
        others[other] += 1
    assert set(others) == {"en", "zh"}


def test_translation_text_follows_the_templates() -> None:
    pairs = [Pair(f"en {index}", f"de {index}") for index in range(100)]
    items = build_items("translation", pairs, ["en", "de"], repeats=2)
    forms: Counter[Any] = Counter()
    for item in items:
        prompt, answer = parts(item)
        assert answer == item["sent1"]
        turned = item["sent0"].startswith("de")
        name = "English" if turned else "German"
        named = prompt == f"{item['sent0']} Translate into {name}: "
        assert named or prompt == f"{item['sent0']} = "
        forms[turned, named] += 1
    assert sum(forms.values()) == 200
    assert min(forms[key] for key in [(a, b) for a in (True, False) for b in (True, False)]) > 30
    assert len({item["sent0"][3:] for item in items}) == 100


def test_translation_without_languages_names_none() -> None:
    items = build_items("translation", [("one", "eins"), ("two", "zwei")], repeats=10)
    assert all(parts(item)[0] == f"{item['sent0']} = " for item in items)


def test_pairs_keep_the_languages_they_name() -> None:
    pairs = [Pair("un", "eins", "fr", ""), Pair("deux", "zwei", "fr", "")]
    text = " ".join(
        i["clm_text"] for i in build_items("translation", pairs, ["en", "de"], repeats=9)
    )
    assert "Translate into French" in text and "Translate into German" in text
    assert "English" not in text


@pytest.mark.parametrize("mode", ["bilingual", "crosslingual", "translation"])
def test_items_depend_on_the_seed_alone(mode: Mode, tmp_path: Path) -> None:
    """The same bytes in processes with other hash seeds, another order for another seed."""
    languages = LANGUAGES[:2] if mode == "bilingual" else LANGUAGES
    data: Any = make_records(languages, 12)
    if mode == "translation":
        data, languages = [(f"en {i}", f"de {i}") for i in range(12)], ["en", "de"]
    code = (
        "import json, sys; from crossalign.data.builders import build_items; "
        "mode, data, languages = json.load(sys.stdin); "
        "print(json.dumps(build_items(mode, data, languages, seed=7)))"
    )
    for hash_seed in "1", "2":
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([mode, data, languages]),
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == build_items(mode, data, languages, seed=7)
    assert build_items(mode, data, languages, seed=8) != build_items(mode, data, languages, seed=7)


def test_data_is_left_as_it_was() -> None:
    records = make_records(["en", "de"], 5)
    before = json.dumps(records)
    build_items("bilingual", records)
    assert json.dumps(records) == before


def test_items_survive_their_file(tmp_path: Path) -> None:
    items = build_items("translation", [("ein\u2028s 😀", 'o"ne\t'), ("zwei", "two")], repeats=2)
    for name in "items.jsonl", "items":
        write_json_lines(tmp_path / name, items)
        assert read_items(tmp_path / name) == items


def test_fifty_two_languages_have_names() -> None:
    assert len(LANGUAGE_NAMES) == len(set(LANGUAGE_NAMES.values())) == 52
    assert list(LANGUAGE_NAMES) == sorted(LANGUAGE_NAMES)


def without(language: str, index: int, key: str = "") -> dict[str, list[dict[str, Any]]]:
    records = make_records(["en", "de"], 4)
    if key:
        del records[language][index][key]
    else:
        del records[language][index]
    return records


FAULTS: dict[str, tuple[str, Any, list[str] | None, str]] = {
    "mode": ("monolingual", {}, None, "mode must be one of bilingual, crosslingual, translation"),
    "one language": ("bilingual", make_records(["en"]), None, r"needs two different .* \['en'\]"),
    "same": ("bilingual", make_records(["en"]), ["en", "en"], "needs two different languages"),
    "two": ("crosslingual", make_records(["en", "de"]), None, "needs three or more different"),
    "three": ("translation", [("a", "b")], LANGUAGES, "translation needs two different"),
    "unknown": (
        "bilingual",
        make_records(["en", "xx"]),
        None,
        "unknown language 'xx'; known are af",
    ),
    "absent": ("bilingual", make_records(["en", "de"]), ["en", "zh"], "records for 'zh', has none"),
    "no records": ("bilingual", {"en": [], "de": []}, None, "must hold records, got none for 'en'"),
    "no pairs": ("translation", [], None, "at least one pair, got none"),
    "id gone in second": (
        "bilingual",
        without("de", 1),
        None,
        "1 of en are missing in de.*'task-1'",
    ),
    "id gone in first": (
        "bilingual",
        without("en", 2),
        None,
        "1 of de are missing in en.*'task-2'",
    ),
    "no id": ("bilingual", without("de", 0, "id"), None, 'de, record 1: the key "id" is missing'),
    "no output": (
        "bilingual",
        without("en", 3, "output"),
        None,
        'en, record 4: the key "output" is',
    ),
    "same text": (
        "bilingual",
        {code: [{"id": 1, "instruction": "x", "output": "y"}] for code in ("en", "de")},
        None,
        "en and de have no instruction that differs",
    ),
    "id twice": (
        "bilingual",
        {code: make_records([code], 2)[code] * 2 for code in ("en", "de")},
        None,
        "en has the id 'task-0' more than once",
    ),
    "empty side": ("translation", [("a", "b"), ("c", " ")], None, "pair 2: the target is empty"),
    "pair's language": ("translation", [Pair("a", "b", "en", "xx")], None, "unknown language 'xx'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_data_is_an_error(case: str) -> None:
    mode, data, languages, message = FAULTS[case]
    with pytest.raises(ValueError, match=message):
        build_items(mode, data, languages)  # type: ignore[arg-type]


def test_wrong_kind_of_data_is_an_error() -> None:
    with pytest.raises(TypeError, match="data must be a dict of records per language, got list"):
        build_items("bilingual", [("a", "b")], ["en", "de"])
    with pytest.raises(TypeError, match="data must be a list of pairs, got dict"):
        build_items("translation", make_records(["en", "de"]))
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        build_items("translation", [("a", "b")], repeats=0)


def test_records_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    records = make_records(["en", "de", "zh", "fr"], 3)
    lines = {
        code: "".join(json.dumps(row) + "\n" for row in rows) for code, rows in records.items()
    }
    (tmp_path / "en.json").write_text(json.dumps(records["en"], indent=1))
    (tmp_path / "de.jsonl").write_text(lines["de"])
    (tmp_path / "zh.jsonl.gz").write_bytes(gzip.compress(lines["zh"].encode()))
    (tmp_path / "fr.json.gz").write_bytes(gzip.compress(json.dumps(records["fr"]).encode()))
    assert read_records(tmp_path, list(records)) == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("de.json", "{}", r"de\.json: not a JSON list, nor SQuAD, but dict"),
        ("de.json", "[1]", r"de\.json, element 1: not a JSON object but int"),
        ("de.json", "[", r"de\.json: not valid JSON"),
        (
            "de.json",
            '[{"id": 1, "output": "x"}]',
            r'de\.json, element 1: the key "instruction" is missing',
        ),
        (
            "de.jsonl",
            '{"id": 1, "instruction": "a", "output": "b"}\n{',
            r"de\.jsonl:2: not valid JSON",
        ),
        ("fr.json", "[]", r"must hold one of de\.json, .*; it has none"),
    ],
)
def test_bad_record_file_is_an_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path, ["de"])


def test_two_files_of_one_language_are_an_error(tmp_path: Path) -> None:
    for name in "de.json", "de.jsonl":
        (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"it has de\.json, de\.jsonl"):
        read_records(tmp_path, ["de"])


@pytest.mark.parametrize("length", [-1, 5, "2", True, None])
def test_bad_item_is_an_error(tmp_path: Path, length: Any) -> None:
    write_json_lines(tmp_path / "i.jsonl", [{"clm_text": "a = b", "clm_prompt_len": length}])
    with pytest.raises(DataError, match=r'i\.jsonl:1: "clm_prompt_len" must be a number of char'):
        read_items(tmp_path / "i.jsonl")

"""`crossalign data build` on every kind of input, to the same bytes as the builders in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crossalign.cli.main import main
from crossalign.data.builders import TranslationItems, build_items
from crossalign.data.instruction_files import read_records
from crossalign.data.pairs import Pair, read_pairs
from crossalign.files.output import write_json_lines
from tests.support.command_cases import Run, assert_one_line
from tests.support.pair_files import write
from tests.support.tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from tests.support.unusual_models import mllama


def build(output: Path, mode: str, languages: str, *flags: object) -> list[dict[str, Any]]:
    """The items that the command writes."""
    arguments: list[object] = ["data", "build", "--mode", mode, "--languages", *languages.split()]
    arguments += ["--output", output, "--input", *flags]
    assert main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in output.read_text().split("\n") if line]


INPUTS = {
    "tsv": {"p.tsv": "One\tEins\nTwo\tZwei\nThree\tDrei\n"},
    "tsv.gz": {"p.tsv.gz": "One\tEins\nTwo\tZwei\nThree\tDrei\n"},
    "jsonl": {
        "p.jsonl": '{"source": "un", "target": "Eins", "source_language": "fr"}\n'
        '{"source": "Two", "target": "Zwei"}\n'
    },
    "parallel": {"p.en": "One\nTwo\nThree\n", "p.de.gz": "Eins\nZwei\nDrei\n"},
}


@pytest.mark.parametrize("case", INPUTS)
def test_pairs_of_files_become_the_items_of_pairs_in_memory(tmp_path: Path, case: str) -> None:
    paths = [write(tmp_path / name, content) for name, content in INPUTS[case].items()]
    items = build(tmp_path / "items.jsonl", "translation", "en de", *paths, "--seed", 5)
    assert items == build_items("translation", read_pairs(paths), ["en", "de"], seed=5)
    named = [item for item in items if "Translate into French" in item["clm_text"]]
    assert all(item["sent1"] == "un" for item in named)


def test_several_corpora_become_the_items_of_all_their_pairs(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, content) for name, content in INPUTS["parallel"].items()]
    other = write(tmp_path / "q.tsv", "Four\tQuatre\n")
    items = tmp_path / "items.jsonl"
    sources = [f"en-de:{paths[0]},{paths[1]}", f"en-fr:{other}"]
    fixed = ["data", "build", "--mode", "translation", "--output", str(items), "--input"]
    assert main([*fixed, *sources, "--seed", "5"]) == 0
    pairs = [*read_pairs(paths, ["en", "de"]), *read_pairs([other], ["en", "fr"])]
    made = [json.loads(line) for line in items.read_text("utf-8").splitlines()]
    assert made == build_items("translation", pairs, seed=5)
    assert len(made) == 12 and any("into French" in item["clm_text"] for item in made)


def test_corpora_without_languages_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "p.tsv", "One\tEins\n")
    fixed = ["data", "build", "--mode", "translation", "--output", str(tmp_path / "o.jsonl")]
    for flags, message in (
        (["--input", str(path)], "--languages must be given, or named by --input: en-de:FILE"),
        (["--input", f"en-de:{path}", f"en-de:{path}"], "--input must name each value once"),
        (["--input", f"en-de:{path}", "--languages", "en", "de"], "must not be given where each"),
    ):
        with pytest.raises(SystemExit):
            main([*fixed, *flags])
        assert message in capsys.readouterr().err


def test_each_of_several_corpora_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.tsv", "One\tEins\nTwo\tZwei\n")
    bad = write(tmp_path / "bad.tsv", "One\tUn\nTwo\n")
    sources = [f"en-de:{good}", f"en-fr:{bad}"]
    assert main(["data", "check", "--json", "--pairs", *sources]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    counted = ("usable", "unusable", "languages")
    assert {name: [each[key] for key in counted] for name, each in report.items()} == {
        sources[0]: [2, 0, {"en-de": 2}],
        sources[1]: [1, 1, {"en-fr": 1}],
    }
    assert f"1 of 4 lines cannot be used, the first: {bad}:2: no TAB" in printed.err
    assert main(["data", "check", "--pairs", sources[0]]) == 0
    assert "usable: 2" in capsys.readouterr().out


def test_index_is_kept_where_asked_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = write(tmp_path / "p.tsv", "One\tEins\nTwo\tZwei\n")
    first = build(tmp_path / "a.jsonl", "translation", "en de", path)
    assert list((tmp_path / "temporary").iterdir()) == []
    second = build(tmp_path / "b.jsonl", "translation", "en de", path, "--cache", tmp_path / "c")
    assert first == second
    assert [entry.name.split(".")[0] for entry in (tmp_path / "c").iterdir()] == ["p"]


@pytest.mark.parametrize("name", ["absent/items.jsonl", "."])
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """All items were made first, and the error named a temporary file."""
    flags = ["--mode", "translation", "--languages", "en", "de", "--input", "not there.tsv"]
    assert main(["data", "build", *flags, "--output", str(tmp_path / name)]) == 1
    error = f"crossalign: error: {tmp_path / name}: must be a file in an existing folder\n"
    assert capsys.readouterr().err == error


def test_what_could_not_be_read_again_is_not_written(
    run: Run, pairs_file: Path, tmp_path: Path
) -> None:
    command = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    command += ["--input", str(pairs_file), "--output"]
    status, _, error = run(*command, tmp_path / "items.jsonl.gz")
    assert status == 2
    assert_one_line(error, "--output must not end in .gz")
    status, _, error = run(*command, tmp_path / "items.jsonl", "--cache", pairs_file)
    assert status == 1
    assert_one_line(error, f"{pairs_file}: is no directory; name another --cache")
    assert list(tmp_path.iterdir()) == [pairs_file]


def test_ids_that_are_not_everywhere_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for code, ids in (("en", [1, 2, 3]), ("de", [4, 3, 1, 5])):
        rows = [{"id": i, "instruction": f"{code} {i}", "output": "x"} for i in ids]
        write_json_lines(tmp_path / f"alpaca.{code}.jsonl", rows)
    items = build(tmp_path / "items", "bilingual", "en de", tmp_path)
    assert {item["sent0"] for item in items} == {"en 1", "en 3"}
    assert capsys.readouterr().err == (
        "left out 1 of 3 records of en: their ids are not in every language\n"
        "left out 2 of 4 records of de: their ids are not in every language\n"
    )
    flags = ["--mode", "bilingual", "--languages", "en", "de", "--input", str(tmp_path)]
    assert main(["data", "build", *flags, "--output", str(tmp_path / "o"), "--ids", "same"]) == 1
    assert "the same ids must be in every language, but 1 of en" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_data_sets_by_name_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("datasets")

    def load_dataset(path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        if path == "opus":
            return [{"translation": {"en": f"en {i}", "de": f"de {i}"}} for i in range(5)]
        return [{"id": i, "instruction": f"{name} {i}", "output": f"{name} x"} for i in range(4)]

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    items = build(tmp_path / "a", "translation", "en de", "hub:opus:de-en")
    pairs = [Pair(f"en {i}", f"de {i}") for i in range(5)]
    assert items == build_items("translation", pairs, ["en", "de"])
    items = build(tmp_path / "b", "crosslingual", "en de zh", "hub:org/tasks")
    assert len(items) == 12 and {item["sent1"].split()[0] for item in items} == {"de", "zh"}


@pytest.mark.parametrize(
    ("mode", "inputs", "status", "message"),
    [
        ("translation", ["hub:"], 2, "must be hub:NAME[:CONFIG][:SPLIT], got 'hub:'"),
        ("translation", ["a", "b", "c"], 2, "--input must be one file or two, got 3"),
        ("translation", ["hub:a", "b"], 2, "--input must be at most 1 for this, got 2"),
        ("bilingual", ["a", "b"], 2, "--input must be at most 1 for this, got 2"),
        ("translation", ["none.tsv"], 1, "none.tsv: cannot be read: No such file"),
        ("bilingual", ["none"], 1, "none: must hold one of en.json"),
    ],
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    inputs: list[str],
    status: int,
    message: str,
) -> None:
    flags = ["--mode", mode, "--languages", "en", "de", "--output", str(tmp_path / "o")]
    try:
        result = main(["data", "build", *flags, "--input", *inputs])
    except SystemExit as stopped:
        result = int(stopped.code or 0)
    assert result == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_bad_line_far_down_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "p.tsv", "a\tb\n" * 500 + "c\n")
    flags = ["--mode", "translation", "--languages", "en", "de", "--input", str(path)]
    assert main(["data", "build", *flags, "--output", str(tmp_path / "o")]) == 1
    assert "p.tsv:501: no TAB" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.tsv"]


def test_translation_items_are_made_when_asked_for() -> None:
    pairs = [Pair(f"en {index}", f"de {index}") for index in range(7)]
    items = TranslationItems(pairs, ["en", "de"], repeats=2, seed=3)
    every = [items[number] for number in range(14)]
    assert list(items) == items[:] == every
    assert items[-1] == every[-1]
    assert len({item["sent0"].split()[1] for item in every[:7]}) == 7
    assert sorted(map(str, items.shuffled())) == sorted(map(str, every))
    assert (
        every
        != list(items.shuffled())
        == build_items("translation", pairs, ["en", "de"], repeats=2, seed=3)
    )
    with pytest.raises(IndexError):
        items[14]


@pytest.mark.parametrize(
    ("folder", "languages", "count"),
    [("seed_tasks", "en tr zh", 3 * 146), ("xquad", "en th zh", 3 * 1190)],
)
def test_real_instructions_are_built(
    data_root: Path, tmp_path: Path, folder: str, languages: str, count: int
) -> None:
    source = data_root / "instruct" / folder
    items = build(tmp_path / "items", "crosslingual", languages, source)
    assert len(items) == count
    first = read_records(source, ["en"])["en"]
    assert {item["sent0"] for item in items} <= {row["instruction"] for row in first}


def test_check_says_that_a_tokenizer_has_more_ids_than_the_embedding_rows(
    run: Run, pairs_file: Path, tmp_path: Path
) -> None:
    """It said nothing, and the run died at the step that drew the token."""
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["data", "check", "--pairs", pairs_file, "--model", tmp_path / "model"]
    status, _, error = run(*command)
    assert status == 1
    named = f"'extra' of id {VOCAB_SIZE}, but its embedding has {VOCAB_SIZE} rows; add them"
    assert_one_line(error, named)
    model.resize_token_embeddings(VOCAB_SIZE + 1)
    model.save_pretrained(tmp_path / "model")
    assert run(*command)[0] == 0


def test_check_takes_the_rows_of_the_embedding_not_those_that_the_configuration_names(
    run: Run, pairs_file: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mllama has 8 rows more than its vocab_size, and its tokenizer uses one of them."""
    model, tokenizer = mllama([1]), tiny_tokenizer()
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size + 8
    tokenizer.add_tokens(["<|image|>"])
    loading = "crossalign.models.loading"
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda *_, **__: model)
    monkeypatch.setattr(f"{loading}.load_tokenizer", lambda name, flag: tokenizer)
    assert run("data", "check", "--pairs", pairs_file, "--model", model_dir)[0] == 0

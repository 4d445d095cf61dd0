"""The experiment on a real model, at its smallest: every part is done once, and a second call goes
on where the first one was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("matplotlib")

from benchmarks.align_real_model import main
from benchmarks.real_model.arguments import named_values
from benchmarks.real_model.data import LANGUAGES, load_data
from benchmarks.real_model.plot import draw_layers, draw_planes
from benchmarks.real_model.table import ARMS, table, tasks_table
from crossalign.demo.corpus import make_corpus
from crossalign.demo.language_model import new_model, train_tokenizer


def test_flags_name_values() -> None:
    assert named_values(["layer=4,8", "center=side"], "=") == {
        "layer": ["4", "8"],
        "center": ["side"],
    }


def test_rehearsed_texts_take_languages_in_turn_and_none_is_tested(data_root: Path) -> None:
    data = load_data(data_root, 3, 1012)
    of_language = {pair.target: pair.target_language for pair in data.pairs}
    first = [of_language.get(item["clm_text"], "en") for item in data.rehearsal[: len(LANGUAGES)]]
    assert sorted(first) == sorted(LANGUAGES)
    texts = {item["clm_text"] for item in data.rehearsal}
    assert len(texts) > 5000
    for lines in (*data.choosing.values(), *data.test.values()):
        assert not texts & set(lines)


def test_tasks_are_compared_item_by_item_and_corrected() -> None:
    """Twelve of twelve items gained: p = 2 / 2^12, of two tests; the other changes nothing."""
    rows: list[dict[str, object]] = []
    for language, arm, right in [
        *[("de", "nothing", 0), ("de", "best", 12), ("de", "paper", 0)],
        *[("en", "nothing", 7), ("en", "best", 7), ("en", "paper", 7)],
    ]:
        place = {"part": f"tasks xnli {arm} 0", "task": "xnli", "language": language}
        rows.append(
            {**place, "accuracy": right / 12, "correct": right, "items": 12, "chance": 1 / 3}
        )
        rows += [{**place, "id": str(item), "correct": item < right} for item in range(12)]
    for arm, found in (("nothing", "en"), ("best", "de"), ("paper", "en")):
        rows.append({"part": f"generation {arm} 0", "asked": "de", "written": found})
    assert tasks_table(rows).splitlines()[2:] == [
        "| xnli, de | 33% | 0 of 12 | 12 | 0.00049 (0.00098) | 0 | 1 (1) |",
        "| xnli, en | 33% | 7 of 12 | 7 | 1 (1) | 7 | 1 (1) |",
        "| answers in the language asked in | | 0 of 1 | 1 of 1 |  | 0 of 1 |  |",
    ]


def test_experiment_is_done_part_by_part(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = make_corpus(num_texts=300, num_pairs=0, num_held_out=0, seed=0).texts
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.model_max_length = 1000
    model = new_model(tokenizer, hidden_size=16, num_blocks=14, seed=0)
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "model")
    output = tmp_path / "result.jsonl"
    flags = (
        f"--model {tmp_path / 'model'} --data {data_root} --runs {tmp_path / 'runs'} "
        f"--output {output} --seeds 1 --steps 2 --search-steps 1 --batch-size 4 --texts 2 "
        "--max-length 400 --choosing-lines 3 --test-lines 4 --scored-lines 2 --more joint "
        "--choices layer=1 center=side learning_rate=1e-3,2e-3 --prompts 0 "
        "--tasks xwinograd:zh --task-items 2"
    ).split()
    main(flags)
    assert "test best 0" in capsys.readouterr().out
    first = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    parts = {row["part"] for row in first[1:]}
    assert {"test nothing 0", "test paper 0", "test joint 0", "choosing 1 side 0.001"} <= parts
    planes = [
        row for row in first[1:] if row.get("plane") == "side" and row["part"] == "test best 0"
    ]
    assert len(planes) == 10 and all(len(row["points"]) == 4 for row in planes)
    correct = [row for row in first[1:] if row["part"].startswith("tasks") and "id" in row]
    assert len(correct) == 6  # two items of three arms
    rows = first[1:]
    draw_layers(rows, tmp_path / "layers.png")
    draw_planes(rows, tmp_path / "plane.png")
    assert [line.split(" | ")[0] for line in table(rows).splitlines()[2:]] == [
        f"| {label}" for arm, label in ARMS.items() if arm in ("nothing", "paper", "best", "joint")
    ]
    (line,) = tasks_table(rows).splitlines()[2:]
    assert line.startswith("| xwinograd, zh | 50% | ")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("layers.png", "plane.png"))
    main(flags)
    assert "test" not in capsys.readouterr().out.replace(str(output), "")
    again = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert again[1:] == first[1:]
    with pytest.raises(SystemExit, match="another experiment is in this folder"):
        main([*flags, "--steps", "3"])

"""In-context evaluation of a live model: each item against a plain scorer, lengths, lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from crossalign.evaluation.choice_scoring import Candidate, ChoiceScorer, TooLongError
from crossalign.evaluation.in_context import (
    InContextSettings,
    evaluate_in_context,
    read_task_data,
)
from crossalign.evaluation.statistics import wilson_interval
from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.items import TASKS, Split, TaskData
from crossalign.evaluation.tasks.lm_eval_prompts import LmEvalPrompt
from crossalign.evaluation.tasks.prompts import paper_prompt
from tests.support.evaluation_cases import byte_model, byte_tokenizer, plain_score, write_tasks
from tests.support.process_group import run_ranks

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def live() -> Any:
    return byte_model(), byte_tokenizer()


def evaluate(live: Any, folder: Path, *, batch_size: int = 16, **settings: Any) -> Any:
    settings = {"tasks": ["xcopa"], "languages": ["en"], **settings}
    chosen = InContextSettings(**settings)
    return evaluate_in_context(live[0], live[1], folder, chosen, batch_size=batch_size)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("task", TASKS)
def test_every_item_equals_the_plain_scorer(live: Any, folder: Path, task: str, shots: int) -> None:
    found = evaluate(live, folder, tasks=[task], shots=[shots], seeds=[3])
    (record,) = found.records
    prompt = paper_prompt(task, "en", "</s>")
    items = {item.id: item for item in read_split(folder, task, "en", "test").items}
    pool = {item.id: item for item in read_split(folder, task, "en", "demos").items}
    correct = 0
    for logged in found.items:
        assert len(set(logged["demonstrations"])) == shots
        shown = [pool[name] for name in logged["demonstrations"]]
        before = "".join(prompt.texts(demo)[demo.label] + "</s>" for demo in shown)
        texts = [before + text for text in prompt.texts(items[logged["id"]])]
        scores = [plain_score(live[0], live[1], text) for text in texts]
        assert logged["log_probabilities"] == pytest.approx(scores, rel=1e-5)
        assert logged["prediction"] == scores.index(max(scores))
        assert logged["label"] == items[logged["id"]].label
        correct += logged["prediction"] == logged["label"]
    assert [logged["id"] for logged in found.items] == list(items)
    assert (record["correct"], record["items"]) == (correct, len(items))
    assert record["accuracy"] == correct / len(items)
    assert record["interval"] == list(wilson_interval(correct, len(items)))
    assert record["chance"] == pytest.approx(1 / TASKS[task].num_choices)
    assert record["above_chance"] == (record["interval"][0] > record["chance"])
    assert (record["shots"], record["seed"]) == (shots, 3 if shots else None)
    labels = [each["label"] for each in found.items]
    assert record["most_frequent_label"] == max(map(labels.count, labels)) / len(labels)
    assert record["prompt"]["prefix"] == "<s>"
    json.dumps(found.records + found.items)


def test_batch_size_changes_nothing(live: Any, folder: Path) -> None:
    found = [
        evaluate(live, folder, tasks=list(TASKS), shots=[2], batch_size=size) for size in (1, 7)
    ]
    for one, other in zip(found[0].items, found[1].items, strict=True):
        assert one.pop("log_probabilities") == pytest.approx(
            other.pop("log_probabilities"), rel=1e-5
        )
        assert one == other
    assert found[0].records == found[1].records


def test_settings_span_tasks_languages_shots_and_seeds(live: Any, folder: Path) -> None:
    found = evaluate(
        live, folder, tasks=["pawsx", "xcopa"], languages=["en", "zh"], shots=[0, 1], seeds=[0, 1],
        limit=3,
    )  # fmt: skip
    keys = [tuple(each[k] for k in ("task", "language", "shots", "seed")) for each in found.records]
    assert keys == [
        (task, language, shots, seed)
        for task in ("pawsx", "xcopa")
        for language in ("en", "zh")
        for shots, seed in ((0, None), (1, 0), (1, 1))
    ]
    assert all(each["items"] == 3 for each in found.records)
    assert found.records[0]["notes"] == {"dropped_NS_rows": 1}
    assert len(found.items) == 3 * len(found.records)


def test_prompt_language_is_apart_from_the_sample(live: Any, folder: Path) -> None:
    (own,) = evaluate(live, folder, tasks=["xnli"], languages=["zh"], limit=1).records
    (other,) = evaluate(
        live, folder, tasks=["xnli"], languages=["zh"], prompt_language="sw", limit=1
    ).records
    assert own["prompt"]["language"] == "zh" and own["prompt"]["example"].startswith("前提：Two")
    assert other["prompt"]["language"] == "sw" and other["prompt"]["example"].startswith(
        "Kauli: Two"
    )
    assert other["prompt"]["labels"] == ["uthibitisho", "kutoegemea", "ukinzani"]
    assert other["language"] == "zh"


def test_demonstrations_are_dropped_until_the_item_fits(folder: Path) -> None:
    """XCOPA texts take about 40 bytes each: 100 positions hold two, not five."""
    live = byte_model(max_position_embeddings=100), byte_tokenizer()
    found = evaluate(live, folder, shots=[4])
    (record,) = found.records
    assert record["items"] == 5
    assert record["items_with_fewer_shots"] == 5
    shown = [len(each["demonstrations"]) for each in found.items]
    assert set(shown) <= {1, 2, 3} and max(shown) >= 1
    whole = evaluate((byte_model(), byte_tokenizer()), folder, shots=[4])
    for cut, full in zip(found.items, whole.items, strict=True):
        kept = len(cut["demonstrations"])
        assert cut["demonstrations"] == full["demonstrations"][-kept:]
    assert whole.records[0]["items_with_fewer_shots"] == 0


def test_items_beyond_the_model_are_named_or_left_out(folder: Path) -> None:
    live = byte_model(max_position_embeddings=48), byte_tokenizer()
    with pytest.raises(
        TooLongError, match="item 1 of xcopa in en needs 49 positions but the model"
    ):
        evaluate(live, folder)
    found = evaluate(live, folder, too_long="skip")
    (record,) = found.records
    assert record["items_too_long"] == ["1", "4"]
    assert [each["id"] for each in found.items] == ["0", "2", "3"] and record["items"] == 3
    tiny = byte_model(max_position_embeddings=10), byte_tokenizer()
    with pytest.raises(ValueError, match="no item of xcopa in en fits into the model"):
        evaluate(tiny, folder, too_long="skip")


def test_equal_scores_count_as_the_first_choice(folder: Path) -> None:
    model = byte_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = evaluate((model, byte_tokenizer()), folder, tasks=["xwinograd"], languages=["en"])
    # Without preferences only the length counts, and here six items have candidates of one length.
    assert found.records[0]["ties"] == 6
    for logged in found.items:
        first, second = logged["log_probabilities"]
        assert logged["prediction"] == (1 if second > first else 0)


@pytest.mark.parametrize("task", TASKS)
def test_lm_eval_prompts_are_what_lm_eval_asks(live: Any, folder: Path, task: str) -> None:
    """lm-eval's own requests, built by its own code from the same documents, and its accuracy."""
    split = read_split(folder, task, "en" if task != "xcopa" else "zh", "test")
    language = "zh" if task == "xcopa" else "en"  # lm-eval has no English XCOPA
    prompt = LmEvalPrompt(task, language, split, None)
    prompt._task.build_all_requests(rank=0, world_size=1)
    theirs = [Candidate(*each.args) for each in prompt._task.instances]
    ours = [each for item in split.items for each in prompt.candidates(item, [])]
    assert ours == theirs
    found = evaluate(live, folder, tasks=[task], languages=[language], prompts="lm-eval")
    scorer = ChoiceScorer(*live)
    scores = iter(scorer._lm.loglikelihood(prompt._task.instances, disable_tqdm=True))
    documents = list(prompt._task.test_docs())
    right = [
        prompt._task.process_results(doc, [next(scores) for _ in range(TASKS[task].num_choices)])
        for doc in documents
    ]
    assert [bool(each["acc"]) for each in right] == [each["correct"] for each in found.items]
    assert found.records[0]["prompt"]["source"] == "lm-eval"
    assert found.records[0]["prompt"]["task"] == prompt._task.config.task


@pytest.mark.parametrize(("task", "language"), [("xcopa", "it"), ("xcopa", "zh"), ("pawsx", "fr")])
def test_lm_eval_prompts_on_real_items(
    data_root: Path, live: Any, task: str, language: str
) -> None:
    """The words of lm-eval 0.4.13 for real items, written out by hand."""
    whole = read_split(data_root / "eval", task, language, "test")
    few = Split(whole.items[:6], 6, whole.files)
    prompt = LmEvalPrompt(task, language, few, None)
    for item in few.items:
        found = prompt.candidates(item, [])
        fields = item.fields
        if task == "xcopa":
            words = {"it": ("perché", "quindi"), "zh": ("因为", "所以")}[language]
            word = words[0] if fields["question"] == "cause" else words[1]
            choices = [fields[f"choice{k}"] for k in (1, 2)]
            assert [each.context for each in found] == [
                f"{fields['premise'].strip()[:-1]} {word}"
            ] * 2
            assert [each.continuation for each in found] == [
                f" {choice[0].lower()}{choice[1:]}" for choice in choices
            ]
        else:
            assert [each.context for each in found] == ["", ""]
            for each, answer in zip(found, ("Non", "Oui"), strict=True):
                one, _, two = each.continuation.partition(f", n'est-ce pas? {answer}, ")
                assert one and two[0] == fields["sentence2"][0].lower()
                assert fields["sentence1"].startswith(one[:20])
    record = evaluate_in_context(
        live[0],
        live[1],
        [TaskData(task, language, few, None)],
        InContextSettings([task], [language], prompts="lm-eval"),
    ).records[0]
    assert record["items"] == 6


def test_lm_eval_demonstrations_are_ours(folder: Path) -> None:
    split = read_split(folder, "xcopa", "zh", "test")
    (first, second) = LmEvalPrompt("xcopa", "zh", split, split).candidates(
        split.items[0], split.items[1:3]
    )
    shown = "The street was wet 因为 it had rained.\n\nHe was hungry 所以 he ate bread.\n\n"
    assert first == (f"{shown}The glass fell 所以", " it broke.")
    assert second == (f"{shown}The glass fell 所以", " it flew.")
    with pytest.raises(ValueError, match='lm-eval has no prompts for xcopa in "en"; use --prompts'):
        LmEvalPrompt("xcopa", "en", split, None)


def _on_a_rank(rank: int, folder: Path) -> Any:
    """Every result, and the texts that this rank put through its model."""
    model, read = byte_model(), []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: read.extend(inputs[0].tolist())
    )
    settings = InContextSettings(["xcopa", "xwinograd"], ["en"], shots=[1])
    found = evaluate_in_context(
        model, byte_tokenizer(), folder, settings, batch_size=2, group=dist.group.WORLD
    )
    return found.records, found.items, len(read)


def test_ranks_share_the_items_and_get_all(live: Any, folder: Path) -> None:
    """26 texts over 2 ranks: none is asked twice, and every rank has the result of one process."""
    alone = evaluate(live, folder, tasks=["xcopa", "xwinograd"], shots=[1])
    results = run_ranks(_on_a_rank, 2, folder)
    # Before each of the two tasks a rank checks its output head on one text, in two passes.
    checked = 2 * 2
    assert sum(read for _, _, read in results) == 2 * len(alone.items) + 2 * checked
    assert min(read for _, _, read in results) >= 12 + checked
    for records, items, _ in results:
        assert records == alone.records
        for one, other in zip(items, alone.items, strict=True):
            assert one["log_probabilities"] == pytest.approx(other["log_probabilities"], rel=1e-5)
            assert one["id"] == other["id"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, r"tasks must be a list without repeats, got \[\]"),
        ({"seeds": [1, 1]}, r"seeds must be a list without repeats, got \[1, 1\]"),
        ({"tasks": ["copa"]}, "tasks must be of xnli, .*got 'copa'"),
        ({"shots": [-1]}, "shots must not be negative, got -1"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"prompts": "mine"}, "prompts must be of paper, lm-eval, got 'mine'"),
        ({"too_long": "cut"}, "too_long must be of error, skip, got 'cut'"),
        ({"languages": ["en", "de"]}, "languages: none of xcopa has 'de'"),
        ({"prompt_language": "xx"}, 'no words for the xcopa prompt in "xx"'),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InContextSettings(**{"tasks": ["xcopa"], "languages": ["en"], **settings})


def test_demonstration_files_are_needed_only_for_shots(folder: Path, tmp_path: Path) -> None:
    write_tasks(tmp_path, ["en"])
    (tmp_path / "xnli" / "dev-en.tsv").unlink()
    read_task_data(InContextSettings(["xnli"], ["en"]), tmp_path)
    with pytest.raises(ValueError, match=r"no file dev-en\.tsv"):
        read_task_data(InContextSettings(["xnli"], ["en"], shots=[1]), tmp_path)

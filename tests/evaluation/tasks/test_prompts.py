"""Prompts: the paper's, in every language; lm-eval's as lm-eval itself renders them; the demos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.items import TASKS, Split, choose_demos, related_items
from crossalign.evaluation.tasks.prompts import paper_prompt, prompt_languages
from tests.support.evaluation_cases import SCHEMAS, write_tasks, write_tsv
from tests.support.evaluation_cases import schema_row as row_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


EXPECTED = {
    "xnli": [
        "Premise: Two boys play ball.\nHypothesis: Nobody plays.\nQuestion: What is the "
        "relationship between premise and hypothesis, entailment, neutral, or contradiction?\n"
        f"Answer: {label}"
        for label in ("entailment", "neutral", "contradiction")
    ],
    "pawsx": [
        f"Ann met Bob in Rome., right? {label}, In Rome Ann met Bob." for label in ("No", "Yes")
    ],
    "xcopa": ["effect: The glass fell. so It broke.", "effect: The glass fell. so It flew."],
    "xstorycloze": [
        f"Tom had 0 coins. He went out. He saw a toy. It cost little. {ending}"
        for ending in ("He bought it.", "He swam home.")
    ],
    "xwinograd": [
        f"The ball hit the wall because {option} was heavy." for option in ("the ball", "the wall")
    ],
}


@pytest.mark.parametrize("task", TASKS)
def test_english_prompt_is_the_papers(folder: Path, task: str) -> None:
    item = read_split(folder, task, "en", "test").items[0]
    prompt = paper_prompt(task, "en", "</s>")
    assert prompt.texts(item) == EXPECTED[task]
    assert [(each.context, each.continuation) for each in prompt.candidates(item, [])] == [
        ("", text) for text in EXPECTED[task]
    ]


def test_demonstrations_are_joined_by_eos(folder: Path) -> None:
    items = read_split(folder, "xcopa", "en", "test").items
    found = paper_prompt("xcopa", "en", "<end>").candidates(items[0], items[1:3])
    assert [each.continuation for each in found] == [
        "cause: The street was wet. because It had rained.<end>"
        "effect: He was hungry. so He ate bread.<end>"
        f"effect: The glass fell. so {choice}"
        for choice in ("It broke.", "It flew.")
    ]
    with pytest.raises(ValueError, match="joined by the EOS string, the tokenizer has none"):
        paper_prompt("xcopa", "en", None).candidates(items[0], items[1:2])


def test_every_language_has_words_for_every_task(folder: Path) -> None:
    wanted = set("en zh de fr es ar hi sw th tr vi id it et ta ht qu ru ja pt".split())  # noqa: SIM905
    wanted |= {code for task in ("xnli", "pawsx", "xcopa") for code in TASKS[task].languages}
    assert wanted == set(prompt_languages())
    for language in wanted:
        for task in TASKS:
            item = read_split(folder, task, "en", "test").items[0]
            prompt = paper_prompt(task, language, "</s>")
            texts = prompt.texts(item)
            assert len(set(texts)) == len(texts) == TASKS[task].num_choices
            assert all("{" not in text for text in texts)
            for name, value in item.fields.items():
                if name != "question" and not name.startswith(("choice", "ending", "option")):
                    assert all(value in text for text in texts), (task, language, name)
            words = prompt.record().get("labels", [])
            assert all(isinstance(word, str) for word in words)  # YAML takes a bare No for false
            if task == "xnli":
                assert all(word in prompt.words["template"] for word in words), language


def test_languages_say_the_same_in_words_of_their_own() -> None:
    for task in ("xnli", "pawsx", "xcopa"):
        templates = [str(paper_prompt(task, each, None).words) for each in prompt_languages()]
        assert len(set(templates)) == len(templates), task


def test_language_without_words_is_named() -> None:
    with pytest.raises(ValueError, match='no words for the xnli prompt in "xx"; there are ar bg'):
        paper_prompt("xnli", "xx", None)
    assert paper_prompt("xstorycloze", "my", None).language == "my"  # needs no words


@pytest.mark.parametrize("task", ["xnli", "pawsx", "xwinograd", "xcopa", "xstorycloze"])
def test_demonstrations_are_fixed_by_seed_and_item(folder: Path, task: str) -> None:
    test, pool = (read_split(folder, task, "en", split) for split in ("test", "demos"))
    related = related_items(task)
    item = test.items[1]
    two = choose_demos(item, pool, 2, 0, related)
    assert two == choose_demos(item, pool, 2, 0, related)
    assert two == choose_demos(item, pool, 3, 0, related)[:2]
    assert len({demo.row for demo in two}) == 2
    draws = {
        (seed, each.id): tuple(demo.row for demo in choose_demos(each, pool, 2, seed, related))
        for seed in range(4)
        for each in test.items
    }
    assert len({rows for (seed, _), rows in draws.items() if seed == 0}) > 1
    assert len({rows for (_, name), rows in draws.items() if name == item.id}) > 1
    assert choose_demos(item, pool, 0, 0, related) == []


def test_same_draw_in_every_process_and_version(folder: Path) -> None:
    """Rows that seed 0 and 1 draw: changing them would change every few-shot figure."""
    test, pool = (read_split(folder, "xnli", "en", split) for split in ("test", "demos"))
    related = related_items("xnli")
    drawn = [
        [demo.row for demo in choose_demos(test.items[0], pool, 4, seed, related)]
        for seed in (0, 1)
    ]
    assert drawn == [[2, 3, 5, 4], [5, 3, 0, 2]]


def test_languages_show_the_same_rows(folder: Path) -> None:
    """Also where a row is missing in one of them: PAWS-X leaves rows out."""
    pool = read_split(folder, "pawsx", "en", "demos")
    thinner = Split([each for each in pool.items if each.row != 3], pool.rows, pool.files)
    item, related = pool.items[0], related_items("pawsx")
    whole = [demo.row for demo in choose_demos(item, pool, 4, 0, related)]
    thin = [demo.row for demo in choose_demos(item, thinner, 3, 0, related)]
    assert 3 in whole and thin == [row for row in whole if row != 3]


def test_related_items_never_demonstrate(tmp_path: Path, folder: Path) -> None:
    """PAWS-X: another row of the same first sentence. XWinograd: itself, its twin, a far twin."""
    pool = read_split(folder, "pawsx", "en", "demos")
    item = pool.items[0]
    assert {
        demo.row
        for seed in range(9)
        for demo in choose_demos(item, pool, 4, seed, related_items("pawsx"))
    } == {2, 3, 4, 5}
    far = ("A ball hit the wall because it was heavy.", 6, ("a ball", "that wall"), 0)
    rows = [*SCHEMAS, far]
    write_tsv(tmp_path / "xwinograd.en.tsv", [row_of("en", *each) for each in rows])
    schemas = read_split(tmp_path, "xwinograd", "en", "test")
    related = related_items("xwinograd")
    others = [row for row in range(9) if not related(schemas.items[0], schemas.items[row])]
    assert others == [2, 3, 4, 5, 6, 7]
    for seed in range(9):
        drawn = [demo.row for demo in choose_demos(schemas.items[0], schemas, 6, seed, related)]
        assert sorted(drawn) == others
    with pytest.raises(ValueError, match=r"7 demonstrations wanted for item 0, but .*has only 6"):
        choose_demos(schemas.items[0], schemas, 7, 0, related)


def test_real_twins_never_demonstrate(data_root: Path) -> None:
    """Sentences of the release that share their first thirty letters are twins."""
    schemas = read_split(data_root / "eval", "xwinograd", "en", "test")
    texts = [item.fields["before"] + item.fields["after"] for item in schemas.items]
    starts = [text[:30] for text in texts]
    related = related_items("xwinograd")
    twins = 0
    for item in schemas.items[:200]:
        drawn = choose_demos(item, schemas, 20, 0, related)
        assert starts[item.row] not in {starts[demo.row] for demo in drawn}
        twins += starts.count(starts[item.row]) > 1
    assert twins > 150

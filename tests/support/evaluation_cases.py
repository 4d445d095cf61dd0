"""Small hand-made task files in their release formats, a byte tokenizer, a plain scorer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_models import tiny_model

NLI = [
    ("The cat sleeps.", "An animal rests.", "entailment"),
    ("The cat sleeps.", "The cat is black.", "neutral"),
    ("The cat sleeps.", "The cat is running.", "contradiction"),
    ("Two boys play ball.", "Children are playing.", "entailment"),
    ("Two boys play ball.", "They are brothers.", "neutral"),
    ("Two boys play ball.", "Nobody plays.", "contradiction"),
]
PARAPHRASES = [
    ("11", "Ann met Bob in Rome.", "In Rome Ann met Bob.", "1"),
    ("12", "Ann met Bob in Rome.", "NS", "0"),
    ("15", "The old bridge was rebuilt.", "The bridge is old.", "0"),
    ("19", "He sold the blue car.", "The blue car was sold by him.", "1"),
    ("20", "She wrote to her sister.", "Her sister wrote to her.", "0"),
    ("21", "The train left at noon.", "At noon the train left.", "1"),
]
COPA = [
    ("The glass fell.", "It broke.", "It flew.", "effect", 0),
    ("The street was wet.", "It was noon.", "It had rained.", "cause", 1),
    ("He was hungry.", "He ate bread.", "He slept.", "effect", 0),
    ("She laughed.", "She heard a joke.", "She lost her keys.", "cause", 0),
    ("The lamp went out.", "The bulb was new.", "The power failed.", "cause", 1),
]
STORIES = [
    (f"story{k}", f"Tom had {k} coins.", "He went out.", "He saw a toy.", "It cost little.",
     "He bought it.", "He swam home.", "1" if k % 2 else "2")
    for k in range(5)
]  # fmt: skip
STORY_HEADER = [
    *("InputStoryid", "InputSentence1", "InputSentence2", "InputSentence3", "InputSentence4"),
    *("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"),
]
# Text, the pronoun's token, the candidates, which is right; twins stand side by side.
SCHEMAS = [
    ("The ball hit the wall because it was heavy.", 6, ("the ball", "the wall"), 0),
    ("The ball hit the wall because it was standing still.", 6, ("the ball", "the wall"), 1),
    ("Tim asked Max for some advice since he knew nothing.", 7, ("Tim", "Max"), 0),
    ("Tim asked Max for some advice since he knew everything.", 7, ("Tim", "Max"), 1),
    ("My cup will not fit into this box: it is too wide.", 8, ("my cup", "the box"), 0),
    ("My cup will not fit into this box: it is too narrow.", 8, ("my cup", "the box"), 1),
    ("Eve phoned Zoe yesterday; she picked up at once.", 3, ("Eve", "Zoe"), 1),
    ("Eve phoned Zoe yesterday; she hung up at once.", 3, ("Eve", "Zoe"), 0),
]


def write_tsv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([header] if header else []), *rows]
    path.write_text("".join("\t".join(row) + "\n" for row in lines), encoding="utf-8")
    return path


def write_xnli(folder: Path, language: str) -> None:
    write_tsv(folder / f"dev-{language}.tsv", NLI)
    write_tsv(folder / f"test-{language}.tsv", [row[:2] for row in reversed(NLI)])
    write_tsv(folder / "test-labels.tsv", [("fiction", row[2]) for row in reversed(NLI)])


def write_pawsx(folder: Path, language: str) -> None:
    header = ("id", "sentence1", "sentence2", "label")
    write_tsv(folder / language / "dev_2k.tsv", PARAPHRASES, header)
    write_tsv(folder / language / "test_2k.tsv", PARAPHRASES, header)


def write_xcopa(folder: Path, language: str, wrong: Sequence[int] = ()) -> None:
    """wrong: items whose question says effect, whatever it should say."""
    for part in ("val", "test"):
        path = folder / language / f"{part}.{language}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [
            {
                "premise": premise,
                "choice1": first,
                "choice2": second,
                "question": "effect" if row in wrong else question,
                "label": label,
                "idx": row,
                "changed": False,
            }
            for row, (premise, first, second, question, label) in enumerate(COPA)
        ]
        path.write_bytes(b"".join(json.dumps(each).encode() + b"\r\n" for each in records))


def write_xstorycloze(folder: Path, language: str) -> None:
    for part in ("train", "eval"):
        name = f"spring2016.val.{language}.tsv.split_20_80_{part}.tsv"
        write_tsv(folder / name, STORIES, STORY_HEADER)


def schema_row(
    code: str, text: str, start: int, options: tuple[str, str], right: int
) -> tuple[str, ...]:
    tokens = [*text[:-1].split(), "."]
    candidates = [[option, [0, 2], option.split(), k == right] for k, option in enumerate(options)]
    pronoun = [tokens[start], [start, start + 1], [tokens[start]]]
    return (code, "original", "?", text, *map(json.dumps, (tokens, pronoun, candidates)))


def write_xwinograd(folder: Path, code: str) -> None:
    write_tsv(folder / f"xwinograd.{code}.tsv", [schema_row(code, *each) for each in SCHEMAS])


def write_tasks(root: Path, languages: Sequence[str] = ("en", "zh")) -> Path:
    """All five tasks; English COPA stands as XCOPA writes it."""
    for language in languages:
        write_xnli(root / "xnli", language)
        write_pawsx(root / "pawsx", language)
        write_xcopa(root / "xcopa", language)
        write_xstorycloze(root / "xstorycloze", language)
        write_xwinograd(root / "xwinograd", language)
    return root


def byte_tokenizer(**options: Any) -> Any:
    """One token per byte, so that any text is distinguished; "</s>" in a text is the EOS token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: index for index, letter in enumerate(letters, start=3)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **options})


def byte_model(name: str = "llama", **overrides: Any) -> Any:
    """A tiny random model for byte_tokenizer."""
    return tiny_model(name, **{"vocab_size": 259, "max_position_embeddings": 2048, **overrides})


@torch.no_grad()
def plain_score(model: Any, tokenizer: Any, text: str) -> float:
    """Sum of the log-probabilities of a text's tokens after BOS, one text at a time."""
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    input_ids = torch.tensor([[tokenizer.bos_token_id, *token_ids]])
    log_probabilities = model(input_ids).logits[0].double().log_softmax(-1)
    return float(sum(log_probabilities[at, token] for at, token in enumerate(token_ids)))

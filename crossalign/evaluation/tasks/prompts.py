"""The paper's prompts: every choice is put into a template, and the whole text is scored.

Demonstrations are texts of the same template with their right choice, each followed by the
tokenizer's EOS string. Source: Li et al., NAACL 2024, and prompts.yaml for the words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossalign.evaluation.choice_scoring import Candidate
from crossalign.evaluation.tasks.items import Item

_STORY = {"template": "{sentence1} {sentence2} {sentence3} {sentence4} {ending}"}
_WINOGRAD = {"template": "{before}{option}{after}"}
_CONJUNCTIONS = {"cause": "because", "effect": "so"}


@dataclass(frozen=True)
class PaperPrompt:
    """The prompt of one task in one language."""

    task: str
    language: str
    words: dict[str, Any]  # template, and labels or the words of XCOPA
    separator: str | None  # the tokenizer's EOS string

    def texts(self, item: Item) -> list[str]:
        """The item's text for each choice, in the order of the labels."""
        template, fields = self.words["template"], item.fields
        if self.task in ("xnli", "pawsx"):
            return [template.format(**fields, label=label) for label in self.words["labels"]]
        if self.task == "xcopa":
            fields = {
                "premise": fields["premise"],
                "question": self.words[fields["question"]],
                "conjunction": self.words[_CONJUNCTIONS[fields["question"]]],
                "choice1": fields["choice1"],
                "choice2": fields["choice2"],
            }
        name = {"xcopa": "choice", "xstorycloze": "ending", "xwinograd": "option"}[self.task]
        return [template.format(**fields, **{name: fields[f"{name}{k}"]}) for k in (1, 2)]

    def candidates(self, item: Item, demos: Sequence[Item]) -> list[Candidate]:
        """What the model is asked, one text for each choice, after the demonstrations."""
        if demos and not self.separator:
            raise ValueError("demonstrations are joined by the EOS string, the tokenizer has none")
        shown = "".join(f"{self.texts(demo)[demo.label]}{self.separator}" for demo in demos)
        return [Candidate("", shown + text) for text in self.texts(item)]

    def record(self) -> dict[str, Any]:
        """What a result must say for its prompt to be known."""
        return {"source": "paper", **self.words, "separator": self.separator}


def paper_prompt(task: str, language: str, separator: str | None) -> PaperPrompt:
    """The prompt of a task in a language.

    Raises:
        ValueError: the task needs words, and there are none in this language.
    """
    table = _words()
    if task == "xwinograd":
        return PaperPrompt(task, language, _WINOGRAD, separator)
    if task == "xstorycloze":
        return PaperPrompt(task, language, table.get(language, {}).get(task, _STORY), separator)
    if language not in table:
        known = " ".join(sorted(table))
        raise ValueError(f'no words for the {task} prompt in "{language}"; there are {known}')
    return PaperPrompt(task, language, table[language][task], separator)


def prompt_languages() -> list[str]:
    """The languages with words of their own."""
    return sorted(_words())


@functools.cache
def _words() -> dict[str, dict[str, Any]]:
    import yaml

    text = Path(__file__).with_name("prompts.yaml").read_text(encoding="utf-8")
    words: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return words

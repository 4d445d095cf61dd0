"""The same sentences in three languages, for the tests of `crossalign analyze`."""

from __future__ import annotations

import random

LANGUAGES = ("en", "de", "zho-CN")


NUM_LINES = 40


def translations() -> dict[str, list[str]]:
    """Sentences that share most of their words; two lines stand twice."""
    choose = random.Random(7)
    meanings = [[choose.randint(3, 60) for _ in range(choose.randint(3, 9))] for _ in range(40)]
    meanings[11] = meanings[10]
    marks = dict(zip(LANGUAGES, ("w90", "w91", "w92"), strict=True))

    def say(words: list[int], mark: str) -> str:
        own = [f"w{word}" for word in words]
        own[choose.randrange(len(own))] = f"w{choose.randint(3, 60)}"
        return " ".join([mark, *own])

    texts = {code: [say(words, mark) for words in meanings] for code, mark in marks.items()}
    for lines in texts.values():
        lines[21] = lines[20]
    return texts

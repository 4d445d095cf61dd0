"""Which pairs of a batch mean the same, and so must not be each other's negatives."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from crossalign.data.pairs import Pair


class MeaningIds(NamedTuple):
    """Equal numbers mean the same; numbers compare only within one batch."""

    pairs: list[int]
    negatives: list[int]  # of the hard negative of each pair; -1 for ""


def normalized(sentence: str) -> str:
    """What two sentences must share to count as the same.

    NFKC (so that full-width letters, ligatures and other forms of a character do not count), case
    folding, and every run of white space as one blank. Punctuation counts: "Yes?" is not "Yes."
    """
    folded = sentence.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", sentence).casefold()
        folded = unicodedata.normalize("NFKC", folded)
    return " ".join(folded.split())


def meaning_ids(pairs: Sequence[Pair]) -> MeaningIds:
    """One number per pair, equal for pairs that share a sentence on either side.

    Sharing carries over: a pair that shares its source with a second and its target with a third
    joins all three. A hard negative that is a sentence of some pair has the number of that pair
    (sameness does not carry over through it), any other one that of its own text.

    The numbers depend only on the texts and their order: ranks that read the same batch agree.
    """
    parent = list(range(len(pairs)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        for sentence in (pair.source, pair.target):
            same = first_with.setdefault(normalized(sentence), index)
            parent[root(index)] = root(same)
    number_of = {sentence: root(index) for sentence, index in first_with.items()}
    negatives = [
        number_of.setdefault(normalized(pair.negative), len(pairs) + index) if pair.negative else -1
        for index, pair in enumerate(pairs)
    ]
    return MeaningIds([root(index) for index in range(len(pairs))], negatives)

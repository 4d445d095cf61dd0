"""Few-shot translation of FLORES sentences, greedily decoded, scored by sacrebleu.

The prompt is `source = target` for each demonstration, followed by EOS, then `source =`. The
translation is what the model writes up to the end of the line. BLEU splits words by a rule that
needs no download: see bleu_tokenizer; its name is in the signature of each score.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.evaluation.choice_scoring import ChoiceScorer, TooLongError
from crossalign.evaluation.tasks.release import find_file, need_file
from crossalign.files.text import DataError, read_lines

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from crossalign.evaluation.finished_parts import PartsOfModel

# Our codes -> those of FLORES-200.
FLORES_CODES = {
    **{"ar": "arb_Arab", "bg": "bul_Cyrl", "bn": "ben_Beng", "cs": "ces_Latn", "de": "deu_Latn"},
    **{"el": "ell_Grek", "en": "eng_Latn", "es": "spa_Latn", "et": "est_Latn", "eu": "eus_Latn"},
    **{"fi": "fin_Latn", "fr": "fra_Latn", "hi": "hin_Deva", "ht": "hat_Latn", "id": "ind_Latn"},
    **{"it": "ita_Latn", "ja": "jpn_Jpan", "ko": "kor_Hang", "my": "mya_Mymr", "nl": "nld_Latn"},
    **{"pl": "pol_Latn", "pt": "por_Latn", "qu": "quy_Latn", "ro": "ron_Latn", "ru": "rus_Cyrl"},
    **{"sv": "swe_Latn", "sw": "swh_Latn", "ta": "tam_Taml", "te": "tel_Telu", "th": "tha_Thai"},
    **{"tr": "tur_Latn", "uk": "ukr_Cyrl", "ur": "urd_Arab", "vi": "vie_Latn", "zh": "zho_Hans"},
}
_FOLDERS = ("flores200", "flores200_dataset", "flores200_dataset/{split}", "flores", "{split}", ".")
LICENSE = "CC BY-SA 4.0"
# Languages without spaces between words: sacrebleu's rule, the module it needs, and the rule where
# that is not installed.
_TOKENIZERS = {
    "zho": ("zh", None),
    "jpn": ("ja-mecab", "MeCab"),
    "kor": ("ko-mecab", "mecab_ko"),
    "tha": ("char", None),
    "mya": ("char", None),
}


@dataclass(frozen=True)
class TranslationSettings:
    """What to translate; checked when made.

    Raises:
        ValueError: a value that cannot be; the message names it.
    """

    directions: Sequence[tuple[str, str]]  # source and target, our codes
    shots: Sequence[int] = (5,)
    seeds: Sequence[int] = (0,)
    limit: int | None = None  # the first sentences
    max_tokens: int = 256  # of one translation
    too_long: str = "error"  # sentences that do not fit even without demonstrations, or "skip"

    def __post_init__(self) -> None:
        if not self.directions:
            raise ValueError("directions must name at least one pair of languages")
        for pair in self.directions:
            for code in pair:
                if code not in FLORES_CODES:
                    known = " ".join(FLORES_CODES)
                    raise ValueError(f'no FLORES code for the language "{code}"; known: {known}')
            if pair[0] == pair[1]:
                raise ValueError(f"directions must join two languages, got {'-'.join(pair)}")
        if (
            min(self.shots) < 0
            or self.max_tokens < 1
            or (self.limit is not None and self.limit < 1)
        ):
            raise ValueError("shots must not be negative, max_tokens and limit must be at least 1")


def read_flores(data: Path, language: str, split: str = "devtest") -> tuple[Path, list[str]]:
    """The sentences of one language, from eng_Latn.devtest or its .gz.

    Raises:
        DataError: the file is missing, cut off within a character, or holds an empty line.
    """
    name = f"{FLORES_CODES[language]}.{split}"
    path = need_file(data, [folder.format(split=split) for folder in _FOLDERS], (name,))
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{path}:{number}: the sentence is empty")
    return path, [line.strip() for line in lines]


def bleu_tokenizer(language: str) -> str:
    """How sacrebleu splits this language: its default 13a, or a rule for scripts without spaces.

    zh for Chinese; MeCab for Japanese and Korean where it is installed; else single characters.
    """
    name, module = _TOKENIZERS.get(FLORES_CODES[language][:3], ("13a", None))
    return "char" if module and importlib.util.find_spec(module) is None else name


def evaluate_translation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Path | str,
    settings: TranslationSettings,
    *,
    batch_size: int = 8,
    progress: bool = False,
    finished: PartsOfModel | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """BLEU and chrF of a live model for each direction, number of shots and seed.

    Demonstrations come from FLORES dev where it is there, else from the other devtest sentences;
    each record says which. They are dropped from the front where they leave no room for the
    translation, and such sentences are counted.

    finished: as of evaluate_in_context.

    Returns:
        Records, and a log with the output of every sentence.

    Raises:
        ImportError: lm-eval or sacrebleu is not installed.
        DataError: a file is missing, cut off or malformed, or two are not parallel.
        TooLongError: a sentence by itself leaves no room.
    """
    scorer = ChoiceScorer(model, tokenizer, batch_size=batch_size, progress=progress)
    records, log = [], []
    # All of them before the first translation: what does not fit is known from only the texts.
    separator = tokenizer.eos_token
    for key, pairs, prompts, counts in [*_all_asked(scorer, separator, Path(data), settings)]:
        found = finished.get(key) if finished else None
        if found is None:
            found = _translate(key, pairs, scorer, settings, prompts, counts)
            if finished:
                finished.add(key, *found)
        records.append(found[0])
        log += found[1]
    return records, log


def check_translation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Path | str,
    settings: TranslationSettings,
) -> None:
    """Raises as evaluate_translation would, without a translation; the model may have no weights
    (on the device "meta")."""
    _import_sacrebleu()
    scorer = ChoiceScorer(model, tokenizer)
    for _ in _all_asked(scorer, tokenizer.eos_token, Path(data), settings):
        pass


def _all_asked(
    scorer: ChoiceScorer, separator: str | None, data: Path, settings: TranslationSettings
) -> Iterator[tuple[dict[str, Any], _Parallel, dict[int, str], dict[str, Any]]]:
    """What names a record, its sentences, their prompts, and what was left out."""
    for source, target in settings.directions:
        pairs = _Parallel(data, source, target)
        for shots in settings.shots:
            for seed in settings.seeds if shots else (None,):
                key: dict[str, Any] = {"task": "flores", "source": source, "target": target}
                key |= {"shots": shots, "seed": seed}
                yield key, pairs, *_prompts(pairs, scorer, separator, settings, shots, seed)


def _translate(
    key: dict[str, Any],
    pairs: _Parallel,
    scorer: ChoiceScorer,
    settings: TranslationSettings,
    prompts: dict[int, str],
    counts: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One record and its sentences."""
    outputs = scorer.continue_greedily(list(prompts.values()), settings.max_tokens)
    rows = [
        {**key, "id": row, "source_text": pairs.source[row], "output": output}
        for row, output in zip(prompts, outputs, strict=True)
    ]
    references = [pairs.target[row] for row in prompts]
    scores = _scores(outputs, references, key["target"])
    return {**key, **scores, **counts, **pairs.record()}, rows


class _Parallel:
    """The sentences of two languages, line by line, and where demonstrations come from."""

    def __init__(self, data: Path, source: str, target: str) -> None:
        self.files = []
        sides = []
        for language in (source, target):
            path, lines = read_flores(data, language)
            self.files.append(path)
            sides.append(lines)
        self.source, self.target = sides
        _check_parallel(self.files, sides)
        folders = [folder.format(split="dev") for folder in _FOLDERS]
        names = [f"{FLORES_CODES[language]}.dev" for language in (source, target)]
        self.own_demos = all(find_file(data, folders, [name]) for name in names)
        self.demos = sides
        if self.own_demos:
            found = [read_flores(data, language, "dev") for language in (source, target)]
            self.files += [path for path, _ in found]
            self.demos = [lines for _, lines in found]
            _check_parallel(self.files[2:], self.demos)

    def choose(self, row: int, shots: int, seed: int | None) -> list[tuple[str, str]]:
        """Demonstrations fixed only by the seed and the line, never the line itself."""
        others = [each for each in range(len(self.demos[0])) if self.own_demos or each != row]
        if shots > len(others):
            raise ValueError(f"{shots} demonstrations wanted, {self.files[0]} has {len(others)}")
        chosen = random.Random(f"{seed}/{row}").sample(others, shots)
        return [(self.demos[0][each], self.demos[1][each]) for each in chosen]

    def record(self) -> dict[str, Any]:
        hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files}
        return {
            "prompt": "{source} = {target}, demonstrations followed by EOS",
            "demonstrations_from": "dev" if self.own_demos else "other devtest sentences",
            "license": LICENSE,
            "files_sha256": hashes,
        }


def _check_parallel(files: Sequence[Path], sides: Sequence[list[str]]) -> None:
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{files[0]} has {len(sides[0])} lines, {files[1]} has {len(sides[1])}: one is cut off"
        )


def _prompts(
    pairs: _Parallel,
    scorer: ChoiceScorer,
    separator: str | None,
    settings: TranslationSettings,
    shots: int,
    seed: int | None,
) -> tuple[dict[int, str], dict[str, Any]]:
    """Line -> prompt, and how many lost demonstrations or are left out."""
    if shots and not separator:
        raise ValueError("demonstrations are joined by the EOS string, the tokenizer has none")
    prompts: dict[int, str] = {}
    fewer, skipped = 0, []
    for row, text in enumerate(pairs.source[: settings.limit]):
        shown = [f"{one} = {other}{separator}" for one, other in pairs.choose(row, shots, seed)]
        while shown and not scorer.has_room("".join(shown) + f"{text} =", settings.max_tokens):
            shown = shown[1:]
        prompt = "".join(shown) + f"{text} ="
        if scorer.has_room(prompt, settings.max_tokens):
            prompts[row] = prompt
            fewer += len(shown) < shots
        elif settings.too_long == "skip":
            skipped.append(row)
        else:
            raise TooLongError(
                f"sentence {row + 1} of {pairs.files[0]} leaves no room for {settings.max_tokens} "
                f"tokens in the model's {scorer.limit} positions; lower max_tokens, or "
                "too_long='skip' (--too-long skip) leaves such sentences out"
            )
    if not prompts:
        raise ValueError(f"no sentence of {pairs.files[0]} fits into the model")
    return prompts, {"sentences_with_fewer_shots": fewer, "sentences_too_long": skipped}


def _import_sacrebleu() -> tuple[Any, Any]:
    """BLEU and chrF."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError as error:
        raise ImportError(
            f"translations are scored by sacrebleu ({error}); pip install 'crossalign[evaluate]'"
        ) from error
    return BLEU, CHRF


def _scores(outputs: Sequence[str], references: Sequence[str], target: str) -> dict[str, Any]:
    BLEU, CHRF = _import_sacrebleu()
    bleu, chrf = BLEU(tokenize=bleu_tokenizer(target)), CHRF()
    return {
        "sentences": len(outputs),
        "bleu": bleu.corpus_score(outputs, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(outputs, [references]).score,
        "chrf_signature": str(chrf.get_signature()),
        "empty_outputs": sum(not output for output in outputs),
    }

"""What a live model makes of texts: their tokens by EleutherAI's lm-eval, and its text generation.

A text is scored whole, from its first token on: sum_t log p(token_t | prefix, tokens before t),
where the prefix is the token that the tokenizer itself puts first, or BOS, or EOS where there is no
BOS. With a context, only the continuation's tokens are summed. Texts are padded on the right and
log-probabilities formed in float32, so in float32 a score depends neither on the batch nor on the
tokenizer's padding side.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from crossalign.evaluation.token_scores import Request, continuation_log_probabilities
from crossalign.models.encode import longest_input
from crossalign.models.hidden_states import eval_mode

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from torch import nn
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedTokenizerBase


class Candidate(NamedTuple):
    """What one choice asks of the model: log p(continuation | context). No context: the whole."""

    context: str
    continuation: str


class TooLongError(ValueError):
    """A text has more tokens than the model has positions."""


class ChoiceScorer:
    """Scores texts with a model that is already in memory; neither it nor its tokenizer changes.

    Args:
        model: a Hugging Face causal LM, PEFT adapters included; it runs where it is, in eval mode
            for the time of a call.
        tokenizer: its tokenizer; one without a padding token will do.
        batch_size: texts run at once, the longest first.
        progress: show bars.
        group: processes that hold the same model; each does its share of every call, and all get
            all results. None: only this process.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: batch_size below 1, or a tokenizer without a token to begin with.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 8,
        progress: bool = False,
        group: ProcessGroup | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"ChoiceScorer: batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size, self.progress = batch_size, progress
        self.group = group
        self.limit = longest_input(model, tokenizer)
        self._positions: dict[Candidate, int] = {}  # of candidates not yet scored
        with eval_mode(model), _quiet():
            self._lm = _wrap(model, tokenizer, batch_size)

    @property
    def prefix(self) -> str:
        """The token in front of every text that has no context."""
        return str(self.tokenizer.decode([self._lm.prefix_token_id]))

    def num_positions(self, candidate: Candidate) -> int:
        """Positions that the model needs for this text; the last token is predicted, not read."""
        if candidate not in self._positions:
            context, continuation = candidate
            self._positions[candidate] = (
                len(self._lm.tok_encode(context + continuation)) - 1
                if context
                else len(self._lm.tok_encode(continuation, add_special_tokens=False))
            )
        return self._positions[candidate]

    def fits(self, candidate: Candidate) -> bool:
        return self.limit is None or self.num_positions(candidate) <= self.limit

    def log_probabilities(self, candidates: Sequence[Candidate]) -> list[float]:
        """The scores, in the order of the candidates.

        Raises:
            TooLongError: a candidate does not fit; nothing has been scored then, nothing is cut.
            ValueError: a continuation without tokens, or the model gives NaN.
        """
        for candidate in candidates:
            positions = self.num_positions(candidate)
            if positions < 1:
                raise ValueError(f"no tokens to score in {candidate.continuation!r}")
            if self.limit is not None and positions > self.limit:
                raise TooLongError(
                    f"a text needs {positions} positions but the model has {self.limit}: "
                    f"{candidate.context[:40] or candidate.continuation[:40]!r}..."
                )
        self._positions.clear()
        scores = self._scores([self._request(candidate) for candidate in candidates])
        for candidate, score in zip(candidates, scores, strict=True):
            if math.isnan(score):
                raise ValueError(f"the model gives NaN for {candidate.continuation[:40]!r}...")
        return scores

    def _request(self, candidate: Candidate) -> Request:
        """As lm-eval splits a text into tokens."""
        context, continuation = candidate
        if context:
            return Request(*self._lm._encode_pair(context, continuation))
        tokens = self._lm.tok_encode(continuation, add_special_tokens=False)
        return Request([self._lm.prefix_token_id], tokens)

    def _scores(self, requests: list[Request]) -> list[float]:
        """Each is scored once, by one of the processes; neighbors, which share most, by the same
        one."""
        import torch.distributed as dist

        rank = dist.get_rank(self.group) if self.group else 0
        world = dist.get_world_size(self.group) if self.group else 1
        bounds = [len(requests) * each // world for each in range(world + 1)]
        with eval_mode(self.model):
            scores = continuation_log_probabilities(
                self.model,
                requests[bounds[rank] : bounds[rank + 1]],
                batch_size=self.batch_size,
                progress=self.progress,
            )
        if self.group is None:
            return scores
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, scores, group=self.group)
        return [score for part in parts for score in part]

    def continue_greedily(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """What the model writes after each prompt, up to a line's end or the EOS token.

        Raises:
            TooLongError: a prompt leaves no room for max_tokens; nothing has been written then.
        """
        longest = 0
        for prompt in prompts:
            longest = max(longest, len(self._lm.tok_encode(prompt)))
            if not self.has_room(prompt, max_tokens):
                raise TooLongError(
                    f"a prompt of {longest} tokens leaves no room for {max_tokens} in the model's "
                    f"{self.limit} positions: {prompt[:40]!r}..."
                )
        self._lm._max_length = self.limit or longest + max_tokens
        options = {"until": ["\n"], "max_gen_toks": max_tokens, "do_sample": False}
        texts = self._ask("generate_until", [(prompt, options) for prompt in prompts])
        return [str(text).strip() for text in texts]

    def has_room(self, prompt: str, max_tokens: int) -> bool:
        """Whether the prompt and that many further tokens fit into the model's positions."""
        return self.limit is None or len(self._lm.tok_encode(prompt)) + max_tokens <= self.limit

    def _ask(self, kind: str, asked: list[tuple[Any, ...]]) -> list[Any]:
        """lm-eval's answers to requests of one kind, each asked of one process only."""
        import torch.distributed as dist
        from lm_eval.api.instance import Instance

        rank = dist.get_rank(self.group) if self.group else 0
        world = dist.get_world_size(self.group) if self.group else 1
        share = [Instance(kind, {}, each, index) for index, each in enumerate(asked[rank::world])]
        answers: list[Any] = []
        if share:
            with eval_mode(self.model), _quiet():
                answers = getattr(self._lm, kind)(share, disable_tqdm=not self.progress)
        if self.group is None:
            return answers
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, answers, group=self.group)
        gathered: list[Any] = [None] * len(asked)
        for each in range(world):
            gathered[each::world] = parts[each]  # refuses a part of another length
        return gathered


def sequence_log_probabilities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> list[float]:
    """log p(text) of each text, all its tokens counted, in the order of the texts.

    Args, raises: as ChoiceScorer and its log_probabilities.
    """
    scorer = ChoiceScorer(model, tokenizer, batch_size=batch_size, progress=progress)
    return scorer.log_probabilities([Candidate("", text) for text in texts])


def _wrap(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> HFLM:
    try:
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ImportError(
            f"scoring needs lm-eval ({error}); pip install 'crossalign[evaluate]'"
        ) from error
    # The copy may get a padding token. dtype of the softmax: a bfloat16 sum has three digits.
    return HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
        prefix_token_id=_prefix_token(tokenizer),
    )


def _prefix_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What the model was trained to see first: XGLM begins with EOS though it has a BOS."""
    text = "a"
    whole = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(1, len(whole)):
        if whole[start : start + len(bare)] == bare:
            return int(whole[start - 1])
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has neither a BOS nor an EOS token to begin a text with")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's warnings that a live model ignores the options for loading one."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

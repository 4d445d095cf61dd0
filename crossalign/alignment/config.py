"""The settings of an alignment run: one frozen dataclass that checks itself and makes its flags."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from crossalign.contrastive.choices import ONE_WAY, Direction
from crossalign.pooling.choices import Center, Pooling, PoolTokens
from crossalign.settings import SettingError, check_settings, device_setting, setting

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FROZEN_BLOCKS = re.compile(r"blocks:([1-9]\d*)(-([1-9]\d*)?)?")  # of --freeze, from 1 on
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]

_CANDIDATES = "which candidates of the loss count, and how much"
_LOSS, _BATCHES, _UPDATES = "the loss", "batches and lengths", "updates"
_MODEL = "how the model runs"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What `align` and `crossalign align` do with a model and its data.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of its range.
    """

    layer: int | tuple[int, ...] = setting(
        1,
        "block whose output is aligned: 0 = the embeddings, 1 = the first block, -1 = the last; "
        "several: the mean of their losses",
        group=_LOSS,
        metavar="K",
    )
    pooling: Pooling = setting("mean", "how token vectors become a sentence vector", group=_LOSS)
    pool_tokens: PoolTokens = setting(
        "all",
        "tokens that count in a sentence vector: all, or content = without the tokenizer's special "
        "tokens, such as the one it puts first",
        group=_LOSS,
    )
    center: Center = setting(
        "none",
        "mean that is subtracted from the sentence vectors before the loss: none, batch = of all "
        "vectors of the batch, side = of the sources and of the targets apart",
        group=_LOSS,
    )
    temperature: float = setting(
        0.05, "divides the cosine similarities (dimensionless)", group=_LOSS, above=0
    )
    learn_temperature: bool = setting(
        False,
        "also train the temperature, which starts at --temperature and never falls below 0.01",
        group=_LOSS,
    )
    contrastive_weight: float = setting(
        1.0, "weight of the contrastive loss", group=_LOSS, lowest=0
    )
    lm_weight: float = setting(
        1.5, "weight of the next-token loss; 0 leaves it out", group=_LOSS, lowest=0
    )
    symmetric: bool = setting(False, "contrast in both directions", group=_LOSS)
    hard_negative_weight: float = setting(
        0.0,
        "added to the logit of a pair's own hard negative, where pairs have one",
        group=_LOSS,
    )
    directions: tuple[Direction, ...] = setting(
        ONE_WAY,
        "logits in the denominator of a pair: query_to_key = its source with all targets (always), "
        "key_to_query = its target with all sources, query_to_query = its source with the other "
        "sources, key_to_key = its target with the other targets; --symmetric takes the mean of "
        "one term for each of the first two instead",
        group=_CANDIDATES,
        metavar="DIRECTION",
    )
    false_negative_margin: float | None = setting(
        None,
        "leave out candidates whose cosine exceeds the pair's by more than this; None = none",
        group=_CANDIDATES,
    )
    hardness: float = setting(
        0.0, "added to a negative's logit per unit of its cosine", group=_CANDIDATES
    )
    label_smoothing: float = setting(
        0.0,
        "share of the target distribution that is spread evenly over all candidates; helps where "
        "pairs may be wrong",
        group=_CANDIDATES,
        lowest=0,
    )
    debias: float = setting(
        0.0,
        "assumed probability that a negative is in fact a translation; the expected share of such "
        "negatives is subtracted from the denominator",
        group=_CANDIDATES,
        lowest=0,
    )
    batch_size: int = setting(
        64,
        "pairs per step, over all ranks; all other pairs of a step are negatives",
        group=_BATCHES,
        lowest=2,
    )
    chunk_size: int | None = setting(
        None,
        "sequences in one pass through the model: bounds memory, changes no gradient; "
        "None = the whole batch",
        group=_BATCHES,
        lowest=1,
    )
    lm_batch_size: int | None = setting(
        None,
        "texts per step for the next-token loss, over all ranks; None = as many as pairs",
        group=_BATCHES,
        lowest=1,
    )
    lm_chunk_size: int | None = setting(
        None,
        "texts (or blocks) in one pass through the model; None = --chunk-size",
        group=_BATCHES,
        lowest=1,
    )
    steps: int = setting(
        1000, "updates in all, which also sets the schedule", group=_UPDATES, lowest=1
    )
    learning_rate: float = setting(1e-5, "peak learning rate of AdamW", group=_UPDATES, above=0)
    max_length: int = setting(
        512,
        "tokens after which a text is cut, at most what the model has positions for",
        group=_BATCHES,
        lowest=2,
    )
    block_length: int | None = setting(
        None,
        "tokens of a block into which several texts for the next-token loss are packed, at most "
        "what the model has positions for; None = a row for each text",
        group=_BATCHES,
        lowest=2,
    )
    precision: Precision = setting(
        "auto",
        "arithmetic of the model; weights stay float32. auto = bf16 on a GPU, fp32 on a CPU",
        group=_MODEL,
    )
    attention: Attention = setting(
        "auto",
        "attention implementation; auto = what the model comes with",
        group=_MODEL,
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations twice instead of holding them", group=_MODEL
    )
    lora_rank: int | None = setting(
        None,
        "train LoRA adapters of this rank in every linear layer, not the weights; None = the "
        "weights",
        group=_UPDATES,
        lowest=1,
    )
    freeze: tuple[str, ...] = setting(
        (),
        "parts that are not trained: embeddings, head, blocks:5- (from block 5 on), blocks:2-4, "
        "blocks:3",
        group=_UPDATES,
        metavar="PART",
    )
    compile: bool = setting(False, "compile each block with torch.compile", group=_MODEL)
    pretraining_tokens: float | None = setting(
        None,
        "tokens the model was pre-trained on; metrics then say what share of them was used so "
        "far; None = they do not",
        group=_UPDATES,
        above=0,
    )
    allow_untested: bool = setting(
        False, "run combinations that docs/parallelism.md calls untested", group=_MODEL
    )
    seed: int = setting(0, "seed of data order, items and dropout", group=_UPDATES, lowest=0)
    device: str = device_setting(_MODEL)

    @property
    def layers(self) -> tuple[int, ...]:
        """The aligned layers, also where there is one."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @property
    def objective(self) -> dict[str, Any]:
        """The settings that AlignmentModel takes, by its names for them."""
        groups = (_LOSS, _CANDIDATES)
        names = [each.name for each in fields(self) if each.metadata["flag"].group in groups]
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.layers:
            raise SettingError("layer must name at least one layer, got ()", "layer")
        self._check_loss()
        if self.contrastive_weight == 0 and self.lm_weight == 0:
            names = ("contrastive_weight", "lm_weight")
            raise SettingError("contrastive_weight and lm_weight must not both be 0", *names)
        parts = ("embeddings", "head")
        wrong = [
            each for each in self.freeze if not (each in parts or FROZEN_BLOCKS.fullmatch(each))
        ]
        if wrong:
            raise SettingError(
                "freeze must name embeddings, head, blocks:K, blocks:K-L or blocks:K-, got "
                f"{wrong[0]!r}",
                "freeze",
            )
        if self.freeze and self.lora_rank is not None:
            raise SettingError(
                "freeze must be empty with lora_rank, which trains nothing but adapters",
                *("freeze", "lora_rank"),
            )
        if self.seed >= 2**63:
            raise SettingError(f"seed must be below 2**63, got {self.seed}", "seed")

    def _check_loss(self) -> None:
        if self.learn_temperature and self.temperature < 0.01:
            raise SettingError(
                "temperature must be at least 0.01 with learn_temperature, below which it gets no "
                f"gradient, got {self.temperature}",
                *("temperature", "learn_temperature"),
            )
        if "query_to_key" not in self.directions:
            shown = " ".join(self.directions)
            raise SettingError(f"directions must hold query_to_key, got {shown}", "directions")
        if self.symmetric and self.directions != ONE_WAY:
            raise SettingError(
                "symmetric and directions both choose what competes; drop one of them",
                *("symmetric", "directions"),
            )
        for name in ("label_smoothing", "debias"):
            if getattr(self, name) >= 1:
                raise SettingError(f"{name} must be below 1, got {getattr(self, name)}", name)

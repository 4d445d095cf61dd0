"""AlignmentModel: the joint loss of AFP around a causal LM, in one forward call per step.

loss = contrastive_weight * contrastive_loss + lm_weight * lm_loss: the contrastive loss over pooled
hidden states aligns translations, the next-token loss keeps (and aligns) what the model says.

Shapes: N pairs, H hard negatives, B sentences, T tokens, C hidden size, L aligned layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossalign.alignment.batch_checks import (
    asks_for_owners,
    check_batch,
    labels_after_tokens,
    model_inputs,
    pair_of_negatives,
    parameters_of_forward,
)
from crossalign.alignment.padding import LENGTHS, no_text, one_token, trimmed
from crossalign.argument_checks import check_option, check_scalar
from crossalign.contrastive.choices import ONE_WAY, Direction
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.module import LearnsTemperature, start_logit_scale
from crossalign.contrastive.option_checks import check_options
from crossalign.contrastive.options import LossOptions
from crossalign.contrastive.terms import ContrastiveStats
from crossalign.distributed.group_owner import OwnsGroup
from crossalign.models.hidden_states import check_layer, hidden_states_at
from crossalign.models.layer_states import hidden_states_of
from crossalign.models.next_token_loss import language_model_loss
from crossalign.models.output_head import check_output_head, output_head
from crossalign.pooling.centering import center_vectors
from crossalign.pooling.choices import CENTERS, POOL_TOKENS, POOLINGS, Center, Pooling, PoolTokens
from crossalign.pooling.content_tokens import content_mask
from crossalign.pooling.functions import pool
from crossalign.precision import concatenated

if TYPE_CHECKING:
    from crossalign.contrastive.module import called_as

LARGEST_LOGIT_SCALE = 100.0  # the lowest temperature that is learned is 0.01


class AlignmentOutput(NamedTuple):
    """What AlignmentModel returns; every loss is () float32 and has a gradient.

    Example:
        >>> output = AlignmentOutput(*torch.ones(3), ContrastiveStats(*torch.zeros(4)))
        >>> output.loss, output.stats.accuracy
        (tensor(1.), tensor(0.))
    """

    loss: Tensor
    contrastive_loss: Tensor
    lm_loss: Tensor  # 0 without lm
    stats: ContrastiveStats


class AlignmentModel(OwnsGroup, LearnsTemperature):
    """A causal LM with the AFP loss: of sentences after block `layer`, of texts after the last one.

    Wrap it, not the language model inside, in DistributedDataParallel or FSDP; with
    DistributedDataParallel and no lm, the blocks past `layer` get no gradient, so freeze them or
    set find_unused_parameters=True. A rank may have no pairs (B = 0) while another has some. Give
    lm on all ranks or on none; a rank without a text can pass no rows, or labels all -100.
    Other arguments are those of the loss; its query is the source and its key the target.

    Args:
        model: a Hugging Face causal LM, also with PEFT adapters (but none on its output embedding).
        layer: block after which the sentences are pooled; 1 = the first. See hidden_states_at. With
            several the contrastive loss and its statistics are the mean over these layers.
        pooling: "mean", "last" or "max" over a sentence's tokens.
        pool_tokens: "all", or "content": without special_token_ids (`all_special_ids`).
        center: "none", "batch" or "side": the mean that is subtracted, see center_vectors.
        temperature: of the contrastive loss, > 0; an nn.Parameter is learned.
        learn_temperature: own the parameter `logit_scale` = log(1 / temperature); never below 0.01.
        contrastive_weight: factor of the contrastive loss.
        lm_weight: factor of the next-token loss.
        symmetric: contrast in both directions.
        hard_negative_weight: added to the logit of a pair's own hard negative.
        group: torch.distributed process group over whose ranks the batch is spread: negatives come
            from every rank, and the next-token mean is over all tokens. None: only this process.

    Raises:
        TypeError: layer is not an integer, or an option of the loss has the wrong type.
        ValueError: options cannot be combined or are unknown, layer is out of range, temperature is
            not above 0 (learned: 0.01), or the model's decoder blocks cannot be found.

    Source: Li et al. 2024, https://aclanthology.org/2024.naacl-long.445/.

    Examples:
        >>> side = {"input_ids": torch.tensor([[4, 5], [6, 7]]), "attention_mask": torch.ones(2, 2)}
        >>> AlignmentModel(model, layer=1)(side, side).loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: int | Sequence[int] = 1,
        pooling: Pooling = "mean",
        pool_tokens: PoolTokens = "all",
        special_token_ids: Sequence[int] = (),
        center: Center = "none",
        temperature: float | Tensor = 0.05,
        learn_temperature: bool = False,
        contrastive_weight: float = 1.0,
        lm_weight: float = 1.5,
        symmetric: bool = False,
        hard_negative_weight: float = 0.0,
        directions: Sequence[Direction] = ONE_WAY,
        false_negative_margin: float | None = None,
        hardness: float = 0.0,
        label_smoothing: float = 0.0,
        debias: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        layers = tuple(layer) if isinstance(layer, Sequence) else (layer,)
        if not layers:
            raise ValueError("AlignmentModel: layer must name one layer at least, got none")
        for each in layers:
            check_layer("AlignmentModel", model, each)
        check_option("AlignmentModel", "pooling", pooling, POOLINGS)
        check_option("AlignmentModel", "pool_tokens", pool_tokens, POOL_TOKENS)
        check_option("AlignmentModel", "center", center, CENTERS)
        check_scalar("AlignmentModel", "temperature", temperature, above_zero=True)
        options = LossOptions(symmetric, directions=directions, return_stats=True, debias=debias)
        options = options._replace(hardness=hardness, label_smoothing=label_smoothing)
        margin, weight = false_negative_margin, hard_negative_weight
        options = options._replace(false_negative_margin=margin, hard_negative_weight=weight)
        check_options("AlignmentModel", options)
        super().__init__()
        self.model = model
        self.layers = layers
        self.pooling, self.pool_tokens, self.center = pooling, pool_tokens, center
        self.special_token_ids = torch.tensor(tuple(special_token_ids), dtype=torch.long)
        self.fixed_temperature = temperature
        self.logit_scale, self.max_logit_scale = None, LARGEST_LOGIT_SCALE
        if learn_temperature:
            self.logit_scale = start_logit_scale("AlignmentModel", temperature, LARGEST_LOGIT_SCALE)
        self.contrastive_weight, self.lm_weight = contrastive_weight, lm_weight
        self.loss_options, self.group = options, group
        self._head_is_checked = False
        self.adds_to_grad = False  # see RowGradients; for one process, which sets it
        self._model_takes = parameters_of_forward(model)

    def forward(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        negatives: Mapping[str, Tensor] | None = None,
        lm: Mapping[str, Tensor] | None = None,
        *,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> AlignmentOutput:
        """The losses of one batch.

        Args:
            source: input_ids and attention_mask, (N, T) each, padded left or right; optionally
                position_ids (N, T) and whatever else the language model's forward takes.
                token_type_ids, which tokenizers add unasked, are left out.
            target: likewise, the translation of each source sentence; T may differ.
            negatives: likewise, (H, T): sentences close to a target that are no translation. With
                H = N row i is the hard negative of pair i.
            lm: input_ids and labels (B, T), -100 = ignored, and optionally attention_mask, (B, T)
                or a prepared (B, 1, T, T), and position_ids (B, T) for texts packed into a row.
            ids: (N,) integers; pairs of equal id mean the same thing and are no negatives.
            negative_ids: (H,) integers: hard negatives, likewise none for pairs of equal id.

        Returns:
            AlignmentOutput(loss, contrastive_loss, lm_loss, stats).

        Raises:
            TypeError: a batch is no dict of tensors, or ids are not integers.
            ValueError: an entry is missing, or unknown to the model; sizes do not match;
                an option asks whose each negative is and they are not one per pair; or the model's
                head cannot be reproduced.

        Cost: `layer` blocks for the sentences, all blocks for lm; no (tokens x vocabulary) logits.
        """
        batches = {"source": source, "target": target, "negatives": negatives}
        for name, batch in batches.items():
            if batch is not None:
                check_batch(name, batch, ("input_ids", "attention_mask"), self._model_takes)
        if lm is not None:
            check_batch("lm", lm, ("input_ids", "labels"), self._model_takes)
        owner = pair_of_negatives(self.loss_options, source, target, negatives)
        contrastive_loss, stats = self.contrast(
            self.embed(source),
            self.embed(target),
            None if negatives is None else self.embed(negatives),
            owner,
            ids=ids,
            negative_ids=negative_ids,
        )
        lm_loss = contrastive_loss.new_zeros(())
        if lm is not None:
            lm_loss = self.next_token_loss(lm)
        elif self.group is not None:  # another rank may have texts: no token of them is here
            dist.all_reduce(torch.zeros_like(lm_loss), group=self.group)
        loss = self.contrastive_weight * contrastive_loss + self.lm_weight * lm_loss
        return AlignmentOutput(loss, contrastive_loss, lm_loss, stats)

    if TYPE_CHECKING:

        @called_as(forward)
        def __call__(self, *given: Any, **named: Any) -> Any: ...

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use; a tensor with a gradient where it is learned."""
        if self.logit_scale is None:
            return self.fixed_temperature
        return self.learned_temperature(self.logit_scale)

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, L * C) pooled hidden states, layer by layer; batch: input_ids and attention_mask."""
        rows = batch["input_ids"].shape[0]
        if rows == 0:  # wrapped for several ranks, the same blocks must run on each
            batch = one_token(batch["input_ids"])
        batch = trimmed(batch)
        mask = batch["attention_mask"]
        inputs = model_inputs(batch, self._model_takes)
        states = hidden_states_of(self.model, self.layers, **inputs)
        if self.pool_tokens == "content":
            # No buffer: DistributedDataParallel would send it in every forward.
            self.special_token_ids = self.special_token_ids.to(mask.device)
            mask = content_mask(batch["input_ids"], mask, self.special_token_ids)
        pooled = [pool(hidden, mask.to(hidden.device), self.pooling) for hidden in states]
        vectors = concatenated(pooled, dim=1) if len(pooled) > 1 else pooled[0]
        return vectors if rows > 0 else vectors[:0].clone()  # FSDP asks for no views

    def contrast(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        owner: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> tuple[Tensor, ContrastiveStats]:
        """The unweighted contrastive loss of embeddings (N, L * C) twice and (H, L * C), and its
        stats: of several layers the means."""
        if negatives is None and self.group is not None and asks_for_owners(self.loss_options):
            # Another rank may have some.
            negatives, owner = query.detach()[:0], query.new_empty(0, dtype=torch.int64)
        query, key, negatives = center_vectors(
            query, key, negatives, center=self.center, group=self.group
        )
        options = self.loss_options._replace(group=self.group)
        if owner is None:
            options = options._replace(hard_negative_weight=0.0)
        named: dict[str, Any] = {"ids": ids, "negative_ids": negative_ids, "negative_owner": owner}
        count = len(self.layers)
        results = [
            fused_contrastive_loss(
                query.chunk(count, 1)[index],
                key.chunk(count, 1)[index],
                negatives if negatives is None else negatives.chunk(count, 1)[index],
                temperature=self.temperature,
                **named | options._asdict(),
            )
            for index in range(count)
        ]
        losses, stats = zip(*results, strict=True)
        if count == 1:
            return losses[0], stats[0]
        means = (torch.stack(each).mean() for each in zip(*stats, strict=True))
        return torch.stack(losses).mean(), ContrastiveStats(*means)

    def next_token_loss(self, lm: Mapping[str, Tensor], count: Tensor | None = None) -> Tensor:
        """(), unweighted; lm as in forward, count as in language_model_loss."""
        if lm["input_ids"].shape[0] == 0:
            lm = no_text(lm["input_ids"].device)
        # Batches of the training loop have lengths and are padded on the right.
        labels = lm["labels"] if LENGTHS in lm else labels_after_tokens(lm)
        lm = trimmed({**lm, "labels": labels})
        if not self._head_is_checked:
            check_output_head(self.model, lm["input_ids"])
            self._head_is_checked = True
        hidden = hidden_states_at(self.model, -1, **model_inputs(lm, self._model_takes))
        head = output_head(self.model)._asdict()
        return language_model_loss(
            hidden,
            head.pop("weight"),
            lm["labels"],
            **head,
            group=self.group,
            count=count,
            adds_to_grad=self.adds_to_grad,
        )

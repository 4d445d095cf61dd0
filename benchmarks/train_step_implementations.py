"""One alignment step, put together from parts that are ours or the plain way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.resident_memory import peak_resident_mib
from benchmarks.train_step_cases import Batch, Case, Inputs, make_inputs, make_model
from crossalign.alignment.engines.one_process import Engine
from crossalign.alignment.model import AlignmentModel

TEMPERATURE, LM_WEIGHT = 0.05, 1.5
LEARNING_RATE, LARGEST_GRADIENT_NORM = 1e-5, 1.0
PADDING_GROUPS = 4
PARTS = {
    "layer": "blocks past the layer are not run",
    "head": "logits of the texts are never whole",
    "loss": "the contrastive loss is fused",
    "optimizer": "one pass updates all weights (AdamW, fused), and clips them on the way",
    "rows": "the embedding's gradient is added to in place, not formed by each pass",
    "padding": f"sentences sorted by length, in {PADDING_GROUPS} batches, so that less is padding",
    "bf16": "products in bfloat16 (autocast), weights in float32; of use where the CPU has them",
}


class Step:
    """One update, put together from those of PARTS that are named; none of them: the plain way."""

    def __init__(self, model: nn.Module, batch: Batch, parts: frozenset[str], layer: int) -> None:
        self.model, self.batch, self.parts, self.layer = model, batch, parts, layer
        self.alignment = AlignmentModel(
            model, layer=layer, temperature=TEMPERATURE, lm_weight=LM_WEIGHT
        )
        self.device = batch.source["input_ids"].device
        self.ids = torch.arange(len(batch.source["input_ids"]))
        self.is_ours = {"layer", "head", "loss"} <= parts
        self.engine = Engine(self.device, "fp32")
        self.calls = self.engine.prepare(self.alignment)
        self.alignment.adds_to_grad = "rows" in parts
        self.optimizer = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, weight_decay=0.0, fused="optimizer" in parts or None
        )

    def __call__(self) -> Tensor:
        loss = self.backward()
        weights = list(self.model.parameters())
        if "optimizer" in self.parts:
            norm = self.engine.clip(self.optimizer, weights)
        else:
            norm = nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT_NORM)
        finite = torch.stack([loss.detach().float(), norm.float()]).isfinite().all()
        if not bool(finite):  # the one wait of a step
            raise RuntimeError(f"loss {loss} or gradient norm {norm} is not finite")
        self.engine.update(self.optimizer)
        return loss.detach()

    def backward(self) -> Tensor:
        """The loss; leaves the gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocasts()):
            loss = self.joint_loss()
        loss.backward()
        return loss.detach()

    def autocasts(self) -> bool:
        if self.device.type == "cuda":
            return next(self.model.parameters()).dtype == torch.bfloat16
        return "bf16" in self.parts

    def joint_loss(self) -> Tensor:
        if self.is_ours and "padding" not in self.parts:
            source, target, lm = self.batch
            return self.calls("forward", source, target, lm=lm, ids=self.ids).loss
        return self.calls(self.loss_of_parts)

    def loss_of_parts(self) -> Tensor:
        query, key = self.embed(self.batch.source), self.embed(self.batch.target)
        if "loss" in self.parts:
            contrastive = self.alignment.contrast(query, key, ids=self.ids)[0]
        else:
            contrastive = plain_contrastive_loss(query, key)
        if "head" in self.parts:
            lm_loss = self.alignment.next_token_loss(self.batch.lm)
        else:
            lm_loss = plain_lm_loss(self.model, self.batch.lm)
        return contrastive + LM_WEIGHT * lm_loss

    def embed(self, sentences: Inputs) -> Tensor:
        """(N, C)"""
        run = self.alignment.embed if "layer" in self.parts else self.embed_with_all_blocks
        if "padding" not in self.parts:
            return run(sentences)
        lengths, order = sentences["lengths"].sort(descending=True)
        pooled = []
        for rows, widths in zip(
            order.chunk(PADDING_GROUPS), lengths.chunk(PADDING_GROUPS), strict=True
        ):
            names = ("input_ids", "attention_mask")
            here = rows.to(self.device, non_blocking=True)
            pooled.append(run({name: sentences[name][here, : int(widths[0])] for name in names}))
        return torch.cat(pooled)[order.argsort().to(self.device, non_blocking=True)]

    def embed_with_all_blocks(self, sentences: Inputs) -> Tensor:
        mask = sentences["attention_mask"]
        output = self.model.get_decoder()(
            sentences["input_ids"],
            attention_mask=mask,
            output_hidden_states=True,
            use_cache=False,
        )
        hidden, weights = output.hidden_states[self.layer], mask.unsqueeze(-1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def plain_contrastive_loss(query: Tensor, key: Tensor) -> Tensor:
    similarity_NN = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / TEMPERATURE
    return F.cross_entropy(similarity_NN, torch.arange(len(query), device=query.device))


def plain_lm_loss(model: nn.Module, lm: Inputs) -> Tensor:
    logits = model(lm["input_ids"], attention_mask=lm["attention_mask"], use_cache=False).logits
    accumulator = torch.promote_types(logits.dtype, torch.float32)
    labels = lm["labels"][:, 1:].flatten().to(logits.device)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).to(accumulator), labels)


def parts_of_crossalign(device: torch.device) -> frozenset[str]:
    """What crossalign.align does; a GPU has the bandwidth for gradients that are formed whole."""
    parts = frozenset({"layer", "head", "loss", "optimizer"})
    return parts | {"rows"} if device.type == "cpu" else parts


def implementations(device: torch.device) -> dict[str, frozenset[str]]:
    ours = parts_of_crossalign(device)
    # As of commit ccb28b9, whose update was fused on a GPU only.
    before = frozenset(
        {"layer", "head", "loss"} | ({"optimizer"} if device.type != "cpu" else set())
    )
    named = {"eager": frozenset[str](), "crossalign": ours, "crossalign before": before}
    parts = PARTS if device.type == "cpu" else PARTS.keys() - {"bf16"}  # GPU cases are in bfloat16
    named |= {f"eager with {part}": frozenset({part}) for part in parts}
    named |= {f"crossalign without {part}": ours - {part} for part in parts if part in ours}
    return named | {f"crossalign with {part}": ours | {part} for part in parts if part not in ours}


def loss_and_gradients(step: Step) -> list[Tensor]:
    """Of one step that makes no update; on the device, where comparing them is quick."""
    loss = step.backward()
    gradients = [
        parameter.grad for parameter in step.model.parameters() if parameter.grad is not None
    ]
    step.optimizer.zero_grad()  # lets go of them without writing zeros
    return [loss, *gradients]


def peak_in_this_process(case: Case, implementation: str, threads: int) -> float | None:
    """Peak of one step above weights and optimizer state, MiB."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    model = make_model(case, device, getattr(torch, case.dtype))
    parts = implementations(device)[implementation]
    step = Step(model, make_inputs(case, device), parts, case.layer)
    step()  # makes the optimizer's state
    return peak_resident_mib(lambda: None, step)

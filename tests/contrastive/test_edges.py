"""The contrastive loss at its edges, on both backends: layouts, ids, owners, ties, statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from tests.support.contrastive_cases import (
    OWN_ONLY,
    POSITIVE,
    RAW,
    SYMMETRIC,
    LossCase,
    assert_outcome,
    fused,
    make_inputs,
)
from tests.support.pooling_cases import BACKENDS, Run

EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
ONE = torch.tensor(1.0)


def loss_and_grads(backend: str, *leaves: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    loss = fused_contrastive_loss(*leaves, backend=backend, **options)
    return (loss.detach(), *torch.autograd.grad(loss.sum(), leaves))


# Layouts


@EACH_BACKEND
def test_strided_and_expanded_options(backend: str) -> None:
    """Kernels take pointers: options of stride 0 and 2 were read past their end."""
    leaves = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 4)
    strided: dict[str, Any] = {
        "ids": torch.tensor([1, 7, 2, 8, 1, 9, 2, 7, 3, 8, 1, 9])[::2],
        "negative_owner": torch.tensor([3]).expand(4),
        "weights": torch.tensor([2.0]).expand(6),
    }
    dense = {name: value.contiguous() for name, value in strided.items()}
    got, expected = (
        loss_and_grads(backend, *leaves, hard_negative_weight=0.5, **options)
        for options in (strided, dense)
    )
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@EACH_BACKEND
def test_expanded_inputs(backend: str) -> None:
    """Rows of stride 0: descriptors of the GPU's copy engine cannot describe them."""
    query, key = torch.randn(5, 4), torch.randn(5, 4)
    negatives = torch.randn(1, 4).expand(3, 4)
    got = loss_and_grads(backend, query, key, negatives)
    expected = loss_and_grads(backend, query, key, negatives.contiguous())
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    got = loss_and_grads(backend, query[:1].expand(5, 4), key)
    expected = loss_and_grads(backend, query[:1].expand(5, 4).contiguous(), key)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@EACH_BACKEND
def test_query_and_key_may_be_the_same_tensor(backend: str) -> None:
    both = torch.randn(7, 5, requires_grad=True)
    loss = fused_contrastive_loss(both, both, backend=backend)
    (grad,) = torch.autograd.grad(loss, both)
    _, grad_query, grad_key = loss_and_grads(backend, both, both)
    torch.testing.assert_close(grad, grad_query + grad_key)


@EACH_BACKEND
def test_inputs_are_not_written(backend: str) -> None:
    case = LossCase(5, 4, 3, ("ids", "negative_ids", "negative_owner", "weights", "temperature"))
    inputs = make_inputs(case, Run(backend, "cpu", torch.float32))
    given = [*inputs.leaves.values(), *inputs.options.values()]
    before = [tensor.clone() for tensor in given]
    fused(inputs, backend, ONE)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


# Ids and owners


@EACH_BACKEND
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_ids_of_every_integer_dtype_mean_the_same(dtype: torch.dtype, backend: str) -> None:
    ids, owner = torch.tensor([0, 1, 0, 5, 1]), torch.tensor([4, 0, 0])
    leaves = torch.randn(5, 4), torch.randn(5, 4), torch.randn(3, 4)
    options = {"hard_negative_weight": 0.5, "backend": backend}
    expected = fused_contrastive_loss(*leaves, ids=ids, negative_owner=owner, **options)
    got = fused_contrastive_loss(
        *leaves, ids=ids.to(dtype), negative_owner=owner.to(dtype), **options
    )
    assert torch.equal(got, expected)


@EACH_BACKEND
@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63)])
def test_no_id_is_a_sentinel(value: int, backend: str) -> None:
    """Pairs 0 and 2 and negative 1 share the id; nothing else has an equal one."""
    ids, negative_ids = torch.tensor([value, 7, value]), torch.tensor([8, value])
    case = LossCase(3, 2, 4, (), SYMMETRIC | {"ids": ids, "negative_ids": negative_ids})
    for options in ({}, POSITIVE):
        run = Run(backend, "cpu", torch.float32)
        inputs = make_inputs(case._replace(options=case.options | options), run)
        assert_outcome(fused(inputs, backend, ONE), inputs, ONE)


@EACH_BACKEND
def test_ids_that_differ_above_bit_32_are_different(backend: str) -> None:
    query, key = torch.randn(4, 3), torch.randn(4, 3)
    ids = torch.tensor([5, 5 + 2**32, 5 + 2**40, 5 - 2**33])
    got = fused_contrastive_loss(query, key, ids=ids, backend=backend)
    assert torch.equal(got, fused_contrastive_loss(query, key, backend=backend))


@EACH_BACKEND
def test_negatives_without_ids_are_masked_for_nobody(backend: str) -> None:
    query, key, negatives = torch.randn(4, 3), torch.randn(4, 3), torch.randn(2, 3)
    ids = torch.zeros(4, dtype=torch.long)
    loss = fused_contrastive_loss(query, key, negatives, ids=ids, backend=backend)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (query, key, negatives)]
    rest = (unit[0] @ unit[2].T / 0.05).logsumexp(1)
    positive_logit = (unit[0] * unit[1]).sum(1) / 0.05
    torch.testing.assert_close(loss, torch.nn.functional.softplus(rest - positive_logit).mean())


@EACH_BACKEND
def test_one_id_for_all_pairs_leaves_their_own_hard_negatives(backend: str) -> None:
    """The way docs/loss.md gives to train on hard negatives only, of any number each."""
    query, key, negatives = torch.randn(4, 6), torch.randn(4, 6), torch.randn(5, 6)
    owner = torch.tensor([0, 0, 1, 3, 3])  # query 2 has none
    loss = fused_contrastive_loss(
        *(query, key, negatives),
        ids=torch.zeros(4, dtype=torch.long),
        negative_owner=owner,
        share_negatives=False,
        reduction="none",
        backend=backend,
    )
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (query, key, negatives)]
    positive_logit = (unit[0] * unit[1]).sum(1) / 0.05
    logits = (unit[0] @ unit[2].T / 0.05).masked_fill(
        owner[None, :] != torch.arange(4)[:, None], -torch.inf
    )
    torch.testing.assert_close(
        loss, torch.nn.functional.softplus(logits.logsumexp(1) - positive_logit)
    )
    assert loss[2] == 0


@EACH_BACKEND
def test_a_row_without_negatives_is_zero_among_others(backend: str) -> None:
    """Row 2 owns no negative and its only rival key has its id."""
    case = LossCase(3, 2, 4, (), OWN_ONLY | {"reduction": "none"})
    given = {"ids": torch.tensor([1, 1, 1]), "negative_owner": torch.tensor([0, 1])}
    inputs = make_inputs(case, Run(backend, "cpu", torch.float32))
    inputs = inputs._replace(options=inputs.options | given)
    for options in ({}, RAW, SYMMETRIC):
        with_options = inputs._replace(options=inputs.options | options)
        got = fused(with_options, backend, ONE)
        assert_outcome(got, with_options, ONE)
        assert got.loss[2] == 0 and not got.grads["query"][2].any()


# Statistics


@EACH_BACKEND
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("num_features", [3, 7, 16, 40])
def test_a_copy_of_the_own_key_ties(num_features: int, normalize: bool, backend: str) -> None:
    """Tied for first: never strictly highest, and nothing stands strictly above.

    A matrix product sums the columns of its tail in another order, so copies were told apart.
    """
    for num_pairs in (2, 3, 5, 17):
        # Orthogonal enough that only the copy rivals the own key.
        key = 5 * torch.randn(num_pairs, num_features)
        copies = key.flip(0) if num_features > num_pairs else key
        query = key * torch.rand(num_pairs, 1).add(0.5)
        _, stats = fused_contrastive_loss(
            query, key, copies, normalize=normalize, return_stats=True, backend=backend
        )
        assert stats.accuracy == 0
        rank = 1 if normalize else dense_rank(query, key)
        assert stats.mean_reciprocal_rank.item() == pytest.approx(rank)


@EACH_BACKEND
def test_keys_of_one_feature_tie_where_their_signs_agree(backend: str) -> None:
    """Cosines are 1 or -1; the kernels divide by rounded norms and told such keys apart."""
    query, key = torch.randn(50, 1).abs(), torch.randn(50, 1).abs()
    _, stats = fused_contrastive_loss(query, key, return_stats=True, backend=backend)
    assert (stats.accuracy, stats.mean_reciprocal_rank) == (0, 1)


def dense_rank(query: Tensor, key: Tensor) -> float:
    """Mean reciprocal rank when every key has one copy."""
    logits = query.double() @ key.double().T
    return float((1 / (1 + 2 * (logits > logits.diagonal()[:, None]).sum(1))).double().mean())


@EACH_BACKEND
def test_statistics_of_a_batch_worked_out_by_hand(backend: str) -> None:
    query = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    key = torch.tensor([[2.0, 0], [0, 1], [0, 3]])
    # Row 0: 2 against 0, 0. Row 1: 1 against 0, 3. Row 2: 0 against 2, 0.
    loss, stats = fused_contrastive_loss(
        query, key, temperature=1.0, normalize=False, return_stats=True, backend=backend
    )
    assert stats.accuracy.item() == pytest.approx(1 / 3)
    assert stats.mean_reciprocal_rank.item() == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert stats.positive_similarity.item() == pytest.approx(1.0)
    sums = [math.exp(2) + 2, math.exp(1) + 1 + math.exp(3), 2 + math.exp(2)]
    assert stats.logsumexp.item() == pytest.approx(sum(map(math.log, sums)) / 3)
    assert loss.item() == pytest.approx(stats.logsumexp.item() - 1.0)
    assert all(stat.shape == () and stat.dtype == torch.float32 for stat in stats)
    assert not any(stat.requires_grad for stat in stats)


def test_many_features_do_not_make_other_keys_tie() -> None:
    """The tolerance grew with sqrt(D): at D = 20,000 the mean reciprocal rank was 3 % too high."""
    generator = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(1, 20_000, generator=generator)  # cosines crowd at 0.9
    query, key = (torch.randn(300, 20_000, generator=generator) + common for _ in range(2))
    key += query / 40
    _, stats = fused_contrastive_loss(query, key, return_stats=True, backend="torch")
    _, truth = reference.contrastive_loss(query, key)
    expected = truth["mean_reciprocal_rank"].item()
    assert expected < 0.8  # not all first: most keys have rivals
    assert stats.mean_reciprocal_rank.item() == pytest.approx(expected, rel=3e-3)

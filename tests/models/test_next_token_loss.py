"""language_model_loss against plain logits and cross-entropy, and the memory it promises."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossalign.models import next_token_loss as lm
from crossalign.models.next_token_loss import language_model_loss
from tests.support.process_group import run_ranks
from tests.support.tolerances import assert_within_rule

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 2.0, "softcap": 5.0},
}


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block walk, also where liger-kernel is installed; that has a file of tests of its own."""
    monkeypatch.setattr(lm, "can_fuse", lambda hidden, scale: False)


def make_inputs(
    head: str = "plain", dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (3, 9, 12, 50)
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """[hidden, weight, bias] that require grad (without bias unless the head has one), labels."""
    batch, tokens, width, vocabulary = shape
    options: dict[str, Any] = dict(HEADS[head])
    tensors = [torch.randn(batch, tokens, width), torch.randn(vocabulary, width) / width**0.5]
    if options.pop("bias", False):
        tensors.append(torch.randn(vocabulary))
    labels = torch.randint(0, vocabulary, (batch, tokens))
    labels[torch.rand(batch, tokens) < 0.3] = -100
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], labels, options


def fused(tensors: list[Tensor], labels: Tensor, options: dict[str, Any]) -> Tensor:
    bias = tensors[2] if len(tensors) > 2 else None
    return language_model_loss(tensors[0], tensors[1], labels, bias=bias, **options)


def plain(tensors: list[Tensor], labels: Tensor, options: dict[str, Any]) -> Tensor:
    """The same from whole logits, in the dtype of the tensors."""
    hidden, weight = tensors[:2]
    logits = F.linear(hidden[:, :-1], weight, tensors[2] if len(tensors) > 2 else None)
    logits = logits * options.get("scale", 1.0)
    if cap := options.get("softcap"):
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def with_gradients(
    function: Callable[..., Tensor],
    tensors: list[Tensor],
    labels: Tensor,
    options: dict[str, float],
    upstream: float = 3.0,
) -> list[Tensor]:
    """The loss, then the gradient of upstream * loss for each tensor."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = function(tensors, labels, options)
    return [loss.detach(), *torch.autograd.grad(upstream * loss, tensors)]


@pytest.mark.parametrize("head", HEADS)
def test_float64_equals_whole_logits(head: str) -> None:
    inputs = make_inputs(head)
    for ours, theirs in zip(
        with_gradients(fused, *inputs), with_gradients(plain, *inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_lower_precision_stays_within_the_rule(head: str, dtype: torch.dtype, device: str) -> None:
    tensors, labels, options = make_inputs(head, dtype, shape=(2, 33, 24, 403))
    tensors = [tensor.to(device) for tensor in tensors]
    labels = labels.to(device)
    ours = with_gradients(fused, tensors, labels, options)
    truth = with_gradients(plain, [tensor.double() for tensor in tensors], labels, options)
    single = with_gradients(plain, [tensor.float() for tensor in tensors], labels, options)
    assert ours[0].dtype == torch.float32
    for name, kernel, exact, rounded in zip(
        ("loss", "hidden", "weight", "bias"), ours, truth, single, strict=False
    ):
        row = (1, -1) if name == "bias" else kernel.shape  # one element alone may be exact by luck
        assert_within_rule(
            kernel.reshape(row), exact.reshape(row), rounded.to(kernel.dtype).reshape(row), name
        )


@pytest.mark.parametrize("trained", list(itertools.product((False, True), repeat=3))[1:])
def test_gradcheck_of_every_subset_of_inputs(trained: tuple[bool, ...]) -> None:
    tensors, labels, options = make_inputs("all", shape=(2, 4, 3, 11))
    for tensor, needs_grad in zip(tensors, trained, strict=True):
        tensor.requires_grad_(needs_grad)
    assert torch.autograd.gradcheck(lambda *each: fused(list(each), labels, options), tensors)


def test_second_backward_repeats_and_double_differentiation_raises() -> None:
    tensors, labels, options = make_inputs()
    loss = fused(tensors, labels, options)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    second = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="create_graph must be False"):
        torch.autograd.grad(fused(tensors, labels, options), tensors, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_float32_parameters(dtype: torch.dtype) -> None:
    """As the model's head would: products of the autocast dtype, gradients of float32."""
    inputs = make_inputs("bias", torch.float32)
    with torch.autocast("cpu", dtype):
        ours = with_gradients(fused, *inputs)
        theirs = with_gradients(plain, *inputs)
    assert [each.dtype for each in ours] == [torch.float32] * 4
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05 * float(other.abs().max()))


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.itemsize)
        return result


@contextmanager
def largest_tensor() -> Iterator[LargestTensor]:
    # The autograd engine calls backward outside of this thread's modes unless it is told not to.
    with torch.autograd.set_multithreading_enabled(False), LargestTensor() as recorded:
        yield recorded


@pytest.mark.parametrize("head", ["plain", "all"])
def test_no_tensor_has_the_size_of_the_logits(head: str) -> None:
    tensors, labels, options = make_inputs(head, torch.float32, shape=(4, 65, 8, 1000))
    logits = labels[:, 1:].numel() * 1000
    with largest_tensor() as recorded:
        fused(tensors, labels, options).backward()
    assert 0 < recorded.largest <= logits // 7
    with largest_tensor() as recorded:
        plain(tensors, labels, options).backward()
    assert recorded.largest >= logits  # the instrument sees what it should


def test_blocks_shrink_with_the_number_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on a block's elements; the loss does not depend on how the blocks are cut."""
    tensors, labels, options = make_inputs()
    expected = with_gradients(plain, tensors, labels, options)
    monkeypatch.setattr(lm, "_LOGITS_PER_BLOCK", 8 * labels.numel())
    with largest_tensor() as recorded:
        ours = with_gradients(fused, tensors, labels, options)
    assert recorded.largest <= max(tensor.numel() for tensor in tensors)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 5, 4, 7), (2, 1, 4, 7), (0, 5, 4, 7)])
def test_no_label_that_counts_gives_zero_loss_and_gradient(shape: tuple[int, ...]) -> None:
    tensors, labels, options = make_inputs("bias", shape=shape)
    if shape == (2, 5, 4, 7):
        labels.fill_(-100)
    loss, *gradients = with_gradients(fused, tensors, labels, options)
    assert loss == 0
    assert all(torch.equal(each, torch.zeros_like(each)) for each in gradients)


def test_ignored_positions_are_not_read() -> None:
    tensors, labels, options = make_inputs()
    counted = F.pad(labels[:, 1:] != -100, (0, 1))
    assert not counted.all()
    clean = with_gradients(fused, tensors, labels, options)
    with torch.no_grad():
        tensors[0][~counted] = torch.nan
    dirty = with_gradients(fused, tensors, labels, options)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_vocabulary_of_one_and_strided_inputs() -> None:
    tensors, labels, options = make_inputs(shape=(2, 5, 4, 1))
    assert fused(tensors, labels, options) == 0
    (hidden, weight), labels, options = make_inputs(shape=(2, 5, 4, 30))
    strided = hidden.detach().mT.contiguous().mT, weight.detach().T.contiguous().T
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        fused([*strided], labels, options), plain([hidden, weight], labels, options)
    )


def test_large_logits_stay_finite() -> None:
    tensors, labels, options = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        tensors[0] *= 1e4
    assert all(each.isfinite().all() for each in with_gradients(fused, tensors, labels, options))


def test_two_runs_agree_bit_for_bit() -> None:
    inputs = make_inputs("all", torch.float32, shape=(2, 33, 24, 403))
    runs = [with_gradients(fused, *inputs) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_bad_inputs_are_named() -> None:
    hidden, weight = torch.randn(2, 5, 4), torch.randn(7, 4)
    labels = torch.zeros(2, 5, dtype=torch.long)
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, "hidden must be a torch.Tensor, got list", ([1.0], weight, labels), {}),
        (TypeError, "labels must hold integers", (hidden, weight, labels.float()), {}),
        (ValueError, r"hidden must have shape \(B, T, C\)", (hidden[0], weight, labels), {}),
        (ValueError, r"weight must have shape \(V, C\)", (hidden, weight[0], labels), {}),
        (ValueError, r"labels must have shape \(B, T\)", (hidden, weight, labels[0]), {}),
        (ValueError, r"labels must have size 5 .*T of hidden", (hidden, weight, labels[:, 1:]), {}),
        (ValueError, r"labels must have size 2 .*B of hidden", (hidden, weight, labels[1:]), {}),
        (ValueError, "weight must have size 4", (hidden, weight[:, 1:], labels), {}),
        (ValueError, "weight must have the dtype of", (hidden, weight.double(), labels), {}),
        (ValueError, "bias must have size 7", (hidden, weight, labels), {"bias": weight[1:, 0]}),
        (ValueError, "labels must index the vocabulary", (hidden, weight, labels + 7), {}),
        (ValueError, "labels must index the vocabulary", (hidden, weight, labels - 1), {}),
        (ValueError, "softcap must be a finite number", (hidden, weight, labels), {"softcap": 0.0}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            language_model_loss(*arguments, **options)


# Rows of the batch that rank 0 takes, and whether rank 1 has labels that count.
SHARES = [(1, True), (3, False)]


def _shared_batch(own_rows: int, rank_1_has_labels: bool) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    tensors, labels, _ = make_inputs("bias", shape=(5, 6, 4, 30))
    if not rank_1_has_labels:
        labels[own_rows:] = -100
    return tensors, labels


def _losses_of_rank(rank: int) -> list[list[Tensor]]:
    results = []
    for own_rows, rank_1_has_labels in SHARES:
        tensors, labels = _shared_batch(own_rows, rank_1_has_labels)
        rows = slice(0, own_rows) if rank == 0 else slice(own_rows, None)
        loss = language_model_loss(
            tensors[0][rows], tensors[1], labels[rows], bias=tensors[2], group=dist.group.WORLD
        )
        results.append([loss.detach(), *torch.autograd.grad(loss, tensors)])
    return results


def test_group_averages_over_the_tokens_of_all_ranks() -> None:
    for share, first, second in zip(SHARES, *run_ranks(_losses_of_rank, 2), strict=True):
        tensors, labels = _shared_batch(*share)
        whole = with_gradients(plain, tensors, labels, {}, upstream=1.0)
        for a, b, expected in zip(first, second, whole, strict=True):
            torch.testing.assert_close((a + b) / 2, expected)

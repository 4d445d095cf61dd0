"""Every message that the contrastive loss gives for bad input, before any kernel runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossalign import ContrastiveLoss, backends, fused_contrastive_loss
from crossalign.backends import choose_backend

N, H, D = 4, 3, 5
QUERY, KEY, NEGATIVES = torch.randn(N, D), torch.randn(N, D), torch.randn(H, D)
IDS, NEGATIVE_IDS, OWNER = torch.arange(N), torch.arange(H), torch.tensor([0, 1, 3])
NAN, INF = float("nan"), float("inf")

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": [1.0]}, TypeError, "query must be a torch.Tensor, got list"),
    ({"key": None}, TypeError, "key must be a torch.Tensor, got NoneType"),
    ({"query": QUERY[0]}, ValueError, r"query must have shape \(N, D\), got \(5,\)"),
    ({"key": KEY[None]}, ValueError, r"key must have shape \(N, D\), got \(1, 4, 5\)"),
    ({"query": QUERY.long()}, ValueError, "query must be float32, .* got torch.int64"),
    ({"key": KEY[:3]}, ValueError, r"key must have size 4 in dimension 0 \(the rows of query\)"),
    ({"key": KEY[:, :2]}, ValueError, r"key must have size 5 in dimension 1 \(the features"),
    ({"key": KEY.double()}, ValueError, r"key must have the dtype of query \(torch.float32\)"),
    ({"key": KEY.to("meta")}, ValueError, r"key must be on the device of query \(cpu\), got meta"),
    ({"query": QUERY[:0], "key": KEY[:0]}, ValueError, "query must have at least one row"),
    ({"query": QUERY[:, :0], "key": KEY[:, :0]}, ValueError, "query must have at least one feat"),
    ({"negatives": 3}, TypeError, "negatives must be a torch.Tensor of .* got the number 3;"),
    ({"negatives": NEGATIVES[0]}, ValueError, r"negatives must have shape \(H, D\)"),
    ({"negatives": NEGATIVES[:, :2]}, ValueError, "negatives must have size 5 in dimension 1"),
    ({"negatives": NEGATIVES.half()}, ValueError, "negatives must have the dtype of query"),
    ({"negatives": NEGATIVES.to("meta")}, ValueError, "negatives must be on the device of query"),
    ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0, got 0.0"),
    ({"temperature": -1}, ValueError, "temperature must be a finite number above 0, got -1"),
    ({"temperature": NAN}, ValueError, "temperature must be a finite number above 0, got nan"),
    ({"temperature": torch.tensor(INF)}, ValueError, "temperature must be a finite .* got inf"),
    ({"temperature": torch.ones(1)}, ValueError, r"temperature must be .* 0-d tensor, got shape"),
    ({"temperature": "cold"}, TypeError, "temperature must be a number or a 0-d tensor, got str"),
    ({"temperature": True}, TypeError, "temperature must be a number or a 0-d tensor, got bool"),
    ({"temperature": torch.tensor(1)}, ValueError, "temperature must be float32, .* torch.int64"),
    ({"ids": [1, 2, 3, 4]}, TypeError, "ids must be a torch.Tensor, got list"),
    ({"ids": IDS.float()}, TypeError, "ids must hold integers, got torch.float32"),
    ({"ids": IDS > 1}, TypeError, "ids must hold integers, got torch.bool"),
    ({"ids": IDS[:2]}, ValueError, r"ids must have size 4 in dimension 0 \(one per pair\)"),
    ({"ids": IDS[None]}, ValueError, r"ids must have shape \(N,\)"),
    ({"ids": IDS.to("meta")}, ValueError, "ids must be on the device of query"),
    ({"negative_ids": NEGATIVE_IDS}, ValueError, "negative_ids needs ids, got ids=None"),
    (
        {"ids": IDS, "negatives": NEGATIVES, "negative_ids": NEGATIVE_IDS[:1]},
        ValueError,
        r"negative_ids must have size 3 in dimension 0 \(one per negative\)",
    ),
    (
        {"negatives": NEGATIVES, "negative_owner": OWNER.float()},
        TypeError,
        "negative_owner must hold integers, got torch.float32",
    ),
    (
        {"negatives": NEGATIVES, "negative_owner": OWNER + 1},
        ValueError,
        r"negative_owner must index the queries \(0 to 3\), got values from 1 to 4",
    ),
    (
        {"negatives": NEGATIVES, "negative_owner": OWNER[:1]},
        ValueError,
        "negative_owner must have size 3 in dimension 0",
    ),
    (
        {"negatives": NEGATIVES, "hard_negative_weight": 0.5},
        ValueError,
        "hard_negative_weight=0.5 needs negative_owner, got None",
    ),
    (
        {"negatives": NEGATIVES, "share_negatives": False},
        ValueError,
        "share_negatives=False needs negative_owner, got None",
    ),
    (
        {"negatives": NEGATIVES, "negative_owner": OWNER, "hard_negative_weight": INF},
        ValueError,
        "hard_negative_weight must be finite, got inf",
    ),
    ({"negative_owner": OWNER[:0]}, ValueError, "negative_owner needs negatives, got negatives=N"),
    ({"weights": [1.0] * N}, TypeError, "weights must be a torch.Tensor, got list"),
    ({"weights": torch.ones(N) * 1j}, TypeError, "weights must hold real numbers, got torch.compl"),
    ({"weights": -torch.arange(N)}, ValueError, "weights must not be negative, got -3"),
    ({"weights": torch.zeros(N)}, ValueError, "weights must not all be 0 with reduction=.mean"),
    ({"weights": torch.ones(N - 1)}, ValueError, "weights must have size 4 in dimension 0"),
    ({"weights": torch.ones(N, 1)}, ValueError, r"weights must have shape \(N,\)"),
    ({"weights": -torch.ones(N)}, ValueError, "weights must be finite and not negative, got -1.0"),
    ({"weights": torch.full((N,), NAN)}, ValueError, "weights must be finite .* got nan"),
    ({"weights": torch.ones(N, device="meta")}, ValueError, "weights must be on the device"),
    ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ({"same_id": "drop"}, ValueError, "same_id must be one of 'mask', 'positive', got 'drop'"),
    ({"gather": "tree"}, ValueError, "gather must be one of 'auto', 'all_gather', 'ring'"),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'triton', 'torch'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[row[2][:40] for row in BAD])
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"query": QUERY, "key": KEY, **changes}
    with pytest.raises(error, match=f"^fused_contrastive_loss: {message}"):
        fused_contrastive_loss(**arguments)


def test_triton_on_a_cpu_without_the_interpreter_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(backends, "_triton_interprets", False)
    message = 'backend="triton" cannot run here: the tensors are on the CPU.*TRITON_INTERPRET=1'
    with pytest.raises(ValueError, match=message):
        fused_contrastive_loss(QUERY, KEY, backend="triton")


def test_a_gpu_too_old_for_the_kernels_takes_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton was taken on every GPU, also where its kernels do not fit or compile."""
    pytest.importorskip("triton")
    tensor: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    for major, chosen in ((7, "torch"), (8, "triton")):
        properties = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        assert choose_backend("f", "auto", tensor) == chosen
        assert choose_backend("f", "torch", tensor) == "torch"
    assert choose_backend("f", "triton", tensor) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=7))
    with pytest.raises(ValueError, match=r'^f: backend="triton" .* capability is below 8.0'):
        choose_backend("f", "triton", tensor)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, {}),
        (4, {"ids": torch.zeros(4, dtype=torch.long)}),
        (1, {"negatives": NEGATIVES[:0]}),
    ],
    ids=["one_pair", "one_id", "no_negatives"],
)
def test_a_loss_without_negatives_warns_and_is_zero(size: int, options: dict[str, Any]) -> None:
    query = QUERY[:size].clone().requires_grad_()
    with pytest.warns(UserWarning, match="no query has a negative"):
        loss = fused_contrastive_loss(query, KEY[:size], **options)
    loss.backward()
    assert loss.item() == 0.0
    assert not query.grad.any()


@pytest.mark.cuda
def test_values_on_a_gpu_are_read_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [leaf.cuda() for leaf in (QUERY, KEY, NEGATIVES)]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"weights": -torch.ones(N).cuda()}, "weights must be finite and not negative"),
        ({"negative_owner": OWNER.cuda() + 1}, "negative_owner must index the queries"),
        ({"temperature": torch.tensor(-1.0).cuda()}, "temperature must be a finite number"),
    ]
    for changes, message in bad:
        monkeypatch.setenv("CROSSALIGN_CHECK", "1")
        with pytest.raises(ValueError, match=message):
            fused_contrastive_loss(*leaves, **changes)
        monkeypatch.delenv("CROSSALIGN_CHECK")
        fused_contrastive_loss(*leaves, **changes)


def test_module_errors() -> None:
    with pytest.raises(ValueError, match=r"^ContrastiveLoss: temperature must be a finite number"):
        ContrastiveLoss(0.0)
    with pytest.raises(TypeError, match=r"^ContrastiveLoss: temperature must be a number or a 0-d"):
        ContrastiveLoss("0.1")
    with pytest.raises(ValueError, match=r"^ContrastiveLoss: max_logit_scale must be a finite"):
        ContrastiveLoss(max_logit_scale=NAN)
    with pytest.raises(ValueError, match=r"^ContrastiveLoss: reduction must be one of"):
        ContrastiveLoss(reduction="avg")
    with pytest.raises(TypeError, match="temprature"):
        ContrastiveLoss(temprature=0.1)

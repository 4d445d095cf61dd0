"""Every message about an option, and about options that do not go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from crossalign import ContrastiveLoss, fused_contrastive_loss

N, D = 4, 5
QUERY, KEY, EACH_TWO = torch.randn(N, D), torch.randn(N, D), torch.randn(N, 2, D)
IDS, OWNER = torch.arange(N), torch.zeros(N, dtype=torch.long)
POSITIVE = {"ids": IDS, "same_id": "positive"}
FOUR = ("query_to_key", "key_to_query", "query_to_query", "key_to_key")
NAN = float("nan")

# Of the options only, so that ContrastiveLoss raises them when it is made.
OF_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"symmetric": "yes"}, TypeError, r"symmetric must be True or False, got 'yes' \(str\)"),
    ({"normalize": 2}, TypeError, r"normalize must be True or False, got 2 \(int\)"),
    ({"share_negatives": None}, TypeError, "share_negatives must be True or False, got None"),
    ({"exclude_self": 1}, TypeError, "exclude_self must be True or False, got 1"),
    ({"return_stats": "no"}, TypeError, "return_stats must be True or False, got 'no'"),
    ({"gather": "ring"}, ValueError, 'gather="ring" needs group, got None; pass the process group'),
    ({"partition": "split"}, ValueError, "partition must be one of 'joint', 'per_direction'"),
    ({"hardness_on": "hard"}, ValueError, "hardness_on must be one of 'all', 'in_batch', 'owned'"),
    ({"guide_margin_type": "x"}, ValueError, "guide_margin_type must be one of 'absolute', 'rel"),
    ({"false_negative_margin": "0.1"}, TypeError, "false_negative_margin must be a number, got st"),
    ({"false_negative_margin": NAN}, ValueError, "false_negative_margin must be finite, got nan"),
    ({"hardness": NAN}, ValueError, "hardness must be finite, got nan"),
    ({"hardness": torch.ones(())}, TypeError, "hardness must be a number, got Tensor"),
    ({"guide_margin": True}, TypeError, "guide_margin must be a number, got bool"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be from 0 to 1, got -0.1"),
    ({"label_smoothing": None}, TypeError, "label_smoothing must be a number, got NoneType"),
    ({"debias": 1.0}, ValueError, "debias must be at least 0 and below 1, got 1.0"),
    ({"debias": "a"}, TypeError, "debias must be a number, got str"),
    ({"debias": 0.1, "normalize": False}, ValueError, "debias needs normalize=True"),
    ({"debias": 0.1, "same_id": "positive"}, ValueError, "debias needs one positive per query"),
    ({"directions": "query_to_key"}, TypeError, "directions must be a tuple of names such as"),
    ({"directions": ("sideways",)}, ValueError, "directions must be one of 'query_to_key'"),
    ({"directions": ("key_to_key",)}, ValueError, 'directions must hold "query_to_key"'),
    ({"directions": ("query_to_key",) * 2}, ValueError, "directions must hold .* no name twice"),
    ({"directions": FOUR, "symmetric": True}, ValueError, "symmetric=True and directions=.* both"),
    (
        {"directions": FOUR, "partition": "per_direction"},
        ValueError,
        """partition="per_direction" does not go with 'query_to_query'""",
    ),
    (
        {"directions": FOUR, "same_id": "positive"},
        ValueError,
        'same_id="positive" goes with one direction or symmetric=True',
    ),
    ({"exclude_self": True}, ValueError, 'exclude_self needs same_id="positive" and ids'),
    (
        {"exclude_self": True, "same_id": "positive", "symmetric": True},
        ValueError,
        "exclude_self goes with the direction query_to_key only",
    ),
    (
        {"exclude_self": True, "same_id": "positive", "false_negative_margin": 0.1},
        ValueError,
        "exclude_self does not go with false_negative_margin",
    ),
]

# Of tensors, or of options and tensors.
OF_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"same_id": "positive"}, ValueError, 'same_id="positive" needs ids, got ids=None; pass the'),
    ({"key_ids": IDS}, ValueError, 'key_ids needs same_id="positive" and ids'),
    (
        POSITIVE | {"key_ids": IDS, "exclude_self": True},
        ValueError,
        "exclude_self does not go with key_ids",
    ),
    (POSITIVE | {"key_ids": IDS[:2]}, ValueError, "key_ids must have size 4 in dimension 0"),
    (POSITIVE | {"key_ids": IDS[None]}, ValueError, r"key_ids must have shape \(M,\)"),
    ({"hardness": 1.0, "hardness_on": "owned"}, ValueError, "hardness_on=owned needs negative_own"),
    ({"negatives": 0.05}, TypeError, "got the number 0.05; the third argument .* temperature= by"),
    ({"negatives": np.float32(0.5)}, TypeError, "got the number 0.5; the third .* by name"),
    ({"negatives": torch.tensor(0.5)}, TypeError, "got the number 0.5; the third .* by name"),
    (
        {"negatives": EACH_TWO[:3]},
        ValueError,
        r"negatives of shape \(N, K, D\) must have the 4 rows of query, got \(3, 2, 5\); for anoth",
    ),
    (
        {"negatives": EACH_TWO[None]},
        ValueError,
        r"negatives must have shape \(H, D\), or \(N, K, D\) for K hard negatives of each query",
    ),
    (
        {"negatives": EACH_TWO, "negative_owner": OWNER},
        ValueError,
        r"negative_owner does not go with negatives of shape \(N, K, D\)",
    ),
    (
        {"negatives": EACH_TWO, "ids": IDS, "negative_ids": IDS},
        ValueError,
        r"negative_ids must begin with the sizes \(4, 2\) of negatives, got shape \(4,\)",
    ),
    ({"guide_query": QUERY}, ValueError, "guide_query and guide_key must be given together"),
    (
        {"guide_query": QUERY, "guide_key": KEY, "guide_negatives": KEY},
        ValueError,
        "guide_negatives must be given where negatives are",
    ),
    (
        {"guide_query": QUERY, "guide_key": KEY, "negatives": KEY},
        ValueError,
        "guide_negatives must be given where negatives are",
    ),
    ({"guide_query": QUERY, "guide_key": KEY[:, :2]}, ValueError, "guide_key must have size 5 in"),
    (
        POSITIVE | {"exclude_self": True, "guide_query": QUERY, "guide_key": KEY},
        ValueError,
        "guide_query compares with the similarity of a row's own key",
    ),
    ({"debias": torch.ones(N)}, ValueError, "debias must be at least 0 and below 1 everywhere"),
    ({"debias": torch.ones(2)}, ValueError, "debias must have size 4 in dimension 0"),
    ({"debias": IDS}, ValueError, "debias must be float32"),
    ({"debias": torch.zeros(N).to_sparse()}, ValueError, "debias must be a dense tensor, got tor"),
    ({"query": QUERY.to_sparse()}, ValueError, r"query must be a dense tensor.*call .to_dense\(\)"),
    ({"key": KEY.to_sparse()}, ValueError, "key must be a dense tensor, got torch.sparse_coo"),
    ({"negatives": KEY.to_sparse()}, ValueError, "negatives must be a dense tensor, got"),
    ({"ids": IDS.to_sparse()}, ValueError, "ids must be a dense tensor, got torch.sparse_coo"),
    ({"weights": QUERY[:, 0].to_sparse()}, ValueError, "weights must be a dense tensor"),
    ({"temperature": torch.tensor(0.1).to_sparse()}, ValueError, "temperature must be a dense"),
    ({"temperature": torch.tensor(0.1, device="meta")}, ValueError, "temperature must hold data"),
    (
        {"query": QUERY.to("meta"), "key": KEY.to("meta")},
        ValueError,
        "query must hold data, got a meta tensor; move it to a device with",
    ),
    (
        {"query": torch.nested.nested_tensor([QUERY, KEY], layout=torch.jagged)},
        ValueError,
        "query must be a dense tensor, got a nested one; pad it",
    ),
]


def _id(value: Any) -> str:
    """Of a dictionary only its names: the tensors in it are random."""
    return ", ".join(value) if isinstance(value, dict) else str(value)[:30]


@pytest.mark.parametrize(("options", "error", "message"), OF_OPTIONS, ids=_id)
def test_the_function_and_the_module_name_a_wrong_option(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^fused_contrastive_loss: {message}"):
        fused_contrastive_loss(QUERY, KEY, **options)
    with pytest.raises(error, match=f"^ContrastiveLoss: {message}"):
        ContrastiveLoss(**options)


@pytest.mark.parametrize(("changes", "error", "message"), OF_CALLS, ids=_id)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^fused_contrastive_loss: .*{message}"):
        fused_contrastive_loss(**({"query": QUERY, "key": KEY} | changes))


def test_a_third_number_is_told_to_the_users_of_the_module() -> None:
    with pytest.raises(TypeError, match="pass temperature= by name"):
        ContrastiveLoss()(QUERY, KEY, 0.05)  # type: ignore[arg-type]


NUMBERS = ["temperature", "false_negative_margin", "hardness", "label_smoothing", "debias"]


@pytest.mark.parametrize("name", [*NUMBERS, "guide_margin", "hard_negative_weight"])
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    more: dict[str, Any] = {}
    if name == "guide_margin":
        more = {"guide_query": QUERY, "guide_key": KEY}
    if name == "hard_negative_weight":
        more = {"negatives": EACH_TWO}
    for kind in (np.float32, np.float64):
        given = fused_contrastive_loss(QUERY, KEY, **more, **{name: kind(0.25)})
        assert torch.equal(given, fused_contrastive_loss(QUERY, KEY, **more, **{name: 0.25}))
    module = ContrastiveLoss(**{name: np.float32(0.25)})
    expected = fused_contrastive_loss(QUERY, KEY, **more, **{name: 0.25})
    sides = {each: more.pop(each) for each in ("negatives",) if each in more}
    assert torch.equal(module(QUERY, KEY, **sides, **more), expected)


def test_a_switch_of_numpy_is_a_switch() -> None:
    given = fused_contrastive_loss(QUERY, KEY, symmetric=np.bool_(True))
    assert torch.equal(given, fused_contrastive_loss(QUERY, KEY, symmetric=True))

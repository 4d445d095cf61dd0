"""The public names, their arguments in order, and their defaults."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import crossalign

REQUIRED = inspect.Parameter.empty


class Contract(NamedTuple):
    """Arguments that may be given by position, and those by keyword alone, with their defaults."""

    positional: dict[str, object]
    keyword: dict[str, object]


LOSS_OPTIONS = {
    "symmetric": False,
    "normalize": True,
    "same_id": "mask",
    "hard_negative_weight": 0.0,
    "share_negatives": True,
    "reduction": "mean",
    "group": None,
    "gather": "auto",
    "backend": "auto",
    "return_stats": False,
}

CONTRACTS = {
    "fused_contrastive_loss": Contract(
        {"query": REQUIRED, "key": REQUIRED, "negatives": None},
        LOSS_OPTIONS
        | {
            "temperature": 0.05,
            "ids": None,
            "negative_ids": None,
            "negative_owner": None,
            "weights": None,
        },
    ),
    "fused_sigmoid_loss": Contract(
        {"query": REQUIRED, "key": REQUIRED},
        {
            "temperature": REQUIRED,
            "bias": REQUIRED,
            "normalize": True,
            "ids": None,
            "weights": None,
            "reduction": "mean",
            "group": None,
            "gather": "auto",
            "backend": "auto",
        },
    ),
    "ContrastiveLoss": Contract(
        {"temperature": 0.05},
        LOSS_OPTIONS | {"learn_temperature": False, "max_logit_scale": 100.0},
    ),
    "GradientCache": Contract(
        {"encode": REQUIRED, "loss": REQUIRED, "chunk_size": REQUIRED},
        {},
    ),
    "MatryoshkaLoss": Contract({"loss": REQUIRED, "dims": REQUIRED, "weights": None}, {}),
    "NegativeQueue": Contract({"size": REQUIRED}, {}),
    "masked_mean_pool": Contract(
        {"hidden": REQUIRED, "mask": REQUIRED}, {"normalize": False, "backend": "auto"}
    ),
    "last_token_pool": Contract({"hidden": REQUIRED, "mask": REQUIRED}, {"normalize": False}),
    "masked_max_pool": Contract({"hidden": REQUIRED, "mask": REQUIRED}, {"normalize": False}),
    "mean_pool_varlen": Contract(
        {"hidden": REQUIRED, "cu_seqlens": REQUIRED}, {"normalize": False, "backend": "auto"}
    ),
    "pool": Contract({"hidden": REQUIRED, "mask": REQUIRED, "mode": "mean"}, {"normalize": False}),
    "gather_negatives": Contract({"x": REQUIRED, "group": None}, {"backend": "auto"}),
    "extension_available": Contract({}, {}),
    "build_info": Contract({}, {}),
    "hidden_states_at": Contract({"model": REQUIRED, "layer": REQUIRED}, {}),
    "encode": Contract(
        {"model": REQUIRED, "tokenizer": REQUIRED, "sentences": REQUIRED},
        {
            "layer": 1,
            "pooling": "mean",
            "batch_size": 64,
            "normalize": True,
            "device": None,
            "progress": False,
        },
    ),
    "AlignmentModel": Contract(
        {"model": REQUIRED},
        {
            "layer": 1,
            "pooling": "mean",
            "temperature": 0.05,
            "contrastive_weight": 1.0,
            "lm_weight": 1.5,
            "symmetric": False,
            "hard_negative_weight": 0.0,
            "group": None,
        },
    ),
    "build_items": Contract({"mode": REQUIRED, "data": REQUIRED}, {"seed": 0}),
}

METHODS = {
    ("ContrastiveLoss", "forward"): Contract(
        {"query": REQUIRED, "key": REQUIRED, "negatives": None},
        {"ids": None, "negative_ids": None, "negative_owner": None, "weights": None},
    ),
    ("GradientCache", "backward"): Contract(
        {"query_inputs": REQUIRED, "key_inputs": REQUIRED, "negative_inputs": None}, {}
    ),
    ("GradientCache", "__call__"): Contract({"query_inputs": REQUIRED, "key_inputs": REQUIRED}, {}),
    ("AlignmentModel", "forward"): Contract(
        {"source": REQUIRED, "target": REQUIRED, "negatives": None, "lm": None}, {"ids": None}
    ),
}

RESULTS = {
    "ContrastiveStats": ["accuracy", "mean_reciprocal_rank", "positive_similarity", "logsumexp"],
    "AlignmentOutput": ["loss", "contrastive_loss", "lm_loss", "stats"],
}


def assert_keeps(contract: Contract, function: Callable[..., Any], is_method: bool = False) -> None:
    """Nothing promised is missing or renamed; anything more has a default."""
    parameters = list(inspect.signature(function).parameters.values())[is_method:]
    given = {parameter.name: parameter for parameter in parameters}
    for position, (name, default) in enumerate(contract.positional.items()):
        assert parameters[position].name == name
        assert parameters[position].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameters[position].default == default, name
    for name, default in contract.keyword.items():
        assert given[name].kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        assert given[name].default == default, name
    for name in given.keys() - contract.positional.keys() - contract.keyword.keys():
        is_open = given[name].kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        assert is_open or given[name].default is not REQUIRED, f"{name} must have a default"


@pytest.mark.parametrize("name", CONTRACTS)
def test_arguments_and_defaults(name: str) -> None:
    assert_keeps(CONTRACTS[name], getattr(crossalign, name))


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_arguments_of_methods(owner: str, name: str) -> None:
    function = getattr(getattr(crossalign, owner), name)
    assert_keeps(METHODS[owner, name], function, is_method=True)


@pytest.mark.parametrize("name", RESULTS)
def test_fields_of_results(name: str) -> None:
    assert list(getattr(crossalign, name)._fields) == RESULTS[name]


def test_all_lists_exactly_the_public_names() -> None:
    assert set(crossalign.__all__) == {*CONTRACTS, *RESULTS}


def test_type_checkers_see_the_names_where_they_are_found_at_run_time() -> None:
    """The package loads a name's module on first use; the imports for type checkers must agree."""
    tree = ast.parse(Path(crossalign.__file__).read_text())
    shown = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == {
        name: f"crossalign.{home}" for name, home in vars(crossalign)["_HOMES"].items()
    }
    assert set(shown) == set(crossalign.__all__) <= set(dir(crossalign))
    with pytest.raises(AttributeError, match="'crossalign' has no attribute 'fused_loss'"):
        getattr(crossalign, "fused_loss")  # noqa: B009


def test_importing_the_package_does_not_load_torch() -> None:
    code = (
        "import sys, crossalign; assert 'torch' not in sys.modules; "
        "from crossalign import *; assert 'torch' in sys.modules; "
        "assert {name for name in crossalign.__all__} <= set(globals())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", CONTRACTS)
def test_public_names_are_documented(name: str) -> None:
    public = getattr(crossalign, name)
    assert inspect.getdoc(public), name
    assert public.__module__.startswith("crossalign."), name


def test_the_modules_of_the_public_classes_are_torch_modules() -> None:
    assert issubclass(crossalign.ContrastiveLoss, torch.nn.Module)
    assert issubclass(crossalign.AlignmentModel, torch.nn.Module)


def test_build_info_reports_the_promised_entries() -> None:
    info = crossalign.build_info()
    assert info["version"] == crossalign.__version__
    assert isinstance(crossalign.extension_available(), bool)

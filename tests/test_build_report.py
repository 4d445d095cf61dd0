"""build_info and extension_available tell what is there."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

import crossalign
from crossalign import build_report
from crossalign.build_report import build_info, extension_available


def test_report_names_versions_and_fits_json() -> None:
    info = build_info()
    assert json.loads(json.dumps(info)) == info
    assert info["version"] == crossalign.__version__
    assert info["torch"] == torch.__version__
    assert info["extension"] is extension_available()
    assert info["notes"].keys() == {"torch", "triton", "extension"}
    assert len(info["gpus"]) == torch.cuda.device_count()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of machines without a GPU")
@pytest.mark.parametrize(
    ("interpret", "backends", "note"),
    [("1", ["torch", "triton"], "interpreted on the CPU"), ("0", ["torch"], "sees no GPU")],
)
def test_triton_is_a_backend_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, interpret: str, backends: list[str], note: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    info = build_info()
    assert info["backends"] == backends
    assert note in info["notes"]["triton"]


@pytest.mark.parametrize(
    ("capabilities", "backends", "note"),
    [
        ((7, 7), ["torch"], "needs compute capability 8.0"),
        ((7, 9), ["torch", "triton"], "compiled"),
    ],
)
def test_triton_is_no_backend_on_old_gpus_alone(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[int, ...], backends: list[str], note: str
) -> None:
    properties = [SimpleNamespace(major=major) for major in capabilities]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(properties))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    info = build_info()
    assert info["backends"] == backends
    assert note in info["notes"]["triton"]


def test_report_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # import triton now raises ImportError
    info = build_info()
    assert (info["triton"], info["backends"]) == (None, ["torch"])
    assert "not installed" in info["notes"]["triton"]


@pytest.mark.parametrize(
    ("module", "available", "archs"),
    [(None, False, ""), (SimpleNamespace(cuda_archs="90;100"), True, "90;100")],
)
def test_report_of_the_extension(
    monkeypatch: pytest.MonkeyPatch, module: object, available: bool, archs: str
) -> None:
    monkeypatch.setattr(build_report, "load_extension", lambda: module)
    monkeypatch.setattr(build_report, "extension_status", lambda: "a sentence on it")
    info = build_info()
    assert extension_available() is info["extension"] is available
    assert info["cuda_archs"] == archs
    assert info["notes"]["extension"] == "a sentence on it"

"""Imports point one way, those inside functions too, and `import crossalign` loads only PyTorch."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from tests.support.import_graph import MODULES, PACKAGE, ROOT, Import, find_circle, imports_of

# The rooms and the modules that lie flat, bottom to top: a module may import from lower entries and
# from its own. The records that ops and kernels share are below both.
ORDER = (
    *("version", "precision", "files", "settings", "argument_checks", "backends"),
    *("contrastive.problem", "reference"),
    *("kernels", "distributed", "pooling", "contrastive", "build_report"),
    *("models", "data", "evaluation", "alignment", "analysis", "integrations"),
    *("demo", "cli", "__main__"),
)
# The same inside a room, where its parts are many. A name stands for a folder or for a module.
ORDER_INSIDE = {
    "contrastive": (
        *("problem", "options", "arguments", "terms", "torch_logits", "torch_passes"),
        *("ops", "row_loss", "across_ranks", "sigmoid", "loss"),
        *("replayed_state", "input_chunks", "gradient_reduction", "second_pass", "gradient_cache"),
    ),
    "contrastive.across_ranks": (
        *("shards", "agreement", "all_gather", "ring_pass", "ring", "loss"),
    ),
    "evaluation": (
        *("statistics", "choice_scoring", "tasks", "vectors"),
        *("in_context", "summary", "translation", "data_report"),
    ),
    "evaluation.tasks": (
        *("items", "release", "xcopa", "xwinograd", "files", "hub"),
        *("prompts", "lm_eval_prompts"),
    ),
    "evaluation.vectors": (
        *("tiles", "geometry", "projection", "retrieval", "margin", "layer_embeddings"),
    ),
    "alignment": (
        *("config", "run_config", "padding", "batch_checks", "packing", "batches"),
        *("finite", "model", "model_setup", "progress", "schedule", "trackers", "engines"),
        *("step", "train", "checkpoint", "periodic_evaluation", "records", "stop_request"),
        "run_directory",
    ),
    "alignment.engines": (
        *("combinations", "launch", "sharded_state", "one_process", "accelerate"),
        *("zero_state", "deepspeed_settings", "deepspeed", "choice"),
    ),
}
# Lie flat in crossalign/; everything else is in a room.
FLAT = {
    *("", "__main__", "version", "build_report", "reference", "precision", "backends"),
    *("argument_checks", "settings"),
}
TORCH_ONLY = ("precision", "argument_checks", "backends", "contrastive.problem", "reference")


def place(module: str, order: tuple[str, ...], prefix: str = "") -> int:
    """Where a module stands in an order; the longest entry that it is, or is inside of, counts."""
    name = module.removeprefix(prefix)
    fits = [entry for entry in order if f"{name}.".startswith(f"{entry}.")]
    assert fits, f"crossalign.{module} has no place in the order of {prefix or 'rooms'}; add it"
    return order.index(max(fits, key=len))


def points_up(importer: str, imported: str) -> bool:
    """Whether an import runs against the order of rooms, or against the order inside one."""
    if imported == "":  # the package itself, which offers names of every room
        return True
    if place(imported, ORDER) != place(importer, ORDER):
        return place(imported, ORDER) > place(importer, ORDER)
    return any(
        importer.startswith(f"{room}.")
        and imported.startswith(f"{room}.")
        and place(imported, order, f"{room}.") > place(importer, order, f"{room}.")
        for room, order in ORDER_INSIDE.items()
    )


def ours(name: str) -> list[Import]:
    return [imported for imported in imports_of(MODULES[name]) if imported.ours]


CODE = [name for name, path in MODULES.items() if path.name != "__init__.py"]


@pytest.mark.parametrize("name", CODE)
def test_imports_point_downwards(name: str) -> None:
    wrong = [imported for imported in ours(name) if points_up(name, imported.name)]
    assert not wrong, f"crossalign.{name} may not import {wrong}"


def test_every_module_has_a_place_inside_its_room() -> None:
    for room, order in ORDER_INSIDE.items():
        inside = [name for name in CODE if name.startswith(f"{room}.")]
        assert inside, f"no module is in crossalign.{room}"
        for name in inside:
            place(name, order, f"{room}.")


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside functions count: two circles hid behind them."""
    arrows = {name: {imported.name for imported in ours(name)} - {name} for name in CODE}
    assert not (circle := find_circle(arrows)), f"in a circle: {' -> '.join(circle)}"


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b", "x"}, "b": {"c"}, "c": {"a"}, "x": set()}) == [
        "a",
        "b",
        "c",
        "a",
    ]
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_only_the_listed_modules_lie_flat() -> None:
    flat = {name for name, path in MODULES.items() if path.parent == PACKAGE}
    assert flat <= FLAT, "put it into a room"


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_foundation_modules_import_only_torch(name: str) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    foreign = [
        imported
        for imported in imports_of(MODULES[name])
        if not imported.ours and imported.name not in allowed
    ]
    assert not foreign, f"crossalign.{name} imports {foreign}"


def test_kernels_are_imported_only_when_called() -> None:
    eager = [
        (name, imported)
        for name, path in MODULES.items()
        if not name.startswith("kernels")
        for imported in imports_of(path)
        if not imported.deferred and imported.name.partition(".")[0] in ("kernels", "triton")
    ]
    assert not eager, "a machine without Triton could not import these"


def test_benchmarks_do_not_import_tests() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "tests" not in {imported.name for imported in imports_of(path)}, path


def test_no_test_imports_another_test_file() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for imported in imports_of(path):
            last = imported.dotted.split(".")
            assert not (last[0] == "tests" and any(part.startswith("test_") for part in last)), path


def test_the_order_has_no_entry_twice() -> None:
    for order in (ORDER, *ORDER_INSIDE.values()):
        assert all(first != second for first, second in pairwise(sorted(order)))


def test_import_loads_only_torch() -> None:
    """In a fresh process: whatever is new after torch is of the standard library or ours."""
    code = (
        "import sys, torch; before = set(sys.modules); import crossalign; "
        "print(*[getattr(crossalign, name).__module__ for name in crossalign.__all__]); "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[1].split()) - set(sys.stdlib_module_names)
    assert loaded <= {"crossalign", "torch"}, f"import crossalign also loads {loaded}"

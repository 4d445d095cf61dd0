"""Seed, NaN-poisoned allocations, the interpreter where no GPU is, the data folder, commands."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.command_cases import Run
from tests.support.kernels.interpreter import quicken

# Kernels are decorated on their first import, so this must stand before any of them is touched.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    quicken()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
# Two pytest workers on two cores: more threads per worker only fight each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Tests hold with any seed; CROSSALIGN_TEST_SEED=1 finds those that hold with one only.
SEED = int(os.environ.get("CROSSALIGN_TEST_SEED", "0"))


# A worker runs whole files (--dist loadfile), so a fixture of a module is made once. The longest
# files start first, so that no worker is left alone with one at the end.
LONGEST = (
    *("test_registration.py", "test_deepspeed.py", "test_ranks.py", "test_benchmarks_run.py"),
    *("test_resources.py", "test_options.py", "test_reproduce_afp.py", "test_extension_build.py"),
    *("test_resume.py", "test_recipes.py", "test_align_real_model.py", "test_needs.py"),
    *("test_analyze.py", "test_gather_errors.py", "test_train_step.py", "test_numerics.py"),
    *("test_analyze_choices.py", "test_loss.py", "test_engine.py", "test_train_end_to_end.py"),
    *("test_examples.py", "test_at_size.py", "test_layouts.py", "test_contrastive.py"),
    *("test_one_pass.py", "test_cost_model.py", "test_indexed_lines.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else 99)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What was imported until here stays: the garbage collector would look through all of it, again
    and again, for half of the time of these tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed_and_poison() -> Iterator[None]:
    """Fixed seed; deterministic mode, in which torch.empty holds NaN: an element that a kernel
    leaves unwritten fails its comparison, and an operation that is not repeatable raises."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def attention_in_bfloat16() -> Iterator[None]:
    """PyTorch asks the processor, not ATEN_CPU_CAPABILITY, how its fast attention packs bfloat16,
    and fails: "pack_vnni2 is only supported when avx512 is supported". The plain one runs then."""
    was_enabled = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(was_enabled and "ATEN_CPU_CAPABILITY" not in os.environ)
    yield
    torch.backends.cuda.enable_flash_sdp(was_enabled)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real parallel text and evaluation sets, if this machine has it."""
    root = Path(os.environ.get("CROSSALIGN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data folder at {root}; set CROSSALIGN_DATA to one")
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command."""

    from crossalign.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse leaves this way
            status = int(stop.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with dropout, so that resuming must restore the random state."""
    from tests.support.tiny_models import tiny_model, tiny_tokenizer

    directory = tmp_path_factory.mktemp("model")
    tiny_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    from tests.support.training import make_pairs

    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in make_pairs(20)))
    return path


@pytest.fixture
def align(run: Run, model_dir: Path, pairs_file: Path, tmp_path: Path) -> Run:
    """`crossalign align` with small settings; further flags override them."""

    def call(*flags: object, output: str = "out") -> tuple[int, str, str]:
        fixed = ["--model", model_dir, "--pairs", pairs_file, "--output", tmp_path / output]
        small = ["--batch-size", 8, "--steps", 6, "--learning-rate", "1e-3", "--device", "cpu"]
        return run("align", *fixed, *small, *flags)

    return call

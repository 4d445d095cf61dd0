"""The command line: what it writes, its exit status, its errors in one line, stop and resume."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_train import make_pairs
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import crossalign
from crossalign.alignment import checkpoint
from crossalign.alignment.train import AlignmentRun
from crossalign.command_line import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command."""

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
    directory = tmp_path_factory.mktemp("model")
    tiny_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
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


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["seconds"]
    return records


def assert_one_line(error: str, *parts: str) -> None:
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for part in parts:
        assert part in error


def test_help_loads_only_torch() -> None:
    """`crossalign --help` answers soon: importing Transformers alone takes seconds."""
    code = (
        "import sys; from crossalign.command_line import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'transformers', 'tokenizers', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in ["--help"], ["align", "--help"], ["data", "build", "--help"]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "usage: crossalign" in done.stdout


def test_a_command_says_nothing_of_deepspeed_that_is_merely_installed() -> None:
    """Saving a model imports it, and its warning that there is no GPU went to standard output."""
    from crossalign.alignment.align_command import quiet_transformers

    quiet_transformers()
    logger = logging.getLogger("DeepSpeed")
    for message, is_shown in (
        ("Setting accelerator to CPU. If you have GPU or other accelerator, ...", False),
        ("Unable to find hostfile", True),
    ):
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, message, (), None)
        assert bool(logger.filter(record)) is is_shown


@pytest.mark.parametrize("command", ["align", "demo", "info", "data build"])
def test_help_shows_defaults(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "(default: " in out
    if command == "align":
        text = " ".join(out.split())
        for default in ("1", "mean", "0.05", "1.5", "1e-05", "512", "auto"):
            assert f"(default: {default})" in text


@pytest.mark.parametrize("lm_data", [False, True])
def test_align_leaves_model_metrics_and_settings(
    align: Run, run: Run, tmp_path: Path, pairs_file: Path, model_dir: Path, lm_data: bool
) -> None:
    flags: list[object] = []
    if lm_data:
        items = tmp_path / "items.jsonl"
        build = ["--mode", "translation", "--languages", "en", "de", "--input", pairs_file]
        assert run("data", "build", *build, "--output", items)[0] == 0
        flags = ["--lm-data", items]
    status, out, error = align(*flags)
    assert (status, error) == (0, "")
    assert "6 steps on 20 pairs" in out
    directory = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(directory)("w3 w4")["input_ids"] == [3, 4]
    trained = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    before = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    assert not torch.equal(trained["transformer.wte.weight"], before["transformer.wte.weight"])
    assert (directory / "model.safetensors").is_file()
    records = metrics_of(directory)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0].keys() == {
        *("step", "loss", "contrastive_loss", "lm_loss", "accuracy"),
        *("learning_rate", "pairs", "tokens"),
    }
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    assert settings["learning_rate"] == 1e-3
    assert settings["pairs"] == [str(pairs_file)]
    assert settings["lm_data"] == (str(items) if lm_data else None)
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["version"] == crossalign.__version__
    hidden = [path.name for path in directory.iterdir() if path.name.startswith(".")]
    assert not hidden


def test_align_reads_parallel_files_and_their_languages(
    align: Run, model_dir: Path, tmp_path: Path
) -> None:
    sides = [tmp_path / "p.en.gz", tmp_path / "p.de.gz"]
    for index, side in enumerate(sides):
        side.write_bytes(gzip.compress("".join(f"{p[index]}\n" for p in make_pairs(9)).encode()))
    status, _, error = align("--pairs", *sides, "--languages", "en", "de", "--steps", 1)
    assert (status, error) == (0, "")
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["languages"] == ["en", "de"]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """The signal comes during that step's update, as it would from outside."""
    update = AlignmentRun._update

    def interrupted(self: AlignmentRun, *arguments: Any) -> Any:
        result = update(self, *arguments)
        if self.step == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(AlignmentRun, "_update", interrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_goes_on_as_if_never_stopped(
    align: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert align(output="straight")[0] == 0
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, number)
        status, out, error = align()
    assert (status, error) == (0, "")
    assert "stopped after step 3 of 6; --resume goes on from there" in out
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None
    status, _, error = run("align", "--resume", "--output", tmp_path / "out")
    assert (status, error) == (0, "")
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "straight")
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("out", "straight")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_killed_run_goes_on_from_its_last_save(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics after the last save are made again, not twice; half a save or line does no harm."""
    assert align(output="straight")[0] == 0
    save = checkpoint.save

    def broken_save(directory: Path, alignment: AlignmentRun) -> None:
        if alignment.step == 4:
            with monkeypatch.context() as patch:
                patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
                save(directory, alignment)
        save(directory, alignment)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", broken_save)
        status, _, error = align("--save-every", 2)
    assert status == 1
    assert_one_line(error, "disk full")
    directory = tmp_path / "out"
    assert len(metrics_of(directory)) == 4
    assert not [path.name for path in directory.iterdir() if path.name.startswith(".")]
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-2"]
    state = directory / "checkpoints" / "step-2" / "training_state.pt"
    assert torch.load(state, weights_only=True)["step"] == 2
    with open(directory / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 5, "lo')
    half = directory / "checkpoints" / ".saving.x"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert align("--resume", "--save-every", 3)[0] == 0
    assert not half.exists()
    assert metrics_of(directory) == metrics_of(tmp_path / "straight")


def test_finished_run_may_be_given_more_steps(align: Run, run: Run, tmp_path: Path) -> None:
    assert align()[0] == 0
    directory = tmp_path / "out"
    before = metrics_of(directory)
    assert run("align", "--resume", "--output", directory)[0] == 0
    assert metrics_of(directory) == before
    assert run("align", "--resume", "--output", directory, "--steps", 8, "--chunk-size", 4)[0] == 0
    assert metrics_of(directory)[:6] == before
    assert [record["step"] for record in metrics_of(directory)] == list(range(1, 9))


def test_resume_refuses_another_run(align: Run, run: Run, tmp_path: Path, pairs_file: Path) -> None:
    assert align("--steps", 2)[0] == 0
    resume = ["align", "--resume", "--output", tmp_path / "out"]
    status, _, error = run(*resume, "--temperature", "0.1")
    assert status == 2
    assert_one_line(error, "temperature is 0.1, but the run to resume has 0.05")
    status, _, error = run(*resume, "--steps", 1)
    assert status == 1
    assert_one_line(error, "steps is 1, but the run has made 2")
    pairs_file.write_text(pairs_file.read_text() + "w5\tw6\n")
    status, _, error = run(*resume)
    assert status == 1
    assert_one_line(error, "not those that this run was trained on")
    state = tmp_path / "out" / "checkpoints" / "step-2" / "training_state.pt"
    state.write_bytes(b"junk")
    status, _, error = run(*resume)
    assert status == 1
    assert_one_line(error, "training_state.pt: not a usable training state")
    status, _, error = run("align", "--resume", "--output", tmp_path / "none")
    assert status == 1
    assert_one_line(error, "none/config.yaml: cannot be read")
    status, _, error = run("align", "--resume")
    assert status == 2
    assert_one_line(error, "--resume needs --output")


def test_settings_file_is_overridden_by_flags(
    run: Run, model_dir: Path, pairs_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        f"model: {model_dir}\npairs: {pairs_file}\nlearning-rate: 1e-3\nbatch_size: 4\n"
        "steps: 5\nsymmetric: true\nlayer: -1\nlanguages: [en, de]\nchunk_size: null\n"
    )
    output = tmp_path / "out"
    status, _, error = run("align", "--config", config, "--output", output, "--steps", 1)
    assert (status, error) == (0, "")
    settings = yaml.safe_load((output / "config.yaml").read_text())
    expected = {"learning_rate": 1e-3, "batch_size": 4, "steps": 1, "symmetric": True, "layer": -1}
    assert expected.items() <= settings.items()
    # What a run wrote is a settings file too, and one --no-flag takes a true back.
    again = tmp_path / "again"
    flags = ["--config", output / "config.yaml", "--output", again, "--no-symmetric"]
    assert run("align", *flags)[0] == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == {**settings, "symmetric": False}


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (
            "stepz: 3\nlayers: 2\n",
            2,
            "unknown in the configuration file: layers, stepz; known: model",
        ),
        ("resume: true\n", 2, "unknown in the configuration file: resume"),
        ("steps: many\n", 2, "argument --steps: invalid int value: 'many'"),
        ("steps: 1.5\n", 2, "argument --steps: invalid int value: '1.5'"),
        ("pooling: first\n", 2, "argument --pooling: invalid choice: 'first'"),
        ("steps: 0\n", 2, "steps must be at least 1, got 0"),
        ("- steps\n", 1, "must map settings to values, got list"),
        ("steps: [1\n", 1, "not valid YAML"),
        (None, 1, "cannot be read: No such file"),
    ],
)
def test_bad_settings_file_is_an_error(
    run: Run, tmp_path: Path, content: str | None, status: int, message: str
) -> None:
    config = tmp_path / "settings.yaml"
    if content is not None:
        config.write_text(content)
    required = ["--model", "m", "--pairs", "p", "--output", tmp_path / "out"]
    got, _, error = run("align", *required, "--config", config)
    assert got == status
    assert_one_line(error, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "1"], "batch_size must be at least 2, got 1"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--learning-rate", "fast"], "argument --learning-rate: invalid float value: 'fast'"),
        (["--pooling", "first"], "invalid choice: 'first'"),
        (["--layer", "9"], "layer must lie between -4 and 3"),
        (["--device", "abacus"], "device must be auto, cpu"),
        (["--languages", "en", "xx"], "unknown language 'xx'"),
        (["--pairs", "a", "b", "c"], "argument --pairs: one file or two, got 3"),
        (["--save-every", "0"], "save_every must be at least 1, got 0"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
    ],
)
def test_wrong_argument_exits_2_in_one_line(
    align: Run, tmp_path: Path, flags: list[str], message: str
) -> None:
    status, _, error = align(*flags)
    assert status == 2
    assert_one_line(error, message)
    assert not (tmp_path / "out").exists()


def test_missing_arguments_are_named(run: Run) -> None:
    status, _, error = run("align", "--model", "m")
    assert status == 2
    assert_one_line(error, "crossalign align: error: missing: --pairs, --output")
    status, _, error = run()
    assert status == 2
    assert_one_line(error, "COMMAND")
    status, _, error = run("data")
    assert status == 2
    assert_one_line(error, "COMMAND")


def test_bad_data_leaves_no_directory(align: Run, tmp_path: Path) -> None:
    """Every reader's own errors are tested with it; here is what the command makes of them."""
    bad = tmp_path / "bad.tsv"
    bad.write_text("w3\tw4\nw5\n")
    items = tmp_path / "items.jsonl"
    items.write_text('{"clm_text": "a"}\n')
    for flags, message in (
        (["--pairs", bad], "bad.tsv:2: no TAB"),
        (["--pairs", tmp_path / "none"], "none: cannot be read: No such file"),
        (["--lm-data", items], 'items.jsonl:1: "clm_prompt_len" must be'),
        (["--model", "./none"], "--model: ./none is no directory"),
    ):
        status, _, error = align(*flags)
        assert status == 1
        assert_one_line(error, message)
        assert not (tmp_path / "out").exists()


def test_directory_with_files_is_left_alone(align: Run, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "out: is not empty; name another --output, or --resume the run in it")
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    (directory / "notes.txt").unlink()
    assert align("--steps", 1)[0] == 0  # an empty one will do


def test_failure_before_the_first_save_leaves_nothing(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path, alignment: AlignmentRun) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save", fail)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "no space left")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert align()[0] == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_loss_that_is_not_finite_names_the_step(align: Run, tmp_path: Path) -> None:
    status, _, error = align("--learning-rate", "1e30", "--save-every", "1", "--lm-weight", 0)
    assert status == 1
    assert re.search(r"step \d is not finite", error)
    assert_one_line(error)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def test_traceback_comes_only_with_debug(align: Run, tmp_path: Path) -> None:
    assert "Traceback" not in align("--pairs", tmp_path / "none")[2]
    error = align("--pairs", tmp_path / "none", "--debug")[2]
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("crossalign: error: ")


def test_missing_library_is_named_with_its_extra(
    align: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "yaml", "pip install 'crossalign[train]'")


@pytest.mark.parametrize("mode", ["bilingual", "crosslingual", "translation"])
def test_data_build_writes_the_same_bytes(
    run: Run, tmp_path: Path, pairs_file: Path, mode: str
) -> None:
    languages = ["en", "de"] if mode != "crosslingual" else ["en", "de", "zh"]
    source = pairs_file
    if mode != "translation":
        source = tmp_path / "records"
        source.mkdir()
        for code in languages:
            rows = [{"id": i, "instruction": f"{code} {i}", "output": "ü"} for i in range(4)]
            (source / f"{code}.json").write_text(json.dumps(rows))
    command = ["data", "build", "--mode", mode, "--languages", *languages, "--input", source]
    outputs = []
    for seed in (0, 0, 1):
        output = tmp_path / f"{len(outputs)}.jsonl"
        status, out, error = run(*command, "--output", output, "--seed", seed)
        assert (status, error) == (0, "")
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]
    items = [json.loads(line) for line in outputs[0].decode().splitlines()]
    assert len(items) == 3 * (20 if mode == "translation" else 4)
    assert items[0].keys() == {"sent0", "sent1", "clm_text", "clm_prompt_len"}
    assert f"{len(items)} items" in out


def test_data_build_errors(run: Run, tmp_path: Path, pairs_file: Path) -> None:
    output = tmp_path / "items.jsonl"

    def build(mode: str, *flags: object) -> tuple[int, str, str]:
        return run("data", "build", "--mode", mode, "--output", output, *flags)

    status, _, error = build("bilingual", "--languages", "en", "--input", tmp_path)
    assert status == 2
    assert_one_line(error, "bilingual needs two different languages, got ['en']")
    status, _, error = build(
        "translation", "--languages", "en", "de", "--input", pairs_file, "--repeats", 0
    )
    assert status == 2
    assert_one_line(error, "argument --repeats: at least 1, got 0")
    status, _, error = build("bilingual", "--languages", "en", "de", "--input", tmp_path)
    assert status == 1
    assert_one_line(error, "must hold one of en.json")
    status, _, error = run(
        *("data", "build", "--mode", "translation", "--languages", "en", "de"),
        *("--input", pairs_file, "--output", tmp_path / "none" / "items.jsonl"),
    )
    assert status == 1
    assert_one_line(error, "must be a file in an existing folder")
    assert not output.exists()


def test_demo_tells_its_story(run: Run, tmp_path: Path) -> None:
    status, out, error = run("demo", "--smoke", "--output", tmp_path / "demo")
    assert (status, error) == (0, "")
    assert "report.html" in out
    assert (tmp_path / "demo" / "report.html").is_file()
    for flags, message in (
        (["--device", "abacus"], "device must be"),
        (["--seed", -1], "seed must"),
    ):
        status, _, error = run("demo", "--output", tmp_path / "other", *flags)
        assert status == 2
        assert_one_line(error, message)
    assert not (tmp_path / "other").exists()


def test_info_as_text_and_json(run: Run) -> None:
    status, out, _ = run("info", "--json")
    assert status == 0
    report = json.loads(out)
    assert report["torch"] == torch.__version__
    status, out, _ = run("info")
    assert status == 0
    assert f"torch: {torch.__version__}" in out
    assert f"backends: {', '.join(report['backends'])}" in out


def test_signal_from_outside_stops_a_process_in_order(
    model_dir: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """The real thing once: a process, SIGTERM after some steps, status 0 and a state to resume."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "crossalign", "align", "--model", model_dir, "--pairs"]
    command += [pairs_file, "--output", output, "--steps", "100000", "--batch-size", "4"]
    with subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 100
        metrics = output / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert re.search(r"stopped after step \d+ of 100000", out)
    (saved,) = (output / "checkpoints").glob("step-*")
    state = torch.load(saved / "training_state.pt", weights_only=True)
    assert state["step"] == len(metrics_of(output))

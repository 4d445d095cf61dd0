"""The command line: help, data, demo, info; exit status and errors in one line."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import crossalign
from tests.support.command_cases import Run, assert_one_line

WITHOUT_TORCH = {
    "--help": 0,
    "": 0,
    "--version": 0,
    "align --help": 0,
    "data build --help": 0,
    "analyze --help": 0,
    "evaluate --help": 0,
    "align": 2,
    "data": 0,
    "align --model m --pairs a b c --output o": 2,
    "align --model m --pairs a --output o --batch-size 1": 2,
    "align --model m --pairs a --output o --evaluate-every 5": 2,
    "analyze --model m --pairs a b --output o --layers first": 2,
    "evaluate --model m --data d --languages en --output o --seeds 1 1": 2,
    "data build --mode bilingual --languages en --input i --output o": 2,
    "data check --pairs a --max-ratio 0": 2,
    "demo --output o --seed -1": 2,
}


def test_help_and_wrong_arguments_do_not_load_torch() -> None:
    """They answer at once: importing PyTorch and Transformers takes seconds."""
    code = (
        "import contextlib, sys\n"
        "from crossalign.cli.main import main\n"
        f"for line, expected in {WITHOUT_TORCH!r}.items():\n"
        "    try: status = main(line.split())\n"
        "    except SystemExit as stop: status = stop.code\n"
        "    assert status == expected, (line, status)\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: crossalign" in done.stdout
    assert f"crossalign {crossalign.__version__}" in done.stdout


@pytest.mark.parametrize(("command", "part"), [([], "analyze"), (["data"], "build")])
def test_a_command_without_arguments_shows_its_help(
    run: Run, command: list[str], part: str
) -> None:
    bare, helped = run(*command), run(*command, "--help")
    assert bare == helped
    assert bare[0] == 0 and part in bare[1]


COMMANDS = ["align", "analyze", "data build", "data check", "demo", "evaluate", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_no_default_that_says_nothing(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "(default: ())" not in out and "==SUPPRESS==" not in out
    for paragraph in re.split(r"\n(?=  -)", out):
        if "(default: None)" in " ".join(paragraph.split()):
            assert "None =" in " ".join(paragraph.split()), paragraph
        assert not ("(required)" in paragraph and "(default" in paragraph), paragraph


def test_help_has_headings(run: Run) -> None:
    out = run("align", "--help")[1]
    headings = [line for line in out.splitlines() if re.fullmatch(r"\w.*:", line)]
    assert headings == [
        "options:",
        "model, data and output:",
        "the loss:",
        "which candidates of the loss count, and how much:",
        "batches and lengths:",
        "updates:",
        "how the model runs:",
        "checkpoints and reports:",
        "evaluation on the way:",
    ]


def test_a_command_says_nothing_of_deepspeed_that_is_merely_installed() -> None:
    """Saving a model imports it, and its warning that there is no GPU went to standard output."""
    from crossalign.cli.quiet import quiet_transformers

    quiet_transformers()
    logger = logging.getLogger("DeepSpeed")
    for message, is_shown in (
        ("Setting accelerator to CPU. If you have GPU or other accelerator, ...", False),
        ("Unable to find hostfile", True),
    ):
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, message, (), None)
        assert bool(logger.filter(record)) is is_shown


@pytest.mark.parametrize("command", ["align", "demo", "evaluate", "data build"])
def test_help_shows_defaults(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "(default: " in out
    if command == "align":
        text = " ".join(out.split())
        for default in ("1", "mean", "0.05", "1.5", "1e-05", "512", "auto"):
            assert f"(default: {default})" in text


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
    outputs: list[bytes] = []
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
    assert_one_line(error, "--repeats must be at least 1, got 0")
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


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (("align",), "--model, --pairs, --output"),
        (("analyze",), "--model, --pairs, --output"),
        (("data", "build"), "--mode, --input, --output"),
        (("data", "check"), "--pairs or --lm-data"),
        (("demo",), "--output"),
        (("evaluate",), "--model, --languages, --data, --output"),
    ],
)
def test_what_is_missing_is_said_in_the_same_words(
    run: Run, command: tuple[str, ...], flags: str
) -> None:
    name = " ".join(command)
    expected = f"crossalign {name}: error: missing: {flags} (see crossalign {name} --help)\n"
    assert run(*command) == (2, "", expected)


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


def test_reader_that_has_seen_enough_is_no_error() -> None:
    """As in `crossalign info | head -n 1`."""
    command = [sys.executable, "-m", "crossalign", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1

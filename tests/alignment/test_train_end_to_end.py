"""`crossalign align` on real text: eleven languages, instructions, evaluation, resuming."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from crossalign.demo.language_model import train_tokenizer
from crossalign.files.text import read_lines
from tests.support.command_cases import Run, metrics_of
from tests.support.tiny_models import tiny_model

# ISO 639-1 code -> file of NTREX; English is the other side of every pair.
LANGUAGES = {
    **{"ar": "arb", "de": "deu", "es": "spa", "fr": "fra", "hi": "hin", "ru": "rus"},
    **{"th": "tha", "tr": "tur", "vi": "vie", "zh": "zho-CN"},
}
POSITIONS = 512
NUM_TRAINED, NUM_HELD_OUT = 40, 6  # pairs of each language


@pytest.fixture(scope="module")
def folder(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.jsonl, held_out.jsonl, and a small model with a tokenizer of their text."""
    folder = tmp_path_factory.mktemp("end_to_end")
    ntrex = data_root / "pairs" / "ntrex"
    english = read_lines(ntrex / "newstest2019-src.eng.txt.gz")
    trained, held_out = [], []
    for place, (code, name) in enumerate(LANGUAGES.items()):
        others = read_lines(ntrex / f"newstest2019-ref.{name}.txt.gz")
        rows = range(place * 100, place * 100 + NUM_TRAINED + NUM_HELD_OUT)
        pairs = [
            {
                **{"source": english[row], "source_language": "en"},
                **{"target": others[row], "target_language": code},
            }
            for row in rows
        ]
        trained += pairs[:NUM_TRAINED]
        held_out += pairs[NUM_TRAINED:]
    for name, records in (("pairs", trained), ("held_out", held_out)):
        lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = [each[side] for each in trained for side in ("source", "target")]
    tokenizer = train_tokenizer(texts, 800)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder / "model")
    tiny_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    ).save_pretrained(folder / "model")
    return folder


def build_items(run: Run, data_root: Path, folder: Path) -> Path:
    """Instructions of the seed tasks and questions of XQuAD, in eleven languages together."""
    parts = {
        "seed_tasks": ["en", "tr", "zh"],
        "xquad": ["en", "ar", "de", "es", "hi", "ru", "th", "tr", "vi", "zh"],
    }
    lines: list[str] = []
    for name, languages in parts.items():
        source = folder / name
        source.mkdir(exist_ok=True)
        for code in languages:
            for path in (data_root / "instruct" / name).glob(f"{name}.{code}.*"):
                shutil.copy(path, source)
        output = folder / f"{name}.jsonl"
        flags = ["--mode", "crosslingual", "--languages", *languages, "--repeats", 1]
        status, _, error = run("data", "build", *flags, "--input", source, "--output", output)
        assert status == 0, error
        lines += sorted(read_lines(output), key=len)[:120]  # questions on short paragraphs
    items = folder / "items.jsonl.gz"
    items.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return items


def test_eleven_languages_from_raw_files_to_an_aligned_model(
    run: Run, data_root: Path, folder: Path
) -> None:
    """Two layers, packed texts, chunks, both evaluations, TensorBoard; stopped and resumed."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tensorboard")
    settings: dict[str, Any] = {
        "model": str(folder / "model"),
        "pairs": [str(folder / "pairs.jsonl")],
        "lm_data": str(build_items(run, data_root, folder)),
        "layer": [1, 2],
        "symmetric": True,
        "learn_temperature": True,
        "batch_size": 48,
        "chunk_size": 16,
        "lm_batch_size": 6,
        "lm_chunk_size": 1,
        "block_length": POSITIONS,
        "steps": 8,
        "learning_rate": 0.003,
        "pretraining_tokens": 1e7,
        "save_every": 4,
        "evaluate_every": 4,
        "evaluate_pairs": [str(folder / "held_out.jsonl")],
        "evaluate_tasks": ["xcopa"],
        "evaluate_languages": ["th", "tr", "vi", "zh"],
        "evaluate_data": str(data_root / "eval"),
        "evaluate_limit": 20,
        "best_metric": "retrieval_accuracy",
        "trackers": ["tensorboard"],
        "device": "cpu",
    }
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump(settings))
    straight, stopped = folder / "straight", folder / "stopped"
    for directory in (straight, stopped):
        status, _, error = run("align", "--config", config, "--output", directory)
        assert status == 0, error
    records = metrics_of(straight)
    assert [each["step"] for each in records] == list(range(1, 9))
    assert records[-1]["contrastive_loss"] < records[0]["contrastive_loss"]
    assert records[-1]["lm_loss"] < records[0]["lm_loss"]
    assert records[-1]["pretraining_share"] == sum(each["tokens"] for each in records) / 1e7
    evaluations = [json.loads(line) for line in read_lines(straight / "evaluations.jsonl")]
    assert [each["step"] for each in evaluations] == [0, 4, 8]
    names = {f"xcopa_{code}" for code in ("th", "tr", "vi", "zh")}
    assert names | {"step", "retrieval_accuracy", "task_accuracy"} == evaluations[0].keys()
    shutil.rmtree(stopped / "checkpoints" / "step-8")
    assert run("align", "--resume", "--output", stopped)[0] == 0
    assert metrics_of(stopped) == records
    assert (stopped / "evaluations.jsonl").read_bytes() == (
        straight / "evaluations.jsonl"
    ).read_bytes()
    assert list((stopped / "trackers" / "crossalign").glob("events.*"))
    model = AutoModelForCausalLM.from_pretrained(stopped)
    tokenizer = AutoTokenizer.from_pretrained(stopped)
    assert model(**tokenizer("สวัสดี", return_tensors="pt")).logits.isfinite().all()

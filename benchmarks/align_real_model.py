"""What does aligning do to a real multilingual model, and does the paper's setting suit it?

Arms, all from one pre-trained model (its token embeddings are frozen in every arm):

- `nothing`: the model as it is;
- `paper`: both losses, mean over all tokens of block 1, temperature 0.05, next-token weight 1.5;
- `instructions`: the paper's next-token loss on instructions only (CIF);
- `contrast`: the paper's contrastive loss only (MCL);
- `best`: one setting after the other found on NTREX lines that are not trained on: block, tokens,
  centering, temperature, learning rate, next-token weight.

Test, which no choice saw: FLORES lines (retrieval of every language pair at every layer, bits per
byte), zero-shot tasks, and the language of what the model writes.

    python -m benchmarks.align_real_model --model MODEL [--data ../shared/data] [--runs DIR]

Every finished part is on the disk under --runs, and is not done again; a stopped run goes on. The
model is anything that `crossalign align --model` takes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.provenance import ROOT, provenance, result_path
from benchmarks.real_model import measures
from benchmarks.real_model.data import RealModelData, load_data
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.files.output import write_json_lines
from crossalign.files.text import read_lines
from crossalign.models.hidden_states import num_layers
from crossalign.models.loading import load_model

Row = dict[str, Any]
CHOICES = (
    ("layer", (4, 8)),
    ("center", ("batch", "side", "none")),
    ("pool_tokens", ("content", "all")),
    ("learning_rate", (2e-5, 5e-5)),
    ("temperature", (0.05, 0.1)),
)
MAX_LOSS_OF_BITS = 1.05  # a setting that costs more in bits per byte is not chosen


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.collect:
        print(f"written to {write_results(args)}")
        return
    experiment = Experiment(args)
    compared = ("nothing", "best", "paper")
    for arm in compared:
        experiment.measured(arm, 0)
    for seed in range(1, args.seeds):
        for arm in ("best", "paper"):
            experiment.measured(arm, seed)
    for arm in ("contrast", "instructions"):
        experiment.measured(arm, 0)
    for arm in compared if args.task_items else ():
        experiment.tasks(arm)
    for arm in compared if args.prompts else ():
        experiment.generation(arm)
    print(f"written to {write_results(args)}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = Path(os.environ.get("CROSSALIGN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", required=True, help="directory, .gguf file or hub name")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "real_model")
    parser.add_argument("--output", type=Path, help="result file (None: named by the run)")
    parser.add_argument("--collect", action="store_true", help="write what is done so far")
    parser.add_argument("--seeds", type=int, default=3, help="of paper and best")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--search-steps", type=int, default=25, help="of a setting that is tried")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--texts", type=int, default=8, help="instructions per step")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--paper-learning-rate", type=float, default=1e-5)
    parser.add_argument("--choosing-lines", type=int, default=100)
    parser.add_argument("--test-lines", type=int, default=300)
    parser.add_argument("--scored-lines", type=int, default=100, help="for bits per byte")
    parser.add_argument("--task-items", type=int, default=200, help="of a task and language")
    parser.add_argument("--prompts", type=int, default=20, help="questions of a language")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    return parser.parse_args(argv)


class Experiment:
    """The arms and their parts; each is done once, whatever interrupts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.set_num_threads(args.threads)
        self.model, self.tokenizer = load_model(args.model)
        self.model.get_input_embeddings().weight.requires_grad_(False)
        self.trained = [n for n, p in self.model.named_parameters() if p.requires_grad]
        weights = dict(self.model.named_parameters())
        self.original = {name: weights[name].detach().clone() for name in self.trained}
        self.data: RealModelData = load_data(args.data, args.choosing_lines, args.test_lines)
        self.layers = list(range(num_layers(self.model) + 1))
        check_same_sizes(args)

    def config(self, arm: str, seed: int) -> TrainingConfig:
        paper = TrainingConfig(
            steps=self.args.steps,
            batch_size=self.args.batch_size,
            chunk_size=16,
            lm_batch_size=self.args.texts,
            max_length=self.args.max_length,
            learning_rate=self.args.paper_learning_rate,
            precision=self.args.precision,
            device="cpu",
            seed=seed,
        )
        if arm == "contrast":
            return replace(paper, lm_weight=0.0)
        if arm == "instructions":
            return replace(paper, contrastive_weight=0.0)
        return paper if arm == "paper" else replace(self.best(), steps=paper.steps, seed=seed)

    def best(self) -> TrainingConfig:
        """One setting after the other, each by the lines for choosing; then the next-token loss is
        added where bits per byte ask for it."""
        steps = self.args.search_steps
        found = replace(self.config("contrast", 0), steps=steps, symmetric=True)
        found = replace(found, pool_tokens="content", center="batch", learning_rate=2e-5)
        tried: dict[str, Row] = {}
        for name, values in CHOICES:
            changes: list[dict[str, Any]] = [{name: value} for value in values]
            settings = {str(each[name]): replace(found, **each) for each in changes}
            for value, config in settings.items():
                tried[value] = self._choosing_row(config)
            found = settings[max(settings, key=lambda value: self._merit(tried[value]))]
        row = self._choosing_row(found)
        if self._merit(row) < row["accuracy"]:
            found = replace(found, lm_weight=1.5)
        return found

    def _merit(self, row: Row) -> float:
        """Accuracy; less where bits per byte went up by too much."""
        before = self._choosing_row(None)["bits"]
        worst = max(row["bits"][language] / before[language] for language in before)
        return float(row["accuracy"] - 10 * max(0.0, worst - MAX_LOSS_OF_BITS))

    def _choosing_row(self, config: TrainingConfig | None) -> Row:
        """Accuracy at the aligned layer and bits per byte, of the lines for choosing."""
        settings = "" if config is None else _key(config)

        def work() -> list[Row]:
            self._train(config, None)
            layers = sorted({*(config.layers if config else ()), self.layers[-1]})
            vectors = measures.measure(
                self.model, self.tokenizer, self.data.choosing, layers, self.args.scored_lines // 2
            )
            row: Row = {"bits": vectors.bits, "settings": settings}
            if config is not None:
                rows = measures.retrieval(vectors)
                chosen = (config.layers[0], config.pool_tokens, config.center)
                row["accuracy"] = measures.mean_accuracy(rows, *chosen)
            return [row]

        return self._once(f"choosing {settings or 'nothing'}", work)[0]

    def measured(self, arm: str, seed: int) -> list[Row]:
        """Retrieval at every layer and bits per byte, of the test lines."""

        def work() -> list[Row]:
            self._load(arm, seed)
            vectors = measures.measure(
                *(self.model, self.tokenizer, self.data.test, self.layers, self.args.scored_lines)
            )
            bits = [{"language": code, "bits_per_byte": b} for code, b in vectors.bits.items()]
            return [*measures.retrieval(vectors), *bits]

        return self._once(f"test {arm} {seed}", work)

    def tasks(self, arm: str) -> list[Row]:
        def work() -> list[Row]:
            self._load(arm, 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision == "bf16"):
                records, items = measures.tasks(
                    *(self.model, self.tokenizer, self.args.data / "eval", self.args.task_items)
                )
            return [*records, *items]

        return self._once(f"tasks {arm} 0", work)

    def generation(self, arm: str) -> list[Row]:
        prompts = {}
        for code in ("ar", "de", "en", "es", "fr", "zh"):
            path = self.args.data / "instruct" / "prompts100" / f"{code}100.jsonl"
            queries = [json.loads(line)["query"] for line in read_lines(path)]
            prompts[code] = queries[: self.args.prompts]

        def work() -> list[Row]:
            self._load(arm, 0)
            guess = measures.LanguageGuesser(self.data.choosing)
            return measures.generation(self.model, self.tokenizer, prompts, guess)

        return self._once(f"generation {arm} 0", work)

    def _load(self, arm: str, seed: int) -> None:
        """The weights of an arm, trained or from the disk."""
        self._train(None if arm == "nothing" else self.config(arm, seed), f"{arm}-{seed}")

    def _train(self, config: TrainingConfig | None, name: str | None) -> None:
        """name: under which weights and steps are kept; None: nothing is kept."""
        weights = dict(self.model.named_parameters())
        path = self.args.runs / f"{name}.safetensors"
        state = load_file(path) if name and path.exists() else self.original
        with torch.no_grad():
            for each in self.trained:
                weights[each].copy_(state[each])
        if config is None or state is not self.original:
            return
        records: list[Row] = []
        align(
            self.model,
            self.tokenizer,
            self.data.pairs,
            config,
            lm_items=self.data.items,
            on_step=records.append,
        )
        if name:
            self._once(f"training {name}", lambda: [*records, {"settings": asdict(config)}])
            save_file({each: weights[each].detach() for each in self.trained}, path)

    def _once(self, key: str, work: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a part, from its file where it has one."""
        path = self.args.runs / f"{key.replace(' ', '-')}.jsonl"
        if not path.exists():
            started, used = time.perf_counter(), time.process_time()
            rows = work()
            cost = {"seconds": time.perf_counter() - started}
            cost["cpu_seconds"] = time.process_time() - used
            write_json_lines(path.with_suffix(".part"), [{"part": key, **cost}, *rows])
            path.with_suffix(".part").rename(path)
            print(f"{key}: {cost['seconds']:.0f} s", flush=True)
        return [json.loads(line) for line in read_lines(path)][1:]


def check_same_sizes(args: argparse.Namespace) -> None:
    """Parts of one folder are of one experiment; only what is measured more may change."""
    free = ("data", "runs", "output", "model", "collect", "seeds", "task_items", "prompts")
    sizes = {name: value for name, value in vars(args).items() if name not in (*free, "threads")}
    path = args.runs / "sizes.json"
    args.runs.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(sizes), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != sizes:
        raise SystemExit(f"{path}: another experiment is in this folder; name another --runs")


def write_results(args: argparse.Namespace) -> Path:
    """One file of everything that is done."""
    run = {"record": "run", "subject": "align_real_model", **provenance(torch.device("cpu"))}
    run |= {"transformers": transformers.__version__, "load_average": os.getloadavg()}
    local = ("data", "runs", "output", "model", "collect")
    run["arguments"] = {name: value for name, value in vars(args).items() if name not in local}
    run["model"] = Path(args.model).name
    rows = [run]
    for path in sorted(args.runs.glob("*.jsonl")):
        head, *found = [json.loads(line) for line in read_lines(path)]
        rows += [{"record": "part", **head}, *({"part": head["part"], **row} for row in found)]
    output: Path = args.output or result_path("real_model", run)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(output, rows)
    return output


def _key(config: TrainingConfig) -> str:
    """What the settings tried differ in, as a part of a file's name."""
    return " ".join(str(getattr(config, name)) for name, _ in CHOICES)


if __name__ == "__main__":
    main()

"""What does aligning do to a real multilingual model, and does the paper's setting suit it?

Arms, all from one pre-trained model (its token embeddings are frozen in every arm):

- `nothing`: the model as it is;
- `paper`: both losses, mean over all tokens of block 1, temperature 0.05, next-token weight 1.5;
- `instructions`: the paper's next-token loss on instructions only (CIF);
- `contrast`: the paper's contrastive loss only (MCL);
- `best`: one setting after the other found on NTREX lines that are not trained on: block, tokens,
  centering, temperature, learning rate, next-token weight; its next-token loss is on instructions
  and on sentences of every language in turn;
- `joint`: the best setting with the paper's next-token loss.

Test, which no choice saw: FLORES lines (retrieval of every language pair at every layer, bits per
byte), zero-shot tasks, and the language of what the model writes.

    python -m benchmarks.align_real_model --model MODEL [--data ../shared/data] [--runs DIR]

Every finished part is on the disk under --runs, and is not done again; a stopped run goes on. The
model is anything that `crossalign align --model` takes.
"""

from __future__ import annotations

import argparse
import functools
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

from benchmarks.provenance import provenance, result_path
from benchmarks.real_model import measures
from benchmarks.real_model.arguments import check_same_sizes, named_values, parse_arguments
from benchmarks.real_model.data import fitting, load_data
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.builders import TrainingItem
from crossalign.files.output import write_json_lines
from crossalign.files.text import read_lines
from crossalign.models.hidden_states import num_layers
from crossalign.models.loading import load_model

Row = dict[str, Any]
MAX_LOSS_OF_BITS = 1.05  # a setting that costs more in bits per byte is not chosen


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv, str(__doc__).splitlines()[0])
    if args.collect:
        print(f"written to {write_results(args)}")
        return
    experiment = Experiment(args)
    compared = ("nothing", "best", "paper")
    experiment.best()
    for arm in compared:
        experiment.measured(arm, 0)
    for arm in compared if args.task_items else ():
        experiment.tasks(arm)
    for seed in range(1, args.seeds):
        for arm in ("best", "paper"):
            experiment.measured(arm, seed)
    for arm in args.more:
        experiment.measured(arm, 0)
    for arm in compared if args.prompts else ():
        experiment.generation(arm)
    print(f"written to {write_results(args)}")


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
        data = load_data(args.data, args.choosing_lines, args.test_lines)
        items, rehearsal = (
            fitting(texts, self.tokenizer, args.max_length)
            for texts in (data.items, data.rehearsal)
        )
        self.data = data._replace(items=items, rehearsal=rehearsal)
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
        if arm == "paper":
            return paper
        best = replace(self.best(), steps=paper.steps, seed=seed)
        return replace(best, lm_weight=paper.lm_weight) if arm == "joint" else best

    def best(self) -> TrainingConfig:
        """One setting after the other, each by the lines for choosing; then the next-token loss is
        added where bits per byte ask for it."""
        steps = self.args.search_steps
        found = replace(self.config("contrast", 0), steps=steps, symmetric=True)
        found = replace(found, pool_tokens="content", center="batch", learning_rate=2e-5)
        tried: dict[str, Row] = {}
        for name, values in named_values(self.args.choices, "=").items():
            kind = type(getattr(found, name))
            changes: list[dict[str, Any]] = [{name: kind(value)} for value in values]
            settings = {str(each[name]): replace(found, **each) for each in changes}
            for value, config in settings.items() if len(values) > 1 else ():
                tried[value] = self._choosing_row(config)
            found = settings[
                max(settings, key=lambda value: self._merit(tried[value]) if value in tried else 0)
            ]
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
        settings = "" if config is None else self._key(config)

        def work() -> list[Row]:
            self._train(config, None, self._mixed())
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

    def _key(self, config: TrainingConfig) -> str:
        """What the settings tried differ in, as a part of a file's name."""
        names = named_values(self.args.choices, "=")
        return " ".join(str(getattr(config, name)) for name in names)

    def measured(self, arm: str, seed: int) -> list[Row]:
        """Retrieval at every layer and bits per byte, of the test lines."""

        def work() -> list[Row]:
            self._load(arm, seed)
            vectors = measures.measure(
                *(self.model, self.tokenizer, self.data.test, self.layers, self.args.scored_lines)
            )
            bits = [{"language": code, "bits_per_byte": b} for code, b in vectors.bits.items()]
            # Where the sentences are at the layer of the best setting, for the picture.
            plane = measures.plane(vectors, self.best().layers[0]) if seed == 0 else []
            return [*measures.retrieval(vectors), *bits, *plane]

        return self._once(f"test {arm} {seed}", work)

    def tasks(self, arm: str) -> list[Row]:
        """Each task is a part, so that what stops the run costs one task."""

        def work(task: str, languages: list[str]) -> list[Row]:
            self._load(arm, 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision == "bf16"):
                return measures.task_rows(
                    *(self.model, self.tokenizer, self.args.data / "eval"),
                    *(task, languages, self.args.task_items),
                )

        rows = []
        for task, languages in named_values(self.args.tasks, ":").items():
            name = f"tasks {task} {'+'.join(languages)} {self.args.task_items} {arm} 0"
            rows += self._once(name, functools.partial(work, task, languages))
        return rows

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
        config = None if arm == "nothing" else self.config(arm, seed)
        texts = self._mixed() if arm == "best" else self.data.items
        self._train(config, f"{arm}-{seed}", texts)

    def _mixed(self) -> list[TrainingItem]:
        """Instructions and sentences, half and half."""
        both = zip(self.data.items, self.data.rehearsal, strict=False)
        return [text for pair in both for text in pair]

    def _train(
        self, config: TrainingConfig | None, name: str | None, texts: list[TrainingItem]
    ) -> None:
        """name: under which weights and steps are kept; None: nothing is kept. texts: of the
        next-token loss."""
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
            lm_items=texts,
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


if __name__ == "__main__":
    main()

"""What a demo has found, whichever model it took, and the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from crossalign.demo.measurement import Measurement
from crossalign.demo.report import write_report
from crossalign.evaluation.vectors.retrieval import write_retrieval_csv
from crossalign.files.output import let_others_read

ENTRIES = ("report.html", "retrieval.csv", "projection.csv", "demo.json", "model")


class Story(NamedTuple):
    """model: the aligned one. held_out: language -> the same sentences. opening: the first sentence
    of the report. facts: name -> value, for its end."""

    model: Any
    tokenizer: Any
    held_out: dict[str, list[str]]
    before: Measurement
    after: Measurement
    layer: int
    num_pairs: int
    opening: str
    facts: Mapping[str, str]
    settings: Mapping[str, Any]


def write_story(story: Story, directory: Path) -> None:
    """Leaves ENTRIES in the directory."""
    before, after = story.before, story.after
    story.model.save_pretrained(directory / "model")
    story.tokenizer.save_pretrained(directory / "model")
    let_others_read(directory / "model")
    write_retrieval_csv(directory / "retrieval.csv", {"before": before.rows, "after": after.rows})
    write_report(
        directory,
        before,
        after,
        story.held_out,
        layer=story.layer,
        num_pairs=story.num_pairs,
        opening=story.opening,
        facts=story.facts,
    )
    (directory / "demo.json").write_text(_as_json(story), encoding="utf-8")


def _as_json(story: Story) -> str:
    layers = range(len(story.before.neighbors))
    results = {
        name: {
            "mean_accuracy_per_layer": [measured.accuracy(layer) for layer in layers],
            "mean_centered_accuracy_per_layer": [
                measured.centered_accuracy(layer) for layer in layers
            ],
            "same_language_neighbors_per_layer": measured.neighbors,
            "perplexities": measured.perplexities,
        }
        for name, measured in (("before", story.before), ("after", story.after))
    }
    return json.dumps({"settings": dict(story.settings), **results}, indent=1) + "\n"

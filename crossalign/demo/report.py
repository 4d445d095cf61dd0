"""report.html: what the demo found, in one file that needs no other."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from torch import Tensor

from crossalign.analysis.figures import draw_languages
from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.demo.measurement import Measurement, gain_and_cost
from crossalign.evaluation.vectors.projection import Projection, project_to_plane

NUM_DRAWN = 250  # sentences per picture
NUM_LINKED = 6  # whose translations a line joins
NUM_EXAMPLES = 5


class Example(NamedTuple):
    """What a sentence finds in another language, before and after."""

    sentence: str
    before: str
    after: str
    before_is_right: bool
    after_is_right: bool


def write_report(
    directory: Path,
    before: Measurement,
    after: Measurement,
    held_out: Mapping[str, Sequence[str]],
    *,
    layer: int,
    num_pairs: int,
    opening: str,
    facts: Mapping[str, str],
) -> None:
    """Writes report.html and projection.csv, the points of its pictures.

    opening: what the model was before. facts: name -> value, shown at the end.
    """
    projections = {
        "Before alignment": _project(before.vectors),
        "After alignment": _project(after.vectors),
    }
    _write_points(directory / "projection.csv", projections, before.vectors)
    pictures = [
        {
            "title": title,
            "png": _picture(projection, before.vectors),
            "share": sum(projection.variance_shares),
        }
        for title, projection in projections.items()
    ]
    names = [LANGUAGE_NAMES[language] for language in held_out]
    example_languages = next(iter(held_out)), list(held_out)[-1]
    page = _template().render(
        has_aligned=after.accuracy(layer) > 0.5,
        opening=opening,
        names=names,
        num_languages=len(names),
        num_pairs=num_pairs,
        num_held_out=len(next(iter(held_out.values()))),
        layer=layer,
        layers=range(len(before.neighbors)),
        before=before,
        after=after,
        pictures=pictures,
        num_drawn=min(NUM_DRAWN, len(next(iter(held_out.values())))),
        num_linked=NUM_LINKED,
        accuracy_rows=_accuracy_rows(before, after),
        example_code=example_languages[1],
        example_language=LANGUAGE_NAMES[example_languages[1]],
        examples=_examples(before.vectors, after.vectors, held_out, example_languages),
        gain_and_cost=gain_and_cost(before, after, layer),
        perplexity_rows=[
            (title, list(measured.perplexities.values()))
            for title, measured in (("before", before), ("after", after))
        ],
        facts=list(facts.items()),
        percent=lambda share: f"{100 * share:.1f}",
    )
    (directory / "report.html").write_text(page, encoding="utf-8")


def _template() -> Any:
    environment = Environment(
        # The style is that of every report.
        loader=ChoiceLoader(
            [PackageLoader("crossalign.demo", "."), PackageLoader("crossalign.analysis", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html")


def _project(vectors: Mapping[str, Tensor]) -> Projection:
    return project_to_plane(torch.cat(list(vectors.values())))


def _picture(projection: Projection, vectors: Mapping[str, Tensor]) -> str:
    points = {
        language: places[:NUM_DRAWN]
        for language, places in _split_points(projection, vectors).items()
    }
    png = draw_languages(points, num_linked=NUM_LINKED, names=LANGUAGE_NAMES)
    return base64.b64encode(png).decode("ascii")


def _split_points(projection: Projection, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The points of a projection of all languages' vectors, per language again."""
    sizes = [len(part) for part in vectors.values()]
    return dict(zip(vectors, torch.split(projection.points, sizes), strict=True))


def _write_points(
    path: Path, projections: Mapping[str, Projection], vectors: Mapping[str, Tensor]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("picture", "language", "sentence", "x", "y"))
        for title, projection in projections.items():
            for language, places in _split_points(projection, vectors).items():
                for sentence, (x, y) in enumerate(places.tolist()):
                    writer.writerow((title, language, sentence, f"{x:.6f}", f"{y:.6f}"))


def _accuracy_rows(
    before: Measurement, after: Measurement
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Per language pair its name and (before, after) of each layer."""
    cells: dict[str, list[tuple[float, float]]] = {}
    for old, new in zip(before.rows, after.rows, strict=True):
        name = " – ".join(
            LANGUAGE_NAMES[code] for code in (old.source_language, old.target_language)
        )
        cells.setdefault(name, []).append((old.scores.accuracy, new.scores.accuracy))
    return list(cells.items())


def _examples(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    held_out: Mapping[str, Sequence[str]],
    languages: tuple[str, str],
) -> list[Example]:
    source, target = languages
    nearest = [
        (vectors[source][:NUM_EXAMPLES] @ vectors[target].T).argmax(dim=1).tolist()
        for vectors in (before, after)
    ]
    return [
        Example(
            held_out[source][index],
            *(held_out[target][found[index]] for found in nearest),
            *(found[index] == index for found in nearest),
        )
        for index in range(NUM_EXAMPLES)
    ]

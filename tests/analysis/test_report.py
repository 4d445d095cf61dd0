"""The report of an analysis in a real browser: widths, console, hostile text, dark, print."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from crossalign.analysis.figures import Curve, draw_curves, draw_languages, look
from crossalign.analysis.measurement import (
    MAX_POINTS,
    NUM_EXAMPLES,
    GeometryValue,
    LayerMeasurement,
    PairScores,
    drawn_lines,
)
from crossalign.analysis.measures import MEASURES
from crossalign.analysis.results import write_results
from crossalign.evaluation.vectors.margin import MarginScores
from crossalign.evaluation.vectors.retrieval import RetrievalScores
from tests.support.headless_browser import Browser, headless_browser

HOSTILE = (
    "<script>document.title = 'taken'; console.error('ran')</script>",
    "<img src=x onerror=\"document.title='taken'\"> & &lt;b&gt; \"quoted\" 'too'",
    "مرحبا \u202ereversed\u202c \u2067right to left\u2069 שלום",
    "👩‍👩‍👧 🏴‍☠️ one\u2028two\u2029three \x00 \ufeff \u200b",
    "{{ 7 * 7 }} {% raw %} $x^2$ " + "unbroken" * 60,
)
NAMES = ("en", "de", "zho-CN", "x_1", "arb_Arab", "th", "sw")


def measured(languages: tuple[str, ...], layer: int, seed: int) -> LayerMeasurement:
    """Plausible numbers, an undefined one among them."""
    torch.manual_seed(seed + layer)
    codes = [(one, two) for i, one in enumerate(languages) for two in languages[i + 1 :]]
    pairs = []
    for one, two in codes:
        shares = torch.rand(6).tolist()
        margin = MarginScores(shares[4], shares[5], float("nan") if two == "de" else 1.01)
        scores = RetrievalScores(123, *shares[:4])
        pairs.append(PairScores(one, two, scores, margin, scores))
    values = [
        GeometryValue(measure, *code, torch.rand(()).item())
        for code in codes
        for measure in ("alignment", "center_distance")
    ]
    of_languages = ("uniformity", "mean_cosine", "iso_score", "language_identification")
    values += [
        GeometryValue(measure, code, "", -torch.rand(()).item())
        for code in languages
        for measure in of_languages
    ]
    values.append(GeometryValue("uniformity_of_all", "", "", -2.5))
    points = {code: torch.randn(30, 2) + index for index, code in enumerate(languages)}
    return LayerMeasurement(layer, pairs, values, points, 0.417, list(range(NUM_EXAMPLES)))


def write_report(directory: Path, languages: tuple[str, ...], names: tuple[str, ...]) -> Path:
    """The results of made-up measurements of hostile text."""
    directory.mkdir()
    sentences = {
        code: [f"{HOSTILE[(line + index) % 5]} {line}" for line in range(123)]
        for index, code in enumerate(languages)
    }
    models = {
        name: [measured(languages, layer, seed) for layer in range(13)]
        for seed, name in enumerate(names)
    }
    facts = {"Model studied": "/a/\"quoted\" 'model' <i>&amp;"}
    if len(names) == 2:
        facts = {"Before (baseline)": "/b/<script>alert(1)</script>", **facts}
    facts["Layer shown"] = "4, asked for by --show-layer"
    facts["Files"] = "/" + "long/" * 80 + 'o\'clock "x" <b>.en\u202e'
    write_results(directory, sentences, models, 4, facts)
    return directory / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with headless_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison in seven languages."""
    return write_report(tmp_path_factory.mktemp("report") / "out", NAMES, ("before", "after"))


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, two languages."""
    return write_report(tmp_path_factory.mktemp("report") / "out", NAMES[:2], ("model",))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["page", "small_page"])
def test_page_fits_its_window_and_says_nothing_to_the_console(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    browser.problems.clear()
    browser.open(request.getfixturevalue(which), width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    beyond = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll")
        && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.evaluate(beyond) == []
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 300)"
    assert browser.evaluate(loaded)
    assert browser.evaluate("document.images.length") > 12
    assert browser.problems == []


def test_tables_fit_a_window_of_1280_and_show_where_they_go_on_in_a_narrow_one(
    browser: Browser, page: Path
) -> None:
    """The widest has twelve measures and languages of long names."""
    beyond = """[...document.querySelectorAll(".scroll")].map(e => e.scrollWidth - e.clientWidth)
        .filter(width => width > 0)"""
    browser.open(page, width=1280)
    assert browser.evaluate(beyond) == []
    browser.open(page, width=390)
    assert len(browser.evaluate(beyond)) > 2
    cue = "getComputedStyle(document.querySelector('.scroll')).backgroundAttachment"
    assert browser.evaluate(cue) == "local, local, scroll, scroll"


def test_page_says_why_this_layer_is_shown(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    assert "At layer 4, asked for by --show-layer" in browser.evaluate("document.body.textContent")


def test_screenshot_shows_a_page_and_the_dark_one_is_dark(browser: Browser, page: Path) -> None:
    corners = []
    for scheme in ("light", "dark"):
        browser.open(page, width=390, scheme=scheme)
        shot = Image.open(io.BytesIO(browser.screenshot())).convert("L")
        assert shot.width == 390 and shot.height > 3000
        darkest, lightest = shot.getextrema()
        assert lightest - darkest > 200
        corners.append(shot.getpixel((2, 2)))
    assert corners[0] > 240 and corners[1] < 40


def test_text_can_be_told_from_its_ground(browser: Browser, page: Path) -> None:
    """The contrast of WCAG AA, 4.5, of every kind of text, in both schemes."""
    contrast = """(() => {
      const numbers = text => text.match(/[\\d.]+/g).map(Number);
      const light = color => numbers(color).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (numbers(c)[3] !== 0) return c; } };
      const worst = {};
      for (const e of document.querySelectorAll("p, b, i, small, th, td, dd, dt, summary, h1")) {
        const [a, b] = [getComputedStyle(e).color, ground(e)].map(light).sort((x, y) => y - x);
        const key = e.tagName + "." + e.className;
        worst[key] = Math.min(worst[key] ?? 99, (a + 0.05) / (b + 0.05));
      }
      return worst; })()"""
    for scheme in ("light", "dark"):
        browser.open(page, width=1280, scheme=scheme)
        worst = browser.evaluate(contrast)
        assert len(worst) > 8
        assert {kind: ratio for kind, ratio in worst.items() if ratio < 4.5} == {}, scheme


def test_hostile_text_is_shown_as_text(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    assert browser.evaluate("document.title") == f"crossalign analysis: {', '.join(NAMES)}"
    assert (
        browser.evaluate("document.querySelectorAll('script, [onerror], .words img').length") == 0
    )
    shown = browser.evaluate(
        "[...document.querySelectorAll('.words strong bdi')].map(e => e.textContent)"
    )
    # A NUL has no place in HTML: it shows as U+FFFD or not at all.
    expected = [f"{text} {line}".replace("\x00", "")[:230] for line, text in enumerate(HOSTILE)]
    assert [re.sub("[\x00\ufffd]", "", text)[:230] for text in shown] == expected
    text = browser.evaluate("document.body.textContent")
    assert "/a/\"quoted\" 'model' <i>&amp;" in text
    assert "/b/<script>alert(1)</script>" in text
    assert 'o\'clock "x" <b>.en' in text
    assert "49" not in shown[4]  # a template in the data is not run


def test_numbers_of_the_page_are_those_measured(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    cells = "[...document.querySelectorAll('tr.shown td')].map(e => e.firstChild.textContent)"
    summary = measured(NAMES, 4, 1).summary()
    assert browser.evaluate(cells) == [each.format(summary[each.key]) for each in MEASURES]
    assert "undefined" in browser.evaluate(cells)
    small = "[...document.querySelectorAll('tr.shown small')].map(e => e.textContent)"
    summary = measured(NAMES, 4, 0).summary()
    assert browser.evaluate(small) == [each.format(summary[each.key]) for each in MEASURES]
    tiles = browser.evaluate("[...document.querySelectorAll('.tiles b')].map(e => e.textContent)")
    assert tiles[0] == MEASURES[0].format(measured(NAMES, 4, 1).summary()["accuracy"])


def test_page_prints(browser: Browser, small_page: Path) -> None:
    browser.open(small_page, width=1280)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12


def test_languages_look_different_from_one_another() -> None:
    """By color as far as XNLI's and the demo's go, then by color and marker together."""
    assert len({look(index) for index in range(49)}) == 49
    assert len({look(index)[0] for index in range(14)}) == 14
    png = draw_languages({f"l{i}": torch.randn(5, 2) for i in range(49)}, num_linked=1)
    image = Image.open(io.BytesIO(png))
    assert image.width == 832 and len(image.convert("RGB").getcolors(2**20) or ()) > 100


def test_layers_without_a_value_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty picture of margins left the reader to guess."""
    written = texts_of_pictures(monkeypatch)
    nan = float("nan")
    some = Curve([0, 1, 2], [nan, 1.0, nan], [nan, 1.0, nan], [nan, 1.0, nan])
    none = Curve([0, 1, 2], [nan] * 3, [nan] * 3, [nan] * 3)
    draw_curves({"before": none, "after": some}, label="margin", shown_layer=1)
    assert "before: undefined at every layer\nafter: undefined at layer 0, 2" in written
    assert {"layer 1", "before", "after"} <= set(written)


def test_names_are_at_the_centers_of_languages_that_are_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = texts_of_pictures(monkeypatch)
    points = {code: torch.randn(9, 2) + 20 * index for index, code in enumerate(NAMES)}
    draw_languages(points, num_linked=1)
    assert [written.count(code) for code in NAMES] == [2] * 7  # there and in the legend
    written.clear()
    draw_languages({code: torch.randn(400, 2) for code in NAMES}, num_linked=1)
    assert [written.count(code) for code in NAMES] == [1] * 7


def texts_of_pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with what is written in each picture that is drawn from here on."""
    written: list[str] = []

    def record(figure: Figure) -> bytes:
        written.extend(text.get_text() for text in figure.findobj(Text))
        return b""

    monkeypatch.setattr("crossalign.analysis.figures._png", record)
    return written


@pytest.mark.parametrize(("num_lines", "num_languages", "expected"), [(3, 2, 3), (9999, 2, 250)])
def test_drawn_lines_are_in_order_and_few(
    num_lines: int, num_languages: int, expected: int
) -> None:
    drawn = drawn_lines(num_lines, num_languages, seed=1).tolist()
    assert drawn == sorted(set(drawn)) and len(drawn) == expected
    assert len(drawn_lines(9999, 27, seed=1)) * 27 <= MAX_POINTS
    assert drawn_lines(9999, 2, seed=2).tolist() != drawn or num_lines == 3


def test_browser_that_is_not_there_is_a_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(pytest.skip.Exception, match="no browser"), headless_browser(tmp_path):
        pass

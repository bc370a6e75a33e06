"""The page: everything on it, as one file, in a browser and by keyboard."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.analyze.curves import definitions
from hemorrhage.analyze.report.page import environment, link_papers, render
from hemorrhage.analyze.study import Study, read
from tests import browser, screenshot

ODD_WORDS = ("nought", "foretold", "likeliest", "wounded", "beside", "told apart", "by lot", "what people wrote")
"""Words that are not the field's."""


@pytest.fixture(scope="module")
def page(reports: Path) -> str:
    return (reports / "index.html").read_text()


def figures_of(page: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(unpacked(page, "figures-packed"))
    return figures


def unpacked(page: str, name: str) -> bytes:
    text = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    assert text is not None
    return gzip.decompress(base64.b64decode(text[1]))


def test_the_page_is_drawn_from_files_as_from_the_study(page: str, reports: Path, study: Study) -> None:
    assert page == render(study) == render(read(reports))


def test_every_definition_and_claim_is_on_the_page(page: str, study: Study) -> None:
    for name in definitions.NAMES.values():
        assert f'<th scope="col">{name}' in page
    text = re.sub(r"</?a[^>]*>", "", page)
    for claim in study.claims:
        assert claim.claim in text


def test_every_figure_that_a_choice_can_show_is_there_and_valid_plotly(page: str, study: Study) -> None:
    from plotly import graph_objects

    figures = figures_of(page)
    shown = set(re.findall(r'data-figure="([\w-]+)[|"]', page))
    assert {re.sub(r"-bits|-sparsity|-removed|-added", "", key.partition("|")[0]) for key in figures} <= {
        *(re.sub(r"-bits|-sparsity|-removed|-added", "", name) for name in shown)
    }
    for figure in figures.values():
        graph_objects.Figure(painted(figure))


def painted(value: Any) -> Any:
    """Return a figure in which every colour of a palette is one that plotly.py knows."""
    if isinstance(value, str) and value.startswith("@"):
        return "#123456"
    if isinstance(value, list):
        return [painted(item) for item in value]
    if isinstance(value, dict):
        return {key: painted(item) for key, item in value.items()}
    return value


def test_the_page_speaks_the_language_of_the_field(page: str) -> None:
    text = page[: page.index("<script")]
    assert [word for word in ODD_WORDS if re.search(rf"\b{word}\b", text)] == []


def test_text_cannot_close_its_script() -> None:
    template = environment().from_string("{{ value | json }}")
    assert template.render(value={"a": "</script>"}) == '{"a":"\\u003c/script>"}'


def test_papers_are_links() -> None:
    text = '<p title="arXiv 2503.23924">of arXiv 2503.23924.</p><pre>arXiv 2402.06925</pre><script>"arXiv 2402.06925"'
    linked = text.replace("of arXiv 2503.23924", 'of <a href="https://arxiv.org/abs/2503.23924">arXiv 2503.23924</a>')
    assert link_papers(text) == linked


class Page(HTMLParser):
    """Ids, references and nesting of a page."""

    VOID = ("meta", "input", "br", "link", "img", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src"):
                self.references.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_nothing(reports: Path) -> None:
    text = (reports / "index.html").read_text()
    assert text.startswith("<!doctype html>")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(
        reference.startswith("https://arxiv.org/abs/") or reference[1:] in page.ids for reference in page.references
    )
    assert b"plotly.js v" in unpacked(text, "plotly-data")[:100]


PROBE = """(async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const isDrawn = (node) => node.querySelector(".main-svg .trace, .main-svg .hm");
  const near = all(".plot").filter(isDrawn).length;
  // Charts are drawn when they come near.
  all("details").forEach((node) => { node.open = true; });
  for (const node of all(".plot")) {
    node.scrollIntoView();
    for (let wait = 0; wait < 200 && !isDrawn(node); wait++) await new Promise((done) => setTimeout(done, 50));
  }
  document.querySelector("input[value=factor]").click();
  const head = all("#variants thead button")[3];
  head.click();
  return {
    near,
    needed: document.documentElement.scrollWidth,
    boxes: all(".plot").length,
    drawn: all(".plot").filter(isDrawn).length,
    wide: all(".main-svg").filter((svg) => svg.getBoundingClientRect().right > innerWidth).length,
    table: [all("#variants")[0].scrollWidth, all("#variants")[0].parentElement.clientWidth],
    ground: getComputedStyle(document.body).backgroundColor,
    order: head.parentElement.getAttribute("aria-sort"),
    sorted: all("#variants tbody:not([hidden]) tr td:nth-child(4)").map((cell) => cell.dataset.sort),
  };
})()"""


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (1280, "light")])
def test_the_page_in_a_browser(reports: Path, width: int, theme: str) -> None:
    with browser.opened(reports / "index.html") as page:
        page.resize(width, 900)
        page.run(f"document.documentElement.dataset.theme = '{theme}'")
        probe = page.run(PROBE)
    assert probe["needed"] <= width, "the page scrolls sideways"
    assert probe["boxes"] >= 13
    assert probe["near"] < probe["boxes"], "charts wait until they come near"
    assert probe["drawn"] == probe["boxes"], "a chart has nothing to show"
    assert probe["wide"] == 0
    assert width < 1280 or probe["table"][0] <= probe["table"][1], "the table of variants scrolls sideways"
    dark = sum(int(part) for part in re.findall(r"\d+", probe["ground"])[:3]) < 300
    assert dark == (theme == "dark")
    assert probe["order"] == "ascending"
    numbers = [float(text) for text in probe["sorted"] if text]
    assert numbers == sorted(numbers)
    assert probe["sorted"][-1] == ""


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_a_variant_has_a_panel_and_a_filter_finds_it(reports: Path) -> None:
    with browser.opened(reports / "index.html") as page:
        page.run("location.hash = 'gptq-4'; new Promise((done) => setTimeout(done, 100))")
        assert "4-bit weights in groups of 64" in page.run("document.getElementById('panel').textContent")
        shown = page.run("""(() => {
          const filter = document.getElementById("filter");
          filter.value = "gptq 4-bit";
          filter.dispatchEvent(new Event("input"));
          const shown = document.querySelectorAll("#variants tbody:not([hidden]) tr:not([hidden]) th > a");
          return [...shown].map((link) => link.textContent);
        })()""")
        assert shown == ["gptq-4"]


FOCUSED = """(() => {
  const node = document.activeElement;
  if (node === document.body) return "";
  return node.type === "radio" ? node.name : node.dataset.place ?? node.outerHTML.slice(0, 200);
})()"""

PLACES = "[...document.querySelectorAll('*')].forEach((node, place) => { node.dataset.place = place; })"
"""A place for every element that stays while charts are drawn."""

REACHABLE = """(() => {
  const wanted = "a[href], button, select, input:not([type=hidden]), summary, [tabindex='0']";
  const seen = [...document.querySelectorAll(wanted)].filter((node) => node.checkVisibility());
  return [...new Set(seen.map((node) => node.type === "radio" ? node.name : node.dataset.place))];
})()"""


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_the_page_by_keyboard_alone(reports: Path) -> None:
    with browser.opened(reports / "index.html") as page:
        page.run(PLACES)
        reached = []
        for _ in range(3000):
            page.press("Tab")
            reached.append(page.run(FOCUSED))
            if reached[-1] == "" or reached[-1] in reached[:-1]:
                break
        wanted = page.run(REACHABLE)
        assert set(wanted) <= set(reached), [
            page.run(f"document.querySelector('[data-place=\"{node}\"]')?.outerHTML.slice(0, 200)")
            for node in set(wanted) - set(reached)
        ]

        page.run("document.querySelector('input[data-choice=scale]:checked').focus()")
        page.press("ArrowRight")
        assert page.run("document.querySelector('input[data-choice=scale]:checked').value") == "factor"
        page.run("document.querySelector('#variants thead button').focus()")
        page.press("Enter")
        assert page.run("document.querySelector('#variants thead th').getAttribute('aria-sort')") == "ascending"
        page.run("document.getElementById('theme').focus()")
        page.press(" ")
        assert page.run("document.documentElement.dataset.theme") == "dark"

        first = page.run("document.getElementById('card').textContent")
        page.run("document.querySelector('select[data-choice=card]').focus()")
        page.press("End")
        page.run("new Promise((done) => setTimeout(done, 500))")
        shown = page.run("document.getElementById('card').textContent")
        assert shown != first
        assert shown.startswith("---\nlibrary_name: transformers")

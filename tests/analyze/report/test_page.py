"""The page: everything on it, as one file, in a browser and by keyboard."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.analyze.curves import definitions
from hemorrhage.analyze.report.page import environment, render
from hemorrhage.analyze.study import Study, read
from tests import browser, screenshot

ODD_WORDS = ("nought", "foretold", "likeliest", "wounded", "beside", "told apart", "by lot", "what people wrote")
"""Words that are not the field's."""


@pytest.fixture(scope="module")
def page(reports: Path) -> str:
    return (reports / "index.html").read_text()


def figures_of(page: str) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="figures-data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    figures: dict[str, Any] = json.loads(text[1])
    return figures


def test_the_page_is_drawn_from_files_as_from_the_study(page: str, reports: Path, study: Study) -> None:
    assert page == render(study) == render(read(reports))


def test_every_definition_and_claim_is_on_the_page(page: str, study: Study) -> None:
    for name in definitions.NAMES.values():
        assert f'<th scope="col">{name}' in page
    for claim in study.claims:
        assert claim.claim in page


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
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert text.count("plotly.js v") == 1


PROBE = """
<script>
const probe = () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  document.querySelector("input[value=kl]").click();
  const head = all("#variants thead button")[3];
  head.click();
  parent.postMessage({
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    boxes: all(".plot").length,
    drawn: all(".plot").filter((node) => node.querySelector(".main-svg .trace, .main-svg .hm")).length,
    wide: all(".main-svg").filter((svg) => svg.getBoundingClientRect().right > innerWidth).length,
    ground: getComputedStyle(document.body).backgroundColor,
    order: head.parentElement.getAttribute("aria-sort"),
    sorted: all("#variants tbody:not([hidden]) tr td:nth-child(4)").map((cell) => cell.dataset.sort),
  }, "*");
};
addEventListener("load", () => setTimeout(probe, 500));
</script>
"""

FRAME = """<!doctype html>
<iframe src="{page}#{theme}" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("message", (event) => {{ document.title = JSON.stringify(event.data); }});
</script>"""


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (1280, "light")])
def test_the_page_in_a_browser(reports: Path, tmp_path: Path, width: int, theme: str) -> None:
    (tmp_path / "page.html").write_text((reports / "index.html").read_text() + PROBE)
    # A browser window has a least width; a frame has none.
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page="page.html", theme=theme, width=width))
    seen = screenshot.browse(frame, 1400, 1000, theme, "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", seen.stdout)
    assert title is not None, seen.stderr
    probe = json.loads(title[1])
    assert probe["width"] == width
    assert probe["needed"] <= width, "the page scrolls sideways"
    assert probe["boxes"] >= 14
    assert probe["drawn"] == probe["boxes"], "a chart has nothing to show"
    assert probe["wide"] == 0
    dark = sum(int(part) for part in re.findall(r"\d+", probe["ground"])[:3]) < 300
    assert dark == (theme == "dark")
    assert probe["order"] == "ascending"
    numbers = [float(text) for text in probe["sorted"] if text]
    assert numbers == sorted(numbers)
    assert probe["sorted"][-1] == ""


FOCUSED = """(() => {
  const node = document.activeElement;
  if (node === document.body) return "";
  return node.type === "radio" ? node.name : [...document.querySelectorAll("*")].indexOf(node);
})()"""

REACHABLE = """(() => {
  const every = [...document.querySelectorAll("*")];
  const wanted = "a[href], button, select, input:not([type=hidden]), summary, [tabindex='0']";
  const seen = [...document.querySelectorAll(wanted)].filter((node) => node.checkVisibility());
  return [...new Set(seen.map((node) => node.type === "radio" ? node.name : every.indexOf(node)))];
})()"""


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_the_page_by_keyboard_alone(reports: Path) -> None:
    with browser.opened(reports / "index.html") as page:
        reached = []
        for _ in range(1000):
            page.press("Tab")
            reached.append(page.run(FOCUSED))
            if reached[-1] == "" or reached[-1] in reached[:-1]:
                break
        wanted = page.run(REACHABLE)
        assert set(wanted) <= set(reached), [
            page.run(f"document.querySelectorAll('*')[{node}].outerHTML.slice(0, 200)")
            for node in set(wanted) - set(reached)
        ]

        page.run("document.querySelector('input[data-choice=scale]:checked').focus()")
        page.press("ArrowRight")
        assert page.run("document.querySelector('input[data-choice=scale]:checked').value") == "kl"
        page.run("document.querySelector('#variants thead button').focus()")
        page.press("Enter")
        assert page.run("document.querySelector('#variants thead th').getAttribute('aria-sort')") == "ascending"
        page.run("document.getElementById('theme').focus()")
        page.press(" ")
        assert page.run("document.documentElement.dataset.theme") == "dark"

        first = page.run("document.querySelector('pre[data-when-card]:not([hidden])').textContent")
        page.run("document.querySelector('select[data-choice=card]').focus()")
        page.press("End")
        shown = page.run(
            "[...document.querySelectorAll('pre[data-when-card]')].filter((card) => !card.hidden)"
            ".map((card) => card.textContent)"
        )
        assert len(shown) == 1
        assert shown[0] != first
        assert shown[0].startswith("---\nlibrary_name: transformers")

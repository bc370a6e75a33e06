"""What `dvc plots diff` writes is drawn without a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dvc_render.html import HTML
from ruamel.yaml import YAML

from hemorrhage.tools import plots_page
from tests.browser import opened
from tests.conftest import ROOT
from tests.screenshot import chromium

FIGURE = """
<div id="plot"><script>
vegaEmbed("#plot", {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "mark": "point",
  "data": {"values": [{"a": 1, "b": 2}]}, "encoding": {"x": {"field": "a"}, "y": {"field": "b"}}});
</script></div>
"""

DRAWN = """new Promise((done) => {
  const look = () => (document.querySelector("#plot canvas, #plot svg") ? done(true) : setTimeout(look, 50));
  look();
})"""


def test_the_template_holds_the_scripts_that_are_installed_and_loads_none() -> None:
    page = plots_page.page()
    assert plots_page.unpack(page) == plots_page.source()
    assert "src=" not in page
    assert "{scripts}" not in page, "DVC puts its links to a CDN there"


def test_setup_names_the_template_to_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    plots_page.main()
    assert plots_page.FILE.read_text() == plots_page.page()
    assert f"html_template = {plots_page.FILE.name}" in Path(".dvc/config.local").read_text()
    assert "python -m hemorrhage.tools.plots_page" in (ROOT / "Makefile").read_text()


def test_templates_of_plots_are_those_that_dvc_yaml_names() -> None:
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["plots"]
    named = {content["template"] for plot in plots for content in plot.values()}
    assert named == {file.stem for file in (ROOT / ".dvc/plots").glob("*.json")}


@pytest.mark.skipif(chromium() is None, reason="needs Chromium")
def test_a_figure_is_drawn(tmp_path: Path) -> None:
    document = HTML(plots_page.page()).with_scripts('<script src="https://cdn.invalid/vega"></script>')
    page = tmp_path / "index.html"
    page.write_text(document.with_element(FIGURE).embed())
    assert "cdn.invalid" not in page.read_text()
    with opened(page) as browser:
        assert browser.run(DRAWN)

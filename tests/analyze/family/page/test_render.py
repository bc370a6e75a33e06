"""The page of several models: self-contained, with every model and every outcome."""

from __future__ import annotations

import re

from hemorrhage.analyze.family.page.render import render
from hemorrhage.analyze.family.results import Results


def test_the_page_has_every_model_and_outcome(results: Results) -> None:
    html = render(results)
    for row in results.models:
        assert f'<a href="{row.model}/index.html">{row.model}</a>' in html
    for effect in results.effects:
        assert effect.outcome.name in html
    without_plotly = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(src|href)="https?:', without_plotly)
    assert "nan" not in re.sub(r"<[^>]+>", " ", without_plotly.split("<footer")[0].split("<main")[1]).split()

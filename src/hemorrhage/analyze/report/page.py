"""The page: one self-contained file that opens from disk."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import re
from pathlib import Path
from typing import Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hemorrhage.analyze.inputs import model_name
from hemorrhage.analyze.report import glossary
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.sections import (
    brackets,
    categories,
    claims,
    damage,
    decision,
    decoding,
    doctor,
    engines,
    mitigations,
    ranking,
    ship,
    summary,
    tasks,
    texts,
    thresholds,
    tradeoff,
    training,
    transfer,
    variants,
    where,
)
from hemorrhage.analyze.report.sections.cards import cards
from hemorrhage.analyze.report.sections.cost import cost_rows
from hemorrhage.analyze.report.sections.drafts import draft_rows
from hemorrhage.analyze.report.sections.failures import failures
from hemorrhage.analyze.report.sections.memory import memory_rows
from hemorrhage.analyze.report.sections.provenance import csv_columns, protocols
from hemorrhage.analyze.report.tags import in_texts
from hemorrhage.analyze.rows.missing import missing_parts
from hemorrhage.analyze.study import Study

TEMPLATES = Path(__file__).parent / "templates"
"""report.html.j2 holds the page together, each section is a file."""

PALETTES = {
    "light": {
        "ink": "#1c2024",
        "muted": "#6b727a",
        "grid": "#dfe2e6",
        "surface": "#ffffff",
        "band": "#f3f4f6",
        "series": ["#0067a5", "#c8500a", "#00805c", "#9b2c74", "#7a6200", "#5552c9"],
    },
    "dark": {
        "ink": "#e6e8ea",
        "muted": "#9aa2ab",
        "grid": "#363c43",
        "surface": "#1b1f24",
        "band": "#20252b",
        "series": ["#5cb3ef", "#ff8f52", "#3fcf9f", "#e58bc2", "#dcc04a", "#a6a4ff"],
    },
}
"""Colours that can be distinguished by the colour-blind (after Okabe and Ito), with a contrast of at least 4.5 to 1 in
light and dark; every series has a symbol of its own, too."""


class Drawn(Protocol):
    """A section with charts."""

    @property
    def figures(self) -> dict[str, Figure]:
        """Key -> chart."""


def render(study: Study) -> str:
    """Render the whole page as HTML."""
    drawn: dict[str, Drawn | None] = {
        "damage": damage.section(study),
        "tradeoff": tradeoff.section(study),
        "where": where.section(study),
        "tasks": tasks.section(study),
        "mitigations": mitigations.section(study),
        "doctor": doctor.section(study),
        "decoding": decoding.section(study),
        "training": training.section(study),
    }
    figures: dict[str, Figure] = {}
    for section in drawn.values():
        figures |= section.figures if section else {}
    html = (
        environment()
        .get_template("report.html.j2")
        .render(
            **drawn,
            ship=ship.section(study),
            decision=decision.section(study),
            texts=texts.section(study),
            brackets=brackets.section(study),
            summary=summary.section(study),
            categories=categories.section(study),
            thresholds=thresholds.section(study),
            transferred=transfer.texts_sentence(study),
            draws=transfer.draws_sentence(study),
            ranking=ranking.section(study),
            claims=claims.section(study),
            engines=engines.section(study),
            costs=cost_rows(study.inputs, study.numbers),
            memory=memory_rows(study.inputs, study.recommended.overall.variant),
            drafts=draft_rows(study.inputs, study.numbers, study.corpora),
            variants=variants.section(study),
            flags=study.flags,
            failures=failures(study.inputs),
            missing=missing_parts(study.inputs),
            cards=cards(study),
            protocols=protocols(study.rows),
            provenance=study.provenance,
            title=model_name(study.inputs.base),
            blocks=study.blocks,
            corpora=study.corpora,
            corpus_options=[(corpus, corpus) for corpus in study.corpora],
            confidence=f"{100 * study.spec.confidence:g}",
            spec=study.spec,
            map_height=80 + 15 * len(study.inputs.variants),
            palettes=PALETTES,
            figures=figures,
            rows=csv_columns(study.rows),
            plotly=plotly(),
            glossary=glossary.entries(),
        )
    )
    return glossary.link_words(link_papers(html))


def render_gap(model: str, reason: str) -> str:
    """Render the page of a model that could not be made."""
    return environment().get_template("gap.html.j2").render(title=model, reason=reason)


@functools.cache
def environment() -> Environment:
    """Return the environment that renders the templates, which are compiled once in a process."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["json"] = _json
    made.filters["definition"] = glossary.definition
    made.filters["packed"] = lambda value: pack(_json(value))
    return made


@functools.cache
def plotly() -> Markup:
    """Return the source of plotly.js as base64 of gzip: 1.9 MB of 4.8, which the page unpacks when a chart is near."""
    from plotly.offline import get_plotlyjs

    return pack(get_plotlyjs())


def pack(text: str) -> Markup:
    """Return base64 of gzip, which report.js unpacks."""
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii"))


PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def link_papers(html: str) -> str:
    """Make a link of every arXiv identifier in the texts of HTML, up to its first script."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'
    return "".join(PAPER.sub(link, piece) if is_text else piece for piece, is_text in in_texts(html))


def _json(value: object) -> Markup:
    """Write JSON for a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # no tag can open

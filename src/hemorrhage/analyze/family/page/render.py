"""The page of several models: one self-contained file that opens from disk, with a link to each model's own page."""

from __future__ import annotations

import math
from typing import TypedDict

from hemorrhage.analyze.family.effects import TOO_FEW, Effect
from hemorrhage.analyze.family.page import charts
from hemorrhage.analyze.family.page.answers import amount, answers, moved, written
from hemorrhage.analyze.family.results import Results
from hemorrhage.analyze.report.page import PALETTES, environment, plotly


class LevelRow(TypedDict):
    """An outcome in the table of groups: a cell for each group, and whether they differ beyond their loss."""

    name: str
    measure: str
    cells: list[dict[str, str]]
    answer: str


class ContrastRow(TypedDict):
    """Two groups in an outcome."""

    outcome: str
    measure: str
    pair: str
    difference: str
    p: str
    verdict: str


class MovementRow(TypedDict):
    """An outcome over a factor."""

    outcome: str
    measure: str
    factor: str
    slope: str
    p: str
    beside: str


def render(results: Results) -> str:
    """Render the page as HTML."""
    figures = charts.figures(results)
    facts = list(dict.fromkeys(name for row in results.models for name in row.facts))
    return (
        environment()
        .get_template("family.html.j2")
        .render(
            title=f"{len(results.models)} models",
            confidence=f"{100 * results.confidence:g}",
            answers=answers(results),
            models=results.models,
            gaps=results.gaps,
            facts=facts,
            groups=[level.group for level in results.effects[0].levels] if results.effects else [],
            levels=[_levels(effect) for effect in results.effects],
            contrasts=[row for effect in results.effects for row in _contrasts(effect)],
            movements=[row for effect in results.effects for row in _movements(effect)],
            law=results.law,
            relations=results.relations,
            claims=results.claims,
            figures=figures,
            sweeps=[key.partition("|")[2] for key in figures if key.startswith("damage|")],
            drifts=[key.partition("|")[2] for key in figures if key.startswith("drift|")],
            measures=[key.partition("|")[2] for key in figures if key.startswith("places|")],
            palettes=PALETTES,
            plotly=plotly(),
        )
    )


def _levels(effect: Effect) -> LevelRow:
    cells = []
    for level in effect.levels:
        mean, low, high = written((level.mean, level.low, level.high), effect.outcome.is_ratio)
        notes = [f"{low} to {high}" if low else "", f"{level.lacking} without: {level.reason}" if level.lacking else ""]
        cells.append({"text": mean or "–", "note": "; ".join(filter(None, notes))})
    answer = effect.disguise.sentence if effect.disguise else ""
    return {"name": effect.outcome.name, "measure": effect.outcome.measure, "cells": cells, "answer": answer}


def _contrasts(effect: Effect) -> list[ContrastRow]:
    return [
        {
            "outcome": effect.outcome.name,
            "measure": effect.outcome.measure,
            "pair": f"{each.second} against {each.first}",
            "difference": amount(each.difference, each.low, each.high, effect.outcome.is_ratio),
            "p": f"{each.p:.2g}",
            "verdict": each.verdict,
        }
        for each in effect.contrasts
        if each.verdict != TOO_FEW
    ]


def _movements(effect: Effect) -> list[MovementRow]:
    rows: list[MovementRow] = []
    for each in effect.movements:
        beside = "can't be told from the loss"
        if math.isfinite(each.beside_loss):
            beside = amount(each.beside_loss, each.beside_low, each.beside_high, effect.outcome.is_ratio)
        rows.append(
            {
                "outcome": effect.outcome.name,
                "measure": effect.outcome.measure,
                "factor": each.factor,
                "slope": moved(each, effect.outcome.is_ratio),
                "p": f"{each.p:.2g}",
                "beside": beside,
            }
        )
    return rows

"""Charts of several models: the damage of a sweep by group, and where each group's curves reach a level."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hemorrhage.analyze.family.effects import Effect, Level
from hemorrhage.analyze.family.outcomes import DAMAGE, DRIFT, THRESHOLD
from hemorrhage.analyze.family.results import Results
from hemorrhage.analyze.report.charts.plotly import HOVER, SYMBOLS, Figure, Json, error_bars, frame


def damage(results: Results, sweep: str, effects: Sequence[Effect]) -> Figure:
    """Draw the KL of a sweep's variants by severity: a line through each group's means, and a dot for each model."""
    groups = {row.model: row.group for row in results.models}
    names = list(dict.fromkeys(groups.values()))
    places = _places(effects)
    traces: list[Json] = []
    for index, group in enumerate(names):
        colour, symbol = f"@series-{index}", SYMBOLS[index % len(SYMBOLS)]
        means = [
            (place, level) for place, each in zip(places, effects, strict=True) if (level := _of(each, group)).models
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": group,
                "legendgroup": group,
                "x": [place for place, _ in means],
                "y": [math.exp(level.mean) for _, level in means],
                "text": [f"{group}: {math.exp(level.mean):.3g} nats, {level.models} models" for _, level in means],
                "hovertemplate": HOVER,
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "symbol": symbol, "size": 8},
                "error_y": error_bars(*_bars([level for _, level in means]), colour),
            }
        )
        dots = [
            (place, math.exp(value), model)
            for place, each in zip(places, effects, strict=True)
            for model, value in each.outcome.values.items()
            if groups[model] == group and math.isfinite(value)
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "legendgroup": group,
                "x": [place for place, _, _ in dots],
                "y": [kl for _, kl, _ in dots],
                "text": [f"{model}: {kl:.3g} nats" for _, kl, model in dots],
                "hovertemplate": HOVER,
                "marker": {"color": f"{colour}/0.45", "symbol": symbol, "size": 4},
            }
        )
    layout = frame(_axis(effects, sweep), {"title": {"text": "KL (nats per token)"}, "type": "log"})
    return {"data": traces, "layout": layout}


def _places(effects: Sequence[Effect]) -> list[float]:
    """Return the severities; where these are equal, as of noise on a third of the blocks, the places in the order."""
    severities = [each.outcome.severity for each in effects]
    known = [float(value) for value in severities if isinstance(value, int | float)]
    return known if len(set(known)) == len(effects) else [float(index) for index in range(len(effects))]


def _axis(effects: Sequence[Effect], sweep: str) -> Json:
    if _places(effects) == [each.outcome.severity for each in effects]:
        return {"title": {"text": f"setting of {sweep}"}}
    names = [each.outcome.name for each in effects]
    return {"title": {"text": sweep}, "tickvals": list(range(len(names))), "ticktext": names}


def _of(effect: Effect, group: str) -> Level:
    return next(level for level in effect.levels if level.group == group)


def _bars(levels: Sequence[Level]) -> tuple[list[float | None], list[float | None]]:
    above = [math.exp(each.high) - math.exp(each.mean) if math.isfinite(each.high) else None for each in levels]
    below = [math.exp(each.mean) - math.exp(each.low) if math.isfinite(each.low) else None for each in levels]
    return above, below


def places(effects: Sequence[Effect], measure: str) -> Figure:
    """Draw where each group lies in one measure, a row for each curve or variant, with intervals over models."""
    of_measure = [each for each in effects if each.outcome.measure == measure]
    groups = [level.group for level in of_measure[0].levels]
    number = math.exp if of_measure[0].outcome.is_ratio else float
    traces: list[Json] = []
    for index, group in enumerate(groups):
        colour = f"@series-{index}"
        levels = [(each.outcome.name, _of(each, group)) for each in of_measure]
        known = [(name, level) for name, level in levels if level.models]
        offset = 0.12 * (index - (len(groups) - 1) / 2)
        rows = {each.outcome.name: row for row, each in enumerate(of_measure)}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": group,
                "x": [number(level.mean) for _, level in known],
                "y": [rows[name] + offset for name, _ in known],
                "text": [f"{group}, {name}: {number(level.mean):.3g} ({level.models} models)" for name, level in known],
                "hovertemplate": HOVER,
                "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
                "error_x": error_bars(
                    [_gap(number(each.high), number(each.mean)) for _, each in known],
                    [_gap(number(each.mean), number(each.low)) for _, each in known],
                    colour,
                ),
            }
        )
    names = [each.outcome.name for each in of_measure]
    ticks = {"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed"}
    return {"data": traces, "layout": frame({"title": {"text": measure}}, ticks)}


def _gap(above: float, below: float) -> float | None:
    return above - below if math.isfinite(above - below) else None


def figures(results: Results) -> dict[str, Figure]:
    """Draw every chart of the page by key."""
    drawn: dict[str, Figure] = {}
    by_sweep: dict[str, list[Effect]] = {}
    for effect in results.effects:
        if effect.outcome.kind == DAMAGE:
            by_sweep.setdefault(effect.outcome.name.partition("-")[0], []).append(effect)
    drawn |= {f"damage|{sweep}": damage(results, sweep, effects) for sweep, effects in by_sweep.items()}
    for key, kind in (("places", THRESHOLD), ("drift", DRIFT)):
        placed = [effect for effect in results.effects if effect.outcome.kind == kind]
        for measure in dict.fromkeys(effect.outcome.measure for effect in placed):
            drawn[f"{key}|{measure}"] = places(placed, measure)
    return drawn

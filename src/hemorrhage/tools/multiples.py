"""Many revisions of a study as one tidy table and one page: a chart for each variant, its damage by what was swept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from hemorrhage.analyze.report import page as report
from hemorrhage.analyze.report.charts.multiples import Place, Point, panel
from hemorrhage.analyze.rows.differences import JOINED, SHOWN, flatten, join
from hemorrhage.analyze.rows.names import parse
from hemorrhage.analyze.rows.schema import OK
from hemorrhage.runtime.address import Json
from hemorrhage.tools.revisions import Study, shipped

MOST_PANELS = 60
"""Variants that have a chart; all are in the tables."""

NUMBERS = ["estimate", "low", "high", "n", "status", "reason"]
DIFFERENCES = ["difference", "difference_low", "difference_high", "paired", "certain"]


def swept(studies: Sequence[Study]) -> dict[str, list[object]]:
    """Map each key of params.yaml that differs between studies to its value in each; None where one has no such key."""
    flat = [flatten(study.params) for study in studies]
    keys = dict.fromkeys(key for params in flat for key in params)
    values = {key: [params.get(key) for params in flat] for key in keys}
    return {key: of_key for key, of_key in values.items() if any(value != of_key[0] for value in of_key)}


def table(studies: Sequence[Study]) -> pd.DataFrame:
    """Return a row per revision, variant, metric and data set: every number of a whole model, beside the first study's.

    Columns: ``revision``, ``commit``, one for each key of params.yaml that differs, ``variant``, ``family``,
    ``method``, ``metric``, ``tag`` (its protocol), ``part``, ``dataset``, ``protocol``, ``estimate``, ``low``,
    ``high``, ``n``, ``status``, ``reason``, ``difference`` from the first revision with ``difference_low`` and
    ``difference_high``, ``paired`` and ``certain``. A number that the first lacks, or has by another protocol, has no
    difference.
    """
    values = swept(studies)
    parts = []
    for index, study in enumerate(studies):
        part = _beside(studies[0], study)
        part.insert(0, "revision", study.name)
        part.insert(1, "commit", study.commit)
        for column, (key, of_key) in enumerate(values.items()):
            part.insert(2 + column, key, _text(of_key[index]))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _beside(first: Study, study: Study) -> pd.DataFrame:
    """Return the numbers of a study, with their differences from the first's."""
    joined = join(first.rows, study.rows, (first.blocks, study.blocks))
    joined = joined[joined["side"] != "left_only"]
    kept = pd.DataFrame({name: joined[name] for name in JOINED if name != "conditions"})
    names = [parse(metric) for metric in kept["metric"]]
    kept["metric"] = [name.metric for name in names]
    kept.insert(4, "tag", [name.tag for name in names])
    kept.insert(5, "part", [name.part for name in names])
    kept["protocol"] = joined["protocol_b"]
    for name in NUMBERS:
        kept[name] = joined[f"{name}_b"]
    kept["n"] = kept["n"].astype("int64")
    for name, source in zip(DIFFERENCES, ("difference", "low", "high", "paired", "certain"), strict=True):
        kept[name] = joined[source]
    order = {name: index for index, name in enumerate(dict.fromkeys(study.rows["variant"]))}
    return kept.sort_values("variant", key=lambda column: column.map(order), kind="stable").reset_index(drop=True)


class Measure(NamedTuple):
    """A metric on a data set that charts show: how the page calls it, and its number on the page."""

    key: str
    metric: str
    dataset: str
    name: str


def measures(tidy: pd.DataFrame) -> list[Measure]:
    """List the headline metrics on their data sets, the language metrics first."""
    shown = tidy[_is_charted(tidy)]
    pairs = shown[["metric", "dataset"]].drop_duplicates().itertuples(index=False)
    order = list(SHOWN)
    ordered = sorted(((str(metric), str(dataset)) for metric, dataset in pairs), key=lambda pair: order.index(pair[0]))
    return [
        Measure(f"m{index}", metric, dataset, f"{SHOWN[metric]}{f' on {dataset}' if dataset else ''}")
        for index, (metric, dataset) in enumerate(ordered)
    ]


def _is_charted(tidy: pd.DataFrame) -> pd.Series:
    headline = tidy["metric"].isin(SHOWN) & (tidy["part"] == "") & (tidy["family"] != "decode")
    return headline & (tidy["status"] == OK)


def places(studies: Sequence[Study]) -> tuple[str, list[Place]]:
    """Return what the charts' horizontal axis shows, and the place of each study on it.

    The key of params.yaml with the most values is the axis, the others tell lines apart; without any, revisions are.
    """
    values = swept(studies)
    distinct = {key: list(dict.fromkeys(_text(value) for value in of_key)) for key, of_key in values.items()}
    if not values:
        return "revision", [Place(study.name, float(index), study.name, "") for index, study in enumerate(studies)]
    axis = max(values, key=lambda key: len(distinct[key]))
    numbers = [value for value in values[axis] if isinstance(value, int | float) and not isinstance(value, bool)]
    is_numeric = len(numbers) == len(studies)
    at_each = []
    for index, study in enumerate(studies):
        value = values[axis][index]
        at = float(numbers[index]) if is_numeric else float(distinct[axis].index(_text(value)))
        others = [f"{key}={_text(of_key[index])}" for key, of_key in values.items() if key != axis]
        at_each.append(Place(study.name, at, _text(value), ", ".join(others)))
    return axis, at_each


def render(studies: Sequence[Study], tidy: pd.DataFrame) -> str:
    """Render the page of many studies as HTML; ``tidy``: their table."""
    listed = measures(tidy)
    axis, at = places(studies)
    variants = list(dict.fromkeys(tidy["variant"]))
    charted = variants[:MOST_PANELS]
    numbers = _points(tidy)
    figures = {
        f"multiple|{measure.key}|{variant}": panel(
            axis, at, [numbers.get((place.revision, variant, measure.metric, measure.dataset)) for place in at], measure
        )
        for measure in listed
        for variant in charted
    }  # fmt: skip
    values = swept(studies)
    return report.environment().get_template("multiples.html.j2").render(
        title=f"{len(studies)} revisions",
        first=studies[0].name,
        studies=[
            (study, shipped(study), [_text(of_key[index]) for of_key in values.values()])
            for index, study in enumerate(studies)
        ],
        swept=list(values),
        axis=axis,
        measures=listed,
        measure_options=[(measure.key, measure.name) for measure in listed],
        variants=variants,
        charted=charted,
        cells=_cells(studies, listed, variants, numbers),
        total=len(tidy),
        palettes=report.PALETTES,
        figures=figures,
        plotly=report.plotly(),
    )  # fmt: skip


Key = tuple[str, str, str, str]
"""Revision, variant, metric, data set."""


def _points(tidy: pd.DataFrame) -> dict[Key, Point]:
    """Return the headline's numbers. Of two protocols in one study the first stands for both."""
    shown = tidy[_is_charted(tidy)]
    points: dict[Key, Point] = {}
    for row in shown.itertuples(index=False):
        point = Point(
            float(row.estimate),
            float(row.low),
            float(row.high),
            float(row.difference),
            float(row.difference_low),
            float(row.difference_high),
            bool(row.certain),
        )
        points.setdefault((row.revision, row.variant, row.metric, row.dataset), point)
    return points


class Cell(NamedTuple):
    """A number of a revision in the page's table, and its difference from the first; ``sort`` orders the column."""

    value: str
    difference: str
    certain: bool
    sort: float | None


NOTHING = Cell("–", "", False, None)


def _cells(
    studies: Sequence[Study], listed: Sequence[Measure], variants: Sequence[str], numbers: dict[Key, Point]
) -> dict[str, list[tuple[str, list[Cell]]]]:
    """By measure, each variant that has a number with its numbers in the order of the studies."""
    cells: dict[str, list[tuple[str, list[Cell]]]] = {}
    for measure in listed:
        rows = [
            (name, [_cell(numbers.get((study.name, name, measure.metric, measure.dataset))) for study in studies])
            for name in variants
        ]
        cells[measure.key] = [(name, row) for name, row in rows if any(cell is not NOTHING for cell in row)]
    return cells


def _cell(point: Point | None) -> Cell:
    return NOTHING if point is None else Cell(f"{point.value:.4g}", point.change, point.certain, point.value)


def _text(value: object) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)


def as_json(studies: Sequence[Study], tidy: pd.DataFrame) -> Json:
    """Return the table as plain content, with the revisions and what differs between their params."""
    return {
        "revisions": [{"name": study.name, "commit": study.commit} for study in studies],
        "params": swept(studies),
        "rows": tidy.to_dict("records"),
    }

"""Damage by layer and by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.report.charts.heatmap import Colours, heatmap
from hemorrhage.analyze.report.charts.layers import LAYER_MAPS, layer_maps, profiles, with_interval
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.scales import kl_coordinate
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.study import Study

BUCKETS = {"position": "Position in the window", "frequency": "Occurrences of the target"}
"""What KL is split by."""


@dataclass(frozen=True)
class Where:
    """The section: key and name of each map of layers, kinds of tokens, and variants that have a profile."""

    layer_maps: list[tuple[str, str]]
    buckets: dict[str, str]
    profiled: list[str]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Where:
    """Return the section of a study, with all maps and profiles drawn."""
    altered = [name for name in study.inputs.variants if name != BASE]
    maps = layer_maps(study.rows, altered)
    by_token = bucket_maps(study.rows, study.numbers, altered, study.corpora)
    by_variant = profiles(study.rows, altered)
    return Where(
        layer_maps=[(key, layer_map.name) for key, layer_map in LAYER_MAPS.items() if f"layers|{key}" in maps],
        buckets=BUCKETS if by_token else {},
        profiled=[key.partition("|")[2] for key in by_variant if key.startswith("cascade|")],
        figures={**maps, **by_token, **by_variant},
    )


def bucket_maps(
    rows: pd.DataFrame, numbers: Numbers, names: Sequence[str], corpora: Sequence[str]
) -> dict[str, Figure]:
    """Draw ``buckets|<kind>|<corpus>``: variants by kind of token."""
    metrics = rows.loc[rows["status"] == "ok", "metric"].drop_duplicates()
    maps = {}
    for bucket, description in BUCKETS.items():
        labels = list(metrics.str.extract(rf"^kl_mean\{{{bucket}=([^}}]+)\}}", expand=False).dropna())
        for corpus in corpora:
            cells = {
                name: {label: numbers.get(name, f"kl_mean{{{bucket}={label}}}", corpus) for label in labels}
                for name in names
            }
            title = f"mean KL by {description.lower()}"
            maps[f"buckets|{bucket}|{corpus}"] = heatmap(cells, labels, title, with_interval, Colours(kl_coordinate))
    return maps

"""Damage curves: a chart for each family and each axis in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hemorrhage.analyze.axes import AXES, Sweep, sweeps
from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.report.charts.damage import Chart, damage
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.charts.scales import LINEAR_BELOW, SCALES
from hemorrhage.analyze.report.sections.families import families, family_name
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.study import Study

SINGLE = "One variant each"
"""The panel of curves of a single variant, whatever their axis."""


@dataclass(frozen=True)
class Panel:
    """The curves of a family on one axis."""

    key: str
    name: str
    curves: list[Sweep]


@dataclass(frozen=True)
class Damage:
    """The section: ``scales``: key -> name of those that were measured."""

    panels: list[Panel]
    scales: dict[str, str]
    linear_below: float
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Damage:
    """Return the section of a study, with ``<panel>|<scale>|<corpus>`` drawn."""
    panels, scales = list_panels(study.inputs), measured_scales(study.numbers)
    figures = {
        f"{panel.key}|{scale}|{corpus}": damage(
            Chart(study.inputs, study.numbers, scale, corpus, study.spec.budget), panel.curves, study.thresholds
        )
        for corpus in study.corpora
        for panel in panels
        for scale in scales
    }
    return Damage(panels, scales, LINEAR_BELOW, figures)


def list_panels(inputs: Inputs) -> list[Panel]:
    """List the families and axes that there are curves of; those of single variants share one."""
    curves = sweeps(inputs)
    panels = []
    for family in families(inputs):
        axes = list(dict.fromkeys(curve.axis for curve in curves if curve.family == family))
        name = family_name(family)
        panels += [
            Panel(
                key=f"{family}-{axis}",
                name=name if len(axes) == 1 else f"{name}: {AXES.get(axis, axis)}",
                curves=[curve for curve in curves if (curve.family, curve.axis) == (family, axis)],
            )
            for axis in axes
        ]
    single = [panel for panel in panels if all(len(curve.variants) < 2 for curve in panel.curves)]
    if len(single) < 2:
        return panels
    together = Panel("single", SINGLE, [curve for panel in single for curve in panel.curves])
    return [*(panel for panel in panels if panel not in single), together]


def measured_scales(numbers: Numbers) -> dict[str, str]:
    """Name the scales whose metric was measured."""
    return {key: scale.name for key, scale in SCALES.items() if numbers.datasets(scale.metric)}

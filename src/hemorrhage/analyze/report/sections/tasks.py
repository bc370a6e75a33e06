"""Tasks: how the base answers each, and how variants change its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.report.charts.heatmap import Colours, heatmap
from hemorrhage.analyze.report.charts.plotly import Figure
from hemorrhage.analyze.report.sections.variants import probability
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_HARNESS_TASKS, ALL_PROGRAMS, ALL_TASKS, Suite
from hemorrhage.analyze.study import Study

SUITES = {ALL_TASKS: "probe", ALL_HARNESS_TASKS: "lm-eval", ALL_PROGRAMS: "code"}
"""Name of a suite in the rows -> on the page."""


@dataclass(frozen=True)
class Task:
    """A task as the base answers it."""

    name: str
    suite: str
    items: int
    guessing: str
    accuracy: str
    note: str


@dataclass(frozen=True)
class Tasks:
    """The section."""

    rows: list[Task]
    figures: dict[str, Figure] = field(repr=False)


def section(study: Study) -> Tasks:
    """Return the section of a study, with ``tasks`` drawn where a change of accuracy was measured."""
    return Tasks(list_tasks(study.rows, study.suites), accuracy_map(study.inputs, study.numbers))


def list_tasks(rows: pd.DataFrame, suites: Sequence[Suite]) -> list[Task]:
    """List every task with the base's accuracy, and whether it takes part in means and tests."""
    of_base = rows[(rows["variant"] == BASE) & (rows["family"] == BASE) & (rows["metric"] == "accuracy")]
    columns = ["dataset", "status", "estimate", "low", "high", "n"]
    accuracies = {row[0]: row[1:] for row in of_base[columns].itertuples(index=False, name=None)}
    tasks = []
    for suite in suites:
        manifests = (output.manifest.get("tasks") or {} for output in suite.outputs.values())
        for name, task in next(filter(None, manifests), {}).items():
            accuracy, items = "failed", 0
            status, estimate, low, high, n = accuracies.get(name, ("failed",) * 5)
            if status != "failed":
                accuracy, items = f"{100 * estimate:.1f} ({100 * low:.1f} to {100 * high:.1f})", int(n)
            guessing = f"{100 * task['chance']:.1f}"
            floor = task.get("floor")
            if floor is not None:
                guessing += f"; {100 * floor:.1f} with a constant answer"
            note = "at chance: excluded from means and tests" if name in suite.at_chance else ""
            tasks.append(Task(name, SUITES[suite.name], items, guessing, accuracy, note))
    return tasks


def accuracy_map(inputs: Inputs, numbers: Numbers) -> dict[str, Figure]:
    """Draw the change of accuracy, variants by tasks."""
    tasks = numbers.datasets("accuracy_change")
    altered = [name for name in inputs.variants if name != BASE]
    cells = {name: {task: numbers.get(name, "accuracy_change", task) for task in tasks} for name in altered}
    if not tasks:
        return {}
    return {"tasks": heatmap(cells, tasks, "change of accuracy", _with_test, Colours(signed=True))}


def _with_test(estimate: Estimate) -> str:
    value, low, high = (100 * number for number in estimate[:3])
    p, q = probability(estimate.p), probability(estimate.q)
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f}), p {p}, q {q}"

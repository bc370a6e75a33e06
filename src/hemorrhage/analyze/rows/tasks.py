"""Rows of tasks: accuracy and what changed against the base on the same items.

Three steps answer items: evaluate (its own scoring), lm-eval and the code tasks. Each is a suite. The blocks are groups
of items that share choices; where items do not, each is a group.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.manifests import Task
from hemorrhage.analyze.rows.schema import AT_CHANCE, Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

METRICS = ("accuracy", "accuracy_change", "flips", "changed_answers")
"""Per task: share right, its change against the base, share of items that went from right to wrong or back,
share of items with another answer."""

MEANS = ("mean_accuracy", "mean_accuracy_change", "mean_flips", "accuracy_loss_points")
"""Over a suite's tasks; ``accuracy_loss_points`` is the change with the other sign, in points of a hundred, and a score
interval, which says how much a loss of nothing can hide, where resampling finds no spread at all."""

ALL_TASKS = "all tasks"
ALL_HARNESS_TASKS = "all lm-eval tasks"
ALL_PROGRAMS = "all code tasks"

ITEMS = "items.parquet"


@dataclass(frozen=True)
class Suite:
    """Tasks that are averaged together.

    ``outputs``: by variant, with a table ``items.parquet`` whose columns are task, item, group, choice, correct,
    base_choice, base_correct. ``at_chance``: task -> why it says nothing. ``independent``: task -> the independent
    items that its items are worth where answers flip, of all variants together.
    """

    name: str
    outputs: dict[str, Output]
    at_chance: dict[str, str]
    independent: dict[str, float] = field(default_factory=dict)

    @property
    def averaged_tasks(self) -> list[str]:
        """Tasks that the mean accuracy is over: those on which the base is above chance."""
        names = dict.fromkeys(name for output in self.outputs.values() for name in output.manifest.get("tasks", {}))
        return sorted(name for name in names if name not in self.at_chance)


def suites(inputs: Inputs, evaluations: dict[str, Output], spec: Spec) -> list[Suite]:
    """Collect the suites that were run."""
    outputs = {
        ALL_TASKS: evaluations,
        ALL_HARNESS_TASKS: _pair({name: _check_items(output) for name, output in inputs.harness.items()}),
        ALL_PROGRAMS: _pair({name: _as_items(output) for name, output in inputs.code_tasks.items()}),
    }
    return [suite_of(name, of_suite, spec) for name, of_suite in outputs.items() if of_suite]


def suite_of(name: str, outputs: dict[str, Output], spec: Spec) -> Suite:
    """Make the suite of outputs that have the base's answers next to their own."""
    checked = {variant: _check_items(output) for variant, output in outputs.items()}
    return Suite(name, checked, _tasks_at_chance(checked, spec), _independent_items(checked, spec))


def _as_items(output: Output) -> Output:
    """Return programs as items: the text of a program is its choice, and each is a group of its own."""
    if "programs.parquet" not in output.tables:
        return output
    programs = output.tables["programs.parquet"]
    items = programs[["task", "item", "correct"]].assign(group=programs["item"], choice=programs["completion"])
    return Output(output.manifest, {ITEMS: items})


def _check_items(output: Output) -> Output:
    """Return a failure in place of an output that answers tasks but has no items."""
    lacking = output.failure is None and output.manifest.get("tasks") and ITEMS not in output.tables
    return _fail(output, f"{ITEMS} is missing") if lacking else output


def _pair(outputs: dict[str, Output]) -> dict[str, Output]:
    """Add the base's answers to each variant's; a failure where the base has no such answers."""
    base = outputs.get(BASE)
    return {name: _pair_with(base, output) for name, output in outputs.items()}


def _pair_with(base: Output | None, output: Output) -> Output:
    if output.failure is not None:
        return output
    if base is None or base.failure is not None:
        return _fail(output, f"nothing to pair with: the base {base.failure if base else 'was not measured'}")
    columns = ["task", "item", "choice", "correct"]
    before = base.tables[ITEMS][columns].rename(columns={"choice": "base_choice", "correct": "base_correct"})
    items = output.tables[ITEMS]
    both = items.merge(before, on=["task", "item"], validate="one_to_one")
    hashes = [{name: task["sha256"] for name, task in side.manifest["tasks"].items()} for side in (output, base)]
    if len(both) != len(items) or len(both) != len(before) or hashes[0] != hashes[1]:
        return _fail(output, "its items are not those that the base answered")
    return Output(output.manifest, {ITEMS: both})


def _fail(output: Output, reason: str) -> Output:
    return Output({**output.manifest, "failure": reason}, {})


def _tasks_at_chance(outputs: dict[str, Output], spec: Spec) -> dict[str, str]:
    """Tasks on which the base does no better than guessing -> the numbers that say so."""
    whole = next((output for output in outputs.values() if ITEMS in output.tables), None)
    if whole is None:
        return {}
    reasons = {}
    for name, items in whole.tables[ITEMS].groupby("task", sort=False):
        guessing = floor(whole.manifest["tasks"][str(name)])
        right, groups = items["base_correct"].to_numpy(float), items["group"].to_numpy()
        share, (low, high) = float(right.mean()), share_interval(right, groups, spec.confidence)
        if low <= guessing:
            reasons[str(name)] = (
                f"the base is at chance: {share:.3f} ({low:.3f} to {high:.3f}), while guessing gives {guessing:.3f}"
            )
    return reasons


def _independent_items(outputs: dict[str, Output], spec: Spec) -> dict[str, float]:
    """Count the independent items that each task is worth where answers flip.

    How much answers of a group go together is estimated from the flips of all variants and from what the base gets
    right, at once: a variant whose answers all agree shows nothing of it, and must not be known worse than one with a
    flip.
    """
    measured: dict[str, list[Floats]] = {}
    groups: dict[str, Integers] = {}
    for output in outputs.values():
        for name, items in output.tables.get(ITEMS, pd.DataFrame({"task": []})).groupby("task", sort=False):
            now, before = items["correct"].to_numpy(bool), items["base_correct"].to_numpy(bool)
            grouped = groups.setdefault(str(name), items["group"].to_numpy())
            if np.array_equal(grouped, items["group"].to_numpy()):
                measured.setdefault(str(name), [before.astype(float)]).append((now != before).astype(float))
    return {
        name: bootstrap.effective_size(np.stack(of_task), groups[name], spec.confidence)
        for name, of_task in measured.items()
    }


def floor(task: Task) -> float:
    """Return the accuracy of guessing, or of the best constant answer where that is known and better."""
    return max(float(task["chance"]), float(task.get("floor") or 0.0))


def task_rows(variant: Variant, suite: Suite, spec: Spec) -> Iterator[Row]:
    """Rows of one variant on a suite's tasks, and of their mean."""
    output = suite.outputs.get(variant.name)
    if output is None:
        return
    tasks = output.manifest.get("tasks", {})
    for name, task in tasks.items():
        source = Source(name, task["protocol"], task["sha256"], environment_id(output.manifest))
        if variant.name == BASE:
            yield from _level_rows(variant, task, source)
        if output.failure is not None:
            for metric in METRICS:
                yield row(variant, metric, Statistic.failed(output.failure), source)
            continue
        items = output.tables[ITEMS]
        at_chance = suite.at_chance.get(name)
        for metric, measured in damage(items[items["task"] == name], spec).items():
            statistic = measured.untested() if variant.name == BASE else measured
            if at_chance is not None:
                statistic = replace(statistic.untested(), status=AT_CHANCE, reason=at_chance)
            yield row(variant, metric, statistic, source)
    if tasks:
        yield from _mean_rows(variant, suite, output, spec)


def _level_rows(variant: Variant, task: Task, source: Source) -> Iterator[Row]:
    yield row(variant, "chance", Statistic(float(task["chance"]), n=1), source)
    constant = task.get("floor")
    if constant is not None:
        yield row(variant, "floor", Statistic(float(constant), n=1), source)


def _mean_rows(variant: Variant, suite: Suite, output: Output, spec: Spec) -> Iterator[Row]:
    tasks = {name: task for name, task in output.manifest["tasks"].items() if name not in suite.at_chance}
    joined = "".join(sorted(task["sha256"] for task in tasks.values()))
    protocols = sorted({task["protocol"] for task in tasks.values()})
    source = Source(
        dataset=suite.name,
        protocol=f"mean of {', '.join(sorted(tasks))}: {'; '.join(protocols)}" if tasks else "no task",
        data=hashlib.sha256(joined.encode()).hexdigest(),
        environment=environment_id(output.manifest),
    )
    if output.failure is not None or not tasks:
        gap = Statistic.undefined("the base is at chance on every task")
        if output.failure is not None:
            gap = Statistic.failed(output.failure)
        for metric in MEANS:
            yield row(variant, metric, gap, source)
        return
    items = output.tables[ITEMS]
    items = items[items["task"].isin(tasks)]
    measured_means = {**_mean_accuracy(items, spec), **mean_shares(items, suite.independent, spec)}
    for metric, measured in measured_means.items():
        yield row(variant, metric, measured.untested() if variant.name == BASE else measured, source)
    if variant.name == BASE:
        chance = float(np.mean([task["chance"] for task in tasks.values()]))
        yield row(variant, "chance", Statistic(chance, n=1), source)


def task_losses(suite: Suite, spec: Spec) -> dict[str, tuple[float, Floats, int]]:
    """Variant -> share of the base's mean accuracy that it lost, the same in each resample, and the number of groups.

    Over the tasks on which the base does better than guessing; resampled as :func:`task_rows` does.
    """
    losses = {}
    for name, output in suite.outputs.items():
        if output.failure is None and suite.averaged_tasks and ITEMS in output.tables:
            items = output.tables[ITEMS]
            means = _resample(items[items["task"].isin(suite.averaged_tasks)], spec)
            before = means.level - means.shift
            with np.errstate(divide="ignore", invalid="ignore"):
                lost = -means.shifts / (means.levels - means.shifts)
            losses[name] = (-means.shift / before, lost, means.blocks)
    return losses


def share_interval(values: Floats, groups: Integers, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share, at the effective number of items."""
    size = bootstrap.effective_size(values, groups, confidence)
    return bootstrap.wilson(float(values.mean()) * size, size, confidence)


def damage(items: pd.DataFrame, spec: Spec) -> dict[str, Statistic]:
    """Metrics of a task: Wilson's intervals, Newcombe's for the paired difference, McNemar's exact test.

    Where items come in groups, intervals are those of as many independent items as these are worth
    (:func:`hemorrhage.analyze.stats.bootstrap.effective_size`), and the test changes signs of whole groups.
    """
    n, groups = len(items), items["group"].to_numpy()
    now, before = items["correct"].to_numpy(bool), items["base_correct"].to_numpy(bool)
    shares = {
        "accuracy": now,
        "flips": now != before,
        "changed_answers": items["choice"].to_numpy() != items["base_choice"].to_numpy(),
    }
    statistics = {}
    for metric, share in shares.items():
        low, high = share_interval(share.astype(float), groups, spec.confidence)
        statistics[metric] = Statistic(float(share.mean()), low, high, n)
    change = now.astype(int) - before.astype(int)
    size = bootstrap.effective_size(change.astype(float), groups, spec.confidence)
    table = np.array([[now & before, now & ~before], [~now & before, ~now & ~before]]).sum(axis=2) * (size / n)
    low, high = bootstrap.newcombe(table.tolist(), spec.confidence)
    net = pd.Series(change).groupby(groups).sum().to_numpy()
    mde = significance.detectable_change(round(size), float((now != before).mean()), spec.confidence)
    statistics["accuracy_change"] = Statistic(float(change.mean()), low, high, n, p=significance.mcnemar(net), mde=mde)
    return statistics


@dataclass(frozen=True)
class _Means:
    """Mean accuracy over tasks and its change: as measured, and in each resample ``[resamples]``; ``net``: what each
    group adds to the change."""

    level: float
    shift: float
    levels: Floats
    shifts: Floats
    net: Floats
    blocks: int


def _resample(items: pd.DataFrame, spec: Spec) -> _Means:
    """Paired bootstrap over the groups of each task."""
    tasks = items["task"].nunique()
    now, change, estimates, net = [], [], [], []
    blocks = 0
    for task, answers in items.groupby("task", sort=True):
        sums = answers[["correct", "base_correct"]].astype(float).groupby(answers["group"]).agg(["sum", "size"])
        right, size = sums["correct", "sum"].to_numpy(), sums["correct", "size"].to_numpy()
        gained = right - sums["base_correct", "sum"].to_numpy()
        counts = bootstrap.draws(str(task), len(size), spec.resamples, spec.seed)
        now.append(bootstrap.means(counts, right, size))
        change.append(bootstrap.means(counts, gained, size))
        estimates.append((right.sum() / size.sum(), gained.sum() / size.sum()))
        net.append(gained / size.sum() / tasks)
        blocks += len(size)
    level, shift = np.mean(estimates, axis=0)
    levels, shifts = np.mean(now, axis=0), np.mean(change, axis=0)
    return _Means(float(level), float(shift), levels, shifts, np.concatenate(net), blocks)


def _mean_accuracy(items: pd.DataFrame, spec: Spec) -> dict[str, Statistic]:
    """Accuracy averaged over tasks, and its change."""
    means = _resample(items, spec)
    levels = bootstrap.interval(means.levels, spec.confidence, means.blocks)
    shifts = bootstrap.interval(means.shifts, spec.confidence, means.blocks)
    p = significance.sign_flip(means.net, spec.seed)
    return {
        "mean_accuracy": Statistic(means.level, *levels, len(items)),
        "mean_accuracy_change": Statistic(means.shift, *shifts, len(items), p=p),
    }


def mean_shares(items: pd.DataFrame, independent: dict[str, float], spec: Spec) -> dict[str, Statistic]:
    """Flips and accuracy lost, averaged over tasks: Wilson's and Newcombe's intervals.

    A mean of T shares over n_t independent items each varies like one share over T^2 / sum(1/n_t) items, or less: what
    tasks differ in is no chance. ``independent``: task -> n_t, all its items where it is not there; ``n`` is the number
    of items.
    """
    shares, tables, sizes = [], [], []
    for name, answers in items.groupby("task", sort=True):
        now, before = answers["correct"].to_numpy(bool), answers["base_correct"].to_numpy(bool)
        shares.append((now != before).mean())
        tables.append(
            [[(before & now).mean(), (before & ~now).mean()], [(~before & now).mean(), (~before & ~now).mean()]]
        )
        sizes.append(independent.get(str(name), float(len(answers))))
    trials = len(sizes) ** 2 / float((1 / np.array(sizes)).sum())
    flips, table = float(np.mean(shares)), np.mean(tables, axis=0)
    low, high = bootstrap.wilson(flips * trials, trials, spec.confidence)
    limits = bootstrap.newcombe((table * trials).tolist(), spec.confidence)
    loss = float(table[0, 1] - table[1, 0])
    error = math.sqrt(max(flips - loss**2, 0.0) / trials)
    lost, least, most = (100 * share for share in (loss, *limits))
    return {
        "mean_flips": Statistic(
            flips, low, high, len(items), error=math.sqrt(flips * (1 - flips) / trials), trials=trials
        ),
        "accuracy_loss_points": Statistic(lost, least, most, len(items), error=100 * error, trials=trials),
    }

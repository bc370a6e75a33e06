"""Rows of tasks: accuracy and what changed against the base on the same items.

Three steps answer items: evaluate (its own scoring), lm-eval and the code tasks. Each is a suite. The blocks are groups
of items that share choices; a task whose items stand alone has a group for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.rows.schema import AT_CHANCE, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats

METRICS = ("accuracy", "accuracy_change", "flips", "changed_answers")
"""Per task: share right, its change against the base, share of items that went from right to wrong or back,
share of items with another answer."""

MEANS = ("mean_accuracy", "mean_accuracy_change", "mean_flips", "task_loss")
"""Over a suite's tasks; ``task_loss`` is the change with the other sign and a score interval, which says how much a
loss of nothing can hide, where resampling finds no spread at all."""

ALL_TASKS = "all tasks"
ALL_HARNESS_TASKS = "all lm-eval tasks"
ALL_PROGRAMS = "all code tasks"

Answered = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """Tasks that are averaged together: ``outputs`` by variant, with a table ``items.parquet`` whose columns are task,
    item, group, choice, correct, base_choice, base_correct; ``at_chance``: task -> why it says nothing."""

    name: str
    outputs: dict[str, Output]
    at_chance: dict[str, str]

    @property
    def averaged_tasks(self) -> list[str]:
        """Tasks that the mean accuracy is over: those on which the base is above chance."""
        names = dict.fromkeys(name for output in self.outputs.values() for name in output.manifest.get("tasks", {}))
        return sorted(name for name in names if name not in self.at_chance)


def suites(inputs: Inputs, evaluations: dict[str, Output], spec: Spec) -> list[Suite]:
    """The suites that were run."""
    answered = {
        ALL_TASKS: {name: _whole(output) for name, output in evaluations.items()},
        ALL_HARNESS_TASKS: _paired({name: _whole(output) for name, output in inputs.harness.items()}, "items.parquet"),
        ALL_PROGRAMS: _paired({name: _answered(output) for name, output in inputs.code_tasks.items()}, "items.parquet"),
    }
    return [Suite(name, outputs, _tasks_at_chance(outputs, spec)) for name, outputs in answered.items() if outputs]


def _answered(output: Output) -> Output:
    """Programs as items: the text of a program is its choice, and each stands alone."""
    if "programs.parquet" not in output.tables:
        return output
    programs = output.tables["programs.parquet"]
    items = programs[["task", "item", "correct"]].assign(group=programs["item"], choice=programs["completion"])
    return Output(output.manifest, {"items.parquet": items})


def _whole(output: Output) -> Output:
    """An output that answers tasks but has no items is a failure."""
    lacking = output.failure is None and output.manifest.get("tasks") and "items.parquet" not in output.tables
    return _unpaired(output, "items.parquet is not there") if lacking else output


def _paired(outputs: dict[str, Output], table: str) -> dict[str, Output]:
    """Outputs with the base's answers beside each variant's; a failure where the base has no such answers."""
    base = outputs.get(BASE)
    return {name: _beside(output, base, table) for name, output in outputs.items()}


def _beside(output: Output, base: Output | None, table: str) -> Output:
    if output.failure is not None:
        return output
    if base is None or base.failure is not None:
        return _unpaired(output, f"nothing to pair with: the base {base.failure if base else 'was not measured'}")
    columns = ["task", "item", "choice", "correct"]
    before = base.tables[table][columns].rename(columns={"choice": "base_choice", "correct": "base_correct"})
    items = output.tables[table]
    both = items.merge(before, on=["task", "item"], validate="one_to_one")
    hashes = [{task: fact["sha256"] for task, fact in side.manifest["tasks"].items()} for side in (output, base)]
    if len(both) != len(items) or len(both) != len(before) or hashes[0] != hashes[1]:
        return _unpaired(output, "its items are not those that the base answered")
    return Output(output.manifest, {table: both})


def _unpaired(output: Output, reason: str) -> Output:
    return Output({**output.manifest, "failure": reason}, {})


def _tasks_at_chance(outputs: dict[str, Output], spec: Spec) -> dict[str, str]:
    """Tasks on which the base does no better than guessing -> the numbers that say so."""
    whole = next((output for output in outputs.values() if "items.parquet" in output.tables), None)
    if whole is None:
        return {}
    found = {}
    for task, items in whole.tables["items.parquet"].groupby("task", sort=False):
        guessing = floor(whole.manifest["tasks"][task])
        right, groups = items["base_correct"].to_numpy(float), items["group"].to_numpy()
        share, (low, high) = float(right.mean()), share_interval(right, groups, spec.confidence)
        if low <= guessing:
            found[str(task)] = (
                f"the base is at chance: {share:.3f} ({low:.3f} to {high:.3f}), while guessing gives {guessing:.3f}"
            )
    return found


def floor(fact: Mapping[str, Any]) -> float:
    """What an answerer reaches that understands nothing: guessing, or the best constant answer where that is known."""
    return max(float(fact["chance"]), float(fact.get("floor") or 0.0))


def task_rows(variant: Variant, suite: Suite, spec: Spec) -> Iterator[dict[str, Any]]:
    """Rows of one variant on a suite's tasks, and of their mean."""
    output = suite.outputs.get(variant.name)
    if output is None:
        return
    facts = output.manifest.get("tasks", {})
    for task, fact in facts.items():
        about = {
            "dataset": task,
            "environment": environment_id(output.manifest),
            "data": fact["sha256"],
            "protocol": fact["protocol"],
        }
        if variant.name == BASE:
            yield row(variant, "chance", estimate=float(fact["chance"]), n=1, **about)
            constant = fact.get("floor")
            if constant is not None:
                yield row(variant, "floor", estimate=float(constant), n=1, **about)
        if output.failure is not None:
            for metric in METRICS:
                yield row(variant, metric, status="failed", reason=output.failure, **about)
            continue
        items = output.tables["items.parquet"]
        for metric, fields in damage(items[items["task"] == task], spec).items():
            if variant.name == BASE:
                fields = {key: value for key, value in fields.items() if key not in ("p", "mde")}
            yield row(variant, metric, **_judged(fields, suite.at_chance.get(task)), **about)
    if facts:
        yield from _means(variant, suite, output, spec)


def _judged(fields: dict[str, Any], at_chance: str | None) -> dict[str, Any]:
    """Numbers of a task at chance stay, but take part in no test."""
    if at_chance is None:
        return fields
    kept = {key: value for key, value in fields.items() if key not in ("p", "mde")}
    return {**kept, "status": AT_CHANCE, "reason": at_chance}


def _means(variant: Variant, suite: Suite, output: Output, spec: Spec) -> Iterator[dict[str, Any]]:
    facts = {task: fact for task, fact in output.manifest["tasks"].items() if task not in suite.at_chance}
    joined = "".join(sorted(fact["sha256"] for fact in facts.values()))
    protocols = sorted({fact["protocol"] for fact in facts.values()})
    about = {
        "dataset": suite.name,
        "environment": environment_id(output.manifest),
        "data": hashlib.sha256(joined.encode()).hexdigest(),
        "protocol": f"mean of {', '.join(sorted(facts))}: {'; '.join(protocols)}" if facts else "no task",
    }
    reason = {"status": "failed", "reason": output.failure}
    if output.failure is None:
        reason = {"status": "undefined", "reason": "the base is at chance on every task"}
    if output.failure is not None or not facts:
        for metric in MEANS:
            yield row(variant, metric, **reason, **about)
        return
    items = output.tables["items.parquet"]
    items = items[items["task"].isin(facts)]
    for metric, fields in {**_mean_accuracy(items, spec), **mean_shares(items, spec)}.items():
        if variant.name == BASE:
            fields = {key: value for key, value in fields.items() if key != "p"}
        yield row(variant, metric, **fields, **about)
    if variant.name == BASE:
        chance = float(np.mean([fact["chance"] for fact in facts.values()]))
        yield row(variant, "chance", estimate=chance, n=1, **about)


def task_losses(suite: Suite, spec: Spec) -> dict[str, tuple[float, Floats, int]]:
    """Variant -> share of the base's mean accuracy that it lost, the same in each resample, and the number of groups.

    Over the tasks on which the base does better than guessing; resampled as :func:`task_rows` does.
    """
    found = {}
    for name, output in suite.outputs.items():
        if output.failure is None and suite.averaged_tasks and "items.parquet" in output.tables:
            items = output.tables["items.parquet"]
            means = _resampled(items[items["task"].isin(suite.averaged_tasks)], spec)
            before = means.level - means.shift
            with np.errstate(divide="ignore", invalid="ignore"):
                lost = -means.shifts / (means.levels - means.shifts)
            found[name] = (-means.shift / before, lost, means.blocks)
    return found


def share_interval(values: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share, at the effective number of items."""
    size = bootstrap.effective_size(values, groups, confidence)
    return bootstrap.wilson(float(values.mean()) * size, size, confidence)


def damage(items: pd.DataFrame, spec: Spec) -> Answered:
    """Metric -> fields on a task: Wilson's intervals, Newcombe's for the paired difference, McNemar's exact test.

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
    found: Answered = {}
    for metric, share in shares.items():
        low, high = share_interval(share.astype(float), groups, spec.confidence)
        found[metric] = {"estimate": float(share.mean()), "low": low, "high": high, "n": n}
    change = now.astype(int) - before.astype(int)
    size = bootstrap.effective_size(change.astype(float), groups, spec.confidence)
    table = np.array([[now & before, now & ~before], [~now & before, ~now & ~before]]).sum(axis=2) * (size / n)
    low, high = bootstrap.newcombe(table.tolist(), spec.confidence)
    net = pd.Series(change).groupby(groups).sum().to_numpy()
    found["accuracy_change"] = {
        "estimate": float(change.mean()),
        "low": low,
        "high": high,
        "p": significance.mcnemar(net),
        "mde": significance.detectable_change(round(size), float((now != before).mean()), spec.confidence),
        "n": n,
    }
    return found


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


def _resampled(items: pd.DataFrame, spec: Spec) -> _Means:
    """Paired bootstrap over the groups of each task."""
    tasks = items["task"].nunique()
    now, change, estimates, net = [], [], [], []
    blocks = 0
    for task, part in items.groupby("task", sort=True):
        sums = part[["correct", "base_correct"]].astype(float).groupby(part["group"]).agg(["sum", "size"])
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


def _mean_accuracy(items: pd.DataFrame, spec: Spec) -> Answered:
    """Accuracy averaged over tasks, and its change."""
    means = _resampled(items, spec)
    limits = [bootstrap.interval(part, spec.confidence, means.blocks) for part in (means.levels, means.shifts)]
    common = {"n": len(items)}
    return {
        "mean_accuracy": {"estimate": means.level, "low": limits[0][0], "high": limits[0][1], **common},
        "mean_accuracy_change": {
            "estimate": means.shift,
            "low": limits[1][0],
            "high": limits[1][1],
            "p": significance.sign_flip(means.net, spec.seed),
            **common,
        },
    }


def mean_shares(items: pd.DataFrame, spec: Spec) -> Answered:
    """Flips and accuracy lost, averaged over tasks: Wilson's and Newcombe's intervals.

    A mean of T shares over n_t independent items each varies like one share over T^2 / sum(1/n_t) items, or less: what
    tasks differ in is no chance. ``n`` is the number of items.
    """
    shares, tables, sizes = [], [], []
    for _, part in items.groupby("task", sort=True):
        now, before = part["correct"].to_numpy(bool), part["base_correct"].to_numpy(bool)
        flipped, change = (now != before).astype(float), before.astype(float) - now
        lost, won = (change > 0).mean(), (change < 0).mean()
        shares.append(flipped.mean())
        tables.append([[(before & now).mean(), lost], [won, (~before & ~now).mean()]])
        groups = part["group"].to_numpy()
        sizes.append([bootstrap.effective_size(kind, groups, spec.confidence) for kind in (flipped, change)])
    size, size_of_change = len(sizes) ** 2 / (1 / np.array(sizes)).sum(axis=0)
    flips = float(np.mean(shares))
    table = np.mean(tables, axis=0)
    limits = bootstrap.newcombe((table * size_of_change).tolist(), spec.confidence)
    low, high = bootstrap.wilson(flips * size, size, spec.confidence)
    common = {"n": len(items)}
    return {
        "mean_flips": {"estimate": flips, "low": low, "high": high, **common},
        "task_loss": {"estimate": float(table[0, 1] - table[1, 0]), "low": limits[0], "high": limits[1], **common},
    }

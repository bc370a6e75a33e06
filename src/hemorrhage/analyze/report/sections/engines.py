"""Damage in the engines that serve: what the weights cost, and what an engine's kernels add."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.rows.engines import ADDED, HIGH, KERNELS, LOW, WEIGHTS, end
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.study import Study


@dataclass(frozen=True)
class Cell:
    """A number with its interval; ``sort``: what its column is sorted by."""

    text: str
    note: str
    sort: float


@dataclass(frozen=True)
class EngineRow:
    """A variant in an engine; ``adds``: what the engine adds is more, or less, than float32 leaves in doubt."""

    variant: str
    engine: str
    weights: Cell
    added: Cell
    total: Cell
    kernels: Cell
    same_top1: Cell
    perplexity: Cell
    adds: bool


@dataclass(frozen=True)
class Engines:
    """The section: corpus -> rows, none where no engine was asked; engine -> how it computed; what it did not run.

    ``has_intervals``: a KL of some row is known by its ends alone.
    """

    tables: dict[str, list[EngineRow]]
    facts: dict[str, str]
    not_run: list[str]
    has_intervals: bool = False


def section(study: Study) -> Engines:
    """Return the section of a study."""
    served = study.inputs.served
    tables = {corpus: list(_rows(study, corpus)) for corpus in study.corpora} if served else {}
    facts = {title(next(iter(outputs.values()))): _facts(outputs) for outputs in served.values()}
    not_run = [_not_run(outputs) for outputs in served.values() if _without(outputs)]
    asked = any(study.numbers.datasets(of_engine("kl_mean", engine, LOW)) for engine in served)
    return Engines(tables, facts, not_run, asked)


def title(output: Output) -> str:
    """Return an engine's title with its release."""
    engine = output.manifest["engine"]
    return f"{engine['title']} {engine['version']}".strip()


def _rows(study: Study, corpus: str) -> Iterator[EngineRow]:
    for name in study.inputs.variants:
        for engine, outputs in study.inputs.served.items():
            row = _row(study.numbers, name, engine, title(outputs[name]), corpus) if name in outputs else None
            if row is not None:
                yield row


def _row(numbers: Numbers, variant: str, engine: str, release: str, corpus: str) -> EngineRow | None:
    """Return the row of a variant in an engine; None where it was not measured."""

    def get(metric: str, part: str = "") -> Estimate | None:
        return numbers.get(variant, of_engine(metric, engine, part), corpus)

    def ends(part: str) -> Ends:
        whole = get("kl_mean", part)
        return Ends(whole, whole) if whole else Ends(*(get("kl_mean", end(part, which)) for which in (LOW, HIGH)))

    weights, added, total, kernels = map(ends, (WEIGHTS, ADDED, "", KERNELS))
    if weights.low is None or total.low is None:
        return None
    ratio, more, same = get("ln_perplexity_ratio"), get("ln_perplexity_ratio", ADDED), get("same_top1")
    return EngineRow(
        variant=variant,
        engine=release,
        weights=weights.cell(),
        added=added.cell(),
        total=total.cell(),
        kernels=kernels.cell(),
        same_top1=Cell(f"{100 * same.value:.1f}", _interval(same, times=100, digits=3), same.value) if same else NONE,
        perplexity=Cell(factor(ratio.value), f"engine {factor(more.value)}", ratio.value) if ratio and more else NONE,
        adds=added.is_certain(),
    )


NONE = Cell("–", "", -1)
"""What a server's answers don't tell."""


@dataclass(frozen=True)
class Ends:
    """What lies between two numbers, which may be one; there is no ``high`` where nothing bounds it."""

    low: Estimate | None
    high: Estimate | None

    def cell(self) -> Cell:
        """Return the number with its interval; of an interval both ends, and an interval that holds those of both."""
        low, high = self.low, self.high
        if low is None:
            return NONE
        if low is high:
            return Cell(_number(low.value), _interval(low), low.value)
        if high is None:
            return Cell(f"at least {_number(low.value)}", f"from {_number(low.low)}", low.value)
        between = f"{_number(low.low)} to {_number(high.high)}"
        return Cell(f"{_number(low.value)} to {_number(high.value)}", between, low.value)

    def is_certain(self) -> bool:
        """Tell whether it is more, or less, than float32 leaves in doubt, wherever between the ends it lies."""
        is_more = self.low is not None and self.low.low > ROUNDING
        return is_more or (self.high is not None and self.high.high < -ROUNDING)


def _interval(estimate: Estimate, times: float = 1, digits: int = 2) -> str:
    if math.isnan(estimate.low):
        return ""
    return f"{_number(times * estimate.low, digits)} to {_number(times * estimate.high, digits)}"


def _number(value: float, digits: int = 2) -> str:
    """Write a number; 0 for what float32 leaves in doubt."""
    return f"{value:.{digits}g}" if abs(value) >= ROUNDING else "0"


def _facts(outputs: Mapping[str, Output]) -> str:
    """Say how an engine computed: what it said of itself, where that is the same of all models."""
    facts = [output.manifest["facts"] for output in outputs.values() if "facts" in output.manifest]
    if not facts:
        return ""
    same = {name: value for name, value in facts[0].items() if all(each.get(name) == value for each in facts)}
    return ", ".join(f"{name} {value}" for name, value in same.items() if name != "system" and value)


def _without(outputs: Mapping[str, Output]) -> list[str]:
    """Name the models that an engine did not run."""
    return [name for name, output in outputs.items() if output.failure or "all" in output.manifest.get("gaps", {})]


def _not_run(outputs: Mapping[str, Output]) -> str:
    names = _without(outputs)
    named = ", ".join(names) if len(names) <= 6 else f"{len(names)} models"
    return f"{title(next(iter(outputs.values())))} did not run {named}"

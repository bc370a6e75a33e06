"""The answer of a judgement: a line for each file, and the same as JSON and as JUnit for a CI."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from xml.etree import ElementTree

from hemorrhage.analyze.axes import failure as failed
from hemorrhage.analyze.budget import FROM_BEST, INSIDE, UNRESOLVED, Check, exit_code, judge
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.sections.engines import title
from hemorrhage.analyze.rows.engines import ADDED, HIGH, LOW, in_engine
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.study import Study
from hemorrhage.compress.methods.published.external import format_of
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import ANSWERS, CANNOT_TELL, NOT_MEASURED, YES

MISSING = "–"

IN_ENGINES = ("kl", "perplexity")
"""Limits that an engine's damage is held to, too."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and the corpus where it is worst."""

    value: float
    low: float
    high: float
    dataset: str


@dataclass(frozen=True)
class InEngine:
    """A file in an engine, on the corpus where its KL is worst; ``added``: what the engine adds to that of the weights.

    ``kl_low``, ``kl_high``: the ends of the KL, where a server tells nothing but these. ``gap``: why it was not
    measured.
    """

    engine: str
    kl: Interval | None = None
    added: Interval | None = None
    same_top1: Interval | None = None
    gap: str = ""
    kl_low: Interval | None = None
    kl_high: Interval | None = None

    def as_json(self) -> Json:
        """Plain content."""
        return asdict(self)

    def __str__(self) -> str:
        """``in llama.cpp b1: KL 0.12 (0.1 to 0.14), of that the engine 0.01 (0 to 0.02), same top-1 97.0 %``."""
        same = f", same top-1 {100 * self.same_top1.value:.1f} %" if self.same_top1 else ""
        if self.kl and self.added:
            return f"in {self.engine}: KL {_shown(self.kl)}, of that the engine {_shown(self.added)}{same}"
        if self.kl_low is None:
            return f"in {self.engine}: {self.gap}"
        high = f"at most {_shown(self.kl_high)}" if self.kl_high else "nothing bounds it"
        return f"in {self.engine}: KL at least {_shown(self.kl_low)}, {high}{same}"


@dataclass(frozen=True)
class Row:
    """A judged file. Numbers are of the corpus where they are worst; None where they were not measured.

    ``bytes`` of its weights, ``bits`` stored for a parameter; ``perplexity``: times the base's; ``status``: the exit
    code, ``reason``: the limit that decides, or why nothing was measured; ``warnings``: what a reader has to know.
    """

    file: str
    storage: str
    bytes: int | None
    bits: float | None
    kl: Interval | None
    kl_p99: Interval | None
    same_top1: Interval | None
    perplexity: Interval | None
    flips: Interval | None
    status: int
    reason: str
    checks: Sequence[Check]
    warnings: Sequence[str] = ()
    engines: Sequence[InEngine] = ()

    def as_json(self) -> Json:
        """Plain content."""
        numbers = {name: getattr(self, name) for name in ("kl", "kl_p99", "same_top1", "perplexity", "flips")}
        return {
            "file": self.file,
            "format": self.storage,
            "bytes": self.bytes,
            "bits": self.bits,
            **{name: asdict(value) if value else None for name, value in numbers.items()},
            "answer": ANSWERS[self.status],
            "reason": self.reason,
            "checks": [check.as_json() for check in self.checks],
            "warnings": list(self.warnings),
            "engines": [each.as_json() for each in self.engines],
        }


def rows_of(study: Study, files: Sequence[str]) -> list[Row]:
    """Judge every file of a study by its budget, all together, in the order given.

    ``files``: what the user calls them, which is shown of those that have one name.
    """
    variants = {name: variant for name, variant in study.inputs.variants.items() if name != BASE}
    served = study.inputs.served
    checks = _checks(study, list(variants))
    numbers, corpora = Numbers(study.rows), list(study.blocks)
    flags = {name: [flag.evidence for flag in study.flags if flag.variant == name] for name in variants}
    labels = Counter(variant.label for variant in variants.values())
    return [
        _row(
            study.inputs,
            variant,
            given if labels[variant.label] > 1 else variant.label,
            numbers,
            corpora,
            checks[name],
            flags[name],
            [
                _in_engine(numbers, corpora, name, engine, outputs[name])
                for engine, outputs in served.items()
                if name in outputs
            ],
        )
        for given, (name, variant) in zip(files, variants.items(), strict=True)
    ]


def _checks(study: Study, variants: Sequence[str]) -> dict[str, list[Check]]:
    """Check every variant against the budget, by this bench's own reading and in each engine."""
    spec, served = study.spec, study.inputs.served
    checks = judge(study.rows, variants, spec.budget, spec.confidence, [variants])
    of_engines = {key: limit for key, limit in spec.budget.items() if key in IN_ENGINES}
    for engine, outputs in served.items():
        # A server has one file.
        measured = [name for name in variants if name in outputs]
        for name, more in _checks_in(study, engine, measured, of_engines).items():
            release, gap = title(outputs[name]), _gap(outputs[name])
            checks[name] += [
                replace(each, dataset=f"{each.dataset} in {release}", reason=gap or each.reason) for each in more
            ]
    return checks


def _checks_in(
    study: Study, engine: str, variants: Sequence[str], budget: Mapping[str, float]
) -> dict[str, list[Check]]:
    """Check variants in an engine; what is known by its two ends alone, by the one that decides."""
    whole, low, high = (
        judge(in_engine(study.rows, engine, part), variants, budget, study.spec.confidence, [variants])
        for part in ("", LOW, HIGH)
    )

    def of(ends: Mapping[str, Sequence[Check]], name: str, like: Check) -> Check | None:
        same = (each for each in ends[name] if (each.kind, each.dataset) == (like.kind, like.dataset))
        return next((each for each in same if each.estimate is not None), None)

    return {
        name: [_by_ends(each, of(low, name, each), of(high, name, each)) for each in checks]
        for name, checks in whole.items()
    }


def _by_ends(whole: Check, low: Check | None, high: Check | None) -> Check:
    """Return the check of what lies between two ends, or ``whole`` where there are none; without ``high`` no bound."""
    if low is None or low.estimate is None:
        return whole
    if high is not None and high.estimate is not None and high.estimate < high.limit:
        return high
    if low.estimate >= low.limit:
        return low
    upper = "without an upper end" if high is None else f"to {high.estimate:.3g}"
    reason = f"the server's likeliest tokens leave it open from {low.estimate:.3g} {upper}: ask for a larger top"
    return replace(whole, answer=UNRESOLVED, reason=reason, n=low.n)


def _in_engine(numbers: Numbers, corpora: Sequence[str], variant: str, engine: str, output: Output) -> InEngine:
    """Return what a file does in an engine."""
    kls = [
        (name, numbers.get(variant, of_engine("kl_mean", engine, part), name)) for name in corpora for part in ("", LOW)
    ]
    known = [(name, estimate) for name, estimate in kls if estimate]
    if not known:
        return InEngine(title(output), gap=_gap(output))
    worst = max(known, key=lambda each: each[1].value)[0]

    def interval(metric: str, part: str = "") -> Interval | None:
        estimate = numbers.get(variant, of_engine(metric, engine, part), worst)
        return Interval(estimate.value, estimate.low, estimate.high, worst) if estimate else None

    return InEngine(
        title(output),
        interval("kl_mean"),
        interval("kl_mean", ADDED),
        interval("same_top1"),
        kl_low=interval("kl_mean", LOW),
        kl_high=interval("kl_mean", HIGH),
    )


def _gap(output: Output) -> str:
    """Return why an engine did not run a file; empty where it did."""
    return output.failure or output.manifest.get("gaps", {}).get("all", "")


def unread(file: str, reason: str) -> Row:
    """Return the row of a file that can't be read."""
    return Row(file, "", None, None, None, None, None, None, None, NOT_MEASURED, reason, checks=[])


def _row(
    inputs: Inputs,
    variant: Variant,
    file: str,
    numbers: Numbers,
    corpora: Sequence[str],
    checks: Sequence[Check],
    warnings: Sequence[str],
    engines: Sequence[InEngine],
) -> Row:
    failure = failed(inputs, variant)
    manifest = variant.manifest

    def worst(metric: str, sign: int = 1) -> Interval | None:
        estimates = [(name, numbers.get(variant.name, metric, name)) for name in (*corpora, *numbers.datasets(metric))]
        known = [Interval(each.value, each.low, each.high, name) for name, each in estimates if each]
        return max(known, key=lambda each: sign * each.value) if known else None

    ratio = worst("ln_perplexity_ratio")
    perplexity = ratio and Interval(math.exp(ratio.value), math.exp(ratio.low), math.exp(ratio.high), ratio.dataset)
    return Row(
        file=file,
        storage=manifest.get("storage", ""),
        bytes=manifest.get("disk_bytes"),
        bits=manifest.get("effective_bits"),
        kl=worst("kl_mean"),
        kl_p99=worst("kl_p99"),
        same_top1=worst("same_top1", -1),
        perplexity=perplexity,
        flips=worst("mean_flips"),
        status=NOT_MEASURED if failure else exit_code(checks),
        reason=(failure or _decides(checks)).removeprefix("InputError: ").removeprefix("ValueError: "),
        checks=checks,
        warnings=warnings,
        engines=engines,
    )


def _decides(checks: Sequence[Check]) -> str:
    failing = [check for check in checks if check.answer != INSIDE]
    if failing:
        worst, more = max(failing, key=_weight), len(failing) - 1
        return f"{worst}{f'; and {more} more' if more else ''}"
    return f"nearest its limit is {max(checks, key=lambda check: check.used)}"


def _weight(check: Check) -> tuple[int, float]:
    """Order checks that do not hold: by what they mean for the file, then by how far they are beyond the limit."""
    return FROM_BEST.index(exit_code([check])), check.used


def status_of(rows: Sequence[Row]) -> int:
    """Return the exit code: every file has to be inside, so that the worst answer counts."""
    return max((row.status for row in rows), key=FROM_BEST.index, default=NOT_MEASURED)


def as_table(rows: Sequence[Row], budget: Mapping[str, float]) -> str:
    """Return the table for a terminal, and below it why a file is not inside, and warnings."""
    header = ("file", "format", "MB", "bits", "KL", "KL p99", "same top-1", "perplexity", "flips", "inside")
    lines = [header, *map(_cells, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    limits = ", ".join(f"{name} {limit:g}" for name, limit in budget.items())
    notes = [f"{row.file}: {row.reason}" for row in rows if row.status != YES]
    notes += [f"{row.file} {each}" for row in rows for each in row.engines]
    notes += [f"{row.file}: {warning}" for row in rows for warning in row.warnings]
    return "\n".join([*table, "", f"inside: every bound below {limits}", *notes])


def _cells(row: Row) -> tuple[str, ...]:
    kl = row.kl and _shown(row.kl)
    return (
        row.file,
        format_of(row.storage),
        f"{row.bytes / 1e6:,.1f}" if row.bytes else MISSING,
        f"{row.bits:.2f}" if row.bits else MISSING,
        kl or MISSING,
        f"{row.kl_p99.value:.3g}" if row.kl_p99 else MISSING,
        f"{100 * row.same_top1.value:.1f} %" if row.same_top1 else MISSING,
        f"x{row.perplexity.value:.3f}" if row.perplexity else MISSING,
        f"{100 * row.flips.value:.1f} %" if row.flips else MISSING,
        ANSWERS[row.status],
    )


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def as_json(rows: Sequence[Row], base: str, budget: Mapping[str, float], address: str | None) -> Json:
    """Return the answer as plain content; ``address``: of the analysis, None where no file was read."""
    return {
        "answer": ANSWERS[status_of(rows)],
        "base": base,
        "budget": dict(budget),
        "address": address,
        "files": [row.as_json() for row in rows],
    }


def as_junit(rows: Sequence[Row], base: str) -> str:
    """Return the answer as JUnit's XML: a file outside fails, one that can't be told or measured is an error."""
    failures = sum(row.status not in (YES, CANNOT_TELL, NOT_MEASURED) for row in rows)
    errors = sum(row.status in (CANNOT_TELL, NOT_MEASURED) for row in rows)
    counts = {"tests": str(len(rows)), "failures": str(failures), "errors": str(errors)}
    suite = ElementTree.Element("testsuite", {"name": f"hemorrhage judge {base}", **counts})
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "hemorrhage.judge", "name": row.file})
        if row.status != YES:
            tag = "error" if row.status in (CANNOT_TELL, NOT_MEASURED) else "failure"
            verdict = ElementTree.SubElement(case, tag, {"type": ANSWERS[row.status], "message": row.reason})
            verdict.text = "\n".join(map(str, row.checks))
        if row.warnings:
            ElementTree.SubElement(case, "system-out").text = "\n".join(row.warnings)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

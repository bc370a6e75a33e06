"""The answer of a judgement: a line for each file, and the same as JSON and as JUnit for a CI."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from xml.etree import ElementTree

from hemorrhage.analyze.axes import failure as failed
from hemorrhage.analyze.budget import FROM_BEST, INSIDE, Check, exit_code, judge
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.study import Study
from hemorrhage.compress.methods.published.external import format_of
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import ANSWERS, CANNOT_TELL, NOT_MEASURED, YES

MISSING = "–"


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and the corpus where it is worst."""

    value: float
    low: float
    high: float
    dataset: str


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
        }


def rows_of(study: Study, files: Sequence[str]) -> list[Row]:
    """Judge every file of a study by its budget, all together, in the order given.

    ``files``: what the user calls them, which is shown of those that have one name.
    """
    variants = {name: variant for name, variant in study.inputs.variants.items() if name != BASE}
    spec = study.spec
    checks = judge(study.rows, list(variants), spec.budget, spec.confidence, [list(variants)])
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
        )
        for given, (name, variant) in zip(files, variants.items(), strict=True)
    ]


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
    notes += [f"{row.file}: {warning}" for row in rows for warning in row.warnings]
    return "\n".join([*table, "", f"inside: every bound below {limits}", *notes])


def _cells(row: Row) -> tuple[str, ...]:
    kl = row.kl and f"{row.kl.value:.3g} ({row.kl.low:.3g} to {row.kl.high:.3g})"
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

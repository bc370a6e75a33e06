"""What the studies of mitigations, of decoding and of families of models found, as tables for the documentation.

    python -m benchmarks.study_tables mitigation reports --write docs/STUDIES.md
    python -m benchmarks.study_tables decoding reports --write docs/STUDIES.md
    python -m benchmarks.study_tables norms reports --took "in small, 9 minutes of one core" --write docs/nursery.md

``reports`` is the folder of a run of ``params/studies/<name>.yaml``; the numbers are those of its page. A document is
written between the marks of the study, which it must have.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import marked
from hemorrhage.analyze.doctor.diagnose import LEAKAGE
from hemorrhage.analyze.family import results
from hemorrhage.analyze.family.claims import LEAK
from hemorrhage.analyze.family.effects import Effect, Movement
from hemorrhage.analyze.family.page import answers
from hemorrhage.analyze.family.results import Results
from hemorrhage.analyze.report.sections import decoding, mitigations
from hemorrhage.analyze.rows.tables import Estimate
from hemorrhage.analyze.study import Study, read

MEASURES = {"accuracy": (100, "% right"), "base_nll": (1, "nats per token under the base"), "rep_4": (100, "% rep-4")}
"""Metric of a table of strategies -> the factor that it is shown with, and its unit."""


def mitigation(study: Study) -> Iterator[str]:
    """Write the sentence on each proposal, and what every mitigation recovers of its plain method's damage."""
    found = mitigations.section(study)
    for arm, verdict, reason in found.statements:
        yield f"- **{arm}: {verdict}.** {reason[:1].upper()}{reason[1:]}"
    for corpus, rows in found.rows.items():
        known = [row for row in rows if not row.missing]
        if known:
            yield ""
            yield f"KL on {corpus}:"
            yield ""
            yield from _table(
                ["mitigation", "plain", "damage", "recovery", "control", "verdict"],
                [
                    [row.treatment, row.plain, row.damage, row.recovery, row.control or row.not_neutral, row.verdict]
                    for row in known
                ],
            )


def decoded(study: Study) -> Iterator[str]:
    """Write each data set's strategies by variants, and what the variants' answers cost."""
    numbers = study.numbers
    variants = numbers.decoded_variants()
    for metric, (times, unit) in MEASURES.items():
        for dataset in numbers.datasets(metric, strategy=True):
            cells = [
                [name, *(_cell(numbers.get(variant, metric, dataset, name), times) for variant in variants)]
                for name in numbers.strategies(metric)
            ]
            yield f"{dataset}, {unit}:"
            yield ""
            yield from _table(["strategy", *variants], cells)
            yield ""
    costs = [
        [row.variant, row.dataset, row.ratio, row.of_bytes, row.loops, row.cut]
        for row in decoding.answer_rows(study.rows, numbers)
    ]
    yield "What answers cost, over the base's:"
    yield ""
    yield from _table(["variant", "data set", "tokens", "bytes", "loops", "truncated"], costs)


def _cell(estimate: Estimate | None, times: int) -> str:
    if estimate is None:
        return ""
    value, low, high = (times * number for number in estimate[:3])
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def family(concluded: Results, doctors: Mapping[str, Doctor], took: str) -> Iterator[str]:
    """Write what a study of several models concluded; ``doctors``: what Model Doctor said by model.

    How many models and seeds, the claims that the study asks about, what was shown, the numbers of each group with the
    sentence on loss in disguise, slopes, the law, redundancy, and leaks.
    """
    groups = Counter(row.group for row in concluded.models)
    counted = ", ".join(f"{group} {number}" for group, number in groups.items())
    yield f"{len(concluded.models)} models ({counted}), a model the unit{f'; {took}' if took else ''}."
    yield from (f"{gap.model} could not be made: {gap.reason}." for gap in concluded.gaps)
    yield ""
    for each in concluded.claims:
        yield f"- **{each.claim} {each.finding.verdict.capitalize()}:** {each.finding.measured}."
    yield from (f"- {sentence}" for sentence in answers.answers(concluded))
    yield from _titled(
        "", ["outcome", *groups, "beside the loss"], [_levels(each, groups) for each in concluded.effects]
    )
    slopes = [_slope(effect, movement) for effect in concluded.effects for movement in effect.movements]
    yield from _titled("What outcomes move with:", ["outcome", "slope", "p", "beside the loss"], slopes)
    exponents = [[e.sweep, e.of, f"{e.law:+.2f}", _signed(e.value, e.low, e.high), e.verdict] for e in concluded.law]
    yield from _titled("The law of low-bit quantization:", ["sweep", "of", "law", "measured", "verdict"], exponents)
    related = [
        [r.measure, _signed(r.correlation), f"{r.p:.2g}", _signed(r.inside), f"{r.inside_p:.2g}"]
        for r in concluded.relations
    ]
    head = ["unaltered model", "rank correlation with damage", "p", "inside groups", "p"]
    yield from _titled("Redundancy against damage:", head, related)
    leaks = [
        [group, *_leaks([doctors[row.model] for row in concluded.models if row.group == group])] for group in groups
    ]
    if any(named != "0" for _, named, _ in leaks) or any(group.startswith(LEAK) for group in groups):
        yield from _titled("What Model Doctor says of leaks:", ["group", "models named", "scores"], leaks)


def _titled(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield ""
        yield from [title, ""] if title else []
        yield from _table(head, rows)


def _levels(effect: Effect, groups: Iterable[str]) -> list[str]:
    by_group = {level.group: level for level in effect.levels}
    cells = []
    for group in groups:
        level = by_group[group]
        mean, low, high = answers.written((level.mean, level.low, level.high), effect.outcome.is_ratio)
        interval = f" ({low} to {high})" if low else ""
        cells.append(f"{mean or 'none'}{interval}{f', {level.lacking} without' if level.lacking else ''}")
    return [_where(effect), *cells, effect.disguise.sentence if effect.disguise else ""]


def _where(effect: Effect) -> str:
    return f"{effect.outcome.name}, {effect.outcome.measure}"


def _slope(effect: Effect, movement: Movement) -> list[str]:
    is_ratio, beside = effect.outcome.is_ratio, "can't be told from the loss"
    if math.isfinite(movement.beside_loss):
        beside = answers.amount(movement.beside_loss, movement.beside_low, movement.beside_high, is_ratio)
    return [_where(effect), answers.moved(movement, is_ratio), f"{movement.p:.2g}", beside]


def _signed(value: float, low: float = math.nan, high: float = math.nan) -> str:
    return f"{value:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else "")


def _leaks(doctors: Sequence[Doctor]) -> list[str]:
    scores = [each["score"] for doctor in doctors for each in doctor["diagnoses"] if each["cause"] == LEAKAGE]
    named = sum(any(each["cause"] == LEAKAGE for each in doctor["diagnoses"]) for doctor in doctors)
    return [str(named), f"{min(scores):.3g} to {max(scores):.3g}" if scores else "all below 1"]


TABLES: dict[str, Callable[[Study], Iterator[str]]] = {"mitigation": mitigation, "decoding": decoded}
"""Study of one model -> what writes its tables."""

FAMILIES = ("norms", "scale", "architecture", "alignment", "tickets", "pruning", "data", "context")
"""Studies of several models."""

Doctor = Mapping[str, Any]
"""A model's doctor.json."""


def tables(study: str, reports: Path, took: str = "") -> Iterator[str]:
    """Write the tables of a study's folder of reports."""
    if study in FAMILIES:
        doctors = json.loads((reports / "doctor.json").read_text(encoding="utf-8"))
        return family(results.read(reports), doctors, took)
    return TABLES[study](read(reports))


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_tables")
    parser.add_argument("study", choices=[*TABLES, *FAMILIES])
    parser.add_argument("reports", type=Path)
    parser.add_argument("--took", default="", help="of several models: the size that was run, and its time")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    given = parser.parse_args()
    lines = ["", *tables(given.study, given.reports, given.took), ""]
    print("\n".join(lines))
    if given.write:
        begin = f"<!-- python -m benchmarks.study_tables {given.study} -->"
        marked.write(given.write, begin, f"<!-- end of {given.study} -->", lines)


if __name__ == "__main__":
    main()

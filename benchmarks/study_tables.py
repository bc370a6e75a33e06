"""What the studies of mitigations and of decoding found, as tables for docs/STUDIES.md.

    python -m benchmarks.study_tables mitigation reports --write docs/STUDIES.md
    python -m benchmarks.study_tables decoding reports --write docs/STUDIES.md

``reports`` is the folder of a run of ``params/studies/<name>.yaml``; the numbers are those of its page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import marked
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


TABLES: dict[str, Callable[[Study], Iterator[str]]] = {"mitigation": mitigation, "decoding": decoded}
"""Study -> what writes its tables."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_tables")
    parser.add_argument("study", choices=list(TABLES))
    parser.add_argument("reports", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    given = parser.parse_args()
    lines = ["", *TABLES[given.study](read(given.reports)), ""]
    print("\n".join(lines))
    if given.write:
        begin = f"<!-- python -m benchmarks.study_tables {given.study} -->"
        marked.write(given.write, begin, f"<!-- end of {given.study} -->", lines)


if __name__ == "__main__":
    main()

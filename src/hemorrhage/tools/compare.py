"""Revisions of a study next to each other, differences first: ``hemorrhage compare``.

A revision is one of git (``HEAD~1``, a branch, a tag), the name of an experiment of DVC, or ``workspace``, the files as
they lie here. Two make a page of their differences. More, or none, which means HEAD and its experiments, make one of
small multiples (hemorrhage.tools.multiples). Both leave every number in one tidy table next to the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.report import page as report
from hemorrhage.analyze.report.charts.comparison import side_by_side
from hemorrhage.analyze.report.charts.scales import SCALES
from hemorrhage.analyze.rows.differences import (
    SHOWN,
    Difference,
    Lost,
    differences,
    is_headline,
    list_changes,
)
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.tools import multiples
from hemorrhage.tools.revisions import Study, changed_code, environment, of_head, read, shipped

PAGE = Path("reports/compare.html")
TABLES = (".csv", ".parquet")

MOST_OTHERS = 1000
"""Differences of other metrics than the headline's that the page lists; all are in the table beside it."""


def render(a: Study, b: Study) -> str:
    """Render the page of two studies as HTML."""
    compared, lost = differences(a.rows, b.rows, (a.blocks, b.blocks))
    different = [row for row in compared if row.difference != 0]
    headline = [row for row in different if is_headline(row.metric)]
    others = [row for row in different if not is_headline(row.metric)]
    numbers = [Numbers(study.rows) for study in (a, b)]
    corpora = list(dict.fromkeys(name for side in numbers for name in side.datasets("kl_mean")))
    names = list(dict.fromkeys([*a.rows["variant"], *b.rows["variant"]]))
    libraries = [environment(study) for study in (a, b)]
    return report.environment().get_template("compare.html.j2").render(
        a=a,
        b=b,
        title=f"{a.name} and {b.name}",
        rows=[_row(row) for row in headline],
        certain=sum(row.certain for row in different),
        different=len(different),
        same=len(compared) - len(different),
        others=[_row(row) for row in others[:MOST_OTHERS]],
        unlisted=max(len(others) - MOST_OTHERS, 0),
        lost=[_lost(row) for row in lost],
        only=[_only(a, b), _only(b, a)],
        protocols=_protocols(lost),
        shipped=[shipped(study) for study in (a, b)],
        params=[(key, _shown(first), _shown(second)) for key, first, second in list_changes(a.params, b.params)],
        code=changed_code(a, b),
        libraries=[(key, _shown(x), _shown(y)) for key, x, y in list_changes(*libraries)],
        corpora=corpora,
        corpus_options=[(corpus, corpus) for corpus in corpora],
        scales={key: scale.name for key, scale in SCALES.items()},
        palettes=report.PALETTES,
        figures={
            f"compare|{scale}|{name}": side_by_side(names, numbers, (a.name, b.name), name, scale)
            for name in corpora
            for scale in SCALES
        },
        height=120 + 22 * len(names),
        plotly=report.plotly(),
    )  # fmt: skip


def _only(study: Study, other: Study) -> list[str]:
    return [name for name in dict.fromkeys(study.rows["variant"]) if name not in set(other.rows["variant"])]


def _protocols(lost: Sequence[Lost]) -> bool:
    """Tell whether both sides have a metric on the same data set, but under two protocols."""
    sides: dict[tuple[str, str, str], set[str]] = {}
    for row in lost:
        sides.setdefault((row.variant, strip_protocol(row.metric), row.dataset), set()).add(row.side)
    return any(len(names) == 2 for names in sides.values())


def _shown(value: object) -> str:
    return "–" if value is None else json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


@dataclass(frozen=True)
class Row:
    """A difference as the page shows it; ``whole`` is the metric with its protocol, ``sort`` orders the column."""

    variant: str
    metric: str
    whole: str
    dataset: str
    a: str
    b: str
    difference: str
    sort: float
    interval: str
    certain: bool
    data: str


def _row(row: Difference) -> Row:
    exact = row.low != row.low
    plain = strip_protocol(row.metric)
    return Row(
        variant=row.variant,
        metric=SHOWN.get(plain, plain),
        whole=row.metric,
        dataset=" ".join(filter(None, (row.dataset, row.strategy))),
        a=f"{row.a:.4g}",
        b=f"{row.b:.4g}",
        difference=f"{row.difference:+.3g}",
        sort=row.difference,
        interval="exact" if exact else f"{row.low:+.3g} to {row.high:+.3g}",
        certain=row.certain,
        data="counted" if exact else "the same, paired" if row.paired else "not paired",
    )


@dataclass(frozen=True)
class LostRow:
    """A number of one side as the page shows it."""

    variant: str
    metric: str
    dataset: str
    side: str
    value: str
    interval: str
    reason: str


def _lost(row: Lost) -> LostRow:
    exact = row.low != row.low
    return LostRow(
        variant=row.variant,
        metric=row.metric,
        dataset=" ".join(filter(None, (row.dataset, row.strategy))),
        side=row.side,
        value=f"{row.estimate:.4g}",
        interval="" if exact else f"{row.low:.3g} to {row.high:.3g}",
        reason=row.reason,
    )


def as_json(a: Study, b: Study) -> Json:
    """Return the comparison as plain content: differences with intervals, rows that one side lacks, what changed."""
    compared, lost = differences(a.rows, b.rows, (a.blocks, b.blocks))
    return {
        "a": {"name": a.name, "commit": a.commit},
        "b": {"name": b.name, "commit": b.commit},
        "differences": [difference._asdict() for difference in compared],
        "lost": [row._asdict() for row in lost],
        "params": [{"key": key, "a": first, "b": second} for key, first, second in list_changes(a.params, b.params)],
        "code": [{"file": file, "added": added, "removed": removed} for file, added, removed in changed_code(a, b)],
    }


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "compare",
        "Compare revisions of a study. Two: differences with intervals first, then what changed in params and code.\n"
        "More: each beside the first, a chart for each variant. None: HEAD and its experiments.",
        [
            "hemorrhage compare HEAD~1 workspace",
            "hemorrhage compare main my-branch --out reports/compare.html --json",
            "hemorrhage compare HEAD brown-teff pious-hake --table reports/compare.parquet",
            "hemorrhage compare",
        ],
        {NOT_MEASURED: "a revision has no rows here"},
    )
    revision = "a revision of git, an experiment of DVC, or workspace: the files in this folder"
    made.add_argument("revisions", nargs="*", metavar="REVISION", help=revision)
    made.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help=f"the page; default: {PAGE}")
    table = "every number of whole models, .csv or .parquet; default: the page's name with .csv"
    made.add_argument("--table", type=Path, metavar="FILE", help=table)
    made.add_argument("--json", action="store_true", help="print the comparison as JSON instead of the page's path")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and the table."""
    arguments = parser().parse_args(argv)
    table = arguments.table or arguments.out.with_suffix(".csv")
    if table.suffix not in TABLES:
        raise CommandError(f"--table {table}: a table ends in {' or '.join(TABLES)}")
    if len(arguments.revisions) == 1:
        raise CommandError("name two revisions or more, or none: HEAD and its experiments")
    studies = [read(name) for name in arguments.revisions] or _experiments()
    tidy = multiples.table(studies)
    is_pair = len(studies) == 2
    page = render(*studies) if is_pair else multiples.render(studies, tidy)
    for file in (arguments.out, table):
        file.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    if table.suffix == ".csv":
        tidy.to_csv(table, index=False)
    else:
        tidy.to_parquet(table, index=False)
    if arguments.json:
        print(json_text(as_json(*studies) if is_pair else multiples.as_json(studies, tidy)))
    else:
        print(f"open {arguments.out}; {len(tidy)} numbers of {len(studies)} revisions are in {table}")
    return YES


def _experiments() -> list[Study]:
    """Read HEAD and its experiments; one that has no rows is named on standard error and left out."""
    studies = []
    for name in of_head():
        try:
            studies.append(read(name))
        except CommandError as error:
            print(f"hemorrhage compare: left out: {error}", file=sys.stderr)
    if len(studies) < 2:
        raise CommandError("less than two experiments of HEAD have rows", NOT_MEASURED)
    return studies

"""Two revisions of a study next to each other, differences first: ``hemorrhage compare``.

A and B are revisions of git (``HEAD~1``, a branch, a tag, an experiment of DVC) or ``workspace``, the files as they lie
here. The rows of a revision come out of DVC's cache or remote, its params and recommendation out of git.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import pandas as pd
from ruamel.yaml import YAML

from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.report import page as report
from hemorrhage.analyze.report.charts.comparison import side_by_side
from hemorrhage.analyze.rows.blocks import Blocks, by_key
from hemorrhage.analyze.rows.differences import SHOWN, Difference, Lost, differences, list_changes
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.params import read_yaml

WORKSPACE = "workspace"
ROWS = "reports/hemorrhage.parquet"
BLOCKS = "reports/blocks.parquet"
PARAMS = Path("params.yaml")
PAGE = Path("reports/compare.html")
CODE = ("src/hemorrhage", "rules", "Snakefile", "requirements.txt")


class Shipped(TypedDict):
    """The picked variant and its size as a share of the base's."""

    variant: str | None
    size: float


class Recommendation(TypedDict, total=False):
    """The keys of ``recommendation.json`` that are read."""

    overall: Shipped | None


class Provenance(TypedDict, total=False):
    """The keys of ``provenance.json`` that are read: environments by their names, and that of the analysis."""

    environments: dict[str, dict[str, str]]
    analyzed_in: str


@dataclass(frozen=True)
class Study:
    """A revision: its name, its commit with the subject, rows, params and what git has of reports/.

    ``blocks``: sums by window and group; none of a study that was analyzed before they were kept.
    """

    name: str
    commit: str
    subject: str
    rows: pd.DataFrame
    params: Json
    provenance: Provenance
    recommendation: Recommendation
    blocks: Blocks = field(default_factory=dict, repr=False)


def read(name: str) -> Study:
    """Read the study of a revision of the repository in the current folder. Raises CommandError."""
    if name == WORKSPACE:
        rows = Path(ROWS)
        if not rows.is_file():
            raise CommandError(f"{ROWS} does not exist; run the study, or `dvc pull {ROWS}`", NOT_MEASURED)
        blocks = Path(BLOCKS)
        kept = blocks.read_bytes() if blocks.is_file() else None
        return _study(name, "", "files as they lie here", rows.read_bytes(), kept)
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        raise CommandError(f"{name} is not a revision that git knows")
    rows_there, subject = _from_dvc(name, commit, ROWS), _git("log", "-1", "--format=%s", commit) or ""
    try:
        kept = _from_dvc(name, commit, BLOCKS)
    except CommandError:
        kept = None
    return _study(name, commit[:10], subject, rows_there, kept)


def _study(name: str, commit: str, subject: str, rows: bytes, blocks: bytes | None = None) -> Study:
    return Study(
        name=name,
        commit=commit,
        subject=subject,
        rows=pd.read_parquet(io.BytesIO(rows)),
        params=_params(commit),
        provenance=json.loads(_file("reports/provenance.json", commit)),
        recommendation=json.loads(_file("reports/recommendation.json", commit)),
        blocks={} if blocks is None else by_key(pd.read_parquet(io.BytesIO(blocks))),
    )


def _params(commit: str) -> Json:
    """Read params.yaml of a commit, or of the folder where ``commit`` is empty; empty where it does not exist."""
    if commit:
        content = YAML(typ="safe").load(_git("show", f"{commit}:params.yaml") or "{}")
    else:
        content = read_yaml(PARAMS) if PARAMS.is_file() else {}
    return content if isinstance(content, dict) else {}


def _from_dvc(name: str, commit: str, path: str) -> bytes:
    """Read a report of a commit out of DVC's cache or remote."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        with dvc.api.open(path, repo=".", rev=commit, mode="rb") as file:
            return bytes(file.read())
    except (DvcException, OSError) as error:
        reason = (
            f"{name}: DVC has no {path} of this revision; run `dvc repro` there and commit dvc.lock, or `dvc fetch` it"
        )
        raise CommandError(f"{reason} ({error})", NOT_MEASURED) from None


def _file(path: str, commit: str) -> str:
    """Read a file of git, or of the folder where ``commit`` is empty; an empty mapping where it does not exist."""
    if commit:
        return _git("show", f"{commit}:{path}") or "{}"
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else "{}"


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def code(a: Study, b: Study) -> list[tuple[str, str, str]]:
    """List (file, lines added, lines removed) of the code between two studies."""
    ends = [end.commit for end in (a, b) if end.commit]
    if not ends:
        return []
    # Against the folder, git compares from the commit: turn it where the folder is A.
    text = _git("diff", "--numstat", *(["-R"] if not a.commit else []), *ends, "--", *CODE) or ""
    return [(file, added, removed) for added, removed, file in (line.split("\t") for line in text.splitlines())]


def render(a: Study, b: Study) -> str:
    """Render the page as HTML."""
    compared, lost = differences(a.rows, b.rows, (a.blocks, b.blocks))
    different = [row for row in compared if row.difference != 0]
    numbers = [Numbers(study.rows) for study in (a, b)]
    corpora = [name for name in numbers[0].datasets("kl_mean") if name in numbers[1].datasets("kl_mean")]
    names = list(dict.fromkeys([*a.rows["variant"], *b.rows["variant"]]))
    only = [_only(a, b), _only(b, a)]
    alone = {*only[0], *only[1]}
    libraries = [_environment(study) for study in (a, b)]
    return report.environment().get_template("compare.html.j2").render(
        a=a,
        b=b,
        title=f"{a.name} and {b.name}",
        rows=[_row(row) for row in different],
        certain=sum(row.certain for row in different),
        same=len(compared) - len(different),
        lost=[row for row in lost if row.variant not in alone],
        only=only,
        protocols=_protocols(lost),
        shipped=[_shipped(study) for study in (a, b)],
        params=[(key, _shown(first), _shown(second)) for key, first, second in list_changes(a.params, b.params)],
        code=code(a, b),
        libraries=[(key, _shown(x), _shown(y)) for key, x, y in list_changes(*libraries)],
        corpora=corpora,
        corpus_options=[(corpus, corpus) for corpus in corpora],
        palettes=report.PALETTES,
        figures={f"compare|{name}": side_by_side(names, numbers, (a.name, b.name), name) for name in corpora},
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


def _shipped(study: Study) -> str:
    answer = study.recommendation.get("overall")
    if not answer:
        return "no recommendation"
    if not answer["variant"]:
        return "nothing inside the budget"
    return f"{answer['variant']}, {100 * answer['size']:.1f}\u00a0% of the base's bytes"


def _environment(study: Study) -> dict[str, str]:
    """Return the versions and the machine that the study was analyzed with."""
    return study.provenance.get("environments", {}).get(study.provenance.get("analyzed_in", ""), {})


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
    return Row(
        variant=row.variant,
        metric=SHOWN[strip_protocol(row.metric)],
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


def as_json(a: Study, b: Study) -> Json:
    """Return the comparison as plain content: differences with intervals, rows that one side lacks, what changed."""
    compared, lost = differences(a.rows, b.rows, (a.blocks, b.blocks))
    return {
        "a": {"name": a.name, "commit": a.commit},
        "b": {"name": b.name, "commit": b.commit},
        "differences": [difference._asdict() for difference in compared],
        "lost": [row._asdict() for row in lost],
        "params": [{"key": key, "a": first, "b": second} for key, first, second in list_changes(a.params, b.params)],
        "code": [{"file": file, "added": added, "removed": removed} for file, added, removed in code(a, b)],
    }


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "compare",
        "Compare two revisions of a study: differences with intervals first, then what changed in params and code.",
        ["hemorrhage compare HEAD~1 workspace", "hemorrhage compare main my-branch --out reports/compare.html --json"],
        {NOT_MEASURED: "a revision has no rows here"},
    )
    revision = "a revision of git, or workspace: the files in this folder"
    made.add_argument("a", metavar="A", help=revision)
    made.add_argument("b", metavar="B", help=revision)
    made.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help=f"the page; default: {PAGE}")
    made.add_argument("--json", action="store_true", help="print the comparison as JSON instead of the page's path")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    arguments = parser().parse_args(argv)
    a, b = read(arguments.a), read(arguments.b)
    page = render(a, b)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    print(json_text(as_json(a, b)) if arguments.json else f"open {arguments.out}")
    return YES

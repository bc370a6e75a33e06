"""Check of variants against a budget of damage: ``hemorrhage gate``, an exit code for CI.

Reads the rows of the study only. Named variants must all be inside, and an engine must load them. Without a name one
variant that is smaller on disk than the base must be inside, its gain one that an engine can use, and the smallest is
named. ``--theoretical`` asks about damage alone. The bounds hold together for all variants that the study could have
picked, as on its page, since whoever names one has seen the others. ``--alone`` is for variants that were named before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import pandas as pd
from pydantic import ValidationError

from hemorrhage.analyze.budget import (
    DAMAGE_KINDS,
    FROM_BEST,
    INSIDE,
    Check,
    exit_code,
    judge,
    measured_variants,
)
from hemorrhage.analyze.inputs import BASE
from hemorrhage.runtime.address import Json
from hemorrhage.runtime.command import ANSWERS, CANNOT_TELL, NO, NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.params import RENAMED, Budget, ConfigError, read_yaml
from hemorrhage.study.params import read as read_params
from hemorrhage.study.params import variants as expand
from hemorrhage.study.wording import first_error

ROWS = Path("reports/hemorrhage.parquet")
PARAMS = Path("params.yaml")

ENGINES = "engines"
"""Attribute of the rows: variant -> what loads it."""


CANDIDATES = "candidates"
"""Attribute of the rows: those that could be picked, and those that could be named as smaller in theory."""

NEEDED = ("variant", "family", "metric", "dataset", "estimate", "low", "high", "n", "status", "reason")
"""Columns of the rows that the gate reads."""


class Answer(TypedDict):
    """The answer for a variant, the checks that it is made of, and what loads it (None where the rows don't say)."""

    answer: str
    checks: list[Json]
    engine: str | None


class Use(TypedDict):
    """What loads a variant, and why no engine can use what was gained; one of them may be empty."""

    loads: str
    hindrance: str


class Content(TypedDict):
    """The content of ``--json``. ``smallest``: the smallest variant inside, where no variant was named."""

    answer: str
    budget: dict[str, float]
    smallest: str | None
    variants: dict[str, Answer]


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: ``status`` is the exit code, ``smallest`` the smallest variant inside where none was named.

    ``unusable``: variants that fail whatever their damage, as nothing loads them. ``uses``: what loads which.
    """

    status: int
    lines: list[str]
    checks: Mapping[str, Sequence[Check]]
    smallest: str | None = None
    unusable: frozenset[str] = frozenset()
    uses: Mapping[str, Use] = field(default_factory=dict)

    def as_json(self, budget: Mapping[str, float]) -> Content:
        """Return the answer as plain content."""
        return {
            "answer": ANSWERS[self.status],
            "budget": dict(budget),
            "smallest": self.smallest,
            "variants": {
                name: {
                    "answer": ANSWERS[NO if name in self.unusable else exit_code(checks)],
                    "checks": [check.as_json() for check in checks],
                    "engine": self.uses[name]["loads"] if name in self.uses else None,
                }
                for name, checks in self.checks.items()
            },
        }


def parse(text: str) -> dict[str, float]:
    """Read the budget of a command line or of a YAML file. Raises CommandError."""
    content = _of_text(text) if "=" in text else _of_file(Path(text))
    allowed = f"allowed: {', '.join(DAMAGE_KINDS)}"
    for key in content:
        renamed = RENAMED.get(f"analyze.budget.{key}")
        if renamed is not None:
            raise CommandError(f"BUDGET: {key} is now {renamed}")
        if key not in DAMAGE_KINDS:
            raise CommandError(f"BUDGET: {key} is unknown; {allowed}")
    try:
        limits = Budget.model_validate(content).model_dump(exclude_none=True)
    except ValidationError as error:
        raise CommandError(f"BUDGET: {first_error(error, content)}") from None
    if not limits:
        raise CommandError(f"BUDGET is empty; {allowed}")
    return {key: float(limit) for key, limit in limits.items()}


def _of_text(text: str) -> dict[str, object]:
    pairs = [limit.partition("=") for limit in text.split(",") if limit.strip()]
    limits: dict[str, object] = {}
    for key, _, limit in pairs:
        if key.strip() in limits:
            raise CommandError(f"BUDGET: {key.strip()} has two limits")
        limits[key.strip()] = limit.strip()
    return limits


def _of_file(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise CommandError(f"BUDGET: {path} is neither a file nor kl=0.1,flips=0.05")
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise CommandError(f"BUDGET: {error}") from None
    if isinstance(content, dict) and "analyze" in content:
        analyze = content["analyze"]
        content = analyze.get("budget") if isinstance(analyze, dict) else None
    if not isinstance(content, dict):
        raise CommandError(f"BUDGET: {path} has neither {', '.join(DAMAGE_KINDS)} nor analyze.budget")
    return content


def read(path: Path) -> pd.DataFrame:
    """Read the rows of a study. Raises CommandError."""
    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        raise CommandError(f"{path} does not exist; run the study, or `dvc pull {path}`", NOT_MEASURED) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} can't be read: {error}") from None
    missing = [column for column in NEEDED if column not in rows]
    if missing:
        raise CommandError(f"{path} is not a study's rows: it lacks {', '.join(missing)}")
    return rows


def answer(
    rows: pd.DataFrame, budget: dict[str, float], variants: str, theoretical: bool = False, is_alone: bool = False
) -> Verdict:
    """Ask about the variants that are named, ``all`` of them, or (where the text is empty) whether one may be shipped.

    ``theoretical``: also of those that no engine loads. ``is_alone``: the names were known before the results, so that
    each bound holds for its variant alone. Raises CommandError for a variant that is unknown or has no
    rows, and where rows of an older study don't say what loads the variants.
    """
    everyone = measured_variants(rows)
    known = list(dict.fromkeys(rows.loc[rows["variant"] != BASE, "variant"]))
    names = _named(variants) or everyone
    _check_names(names, known)
    if not names:
        raise CommandError("no variant was measured", NOT_MEASURED)
    uses: Mapping[str, Use] = rows.attrs.get(ENGINES, {})
    if not uses and not theoretical:
        raise CommandError("these rows don't say what loads the variants: run the study again, or --theoretical")
    groups = [] if is_alone else _groups(rows, everyone)
    judged = judge(rows, list(dict.fromkeys([*everyone, *names])), budget, rows.attrs.get("confidence", 0.95), groups)
    checks = {name: judged[name] for name in names}
    if not variants:
        return _shippable(rows, checks, uses, theoretical)
    unusable = frozenset() if theoretical else frozenset(name for name in names if not _loads(name, uses))
    codes = [NO if name in unusable else exit_code(checks[name]) for name in names]
    lines = [line for name in names for line in _lines(name, checks[name], uses, name in unusable)]
    return Verdict(max(codes, key=FROM_BEST.index), lines, checks, unusable=unusable, uses=uses)


def _groups(rows: pd.DataFrame, everyone: Sequence[str]) -> list[list[str]]:
    """Return the variants that could be picked instead of each other; of rows that don't say it, all of them."""
    candidates: Mapping[str, list[str]] | None = rows.attrs.get(CANDIDATES)
    return [list(everyone)] if candidates is None else list(candidates.values())


def _loads(name: str, uses: Mapping[str, Use]) -> bool:
    """Return whether something loads a variant; of one that was never measured nobody knows, and its rows say so."""
    return name not in uses or bool(uses[name]["loads"])


def _named(variants: str) -> list[str]:
    """List the names that were given; none where all variants are asked about."""
    return [] if variants == "all" else [name.strip() for name in variants.split(",") if name.strip()]


def _check_names(names: Sequence[str], measured: Sequence[str]) -> None:
    """Refuse a name that neither the rows nor params.yaml know, and one that has no rows yet. Raises CommandError."""
    lacking = [name for name in names if name not in measured]
    if not lacking:
        return
    planned = _planned()
    for name in lacking:
        if name not in planned:
            known = ", ".join(dict.fromkeys([*measured, *planned])) or "none"
            raise CommandError(f"VARIANT: {name} is not a variant; variants are {known}")
    raise CommandError(f"{', '.join(lacking)}: not run yet; run the study", NOT_MEASURED)


def _planned() -> list[str]:
    """List the variants of params.yaml; none where it is not here or can't be run."""
    try:
        return list(expand(read_params(PARAMS)))
    except ConfigError:
        return []


def _shippable(
    rows: pd.DataFrame, checks: Mapping[str, Sequence[Check]], uses: Mapping[str, Use], theoretical: bool
) -> Verdict:
    """Answer whether a variant that is smaller than the base is inside, and an engine can use what it gains."""
    sizes = rows[(rows["metric"] == "disk_bytes") & (rows["status"] == "ok")].set_index("variant")["estimate"]
    base = sizes.get(BASE, float("inf"))
    candidates: Mapping[str, list[str]] = rows.attrs.get(CANDIDATES, {"usable": list(checks)})
    pickable = {name for names in candidates.values() for name in names}
    smaller = [
        name
        for name in checks
        if name in pickable
        and sizes.get(name, float("inf")) < base
        and (theoretical or name not in uses or not uses[name]["hindrance"])
    ]
    inside = [name for name in smaller if exit_code(checks[name]) == YES]
    if inside:
        least = min(inside, key=lambda name: sizes[name])
        count = f"{len(inside)} of {len(checks)} variants are smaller than the base and inside"
        summary = f"{count}; the smallest is {least}, {sizes[least] / 1e6:.1f} MB"
        return Verdict(YES, [*_lines(least, checks[least], uses), summary], checks, least, uses=uses)
    lines = [line for name in smaller for line in _lines(name, checks[name], uses)]
    best = min((exit_code(checks[name]) for name in smaller), key=FROM_BEST.index, default=NO)
    summary = f"none of the {len(smaller)} variants that are smaller than the base is inside"
    open_ones = [name for name in smaller if exit_code(checks[name]) == best] if best != NO else []
    if open_ones:
        summary += f"; {ANSWERS[best]} for {', '.join(open_ones)}{_measured_limits(checks, open_ones)}"
    return Verdict(best, [*lines, summary], checks, uses=uses)


def _measured_limits(checks: Mapping[str, Sequence[Check]], names: Sequence[str]) -> str:
    """Return how to ask about the limits that have numbers of some variants, where others have none of any of them."""
    of_names = [check for name in names for check in checks[name]]
    limits = {check.kind: check.limit for check in of_names}
    unmeasured = [kind for kind in limits if all(each.estimate is None for each in of_names if each.kind == kind)]
    measured = [f"{kind}={limit:g}" for kind, limit in limits.items() if kind not in unmeasured]
    if not unmeasured or not measured:
        return ""
    return f"; nothing measures {', '.join(unmeasured)}: without them, hemorrhage gate {','.join(measured)}"


def _lines(name: str, checks: Sequence[Check], uses: Mapping[str, Use], is_unusable: bool = False) -> list[str]:
    """Write a line for each limit that does not hold, or for the limit that is nearest, and what loads the variant."""
    if is_unusable:
        return [f"{name}: nothing loads it: {uses[name]['hindrance']}; --theoretical asks about its damage alone"]
    failing = [check for check in checks if check.answer != INSIDE]
    if failing:
        return [f"{name}: {check}" for check in failing]
    nearest = max(checks, key=lambda check: check.used)
    lines = [f"{name}: inside; nearest its limit is {nearest}"]
    use = uses.get(name)
    if use is not None:
        lines.append(f"{name}: {_engine(use)}")
    return lines


def _engine(use: Use) -> str:
    """Say what loads a variant, and whether its gain is one that an engine uses, as the page does."""
    if not use["loads"]:
        return f"nothing loads it: {use['hindrance']}"
    return f"loads in {use['loads']}" + (f"; its gain is theoretical: {use['hindrance']}" if use["hindrance"] else "")


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "gate",
        "Ask whether variants stay inside a budget of damage: an upper bound of every kind of damage, on every\n"
        "corpus and suite of tasks, lies below its limit. Without --variant: is there one to ship?",
        [
            "hemorrhage gate",
            "hemorrhage gate kl=0.1,flips=0.05 --variant gptq-4,rtn-4",
            "hemorrhage gate budget.yaml --variant all --json",
        ],
        {
            YES: "every named variant is inside, and an engine loads it; without a name: a smaller one is",
            NO: "a named variant is outside, or nothing loads it; without a name: all are",
            CANNOT_TELL: "no limit is broken, but one lies within an interval (not resolved)",
            NOT_MEASURED: "no limit is broken, but a number is missing: not in params.yaml, not run yet, or failed",
        },
    )
    made.add_argument(
        "budget",
        nargs="?",
        default="params.yaml",
        metavar="BUDGET",
        help=f"limits of {', '.join(DAMAGE_KINDS)} as kl=0.1,flips=0.05, or a YAML file with these keys or with"
        " analyze.budget; default: params.yaml",
    )
    made.add_argument(
        "--variant", default="", metavar="NAME,...", help="variants, or all; default: is there one to ship?"
    )
    made.add_argument(
        "--theoretical", action="store_true", help="also pass what no engine loads, or whose gain none can use"
    )
    made.add_argument(
        "--alone",
        action="store_true",
        help="the variants were named before the study was seen: a bound for each, none for the choice",
    )
    made.add_argument("--rows", type=Path, default=ROWS, metavar="FILE", help=f"default: {ROWS}")
    made.add_argument("--json", action="store_true", help="the answer with every check, as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer and return it."""
    arguments = parser().parse_args(argv)
    budget = parse(arguments.budget)
    if not arguments.rows.exists() and _planned():
        # A name that params.yaml lacks is wrong before a run as it is after one.
        _check_names(_named(arguments.variant), _planned())
    if arguments.alone and arguments.variant in ("", "all"):
        raise CommandError("--alone needs the names of the variants: --variant NAME,...")
    verdict = answer(read(arguments.rows), budget, arguments.variant, arguments.theoretical, arguments.alone)
    print(json_text(verdict.as_json(budget)) if arguments.json else "\n".join(verdict.lines))
    return verdict.status

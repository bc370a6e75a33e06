"""Whether a variant stays inside a budget: an exit status for CI.

    python -m hemorrhage.tools.gate BUDGET [--variant NAME,...|all] [--rows reports/hemorrhage.parquet]

BUDGET: ``kl=0.1,flips=0.05``, or a YAML file with these keys or with the ``analyze.budget`` of a params.yaml. Allowed
keys are those of ``analyze.budget``. Reads the rows only. Ends with 0 when every variant named is inside, with 1 and a
line for each limit that does not hold when one is not, with 2 when it was asked something that has no answer. Without
``--variant`` one variant that is smaller on disk than the base must be inside, and the smallest is named. The bounds
hold for as many variants together as are looked at: one for one name, all of them without a name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError

from hemorrhage.analyze.budget import INSIDE, KINDS, Check, judge, judged
from hemorrhage.analyze.inputs import BASE
from hemorrhage.study.params import Budget, first_error

ROWS = Path("reports/hemorrhage.parquet")


class UnanswerableError(ValueError):
    """A question that can't be answered; the message is one line for the user."""


def parse(text: str) -> dict[str, float]:
    """The budget of a command line or of a YAML file. Raises UnanswerableError."""
    found = _of_file(Path(text)) if "=" not in text else dict(_pair(part) for part in text.split(",") if part.strip())
    allowed = f"allowed: {', '.join(KINDS)}"
    for key in found:
        if key not in KINDS:
            raise UnanswerableError(f"BUDGET: {key} is unknown; {allowed}")
    try:
        limits = Budget.model_validate(found).model_dump(exclude_none=True)
    except ValidationError as error:
        raise UnanswerableError(f"BUDGET: {first_error(error)}") from None
    if not limits:
        raise UnanswerableError(f"BUDGET: it limits nothing; {allowed}")
    return {key: float(limit) for key, limit in limits.items()}


def _pair(part: str) -> tuple[str, str]:
    key, _, limit = part.partition("=")
    return key.strip(), limit.strip()


def _of_file(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UnanswerableError(f"BUDGET: {path} is neither a file nor kl=0.1,flips=0.05") from None
    except YAMLError as error:
        raise UnanswerableError(f"BUDGET: {path}: not YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and "analyze" in content:
        content = (content["analyze"] or {}).get("budget")
    if not isinstance(content, dict):
        raise UnanswerableError(f"BUDGET: {path} has neither {', '.join(KINDS)} nor analyze.budget")
    return content


def read(path: Path) -> pd.DataFrame:
    """The rows of a study. Raises UnanswerableError."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise UnanswerableError(f"{path} is not there; run the study, or `dvc pull {path}`") from None


def answer(rows: pd.DataFrame, budget: dict[str, float], variants: str) -> tuple[bool, list[str]]:
    """Whether the gate opens, and what to say. Raises UnanswerableError for a variant that has no rows."""
    confidence = rows.attrs.get("confidence", 0.95)
    everyone = judged(rows)
    known = list(dict.fromkeys(rows.loc[rows["variant"] != BASE, "variant"]))
    names = everyone if variants in ("", "all") else [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UnanswerableError(f"VARIANT: there is no {name}; there are {', '.join(known) or 'none'}")
    if not names:
        raise UnanswerableError("no variant was measured")
    checks = judge(rows, names, budget, confidence, len(names))
    sizes = rows[(rows["metric"] == "disk_bytes") & (rows["status"] == "ok")].set_index("variant")["estimate"]
    if variants:
        lines = [line for name in names for line in _lines(name, checks[name])]
        return all(_holds(checks[name]) for name in names), lines
    base = sizes.get(BASE, float("inf"))
    smaller = [name for name in names if sizes.get(name, float("inf")) < base]
    inside = [name for name in smaller if _holds(checks[name])]
    if inside:
        least = min(inside, key=lambda name: sizes[name])
        also = f"{len(inside)} of {len(names)} variants are smaller than the base and inside"
        return True, [*_lines(least, checks[least]), f"{also}; the smallest is {least}, {sizes[least] / 1e6:.1f} MB"]
    lines = [line for name in smaller for line in _lines(name, checks[name])]
    return False, [*lines, f"none of the {len(smaller)} variants that are smaller than the base is inside"]


def _holds(checks: Sequence[Check]) -> bool:
    return all(check.answer == INSIDE for check in checks)


def _lines(name: str, checks: Sequence[Check]) -> list[str]:
    """A line for each limit that does not hold, or one for the limit that is nearest."""
    failing = [check for check in checks if check.answer != INSIDE]
    if failing:
        return [f"{name}: {check}" for check in failing]
    nearest = max(checks, key=lambda check: check.used)
    return [f"{name}: inside; nearest its limit is {nearest}"]


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.tools.gate", description="is it inside the budget?")
    parser.add_argument("budget", help="kl=0.1,flips=0.05, or a YAML file")
    parser.add_argument("--variant", default="", help="names, or all; default: is there one to ship?")
    parser.add_argument("--rows", type=Path, default=ROWS)
    arguments = parser.parse_args()
    try:
        opens, lines = answer(read(arguments.rows), parse(arguments.budget), arguments.variant)
    except UnanswerableError as error:
        _stop(str(error))
    print("\n".join(lines))
    sys.exit(0 if opens else 1)


def _stop(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

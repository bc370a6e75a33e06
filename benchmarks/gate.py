"""Error rates of the damage budget on real windows: how often damage exactly at its limit is called inside.

    python -m benchmarks.gate
    python -m benchmarks.gate --write docs/thresholds.md
    python -m benchmarks.gate --quantiles

``window_damage.csv`` has the mean KL of 256 windows of prose, 64 tokens each, spread evenly over the evaluation split,
for seven variants of the default model; among them are licence texts that every variant hurts three times as much as
the others. A study draws windows of these 256 with replacement, the same for all variants of a group. The limit of each
variant is its own mean over the 256, so that whatever is called inside is an error. For 42 variants the seven are taken
six times, each time on other windows. Flips are drawn at the limit, each variant's alone.

``--write`` puts the tables between the marks of a document. ``--quantiles`` prints the table of
hemorrhage.analyze.stats.bounds; it takes minutes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import marked
from hemorrhage.analyze import budget
from hemorrhage.analyze.stats import bounds
from hemorrhage.analyze.stats.bootstrap import Floats

POPULATION = Path(__file__).parent / "window_damage.csv"
LIMIT, CONFIDENCE = 0.1, 0.95
WINDOWS = (8, 16, 24, 48)
ITEMS = (192, 768)
FLIPS = 0.05
VARIANTS = (1, 2, 5, 42)
TIMES = {"1/1.5 of the limit": 1 / 1.5, "1/1.2 of it": 1 / 1.2, "1.2 times it": 1.2}
"""What is said of the true damage -> the true damage over the limit."""

BEGIN, END = "<!-- python -m benchmarks.gate -->", "<!-- end -->"


def population() -> Floats:
    """Return the damage of windows, each variant's divided by its mean: float64 ``[windows, variants]``."""
    damage = pd.read_csv(POPULATION).to_numpy(np.float64)
    return np.asarray(damage / damage.mean(axis=0))


def studies(rng: np.random.Generator, windows: int, variants: int, runs: int) -> Iterator[Floats]:
    """Draw studies from the population: float64 ``[windows, variants]`` each, with a mean of 1 in the long run."""
    damage = population()
    known = damage.shape[1]
    for _ in range(runs):
        chosen = []
        for start in range(0, variants, known):
            columns = rng.permutation(known)[: min(known, variants - start)]
            chosen.append(damage[rng.integers(0, len(damage), windows)][:, columns])
        yield np.concatenate(chosen, axis=1)


def rows_of(kind: str, estimates: Floats, errors: Floats, n: int) -> pd.DataFrame:
    """Return rows as the analysis has them; ``estimates``, ``errors``: float64 ``[studies, variants]``."""
    count, variants = estimates.shape
    names = [f"{study}-{number}" for study in range(count) for number in range(variants)]
    estimate, error = estimates.ravel(), errors.ravel()
    numbers = {"estimate": estimate, "low": estimate - 2 * error, "high": estimate + 2 * error, "error": error}
    fixed = {"family": "f", "dataset": "d", "n": n, "trials": float(n), "status": "ok", "reason": ""}
    return pd.DataFrame({"variant": names, "metric": budget.DAMAGE_KINDS[kind].metric, **numbers, **fixed})


def judge(kind: str, rows: pd.DataFrame, limit: float, variants: int) -> list[list[budget.Check]]:
    """Judge studies of so many variants each that could be picked instead of each other."""
    names = rows["variant"].tolist()
    groups = [names[start : start + variants] for start in range(0, len(names), variants)]
    checks = budget.judge(rows, names, {kind: limit}, CONFIDENCE, groups)
    return [[checks[name][0] for name in group] for group in groups]


def share_with_one_inside(judged: list[list[budget.Check]]) -> float:
    """Share of studies in which any variant is called inside."""
    return float(np.mean([any(check.answer == budget.INSIDE for check in study) for study in judged]))


def window_rows(studies: Sequence[Floats], level: float) -> pd.DataFrame:
    """Return the rows of studies; ``level``: the mean of each variant's population."""
    damage = level * np.stack(studies)
    n = damage.shape[1]
    return rows_of("kl", damage.mean(axis=1), damage.std(axis=1, ddof=1) / math.sqrt(n), n)


def windows_called_inside(seed: int, windows: int, variants: int, runs: int, level: float = LIMIT) -> float:
    """Share of studies in which any variant is called inside; ``level``: its true damage."""
    drawn = list(studies(np.random.default_rng([seed, windows, variants]), windows, variants, runs))
    return share_with_one_inside(judge("kl", window_rows(drawn, level), LIMIT, variants))


def flips_called_inside(seed: int, items: int, variants: int, runs: int, level: float = FLIPS) -> float:
    """Return the same of flips."""
    share = np.random.default_rng([seed, items, variants]).binomial(items, level, (runs, variants)) / items
    return share_with_one_inside(judge("flips", rows_of("flips", share, np.zeros_like(share), items), FLIPS, variants))


def decided_by_needed(seed: int, kind: str, first: int, times: float, runs: int) -> float:
    """Share of cases in which as many fresh windows or items as the first measurement asks for decide.

    ``times``: the true damage over the limit; ``first``: windows or items that were measured first. NaN where the first
    measurement always decides.
    """
    rng = np.random.default_rng([seed, first])
    damage, decided = population(), []
    limit = LIMIT if kind == "kl" else FLIPS

    def measure(n: int, column: Floats) -> budget.Check:
        if kind == "kl":
            rows = window_rows([rng.choice(column, n)[:, None]], times * limit)
        else:
            rows = rows_of("flips", np.array([[rng.binomial(n, times * limit) / n]]), np.zeros((1, 1)), n)
        return judge(kind, rows, limit, 1)[0][0]

    for run in range(runs):
        column = damage[:, run % damage.shape[1]]
        check = measure(first, column)
        if check.answer == budget.UNRESOLVED and check.needed is not None:
            decided.append(measure(check.needed, column).answer != budget.UNRESOLVED)
    return float(np.mean(decided)) if decided else math.nan


def table(seed: int, runs: int) -> list[str]:
    """Return the tables as lines of Markdown."""
    lines = [
        "| at the limit | " + " | ".join(f"{count} variant{'s' * (count > 1)}" for count in VARIANTS) + " |",
        "|---|" + "---|" * len(VARIANTS),
    ]
    for windows in WINDOWS:
        wrong = [windows_called_inside(seed, windows, count, runs) for count in VARIANTS]
        lines.append(f"| KL, {windows} windows | " + " | ".join(f"{100 * share:.1f} %" for share in wrong) + " |")
    for items in ITEMS:
        wrong = [flips_called_inside(seed, items, count, runs) for count in VARIANTS]
        lines.append(f"| flips, {items} items | " + " | ".join(f"{100 * share:.1f} %" for share in wrong) + " |")
    lines += ["", f"| what is asked for decides, with a true damage of | {' | '.join(TIMES)} |", "|---|---|---|---|"]
    for kind, first in (("kl", 16), ("flips", 192)):
        right = [decided_by_needed(seed, kind, first, times, runs // 4) for times in TIMES.values()]
        shown = ["always decided before" if math.isnan(share) else f"{100 * share:.0f} %" for share in right]
        name = f"{'KL' if kind == 'kl' else kind}, after {first} {budget.DAMAGE_KINDS[kind].unit}"
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return lines


def quantiles(draws: int) -> Iterator[str]:
    """Yield the lines of hemorrhage.analyze.stats.bounds.QUANTILES."""
    rng = np.random.default_rng(20252)
    for n in bounds.QUANTILES:
        shape = 4 / bounds.skewness(n) ** 2
        found = []
        for _ in range(0, draws, 4000):
            x = rng.gamma(shape, 1, (4000, n))
            found.append((shape - x.mean(axis=1)) / (x.std(axis=1, ddof=1) / math.sqrt(n)))
        line = np.quantile(np.concatenate(found), [1 - level for level in bounds.LEVELS])
        yield f"{n}: ({', '.join(f'{value:.4g}' for value in line)}),"


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate")
    parser.add_argument("--runs", type=int, default=1000, help="studies for each number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    parser.add_argument("--quantiles", action="store_true", help="print the quantiles that the bounds are made of")
    given = parser.parse_args()
    if given.quantiles:
        for line in quantiles(400_000):
            print(line, flush=True)
        return
    lines = table(given.seed, given.runs)
    print("\n".join(lines))
    if given.write:
        marked.write(given.write, BEGIN, END, lines)


if __name__ == "__main__":
    main()

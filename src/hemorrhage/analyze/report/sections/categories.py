"""Damage by category of a user's texts: which kind of text a variant hurts most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.budget import FEW_WINDOWS, few_windows
from hemorrhage.analyze.inputs import BASE
from hemorrhage.analyze.protocol import of_category
from hemorrhage.analyze.report.charts.scales import factor
from hemorrhage.analyze.rows.schema import OK
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.study import Study


@dataclass(frozen=True)
class Category:
    """A category and its windows; ``has_few``: too few to count for the budget."""

    name: str
    windows: int
    has_few: bool


@dataclass(frozen=True)
class Cell:
    """A variant's KL on a category, with its interval and what else was measured."""

    text: str
    note: str
    sort: float | str
    is_worst: bool = False


@dataclass(frozen=True)
class CategoryRow:
    """A variant: its KL on the whole corpus and on each category, and the category with the most."""

    variant: str
    whole: Cell
    cells: list[Cell]
    worst: str


@dataclass(frozen=True)
class CategoryTable:
    """The categories of a corpus, in the order of their texts."""

    corpus: str
    categories: list[Category]
    rows: list[CategoryRow]


@dataclass(frozen=True)
class Categories:
    """The section: a table for each corpus with categories; ``few``: what is said of those with few windows."""

    tables: list[CategoryTable]
    few: str


def section(study: Study) -> Categories:
    """Return the section of a study."""
    tables = [_table(study, corpus) for corpus in study.corpora]
    return Categories([table for table in tables if table.categories], few_sentence(study))


def few_sentence(study: Study) -> str:
    """Name the categories that are in no verdict for their few windows; empty where there are none."""
    few = few_windows(study.rows)
    if not few:
        return ""
    named = ", ".join(f"{name}: {windows}" for name, windows in few.items())
    return (
        f"With fewer than {FEW_WINDOWS} windows a category counts neither for nor against a variant ({named}); "
        "raise evaluate.windows or add text."
    )


def _table(study: Study, corpus: str) -> CategoryTable:
    categories = _categories(study, corpus)
    rows = [_row(study.numbers, name, corpus, categories) for name in study.inputs.variants if name != BASE]
    return CategoryTable(corpus, categories, [row for row in rows if row.whole.text])


def _categories(study: Study, corpus: str) -> list[Category]:
    rows = study.rows
    of_corpus = rows[
        (rows["dataset"] == corpus) & (rows["status"] == OK) & rows["metric"].str.startswith("kl_mean{cat")
    ]
    windows: dict[str, int] = {}
    for metric, n in of_corpus[["metric", "n"]].itertuples(index=False, name=None):
        windows.setdefault(metric.partition("=")[2].partition("}")[0], int(n))
    return [Category(name, n, n < FEW_WINDOWS) for name, n in windows.items()]


def _row(numbers: Numbers, variant: str, corpus: str, categories: Sequence[Category]) -> CategoryRow:
    kls = [numbers.get(variant, of_category("kl_mean", each.name), corpus) for each in categories]
    compared = {
        each.name: kl.value for each, kl in zip(categories, kls, strict=True) if kl is not None and not each.has_few
    }
    # Of one category alone, or of equal ones, none is the worst.
    worst = max(compared, key=lambda name: compared[name]) if len(set(compared.values())) > 1 else ""
    return CategoryRow(
        variant=variant,
        whole=_cell(numbers, variant, corpus, "", is_worst=False),
        cells=[_cell(numbers, variant, corpus, each.name, is_worst=each.name == worst) for each in categories],
        worst=worst,
    )


def _cell(numbers: Numbers, variant: str, corpus: str, category: str, is_worst: bool) -> Cell:
    kl, ratio, same = (
        numbers.get(variant, of_category(metric, category) if category else metric, corpus)
        for metric in ("kl_mean", "ln_perplexity_ratio", "same_top1")
    )
    if kl is None:
        return Cell("", "", "")
    notes = [_interval(kl)]
    if ratio is not None:
        notes.append(f"perplexity {factor(ratio.value)}")
    if same is not None:
        notes.append(f"same top-1 {100 * same.value:.0f}\u00a0%")
    return Cell(f"{kl.value:.2g}", "; ".join(filter(None, notes)), kl.value, is_worst)


def _interval(kl: Estimate) -> str:
    return "" if math.isnan(kl.low) else f"{kl.low:.2g} to {kl.high:.2g}"

"""Sums by window and by group of items, of the metrics that studies are compared by: blocks.parquet.

Two revisions of a study that measured the same windows and items are compared block by block: what a window has in
common in both drops out of the difference. A mean over tasks has a stratum for each task, whose groups are drawn apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.rows.tasks import ITEMS, Suite
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

COLUMNS = ["variant", "metric", "dataset", "stratum", "block", "sum", "size"]
TOKENS = "tokens.parquet"


def block_sums(inputs: Inputs, suites: Sequence[Suite]) -> pd.DataFrame:
    """Sum each metric over the tokens of a window, or the items of a group; ``size``: how many these are."""
    parts = [
        *(part for name, output in inputs.evaluations.items() for part in _of_text(name, output)),
        *(
            part
            for suite in suites
            for name, output in suite.outputs.items()
            for part in _of_items(name, output, suite)
        ),
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def _of_text(variant: str, output: Output) -> Iterator[pd.DataFrame]:
    if output.failure is not None or TOKENS not in output.tables:
        return
    tokens = output.tables[TOKENS]
    values = {
        "kl_mean": tokens["kl"].to_numpy(np.float64),
        "ln_perplexity_ratio": tokens["nll"].to_numpy(np.float64) - tokens["base_nll"].to_numpy(np.float64),
        "same_top1": tokens["same_top1"].to_numpy(np.float64),
    }
    yield from _grouped(variant, tokens["corpus"], None, tokens["window"], values)


def _of_items(variant: str, output: Output, suite: Suite) -> Iterator[pd.DataFrame]:
    if output.failure is not None or ITEMS not in output.tables:
        return
    items = output.tables[ITEMS]
    correct, base_correct = items["correct"].to_numpy(), items["base_correct"].to_numpy()
    values = {"accuracy": correct.astype(np.float64), "flips": (correct != base_correct).astype(np.float64)}
    yield from _grouped(variant, items["task"], None, items["group"], values)
    averaged = items["task"].isin(suite.averaged_tasks)
    chosen = items[averaged]
    whole = pd.Series(suite.name, chosen.index)
    means = {f"mean_{metric}": column[averaged.to_numpy()] for metric, column in values.items()}
    yield from _grouped(variant, whole, chosen["task"], chosen["group"], means)


def _grouped(
    variant: str, dataset: pd.Series, stratum: pd.Series | None, block: pd.Series, values: Mapping[str, Floats]
) -> Iterator[pd.DataFrame]:
    """Sum metrics by data set, stratum and block, in the order of these; the groups are found once for all metrics."""
    strata = pd.Series("", block.index) if stratum is None else stratum
    codes, names = zip(*(pd.factorize(column, sort=True) for column in (dataset, strata, block)), strict=True)
    shape = tuple(max(len(each), 1) for each in names)
    groups, group = np.unique(np.ravel_multi_index(codes, shape), return_inverse=True)
    keys = {
        name: distinct.take(code)
        for name, distinct, code in zip(
            ("dataset", "stratum", "block"), names, np.unravel_index(groups, shape), strict=True
        )
    }
    sizes = np.bincount(group, minlength=len(groups))
    for metric, column in values.items():
        sums = np.bincount(group, weights=column, minlength=len(groups))
        yield pd.DataFrame({"variant": variant, "metric": metric, **keys, "sum": sums, "size": sizes})


Stratum = tuple[str, Floats, Floats, Floats]
"""A name, blocks, their sums and sizes, in the order of the blocks."""

Blocks = dict[tuple[str, str, str], list[Stratum]]
"""(variant, metric without protocol, data set) -> strata, in the order of their names; most metrics have one."""


def by_key(table: pd.DataFrame) -> Blocks:
    """Index a table of sums. A table that was made before there were strata has one of each metric."""
    indexed: Blocks = {}
    strata = table if "stratum" in table else table.assign(stratum="")
    for names, rows in strata.sort_values("block").groupby(["variant", "metric", "dataset", "stratum"]):
        variant, metric, dataset, stratum = map(str, names)
        columns = (rows[name].to_numpy(np.float64) for name in ("block", "sum", "size"))
        indexed.setdefault((variant, metric, dataset), []).append((stratum, *columns))
    return indexed


def paired_interval(
    a: Blocks, b: Blocks, key: tuple[str, str, str], confidence: float, resamples: int = 2000
) -> tuple[float, float] | None:
    """Bound B minus A of a mean over the same blocks; None where they are not the same, or of other sizes.

    Each stratum is resampled by itself, and their means count alike.
    """
    if key not in a or key not in b or len(a[key]) != len(b[key]):
        return None
    replicates, blocks = np.zeros(resamples), 0
    for (name, first, sums_a, sizes_a), (other, second, sums_b, sizes_b) in zip(a[key], b[key], strict=True):
        same = name == other and np.array_equal(first, second) and np.array_equal(sizes_a, sizes_b)
        if not same or len(first) < 2:
            return None
        counts = bootstrap.draws(name or key[2], len(first), resamples, 0)
        replicates += (counts @ (sums_b - sums_a)) / (counts @ sizes_a) / len(a[key])
        blocks += len(first)
    if not np.isfinite(replicates).all():
        return None
    return bootstrap.interval(replicates, confidence, blocks)

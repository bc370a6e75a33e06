"""Sums by window and by group of items, of the metrics that studies are compared by: blocks.parquet.

Two revisions of a study that measured the same windows and items are compared block by block: what a window has in
common in both drops out of the difference. A mean over tasks has a stratum for each task, whose groups are drawn apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        "kl_mean": tokens["kl"].astype(np.float64),
        "ln_perplexity_ratio": tokens["nll"].astype(np.float64) - tokens["base_nll"],
        "same_top1": tokens["same_top1"].astype(np.float64),
    }
    for metric, column in values.items():
        yield _grouped(variant, metric, tokens["corpus"], tokens["window"], column)


def _of_items(variant: str, output: Output, suite: Suite) -> Iterator[pd.DataFrame]:
    if output.failure is not None or ITEMS not in output.tables:
        return
    items = output.tables[ITEMS]
    values = {
        "accuracy": items["correct"].astype(np.float64),
        "flips": (items["correct"] != items["base_correct"]).astype(np.float64),
    }
    averaged = items["task"].isin(suite.averaged_tasks)
    whole = pd.Series(suite.name, items.index)[averaged]
    for metric, column in values.items():
        yield _grouped(variant, metric, items["task"], items["group"], column)
        of_tasks = (items["group"][averaged], column[averaged], items["task"][averaged])
        yield _grouped(variant, f"mean_{metric}", whole, *of_tasks)


def _grouped(
    variant: str, metric: str, dataset: pd.Series, block: pd.Series, values: pd.Series, stratum: pd.Series | None = None
) -> pd.DataFrame:
    strata = pd.Series("", values.index) if stratum is None else stratum
    keys = [dataset.rename("dataset"), strata.rename("stratum"), block.rename("block")]
    sums = values.groupby(keys).agg(["sum", "size"]).reset_index()
    return sums.assign(variant=variant, metric=metric)[COLUMNS]


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

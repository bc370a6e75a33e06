"""Sums by window and by group of items, of the metrics that studies are compared by: blocks.parquet.

Two revisions of a study that measured the same windows and items are compared block by block: what a window has in
common in both drops out of the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.rows.tasks import ITEMS, Suite
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

COLUMNS = ["variant", "metric", "dataset", "block", "sum", "size"]
TOKENS = "tokens.parquet"


def block_sums(inputs: Inputs, suites: Sequence[Suite]) -> pd.DataFrame:
    """Sum each metric over the tokens of a window, or the items of a group; ``size``: how many these are."""
    parts = [
        *(part for name, output in inputs.evaluations.items() for part in _of_text(name, output)),
        *(part for suite in suites for name, output in suite.outputs.items() for part in _of_items(name, output)),
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


def _of_items(variant: str, output: Output) -> Iterator[pd.DataFrame]:
    if output.failure is None and ITEMS in output.tables:
        items = output.tables[ITEMS]
        yield _grouped(variant, "accuracy", items["task"], items["group"], items["correct"].astype(np.float64))


def _grouped(variant: str, metric: str, dataset: pd.Series, block: pd.Series, values: pd.Series) -> pd.DataFrame:
    sums = values.groupby([dataset.rename("dataset"), block.rename("block")]).agg(["sum", "size"]).reset_index()
    return sums.assign(variant=variant, metric=metric)[COLUMNS]


Blocks = dict[tuple[str, str, str], tuple[Floats, Floats, Floats]]
"""(variant, metric without protocol, data set) -> blocks, their sums and sizes, in the order of the blocks."""


def by_key(table: pd.DataFrame) -> Blocks:
    """Index a table of sums."""
    return {
        (str(variant), str(metric), str(dataset)): (
            rows["block"].to_numpy(np.float64),
            rows["sum"].to_numpy(np.float64),
            rows["size"].to_numpy(np.float64),
        )
        for (variant, metric, dataset), rows in table.sort_values("block").groupby(["variant", "metric", "dataset"])
    }


def paired_interval(
    a: Blocks, b: Blocks, key: tuple[str, str, str], confidence: float, resamples: int = 2000
) -> tuple[float, float] | None:
    """Bound B minus A of a mean over the same blocks; None where they are not the same, or of other sizes."""
    if key not in a or key not in b:
        return None
    (first, sums_a, sizes_a), (second, sums_b, sizes_b) = a[key], b[key]
    if not (np.array_equal(first, second) and np.array_equal(sizes_a, sizes_b)) or len(first) < 2:
        return None
    counts = bootstrap.draws(key[2], len(first), resamples, 0)
    replicates = (counts @ (sums_b - sums_a)) / (counts @ sizes_a)
    if not np.isfinite(replicates).all():
        return None
    return bootstrap.interval(replicates, confidence, len(first))

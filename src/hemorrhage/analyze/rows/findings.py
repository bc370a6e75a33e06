"""How one chance of an error is shared over all that is said of a decoding study.

A page that holds each of its kinds of finding to 5 % is wrong somewhere more often. Here 5 % (1 - confidence) hold for
all of them together: each kind of KINDS gets an equal part, whether or not a study has it, and what is said of one kind
shares that part. Within a kind: Holm's step-down correction (Scandinavian Journal of Statistics 1979 6:65) of spreads,
tokens, loops and constant answers; the largest studentized difference under random signs (Westfall and Young 1993) of
strategies and of words, times the variants and data sets that are compared; rules and steadiness as their modules say.
``q`` of a decoding row is its p-value after all of that: at most 1 - confidence where the row is a finding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance

KINDS = (
    "one constant answer",
    "a strategy costs more",
    "a spread over strategies",
    "more or fewer tokens",
    "more or fewer loops",
    "words written more often",
    "a rule holds or does not",
    "one model is steadier",
)
"""What can be said of a decoding study."""

CONSTANT = "constant_share"
"""Per variant: the share of the answer that it gives most in excess of the base (hemorrhage.analyze.rows.floors)."""

SPREAD_SD = "spread_sd"
"""Per variant: the standard deviation of accuracies between strategies, without the noise of the items."""

RATIO, CHANGE = "tokens_ratio", "loop_rate_change"
"""Per variant: tokens of an answer over the base's; the share of texts that end in a loop less the base's."""

ALL_STRATEGIES = "all strategies"


def allowed(spec: Spec, tests: int = 1) -> float:
    """Return the chance of an error that each of ``tests`` tests of one kind may have."""
    return (1 - spec.confidence) / len(KINDS) / max(tests, 1)


def careful(spec: Spec, tests: int = 1) -> Spec:
    """Return the spec with the confidence of one of ``tests`` tests of one kind."""
    return replace(spec, confidence=1 - allowed(spec, tests))


def corrected(rows: pd.DataFrame) -> pd.Series:
    """Return ``q`` of decoding rows, NaN where a row has no test or makes no finding.

    p-values of strategies' interactions are corrected for the strategies already.
    """
    q = pd.Series(np.nan, index=rows.index)
    tested = rows[rows["p"].notna()]
    for metric in (CONSTANT, SPREAD_SD, RATIO, CHANGE):
        family = tested[tested["metric"] == metric]
        q.loc[family.index] = np.minimum(len(KINDS) * np.array(significance.holm(family["p"].tolist())), 1.0)
    strategies = tested["metric"].str.endswith("_interaction") & (tested["method"] != ALL_STRATEGIES)
    family = tested[strategies]
    compared = len(family[["variant", "metric", "dataset"]].drop_duplicates())
    q.loc[family.index] = np.minimum(len(KINDS) * compared * family["p"], 1.0)
    return q

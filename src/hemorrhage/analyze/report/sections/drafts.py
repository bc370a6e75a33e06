"""Variants as drafts of the base in speculative decoding: acceptance, and its price in tokens per second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.rows.drafts import ACCEPTANCE, SPEEDUP, best_gamma, speedup
from hemorrhage.analyze.rows.tables import Numbers


@dataclass(frozen=True)
class DraftRow:
    """A variant as a draft on a corpus: numbers as text; ``seconds`` is tokens per second of base and draft together,
    from the base's own speed here."""

    variant: str
    corpus: str
    acceptance: str
    cost: str
    fixed: str
    gamma: int
    best: str
    seconds: str


def draft_rows(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> list[DraftRow]:
    """Return a row per variant and corpus whose acceptance and bytes are known, the fastest first."""
    speed = numbers.get(BASE, "decode_tokens_per_second")
    rows = []
    for name, variant in inputs.variants.items():
        cost = float(variant.manifest.get("size_ratio", math.nan))
        for corpus in corpora if name != BASE else ():
            accepted, fixed = (numbers.get(name, metric, corpus) for metric in (ACCEPTANCE, SPEEDUP))
            if accepted is None or fixed is None:
                continue
            gamma = best_gamma(accepted.value, cost)
            factor = speedup(accepted.value, gamma, cost)
            row = DraftRow(
                variant=name,
                corpus=corpus,
                acceptance=f"{accepted.value:.2f} ({accepted.low:.2f} to {accepted.high:.2f})",
                cost=f"{cost:.2f}",
                fixed=f"{fixed.value:.2f} ({fixed.low:.2f} to {fixed.high:.2f})",
                gamma=gamma,
                best=f"{factor:.2f}",
                seconds=f"{factor * speed.value:,.0f}" if speed else "–",
            )
            rows.append((factor, row))
    return [row for _, row in sorted(rows, key=lambda each: -each[0])]

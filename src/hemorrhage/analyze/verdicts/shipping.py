"""What to ship: the most compressed variant inside the budget, for each family and over all, and the Pareto front.

Sizes are bytes that were measured on disk. A gain that no engine can use today (zeros under a mask, a form of this
bench) is counted too, and marked: such a variant is named beside a recommendation, never as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.budget import INSIDE, UNRESOLVED, Check, judge, measured_variants
from hemorrhage.analyze.inputs import BASE, Inputs, Variant
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import round_digits
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.models.engines import engine


@dataclass(frozen=True)
class Size:
    """``bytes`` on disk, ``share``: of the base's bytes, ``counted``: of the base's stored bits with zeros left out and
    masks counted; ``engine``: programs that load it, ``hindrance``: why none can use what was gained, or empty."""

    bytes: int
    share: float
    counted: float
    engine: str
    hindrance: str

    @property
    def smallest(self) -> float:
        """What it could shrink to if an engine used all that was gained."""
        return min(self.share, self.counted)


@dataclass(frozen=True)
class Judged:
    """A variant, its size and its checks."""

    variant: Variant
    size: Size
    checks: list[Check]

    @property
    def inside(self) -> bool:
        """Whether every limit holds."""
        return bool(self.checks) and all(check.answer == INSIDE for check in self.checks)

    @property
    def binding(self) -> Check | None:
        """The check that is nearest its limit, or furthest beyond it."""
        return max(self.checks, key=lambda check: check.used) if self.checks else None

    @property
    def failing(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if check.answer != INSIDE]


def size_of(inputs: Inputs, variant: Variant) -> Size:
    """The size of a variant that was made."""
    manifest = variant.manifest
    loads, reason = engine(inputs.configs.get(variant.name, {}))
    share = manifest["disk_bytes"] / inputs.base["disk_bytes"]
    masked = manifest.get("mask_bits") is not None and manifest["size_ratio"] < share
    return Size(
        bytes=int(manifest["disk_bytes"]),
        share=share,
        counted=float(manifest["size_ratio"]),
        engine=loads,
        hindrance=reason or (str(manifest.get("theoretical") or "zeros are stored") if masked else ""),
    )


@dataclass(frozen=True)
class Lossless:
    """The form that the base was quantized to before the study: ``bytes``, and ``share`` of the base's bytes here."""

    type: str
    bytes: int
    share: float


def lossless(inputs: Inputs) -> Lossless | None:
    """What the base takes in a form that loses nothing of it; None where it was never quantized."""
    before = inputs.base.get("quantized_before")
    return before and Lossless(before["type"], before["bytes"], before["bytes"] / inputs.base["disk_bytes"])


def verdicts(inputs: Inputs, rows: pd.DataFrame, spec: Spec) -> list[Judged]:
    """Every variant that damage was measured of, judged together under the budget of the settings."""
    names = [name for name in measured_variants(rows) if inputs.variants[name].failure is None]
    checks = judge(rows, names, spec.budget, spec.confidence, len(names))
    return [Judged(inputs.variants[name], size_of(inputs, inputs.variants[name]), checks[name]) for name in names]


def pick(candidates: Sequence[Judged]) -> Judged | None:
    """The smallest variant on disk that is inside and that an engine can use; of equal ones the less damaged."""
    fit = [one for one in candidates if one.inside and not one.size.hindrance and one.size.share < 1]
    return min(fit, key=_order) if fit else None


def _order(one: Judged) -> tuple[float, float]:
    return one.size.bytes, one.binding.used if one.binding else math.inf


def theoretical(candidates: Sequence[Judged], picked: Judged | None) -> Judged | None:
    """A variant inside the budget that would be smaller than the picked one, if an engine could use its gain."""
    than = picked.size.share if picked else 1.0
    fit = [one for one in candidates if one.inside and one.size.hindrance and one.size.smallest < than]
    return min(fit, key=lambda one: one.size.smallest) if fit else None


def undecided(candidates: Sequence[Judged], picked: Judged | None) -> Judged | None:
    """A usable variant smaller than the picked one that may be inside: no limit is broken, some are not resolved."""
    than = picked.size.share if picked else 1.0
    fit = [
        one
        for one in candidates
        if one.failing
        and not one.size.hindrance
        and one.size.share < than
        and all(check.answer in (INSIDE, UNRESOLVED) for check in one.checks)
        and all(check.estimate is not None and check.estimate < check.limit for check in one.failing)
    ]
    return min(fit, key=lambda one: one.size.share) if fit else None


def nearest(candidates: Sequence[Judged]) -> Judged | None:
    """The variant that comes nearest to the budget."""
    known = [one for one in candidates if one.binding]
    return min(known, key=lambda one: one.binding.used if one.binding else math.inf) if known else None


def recommend(found: Sequence[Judged], results: Results, inputs: Inputs, spec: Spec) -> dict[str, Any]:
    """The content of recommendation.json."""
    families = list(dict.fromkeys(one.variant.family for one in found))
    before = lossless(inputs)
    return {
        "budget": dict(spec.budget),
        "confidence": spec.confidence,
        "judged_together": len(found),
        "lossless_base": before and {"type": before.type, "bytes": before.bytes, "size": round_digits(before.share)},
        "overall": _answer(found),
        "families": {name: _answer([one for one in found if one.variant.family == name]) for name in families},
        "variants": {one.variant.name: _as_json(one) for one in found},
        "front": {corpus: front(inputs, results, corpus) for corpus in results.blocks},
    }


def _answer(candidates: Sequence[Judged]) -> dict[str, Any]:
    picked = pick(candidates)
    beside = theoretical(candidates, picked)
    maybe = undecided(candidates, picked)
    close = nearest(candidates) if picked is None else None
    return {
        "variant": picked.variant.name if picked else None,
        "size": round_digits(picked.size.share) if picked else None,
        "binds": picked.binding.kind if picked and picked.binding else None,
        "theoretical": beside.variant.name if beside else None,
        "undecided": maybe.variant.name if maybe else None,
        "nearest": close.variant.name if close else None,
        "inside": sum(one.inside for one in candidates),
        "judged": len(candidates),
    }


def _as_json(one: Judged) -> dict[str, Any]:
    return {
        "family": one.variant.family,
        "bytes": one.size.bytes,
        "size": round_digits(one.size.share),
        "counted_size": round_digits(one.size.counted),
        "engine": one.size.engine,
        "no_engine_because": one.size.hindrance,
        "inside": one.inside,
        "binds": one.binding.kind if one.binding else None,
        "fails": sorted({check.kind for check in one.failing}),
        "checks": [check.as_json() for check in one.checks],
    }


def front(inputs: Inputs, results: Results, corpus: str) -> list[dict[str, Any]]:
    """Every measured variant by size: its KL, and how often it is on the Pareto front over the resampled windows.

    On the front is what nothing of the same size or smaller beats, the base included. Sizes are exact, damage is
    resampled for all variants at once. What no engine can use lies at the size that it has on disk.
    """
    kl = _estimates(results.rows, corpus)
    names = [name for name in inputs.variants if name != BASE and name in kl and (name, corpus) in results.divergences]
    if not names:
        return []
    sizes = [size_of(inputs, inputs.variants[name]) for name in names]
    shares = np.array([size.share for size in sizes] + [1.0])
    draws = np.stack([results.divergences[name, corpus] for name in names], axis=1)
    draws = np.hstack([draws, np.zeros((len(draws), 1))])
    often = on_front(shares, draws).mean(axis=0)
    whole = on_front(shares, np.array([[*(kl[name]["estimate"] for name in names), 0.0]]))[0]
    found = []
    for place, name in enumerate(names):
        entry = {
            "variant": name,
            "family": inputs.variants[name].family,
            "bytes": sizes[place].bytes,
            "size": round_digits(sizes[place].share),
            "counted_size": round_digits(sizes[place].counted),
            "no_engine_because": sizes[place].hindrance,
            "kl": round_digits(kl[name]["estimate"]),
            "low": _maybe(kl[name]["low"]),
            "high": _maybe(kl[name]["high"]),
            "on_front": bool(whole[place]),
            "probability": round_digits(float(often[place])),
        }
        found.append(entry)
    return sorted(found, key=lambda entry: (entry["size"], entry["kl"]))


def _estimates(rows: pd.DataFrame, corpus: str) -> Mapping[Any, Mapping[Any, float]]:
    chosen = rows[(rows["dataset"] == corpus) & rows["metric"].str.startswith("kl_mean[") & (rows["status"] == "ok")]
    return chosen.set_index("variant")[["estimate", "low", "high"]].to_dict("index")


def _maybe(value: float) -> float | None:
    return round_digits(value) if math.isfinite(value) else None


def on_front(sizes: Floats, damage: Floats) -> np.ndarray:
    """Which variants no other beats, in each of several draws: bool ``[draws, variants]``.

    ``sizes`` ``[variants]``, ``damage`` ``[draws, variants]``. Beaten is what another one of the same size or smaller
    has less damage than, or the same damage at a smaller size.
    """
    order = np.argsort(sizes, kind="stable")
    found = np.zeros(damage.shape, dtype=bool)
    best = np.full(len(damage), np.inf)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and sizes[order[end]] == sizes[order[start]]:
            end += 1
        same = order[start:end]
        least = damage[:, same].min(axis=1)
        found[:, same] = (damage[:, same] == least[:, None]) & (least < best)[:, None]
        best = np.minimum(best, least)
        start = end
    return found

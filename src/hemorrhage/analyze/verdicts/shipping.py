"""The variants to ship: the most compressed one inside the budget, for each family and over all, and the Pareto front.

Sizes are bytes that were measured on disk. A gain that no engine can use today (zeros under a mask, a storage format of
this bench) is counted too, and marked: such a variant is named next to a recommendation, never as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemorrhage.analyze.budget import INSIDE, UNRESOLVED, Check, judge, measured_variants
from hemorrhage.analyze.inputs import BASE, Inputs, ModelConfig, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.rows.tables import round_digits
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stored import Json
from hemorrhage.models.engines import answer


@dataclass(frozen=True)
class Size:
    """``bytes`` on disk, ``share``: of the base's bytes, ``counted``: of the base's stored bits with zeros left out and
    masks counted; ``engine``: programs that load it, ``hindrance``: why none can use what was gained, or empty;
    ``refusal``: that vLLM does not load what others do, and why, or empty."""

    bytes: int
    share: float
    counted: float
    engine: str
    hindrance: str
    refusal: str = ""

    @property
    def smallest(self) -> float:
        """What it could shrink to if an engine used all that was gained."""
        return min(self.share, self.counted)


@dataclass(frozen=True)
class Verdict:
    """A variant, its size and its checks against the budget."""

    variant: Variant
    size: Size
    checks: list[Check]

    @property
    def is_usable(self) -> bool:
        """Whether it would be picked if it were inside."""
        return not self.variant.is_control and not self.size.hindrance and self.size.share < 1

    @property
    def is_theoretical(self) -> bool:
        """Whether it would be named next to the picked one if it were inside."""
        return not self.variant.is_control and bool(self.size.hindrance) and self.size.smallest < 1

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
    """Measure the size of a variant that was made."""
    return measure_size(variant.manifest, inputs.configs.get(variant.name, {}), inputs.base["disk_bytes"])


def measure_size(manifest: CheckpointManifest, config: ModelConfig, base_bytes: int) -> Size:
    """Measure the size of a checkpoint by its manifest and its config.json."""
    published = manifest.get("engine")
    given = answer(config)
    loads, reason = (published, "") if published else (given.engines, given.reason)
    share = manifest["disk_bytes"] / base_bytes
    masked = manifest.get("mask_bits") is not None and manifest["size_ratio"] < share
    return Size(
        bytes=int(manifest["disk_bytes"]),
        share=share,
        counted=float(manifest["size_ratio"]),
        engine=loads,
        hindrance=reason or (str(manifest.get("theoretical") or "zeros are stored") if masked else ""),
        refusal="" if published else given.refusal,
    )


@dataclass(frozen=True)
class Lossless:
    """The format that the base was quantized to before the study: ``bytes``, and ``share`` of the base's bytes here."""

    type: str
    bytes: int
    share: float

    def as_json(self) -> dict[str, Json]:
        """Plain content."""
        return {"type": self.type, "bytes": self.bytes, "size": round_digits(self.share)}


def lossless(inputs: Inputs) -> Lossless | None:
    """Measure the base in a format that loses nothing of it; None where it was never quantized."""
    before = inputs.base.get("quantized_before")
    if not before:
        return None
    return Lossless(before["type"], before["bytes"], before["bytes"] / inputs.base["disk_bytes"])


@dataclass(frozen=True)
class Advice:
    """Names out of some variants: the one to ship, with its ``size`` and the limit that ``binds`` it; one that only
    lacks an engine; one that may be inside; where none is picked, the one ``nearest`` to the budget. ``inside`` and
    ``judged`` are numbers of variants."""

    variant: str | None
    size: float | None
    binds: str | None
    theoretical: str | None
    undecided: str | None
    nearest: str | None
    inside: int
    judged: int


@dataclass(frozen=True)
class FrontPoint:
    """A variant's size and KL on one corpus, whether nothing beats it, and in which share of the resamples."""

    variant: str
    family: str
    bytes: int
    size: float
    counted_size: float
    no_engine_because: str
    kl: float
    low: float | None
    high: float | None
    on_front: bool
    probability: float


@dataclass(frozen=True)
class Recommendation:
    """The advice over all variants and for each family, and the front of each corpus, smallest first.

    ``judged_together``: the numbers of variants that could be picked, and that could be named as smaller in theory. The
    bounds hold for all of a kind at once.
    """

    budget: dict[str, float]
    confidence: float
    judged_together: dict[str, int]
    lossless_base: Lossless | None
    overall: Advice
    families: dict[str, Advice]
    front: dict[str, list[FrontPoint]]

    def headline(self) -> dict[str, Json]:
        """Return what metrics.json says of it."""
        sizes = {family: advice.size for family, advice in self.families.items() if advice.variant}
        smallest = {"smallest": self.overall.size, "variant": self.overall.variant} if self.overall.variant else {}
        return {"size": sizes, **smallest}


def verdicts(inputs: Inputs, rows: pd.DataFrame, spec: Spec) -> list[Verdict]:
    """Judge every variant that damage was measured of by the budget of the settings."""
    variants = [inputs.variants[name] for name in measured_variants(rows) if inputs.variants[name].failure is None]
    judgements = [Verdict(variant, size_of(inputs, variant), []) for variant in variants]
    names = [variant.name for variant in variants]
    checks = judge(rows, names, spec.budget, spec.confidence, list(candidates(judgements).values()))
    return [replace(verdict, checks=checks[verdict.variant.name]) for verdict in judgements]


def candidates(judgements: Sequence[Verdict]) -> dict[str, list[str]]:
    """List the variants that could be picked, and those that could be named as smaller in theory."""
    return {
        "usable": [verdict.variant.name for verdict in judgements if verdict.is_usable],
        "theoretical": [verdict.variant.name for verdict in judgements if verdict.is_theoretical],
    }


def pick(judgements: Sequence[Verdict]) -> Verdict | None:
    """Pick the smallest variant on disk that is inside and that an engine can use; of equal ones the less damaged."""
    fit = [verdict for verdict in judgements if verdict.inside and verdict.is_usable]
    return min(fit, key=_order) if fit else None


def _order(verdict: Verdict) -> tuple[float, float]:
    return verdict.size.bytes, verdict.binding.used if verdict.binding else math.inf


def theoretical(judgements: Sequence[Verdict], picked: Verdict | None) -> Verdict | None:
    """Name a variant inside the budget that would be smaller than the picked one, if an engine could use its gain."""
    than = picked.size.share if picked else 1.0
    fit = [
        verdict for verdict in judgements if verdict.inside and verdict.is_theoretical and verdict.size.smallest < than
    ]
    return min(fit, key=lambda verdict: verdict.size.smallest) if fit else None


def undecided(judgements: Sequence[Verdict], picked: Verdict | None) -> Verdict | None:
    """Name a usable variant smaller than the picked one that may be inside: no limit is broken, some are unresolved."""
    than = picked.size.share if picked else 1.0
    fit = [
        verdict
        for verdict in judgements
        if verdict.failing
        and verdict.is_usable
        and verdict.size.share < than
        and all(check.answer in (INSIDE, UNRESOLVED) for check in verdict.checks)
        and all(check.estimate is not None and check.estimate < check.limit for check in verdict.failing)
    ]
    return min(fit, key=lambda verdict: verdict.size.share) if fit else None


def nearest(judgements: Sequence[Verdict]) -> Verdict | None:
    """Name the variant that comes nearest to the budget."""
    known = [verdict for verdict in judgements if verdict.binding]
    return min(known, key=lambda verdict: verdict.binding.used if verdict.binding else math.inf) if known else None


def recommend(judgements: Sequence[Verdict], results: Results, inputs: Inputs, spec: Spec) -> Recommendation:
    """Recommend what to ship of the judged variants."""
    families = list(dict.fromkeys(verdict.variant.family for verdict in judgements))
    return Recommendation(
        budget=dict(spec.budget),
        confidence=spec.confidence,
        judged_together={kind: len(names) for kind, names in candidates(judgements).items()},
        lossless_base=lossless(inputs),
        overall=_advise(judgements),
        families={
            family: _advise([verdict for verdict in judgements if verdict.variant.family == family])
            for family in families
        },
        front={corpus: front(inputs, results, corpus) for corpus in results.blocks},
    )


def _advise(judgements: Sequence[Verdict]) -> Advice:
    picked = pick(judgements)
    return Advice(
        variant=_name(picked),
        size=round_digits(picked.size.share) if picked else None,
        binds=picked.binding.kind if picked and picked.binding else None,
        theoretical=_name(theoretical(judgements, picked)),
        undecided=_name(undecided(judgements, picked)),
        nearest=_name(nearest(judgements)) if picked is None else None,
        inside=sum(verdict.inside for verdict in judgements),
        judged=len(judgements),
    )


def _name(verdict: Verdict | None) -> str | None:
    return verdict.variant.name if verdict else None


def as_json(recommendation: Recommendation, judgements: Sequence[Verdict]) -> dict[str, Json]:
    """Return the content of recommendation.json."""
    before = recommendation.lossless_base
    return {
        "budget": recommendation.budget,
        "confidence": recommendation.confidence,
        "judged_together": recommendation.judged_together,
        "lossless_base": before.as_json() if before else None,
        "overall": asdict(recommendation.overall),
        "families": {family: asdict(advice) for family, advice in recommendation.families.items()},
        "variants": {verdict.variant.name: _verdict_json(verdict) for verdict in judgements},
        "front": {corpus: [asdict(point) for point in points] for corpus, points in recommendation.front.items()},
    }


def _verdict_json(verdict: Verdict) -> dict[str, Json]:
    return {
        "family": verdict.variant.family,
        "bytes": verdict.size.bytes,
        "size": round_digits(verdict.size.share),
        "counted_size": round_digits(verdict.size.counted),
        "engine": verdict.size.engine,
        "no_engine_because": verdict.size.hindrance,
        "inside": verdict.inside,
        "binds": verdict.binding.kind if verdict.binding else None,
        "fails": sorted({check.kind for check in verdict.failing}),
        "checks": [check.as_json() for check in verdict.checks],
    }


def front_points(recommendation: Recommendation) -> pd.DataFrame:
    """Return the content of front.csv: a row per corpus and variant."""
    columns = ["variant", "family", "bytes", "size", "counted_size", "kl", "low", "high", "on_front", "probability"]
    rows = [{"corpus": corpus, **asdict(point)} for corpus, points in recommendation.front.items() for point in points]
    return pd.DataFrame(rows, columns=["corpus", *columns])


def front(inputs: Inputs, results: Results, corpus: str) -> list[FrontPoint]:
    """List every measured variant by size: its KL, and how often it is on the Pareto front over resampled windows.

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
    points = [
        FrontPoint(
            variant=name,
            family=inputs.variants[name].family,
            bytes=size.bytes,
            size=round_digits(size.share),
            counted_size=round_digits(size.counted),
            no_engine_because=size.hindrance,
            kl=round_digits(kl[name]["estimate"]),
            low=_finite(kl[name]["low"]),
            high=_finite(kl[name]["high"]),
            on_front=bool(is_on_front),
            probability=round_digits(float(share)),
        )
        for name, size, is_on_front, share in zip(names, sizes, whole[:-1], often[:-1], strict=True)
    ]
    return sorted(points, key=lambda point: (point.size, point.kl))


def _estimates(rows: pd.DataFrame, corpus: str) -> Mapping[str, Mapping[str, float]]:
    chosen = rows[(rows["dataset"] == corpus) & rows["metric"].str.startswith("kl_mean[") & (rows["status"] == "ok")]
    by_variant: dict[str, dict[str, float]] = chosen.set_index("variant")[["estimate", "low", "high"]].to_dict("index")
    return by_variant


def _finite(value: float) -> float | None:
    return round_digits(value) if math.isfinite(value) else None


def on_front(sizes: Floats, damage: Floats) -> npt.NDArray[np.bool_]:
    """Mark the variants that no other beats, in each of several draws: bool ``[draws, variants]``.

    ``sizes`` ``[variants]``, ``damage`` ``[draws, variants]``. Beaten is what another one of the same size or smaller
    has less damage than, or the same damage at a smaller size.
    """
    order = np.argsort(sizes, kind="stable")
    unbeaten = np.zeros(damage.shape, dtype=bool)
    best = np.full(len(damage), np.inf)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and sizes[order[end]] == sizes[order[start]]:
            end += 1
        same = order[start:end]
        least = damage[:, same].min(axis=1)
        unbeaten[:, same] = (damage[:, same] == least[:, None]) & (least < best)[:, None]
        best = np.minimum(best, least)
        start = end
    return unbeaten

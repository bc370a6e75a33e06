"""The study's map of vulnerability: what each kind of modification does to attention, to errors and to predictions.

The abstract of arXiv 2503.23924 says that expansion disrupts attention, compression cascades a loss of information, and
decoding makes predictions diverge. Each of the nine effects is measured, so that a reader sees whether the map is
diagonal. Models that compute what the base computes, such as copies that add nothing, disturb nothing and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.inputs import BASE, Output, Variant
from hemorrhage.analyze.rows.decoding import measure_texts
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.analyze.stored import Json
from hemorrhage.analyze.verdicts.evidence import NOT_MEASURED, Evidence, Finding, decide, finite
from hemorrhage.analyze.verdicts.flags import noise_floor

EXPANSION, COMPRESSION, DECODING = "expansion", "compression", "decoding"
MODIFICATIONS = {
    EXPANSION: ("depth_expansion",),
    COMPRESSION: ("weight_quantization", "unstructured_pruning", "structured_pruning", "depth_pruning", "low_rank"),
}

ATTENTION, CASCADE, DIVERGENCE = "attention", "cascade", "divergence"
UNITS = {
    ATTENTION: "nats of Jensen-Shannon divergence of attention maps, mean over blocks and heads",
    CASCADE: "ln of the error's growth from block to block",
    DIVERGENCE: "nats of KL of the predictions; of decoding, nats per token between its texts' surprise and people's",
}
METRICS = {ATTENTION: "attention_js", CASCADE: "log_amplification"}

UNCHANGED = "no strategy changes a weight: on the same text this is the base's by construction"


@dataclass(frozen=True)
class Effect:
    """What a modification does to a pattern, mean over so many ``models`` (strategies, of decoding), with the interval
    over windows or texts; ``reason``: why it is 0 by construction, or not measured (then without an estimate)."""

    modification: str
    pattern: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    models: int = 0
    reason: str = ""

    def as_json(self) -> dict[str, Json]:
        """Plain content."""
        return {
            "modification": self.modification,
            "pattern": self.pattern,
            "unit": UNITS[self.pattern],
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "models": self.models,
            "reason": self.reason,
        }


def effects(evidence: Evidence) -> list[Effect]:
    """Measure all nine."""
    return [
        *(_of_models(evidence, name, pattern) for name in MODIFICATIONS for pattern in UNITS),
        Effect(DECODING, ATTENTION, 0.0, 0.0, 0.0, reason=UNCHANGED),
        Effect(DECODING, CASCADE, 0.0, 0.0, 0.0, reason=UNCHANGED),
        _of_decoding(evidence),
    ]


def altered(evidence: Evidence, modification: str) -> list[Variant]:
    """List the variants of a modification that compute something else than the base."""
    return [
        variant for variant in evidence.variants(*MODIFICATIONS[modification]) if not is_identity(evidence, variant)
    ]


def is_identity(evidence: Evidence, variant: Variant) -> bool:
    """Whether a variant computes what the base computes: its KL is not above the noise floor on any corpus."""
    kls = {corpus: evidence.numbers.get(variant.name, "kl_mean", corpus) for corpus in evidence.corpora}
    known = {corpus: kl.value for corpus, kl in kls.items() if kl}
    return bool(known) and all(kl <= noise_floor(evidence.numbers, corpus) for corpus, kl in known.items())


def _of_models(evidence: Evidence, modification: str, pattern: str) -> Effect:
    variants = altered(evidence, modification)
    if pattern == DIVERGENCE:
        return _divergence(evidence, modification, variants)
    by_window = [
        values for variant in variants if (values := diagnosed(evidence, variant, METRICS[pattern])) is not None
    ]
    if not by_window:
        return Effect(modification, pattern, reason="no diagnostics of such a model")
    mean = np.mean(by_window, axis=0)
    low, high = bootstrap.t_interval(mean, evidence.spec.confidence)
    return Effect(modification, pattern, float(mean.mean()), finite(low), finite(high), len(by_window))


def _divergence(evidence: Evidence, modification: str, variants: Sequence[Variant]) -> Effect:
    measured = []
    for variant in variants:
        kls = [evidence.numbers.get(variant.name, "kl_mean", corpus) for corpus in evidence.corpora]
        resampled = [evidence.results.divergences.get((variant.name, corpus)) for corpus in evidence.corpora]
        values = [kl.value for kl in kls if kl is not None]
        known = [each for each in resampled if each is not None]
        if values and len(values) == len(known) == len(evidence.corpora):
            measured.append((float(np.mean(values)), np.mean(known, axis=0)))
    if not measured:
        return Effect(modification, DIVERGENCE, reason="no such model was evaluated")
    replicates = np.mean([each for _, each in measured], axis=0)
    low, high = bootstrap.interval(replicates, evidence.spec.confidence, evidence.blocks())
    mean = float(np.mean([value for value, _ in measured]))
    return Effect(modification, DIVERGENCE, mean, finite(low), finite(high), len(measured))


def _of_decoding(evidence: Evidence) -> Effect:
    """Measure how far the strategies' texts lie from people's in surprise, on the same prompts."""
    output = evidence.inputs.decodes.get(BASE)
    if output is None or output.failure is not None:
        return Effect(DECODING, DIVERGENCE, reason="the base model was not decoded")
    gaps = list(_gaps(output))
    if not gaps:
        return Effect(DECODING, DIVERGENCE, reason="no open-ended texts with human texts to compare")
    strategies, by_text = sum(number for number, _ in gaps), np.concatenate([values for _, values in gaps])
    low, high = bootstrap.t_interval(by_text, evidence.spec.confidence)
    return Effect(DECODING, DIVERGENCE, float(by_text.mean()), finite(low), finite(high), strategies)


def _gaps(output: Output) -> Iterator[tuple[int, Floats]]:
    """Yield, by data set, the number of strategies, and by prompt the mean distance of their surprise from people's."""
    human = output.tables.get("human.parquet")
    if human is None or "base_nll" not in human:
        return
    texts = measure_texts(output)
    for dataset, written in human.groupby("dataset"):
        here = texts[(texts["dataset"] == dataset) & texts["base_nll"].notna()]
        theirs = written.groupby("item")["base_nll"].mean()
        table = here.pivot_table(index="item", columns="strategy", values="base_nll")
        gap = table.sub(theirs, axis=0).abs().mean(axis=1).dropna()
        if len(gap) >= 3:
            yield table.shape[1], gap.to_numpy(np.float64)


def diagnosed(evidence: Evidence, variant: Variant, metric: str) -> Floats | None:
    """Average a diagnostic over blocks and heads, in each window."""
    output = evidence.inputs.evaluations.get(variant.name)
    table = output.tables.get("diagnostics.parquet") if output and output.failure is None else None
    if table is None:
        return None
    chosen = table[(table["metric"] == metric) & (table["window"] >= 0)]
    values = chosen.groupby("window")["value"].mean().to_numpy(np.float64)
    return values if len(values) and np.isfinite(values).all() else None


# The two comparisons that the map makes between models.


def attention(evidence: Evidence) -> Finding:
    """Compare how far attention moves, for the same damage, in expanded and in compressed models."""
    what = "expanded models move attention further than the compressed model of nearest damage"
    unit = "ln of the divergence of attention over the compressed model's"

    def logarithm(values: Floats) -> Floats:
        return np.log(np.maximum(values, np.finfo(np.float64).tiny))

    return _matched(evidence, EXPANSION, COMPRESSION, ATTENTION, logarithm, what, unit)


def cascade(evidence: Evidence) -> Finding:
    """Compare how fast errors grow, for the same damage, in compressed and in expanded models."""
    what = "expanded models grow errors more slowly than the compressed model of nearest damage"
    unit = "ln growth of errors in the compressed model, less the expanded one's"
    return _matched(evidence, EXPANSION, COMPRESSION, CASCADE, lambda values: -values, what, unit)


def _matched(
    evidence: Evidence,
    first: str,
    second: str,
    pattern: str,
    scale: Callable[[Floats], Floats],
    what: str,
    unit: str,
) -> Finding:
    """Compare each model of ``first`` with the one of ``second`` that has the nearest damage, window by window."""
    sides = [
        {
            variant.name: values
            for variant in altered(evidence, modification)
            if (values := diagnosed(evidence, variant, METRICS[pattern])) is not None
        }
        for modification in (first, second)
    ]
    if not all(sides):
        return Finding(NOT_MEASURED, f"no diagnostics of both a model of {first} and one of {second}")
    differences = []
    for name, values in sides[0].items():
        nearest = min(sides[1], key=lambda other: abs(_damage(evidence, other) - _damage(evidence, name)))
        differences.append(scale(values) - scale(sides[1][nearest]))
    by_window = np.mean(differences, axis=0)
    low, high = bootstrap.t_interval(by_window, evidence.spec.confidence)
    further = sum(float(difference.mean()) > 0 for difference in differences)
    verdict = decide(low, high, further, len(differences))
    measured = f"{further} of {len(differences)} {what}"
    return Finding(verdict, measured, float(by_window.mean()), finite(low), finite(high), unit, len(differences))


def _damage(evidence: Evidence, variant: str) -> float:
    damage = evidence.damage(variant, evidence.corpora[:1])
    return math.inf if damage is None else damage.value

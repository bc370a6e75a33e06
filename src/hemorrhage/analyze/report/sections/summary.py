"""The summary: the base model, the noise floor, and which effects the study can detect."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hemorrhage.analyze.inputs import BASE, Inputs
from hemorrhage.analyze.report.sections.failures import count_variants
from hemorrhage.analyze.rows.language import ROUNDING
from hemorrhage.analyze.rows.tables import Estimate, Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS
from hemorrhage.analyze.study import Study


@dataclass(frozen=True)
class Perplexity:
    """The base's perplexity on a corpus, with its interval."""

    corpus: str
    value: str
    interval: str


@dataclass(frozen=True)
class Base:
    """Sizes and quality of the base model."""

    parameters: str
    megabytes: str
    bits: str
    perplexities: list[Perplexity]
    accuracy: str
    chance: str


@dataclass(frozen=True)
class Summary:
    """The section; ``total`` counts the variants, ``failed`` those without a measured damage."""

    note: str
    base: Base
    total: int
    failed: int
    noise: str
    detectable: str


def section(study: Study) -> Summary:
    """Return the section of a study."""
    inputs, numbers, corpora = study.inputs, study.numbers, study.corpora
    total, failed = count_variants(inputs)
    return Summary(
        note=str(inputs.base.get("note") or ""),
        base=base_model(inputs, numbers, corpora),
        total=total,
        failed=failed,
        noise=noise_sentence(inputs, numbers, corpora),
        detectable=detectable_sentence(inputs, numbers, corpora),
    )


def base_model(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> Base:
    """Describe the base model."""
    perplexities = {corpus: numbers.get(BASE, "perplexity", corpus) for corpus in corpora}
    parameters = inputs.base["parameters"]
    accuracy = numbers.get(BASE, "mean_accuracy", ALL_TASKS)
    chance = numbers.get(BASE, "chance", ALL_TASKS)
    return Base(
        parameters=f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k",
        megabytes=f"{inputs.base['disk_bytes'] / 1e6:.1f}",
        bits=f"{inputs.base['effective_bits']:.1f}",
        perplexities=[
            Perplexity(corpus, f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}")
            for corpus, estimate in perplexities.items()
            if estimate
        ],
        accuracy=_percent(accuracy),
        chance=_percent(chance),
    )


def _percent(estimate: Estimate | None) -> str:
    return f"{100 * estimate.value:.0f}\u00a0%" if estimate else ""


def noise_sentence(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> str:
    """Say what evaluating the base model itself gave: the noise floor."""
    if BASE not in inputs.evaluations or inputs.evaluations[BASE].failure is not None:
        return f"There was no A/A run: only a KL below {ROUNDING:g} nats per token, rounding, counts as noise."
    clauses = []
    for corpus in corpora:
        kl, most = numbers.get(BASE, "kl_mean", corpus), numbers.get(BASE, "kl_max", corpus)
        ratio = numbers.get(BASE, "ln_perplexity_ratio", corpus)
        if kl and most and ratio:
            clauses.append(
                f"a KL of {_number(kl.value)} nats per token (at most {_number(most.value)}) and a log-perplexity "
                f"ratio of {_number(ratio.value)} on {corpus}"
            )
    if not clauses:
        return ""
    return (
        f"Noise floor: the base model, evaluated again like any variant (A/A), gives {' and '.join(clauses)}. "
        f"Rounding alone leaves up to {ROUNDING:g} nats; a variant has to lie above both."
    )


def _number(value: float) -> str:
    return f"{value:.2g}" if value else "0"


def detectable_sentence(inputs: Inputs, numbers: Numbers, corpora: Sequence[str]) -> str:
    """Say the median of the variants' minimum detectable effects."""
    effects = []
    for corpus in corpora:
        ratio = _median_effect(inputs, numbers, "ln_perplexity_ratio", corpus)
        if ratio is not None:
            effects.append(f"{100 * math.expm1(ratio):.2g}\u00a0% of perplexity on {corpus}")
    for task in numbers.datasets("accuracy_change"):
        change = _median_effect(inputs, numbers, "accuracy_change", task)
        if change is not None:
            effects.append(f"{100 * change:.0f} points of accuracy on {task}")
    if not effects:
        return ""
    return f"Minimum detectable effect at 80\u00a0% power (median of the variants): {'; '.join(effects)}."


def _median_effect(inputs: Inputs, numbers: Numbers, metric: str, dataset: str) -> float | None:
    estimates = (numbers.get(name, metric, dataset) for name in inputs.variants)
    effects = [estimate.mde for estimate in estimates if estimate and not math.isnan(estimate.mde)]
    return statistics.median(effects) if effects else None

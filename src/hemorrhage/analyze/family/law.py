"""The law of low-bit quantization beside what the models of a study measured.

ΔL = k D^β / (N^α P^γ) (arXiv 2411.17691, GPTQ on Pythia): the loss that quantization adds grows with the tokens ``D``
that a model has read, and falls with its parameters ``N`` and with the bits ``P`` of a weight. Exponents are slopes of
logarithms. Those of D and N are fitted together over models, to the mean of ln ΔL over the variants in which
all of them lost something; that of P is the mean over models of each one's slope. A model is the unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hemorrhage.analyze.family.effects import LEAST, slope
from hemorrhage.analyze.family.models import Model
from hemorrhage.analyze.stats.bootstrap import t_interval

TOKENS, PARAMETERS, BITS = "tokens", "parameters", "bits"

LAW: Mapping[str, float] = {TOKENS: 0.5251, PARAMETERS: -0.2261, BITS: -5.4967}
"""The exponents of the paper: β, -α, -γ."""

LOSS = "ln_perplexity_ratio"


@dataclass(frozen=True)
class Exponent:
    """An exponent over ``models`` for a sweep over bits, with its interval, and the paper's."""

    sweep: str
    of: str
    law: float
    value: float
    low: float
    high: float
    models: int

    @property
    def verdict(self) -> str:
        """Say whether the sign is the law's, and whether the interval holds its exponent."""
        if not math.isfinite(self.low):
            return "no interval"
        if self.low <= 0 <= self.high:
            return "no sign shown"
        if (self.value > 0) != (self.law > 0):
            return "the other sign"
        return "as the law" if self.low <= self.law <= self.high else "the law's sign, another size"


def exponents(models: Sequence[Model], confidence: float) -> list[Exponent]:
    """Fit the law's exponents for every sweep over bits that all models have; none where they differ in neither."""
    tokens = {model.name: model.factors.get("tokens") for model in models}
    sizes = {model.name: model.facts.get("parameters", math.nan) for model in models}
    read = {name: float(count) for name, count in tokens.items() if isinstance(count, int | float)}
    if len(read) < len(models) or not all(map(math.isfinite, sizes.values())):
        return []
    return [each for sweep, lost in _losses(models).items() for each in _fit(sweep, lost, read, sizes, confidence)]


def _losses(models: Sequence[Model]) -> dict[str, dict[float, dict[str, float]]]:
    """Return sweep -> bits -> model -> ln of the loss that was added, where every model lost something."""
    losses: dict[str, dict[float, dict[str, float]]] = {}
    for model in models:
        for sweep in model.sweeps():
            for variant in sweep.variants if sweep.axis == BITS else ():
                lost, bits = model.mean(variant.name, LOSS), float(variant.manifest["severity"] or math.nan)
                if lost > 0:
                    losses.setdefault(sweep.name, {}).setdefault(bits, {})[model.name] = math.log(lost)
    return {
        sweep: {bits: lost for bits, lost in sorted(by_bits.items()) if len(lost) == len(models)}
        for sweep, by_bits in losses.items()
    }


def _fit(
    sweep: str,
    lost: Mapping[float, Mapping[str, float]],
    tokens: Mapping[str, float],
    sizes: Mapping[str, float],
    confidence: float,
) -> Iterator[Exponent]:
    names = list(tokens)
    values = np.array([[by_model[name] for name in names] for by_model in lost.values()])
    if not len(values):
        return
    x = {of: np.log([by[name] for name in names]) for of, by in ((TOKENS, tokens), (PARAMETERS, sizes))}
    vary = [of for of, logs in x.items() if len(set(logs.tolist())) >= LEAST]
    if len(names) > len(vary) + 1:
        for of in vary:
            design = np.column_stack([x[of], *(x[other] for other in vary if other != of)])
            value, low, high, _ = slope(design, values.mean(axis=0), confidence)
            yield Exponent(sweep, of, LAW[of], value, low, high, len(names))
    if len(lost) > 1 and vary:
        slopes = np.polyfit(np.log(list(lost)), values, 1)[0]
        yield Exponent(sweep, BITS, LAW[BITS], float(slopes.mean()), *t_interval(slopes, confidence), len(names))

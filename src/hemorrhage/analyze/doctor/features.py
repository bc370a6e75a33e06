"""Features of a variant before it is evaluated, as numbers that a predictor reads.

Two stages: planned, from params.yaml and the base model alone, and made, where there is a checkpoint and its
layers.json says how far each layer moved. A variant's columns are the same in both; what is not known yet is NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

from hemorrhage.compress.info import PREDICTED

QUANTIZED = ("weight_quantization", "activation_quantization")

K, OF_DATA, OF_SIZE, OF_BITS = 0.017, 0.5251, 0.2261, 5.4967
"""dLoss = K D^OF_DATA / (N^OF_SIZE P^OF_BITS), the quantization law of arXiv 2411.17691: D tokens of training, N
parameters outside of the embeddings, P bits of GPTQ's weights."""

OF_LAW = 128
"""Group in which the equivalent bits would round."""

LEAST, MOST = 1e-7, 1.0
"""Bounds of a relative error's energy."""

COLUMNS = (
    "noise",
    "noise_weights",
    "noise_outputs",
    "noise_best",
    "worst_layer",
    "removed",
    "added",
    "pattern",
    "calibrated",
    "second_order",
    "ranked",
    "matched",
    "influence",
    "ln_parameters",
    "blocks",
    "base_nll",
    "gained",
    "ln_tokens",
    "law",
    "outliers",
    *(f"is_{family}" for family in PREDICTED),
)
"""``noise``: ln of the energy of the weights' relative error that normal weights would have; ``noise_weights`` and
``noise_outputs``: the same as measured, mean over layers; ``noise_best``: the best known of the three;
``worst_layer``: dB of the mean layer above the worst; ``removed``, ``added``: share; ``pattern``: n:m;
``calibrated``: reads statistics; ``second_order``: other weights make up for an error; ``ranked``: blocks or
channels are chosen by a measure; ``matched``: calibrated on the corpus that is evaluated; ``gained``: nats by which
the base beats a uniform guess; ``law``: ln of the damage that the law of arXiv 2411.17691 foresees at as many bits
as make the same noise (analyze.doctor.laws); ``influence``: share of all blocks' influence that was removed;
``outliers``: ln of largest over median feature of inputs, mean over layers."""


@dataclass(frozen=True)
class Base:
    """The model that is altered: parameters, those of the blocks' linear layers, blocks, hidden width, tokens of its
    training (NaN where nobody knows), tokens in its vocabulary, influence of its blocks where that was measured."""

    name: str
    parameters: float
    in_layers: float
    blocks: int
    width: int
    trained_tokens: float
    vocabulary: int
    influence: tuple[float, ...] = ()


@dataclass(frozen=True)
class Alteration:
    """A variant as params.yaml or its manifest knows it; ``kept_blocks``: those that depth pruning left, once they are
    chosen; ``layers``: its layers.json."""

    name: str
    method: str
    family: str
    axis: str
    severity: float
    settings: Mapping[str, Any]
    calibrated_on: Sequence[str] | None
    on: str | None = None
    kept_blocks: Sequence[int] | None = None
    layers: Mapping[str, Mapping[str, float]] | None = None
    second_order: bool = False
    unchanged: bool = False
    """Whether it adds something and changes nothing: its damage is known to be none."""


def columns_of(
    alteration: Alteration, base: Base, base_nll: float, corpus: str, parent: Alteration | None = None
) -> dict[str, float]:
    """Compute the columns of a variant on a corpus, whose base loses ``base_nll`` nats per token."""
    chain = [alteration] if parent is None else [parent, alteration]
    planned = sum(energy(each, base.width) for each in chain)
    removed = max(share_removed(each) for each in chain)
    weights, outputs, worst, outliers = _measured(alteration.layers)
    if alteration.unchanged:
        planned = LEAST
    columns = {
        "noise": _ln(planned),
        "noise_weights": weights,
        "noise_outputs": outputs,
        "worst_layer": worst,
        "removed": removed,
        "added": alteration.severity if alteration.axis == "added" else 0.0,
        "pattern": float(any(":" in str(each.settings.get("sparsity", "")) for each in chain)),
        "calibrated": float(alteration.calibrated_on is not None),
        "second_order": float(alteration.second_order),
        "ranked": float(
            alteration.settings.get("order", alteration.settings.get("importance", "")) not in ("", "random")
        ),
        "matched": float(alteration.calibrated_on is None or corpus in alteration.calibrated_on),
        "influence": _influence(alteration, base),
        "ln_parameters": math.log(base.in_layers),
        "blocks": float(base.blocks),
        "base_nll": base_nll,
        "gained": math.log(base.vocabulary) - base_nll,
        "ln_tokens": math.log(base.trained_tokens),
        "outliers": outliers,
        **{f"is_{family}": float(alteration.family == family) for family in PREDICTED},
    }
    known = [value for value in (outputs, weights) if not math.isnan(value) and removed == 0]
    columns["noise_best"] = known[0] if known and columns["noise"] > _ln(LEAST) else columns["noise"]
    bits = equivalent_bits(math.exp(columns["noise_best"]))
    columns["law"] = math.log(K * base.trained_tokens**OF_DATA / (base.in_layers**OF_SIZE * bits**OF_BITS))
    return {name: columns[name] for name in COLUMNS}


def bits_of(alteration: Alteration) -> float:
    """Bits of a weight's code, NaN where weights are not quantized."""
    settings = alteration.settings
    if alteration.family not in QUANTIZED or alteration.axis == "cache_bits":
        return math.nan
    if "bits" in settings:
        return float(settings["bits"])
    named = re.search(r"\d", str(settings.get("type", "")))
    return float(named[0]) if named else alteration.severity


def share_removed(alteration: Alteration) -> float:
    """Share of the blocks' weights that a variant drops as whole widths, blocks, ranks, or that a token skips."""
    if alteration.axis == "removed":
        return alteration.severity
    experts = alteration.settings.get("experts")
    if alteration.family == "moe" and experts and "top_k" in alteration.settings:
        return 1 - float(alteration.settings["top_k"]) / float(experts)
    return alteration.severity if alteration.axis == "routing" else 0.0


def energy(alteration: Alteration, width: int) -> float:
    """Estimate the energy of the relative error that a variant's settings make in normal weights, inputs or caches."""
    settings = alteration.settings
    if alteration.axis == "cache_bits":
        return rounding(alteration.severity, _group(settings, width), symmetric=False)
    if alteration.family in QUANTIZED:
        group = _group(settings, width)
        symmetric = bool(settings.get("symmetric", alteration.family == "activation_quantization"))
        of_weights = rounding(bits_of(alteration), group, symmetric)
        if alteration.axis == "activation_bits":
            return of_weights + rounding(float(settings.get("activation_bits", 8)), width, symmetric=True)
        return of_weights
    if alteration.axis == "sparsity":
        return pruned(settings.get("sparsity", alteration.severity))
    return share_removed(alteration)


def rounding(bits: float, group: int, symmetric: bool) -> float:
    """Energy of the rounding error of normal values in groups whose range is cut into 2^bits - 1 steps.

    The range is that of the expected extremes of a group (Blom 1958); an error has a twelfth of a step's square.
    """
    return (extent(2 * group if symmetric else group) / (2**bits - 1)) ** 2 / 12


@cache
def extent(group: int) -> float:
    """Return the expected range of so many normal values."""
    return float(2 * norm.ppf((group - 0.375) / (group + 0.25)))


def equivalent_bits(noise: float) -> float:
    """Bits whose rounding makes as much noise, at least 1."""
    return max(1.0, math.log2(1 + extent(OF_LAW) / math.sqrt(12 * noise)))


@cache
def pruned(sparsity: float | str) -> float:
    """Energy that normal weights lose with their smallest ones: a share, or all but n of every m (``"n:m"``)."""
    if isinstance(sparsity, str) and ":" in sparsity:
        kept, of_each = (int(number) for number in sparsity.split(":"))
        quantiles = (np.arange(4000) + 0.5) / 4000
        squares = norm.ppf((1 + quantiles) / 2) ** 2
        ranks = range(1, of_each - kept + 1)
        lost = sum(float((squares * beta.pdf(quantiles, rank, of_each - rank + 1)).mean()) for rank in ranks)
        return lost / of_each
    share = float(sparsity)
    threshold = norm.ppf((1 + share) / 2)
    return float(share - 2 * threshold * norm.pdf(threshold))


def _group(settings: Mapping[str, Any], width: int) -> int:
    group = settings.get("group_size", settings.get("block_size", 32))
    return width if group in ("channel", None) else int(group)


def _measured(layers: Mapping[str, Mapping[str, float]] | None) -> tuple[float, float, float, float]:
    """Average ln energy of weights and of outputs, dB of the worst layer below the mean, ln of the inputs' outliers."""
    if not layers:
        return math.nan, math.nan, math.nan, math.nan
    weights = decibels(layers, "weight_sqnr")
    outputs, outliers = decibels(layers, "output_sqnr"), decibels(layers, "input_outliers")
    mean = 10 ** (-weights / 10)
    return (
        _ln(float(mean.mean())),
        _ln(float((10 ** (-outputs / 10)).mean())) if len(outputs) == len(weights) else math.nan,
        float(np.median(weights) - weights.min()),
        float(np.log(outliers).mean()) if len(outliers) else math.nan,
    )


def decibels(layers: Mapping[str, Mapping[str, float]], key: str) -> npt.NDArray[np.float64]:
    """Collect the values of a key over the layers that have it."""
    return np.array([layer[key] for layer in layers.values() if key in layer], dtype=np.float64)


def _influence(alteration: Alteration, base: Base) -> float:
    """Share of the blocks' influence that goes: known once blocks are chosen, or where the least influential go."""
    if alteration.family != "depth_pruning":
        return 0.0
    values = np.asarray(base.influence, dtype=np.float64)
    kept = alteration.kept_blocks
    if not len(values):
        return math.nan
    if kept is not None:
        return float(1 - values[sorted({int(block) for block in kept})].sum() / values.sum())
    gone = int(alteration.severity * len(values) + 0.5)
    if alteration.settings.get("order") == "influence":
        return float(np.sort(values)[:gone].sum() / values.sum())
    return gone / len(values)


def _ln(value: float) -> float:
    return math.log(min(max(value, LEAST), MOST))


def matrix(rows: Sequence[Mapping[str, float]]) -> npt.NDArray[np.float64]:
    """Columns of several variants: float64 ``[rows, COLUMNS]``."""
    return np.array([[row[name] for name in COLUMNS] for row in rows], dtype=np.float64).reshape(
        len(rows), len(COLUMNS)
    )

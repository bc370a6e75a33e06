"""Names the cause of damage, with what was seen and what to do about it.

Each rule gives a score to a subject (a variant, or the base model): 1 and more names the cause. Scores are ratios of
what was seen to a limit, so that they can be ranked and their limits tested on planted faults (benchmarks.doctor).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from hemorrhage.analyze.manifests import Membership
from hemorrhage.analyze.stored import Json

OUTLIER = "single outlier layer"
EXPERTS = "uncalibrated experts"
MISMATCH = "calibration mismatch"
LEAKAGE = "leakage of the test set"
UNDERTRAINED = "undertrained model"
DEGENERATE = "degenerate decoding"
CAUSES = (OUTLIER, EXPERTS, MISMATCH, LEAKAGE, UNDERTRAINED, DEGENERATE)

OUTLIER_DB, OUTLIER_SPREADS = 8.0, 6.0
"""An outlier lies so many dB, and so many robust standard deviations, below the other layers of its type, further than
it does in other variants."""

HARMLESS_DB = 20.0
"""A layer whose error is a hundredth of what it computes does no harm, wherever the others are."""

LEAST_OTHERS = 2
"""Other variants that show how far a layer lies below its type by nature, whatever the method."""

LEAST_SPREAD_DB = 0.5
LEAST_LAYERS = 3

STARVED = 0.05
"""Share of the tokens that a usual layer saw, below which a layer is not calibrated."""

FREQUENT = 256
"""Most frequent tokens whose shares are compared; the others are taken together."""

FOREIGN = 0.07
"""Nats of Jensen-Shannon divergence beyond what chance and topics make, judged by halves of the evaluated text."""

LEAK_T, LEAK_NATS = 4.0, 0.1
"""The evaluation split is known better than its control: by Welch's t of Min-K%++, and by nats per token."""

ABOVE_LAW = 0.15
"""Nats of a base model's loss above the law's."""

LOOPS, REPEATED = 0.3, 0.15
"""Share of texts that end in a loop, and of repeated four-grams, beyond the human text's or base's."""


@dataclass(frozen=True)
class Diagnosis:
    """A subject, the cause, its score (1 names it), what was seen, and what to do."""

    subject: str
    cause: str
    score: float
    evidence: str
    advice: str


Tokens = npt.NDArray[np.integer]
"""Token windows ``[n, window]``."""


def as_json(diagnoses: Sequence[Diagnosis]) -> list[dict[str, Json]]:
    """Return the part of doctor.json."""
    return [{**asdict(each), "score": float(f"{each.score:.4g}")} for each in diagnoses]


Sqnr = dict[str, dict[str, float]]
"""Type of a layer -> its name -> SQNR in dB."""


def sqnr_by_type(layers: Mapping[str, Mapping[str, float]], blocks: Mapping[int, float] | None = None) -> Sqnr:
    """Group the SQNR of layers by their type, of weights and of outputs.

    ``layers``: a checkpoint's layers.json; ``blocks``: SQNR in dB of what each block writes on clean input, where that
    was measured: what corrupted a checkpoint after it was made shows only there.
    """
    types: Sqnr = {}
    for name, values in layers.items():
        for key in ("weight_sqnr", "output_sqnr"):
            if key in values:
                layer_type = re.sub(r"\.\d+\.", ".*.", name, count=1)
                types.setdefault(f"{key} {layer_type}", {})[name] = values[key]
    if blocks:
        types["block"] = {f"block {index}": value for index, value in blocks.items()}
    return {name: values for name, values in types.items() if len(values) >= LEAST_LAYERS}


def outlier_layer(sqnr: Sqnr, others: Sequence[Sqnr] = ()) -> tuple[float, str]:
    """Score the layer that is furthest below others of its type, and say how far that is.

    ``others``: the same of other variants. A layer that is hard to alter lies low in all of them, and is no outlier of
    this one.
    """
    scores = []
    for layer_type, values in sqnr.items():
        depths = [_depths(other[layer_type]) for other in others if layer_type in other]
        scores.append(_score_outlier(values, depths))
    return max([(0.0, ""), *scores], key=lambda scored: scored[0])


def _depths(sqnr: Mapping[str, float]) -> dict[str, float]:
    """Compute how many dB each layer lies below the middle one."""
    middle = float(np.median(list(sqnr.values())))
    return {name: middle - value for name, value in sqnr.items()}


def _score_outlier(sqnr: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> tuple[float, str]:
    """Score the layer that is harmed most among those of one type, beyond its depth in ``others``."""
    names, depths = list(sqnr), _depths(sqnr)
    usual = dict.fromkeys(names, 0.0)
    for name in names:
        known = [other[name] for other in others if name in other]
        if len(known) >= LEAST_OTHERS:
            usual[name] = max(float(np.median(known)), 0.0)
    below = np.array([depths[name] - usual[name] for name in names])
    spread = max(1.4826 * float(np.median(np.abs(below - np.median(below)))), LEAST_SPREAD_DB)
    harmful = np.where([sqnr[name] < HARMLESS_DB for name in names], below, -math.inf)
    worst = int(harmful.argmax())
    if not harmful[worst] > 0:
        return 0.0, ""
    # What one layer lacks and the next one, too, is the method's way, no outlier.
    second = max(float(np.delete(below, worst).max()), 0.0)
    depth = float(below[worst])
    score = min(depth / OUTLIER_DB, depth / spread / OUTLIER_SPREADS, depth / max(2 * second, LEAST_SPREAD_DB))
    name = names[worst]
    seen = f"{name} has {sqnr[name]:.1f} dB, the middle one of its type {sqnr[name] + depths[name]:.1f} dB"
    return score, f"{seen}; in other variants it lies {usual[name]:.1f} dB below" if usual[name] > 0 else seen


def starved(layers: Mapping[str, Mapping[str, float]], without: Sequence[str]) -> tuple[float, str]:
    """Score experts that the calibration set does not reach. ``without``: names of experts that no token takes."""
    tokens = {name: values["tokens"] for name, values in layers.items() if "tokens" in values}
    usual = float(np.median(list(tokens.values()))) if tokens else 0.0
    few = {name: count for name, count in tokens.items() if count < STARVED * usual}
    if without:
        return 1.0 + 0.1 * len(without), f"no calibration token takes {len(without)} experts: {', '.join(without)}"
    if few:
        name, least = min(few.items(), key=lambda item: item[1])
        return min(STARVED * usual / max(least, 1.0), 10.0), f"{name} saw {least:.0f} tokens, a usual layer {usual:.0f}"
    if not tokens or not usual:
        return 0.0, ""
    return STARVED * usual / min(tokens.values()), ""


def foreign(calibration: Tokens, evaluation: Tokens) -> tuple[float, str]:
    """Score a calibration set whose tokens are not those of the evaluated windows; both int ``[n, window]``."""
    first, second = calibration.ravel(), evaluation.ravel()
    # Two draws of one source differ by chance and by topic, both as one over their sizes; halves of the text show it.
    halves = divergence(evaluation[0::2].ravel(), evaluation[1::2].ravel())
    by_chance = halves * (1 / len(first) + 1 / len(second)) / (4 / len(second))
    apart = divergence(first, second)
    seen = f"its tokens' shares are {apart:.2f} nats (Jensen-Shannon) from the text's, by chance {by_chance:.2f}"
    return max(apart - by_chance, 0.0) / FOREIGN, seen


def divergence(first: Tokens, second: Tokens) -> float:
    """Compute the Jensen-Shannon divergence in nats of two texts' token shares, over the FREQUENT tokens of both."""
    size = int(max(first.max(), second.max())) + 1
    counts = np.stack([np.bincount(text, minlength=size) for text in (first, second)]).astype(float)
    shares = counts / counts.sum(axis=1, keepdims=True)
    frequent = np.argsort(-shares.sum(axis=0), kind="stable")[:FREQUENT]
    p, q = (np.append(share[frequent], max(1 - share[frequent].sum(), 0.0)) for share in shares)
    middle = (p + q) / 2

    def information(share: npt.NDArray[np.float64]) -> float:
        present = share > 0
        return float((share[present] * np.log(share[present] / middle[present])).sum())

    return (information(p) + information(q)) / 2


def leaked(known: Membership) -> tuple[float, str]:
    """Score a base model that knows the evaluation split; ``known`` as hemorrhage.evaluate.membership gives it."""
    ours, control = known["evaluation"], known["calibration"]
    if min(len(ours["nll"]), len(control["nll"])) < 3:
        return 0.0, ""
    t = float(stats.ttest_ind(ours["min_k"], control["min_k"], equal_var=False).statistic)
    gap = float(np.mean(control["nll"]) - np.mean(ours["nll"]))
    seen = (
        f"the evaluation split's loss is {gap:.2f} nats per token below that of unmeasured text of the same corpus, "
        f"and Min-K%++ is higher (t = {t:.1f}); {100 * known['overlap']:.1f} % of its 13-grams are in that text, too"
    )
    return max(min(t / LEAK_T, gap / LEAK_NATS), 0.0), seen


def above_law(loss: float, expected: float) -> tuple[float, str]:
    """Score a base model whose loss lies above the law's at its size and data."""
    seen = f"its loss is {loss:.2f} nats per token, the law of its size and data gives {expected:.2f}"
    return max(loss - expected, 0.0) / ABOVE_LAW, seen


def degenerate(loops: float, repeated: float, usual_loops: float, usual_repeated: float) -> tuple[float, str]:
    """Score a decoding strategy: share of texts that end in a loop, share of repeated four-grams, and the usual."""
    seen = (
        f"{100 * loops:.0f} % of its texts end in a loop (usual {100 * usual_loops:.0f} %), {100 * repeated:.0f} % of "
    )
    seen += f"its four-grams are repeated (usual {100 * usual_repeated:.0f} %)"
    score = max((loops - usual_loops) / LOOPS, (repeated - usual_repeated) / REPEATED)
    return (max(score, 0.0), seen) if math.isfinite(score) else (0.0, "")

"""Is a served model the one that it claims to be? Which of some known variants explains best what a server said.

Three kinds of evidence, each with the positions of a few windows of tokens:

- log-probabilities: the distance of a variant at a position is the mean |served - variant's| of the served tokens,
  weighted by the served probabilities, at most CLIP nats.
- tokens sampled at temperature 0: the distance is the margin of Token-DiFR (arXiv 2511.20621) at temperature 0: how far
  the variant's log-probability of the token is below that of its likeliest token, at most CLIP nats. The paper's margin
  for other temperatures needs the server's random numbers, so it is not used.
- tokens sampled at a known temperature: the likelihood of the tokens. Under the variant that is served, the likelihood
  ratio of any other, and so the mean of several, is a nonnegative martingale with expectation 1: it exceeds 1 / alpha
  with probability alpha at most (Ville), whatever the number of tokens and of variants.

Distances are compared in pairs, position by position, in blocks of BLOCK positions, since neighbours depend on each
other: another variant is nearer where Student's lower bound of the mean difference is above 0, at alpha over the number
of variants. The served model may be none of them: the nearest is then still further away than honest kernels put the
model from itself, which is measured by computing the claimed variant in bfloat16 (``honest``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, t

from hemorrhage.engines.endpoint_dialects import Answer
from hemorrhage.engines.topk import Floats, Ints

CLIP = 2.0
"""Distance of one position in nats, at most: one token that a variant excludes decides nothing alone."""

BLOCK = 12
"""Positions that are averaged before they count as one observation."""

LEAST_BLOCKS = 6
"""Blocks below which nothing is decided."""

MARGIN, LEAST_NOISE = 4.0, 2e-3
"""Honest kernels put a model this many times further from itself than bfloat16 does, or so many nats, at most."""

ALPHA = 1e-3
"""Probability of an alarm on an honest server, at most, as far as the method knows it; tests measure it."""

Verdict = Literal["same", "other", "unknown", "unclear"]


@dataclass(frozen=True)
class Predicted:
    """A variant's log-probabilities where a server gave some: of the window's tokens, and of the served ids."""

    target: Floats
    logprobs: Floats


@dataclass(frozen=True)
class Sampled:
    """A variant's log-probabilities of sampled tokens ``[t]``, and mean and variance of what it gives its own."""

    logprobs: Floats
    mean: Floats
    variance: Floats


@dataclass(frozen=True)
class Identification:
    """Which variant a server has.

    ``verdict``: the claimed is the only one that explains it (same); another does (other: ``nearest``); none does
    (unknown); or some can't be told from the claimed (unclear: ``alike``). ``scores``: mean distance, or mean negative
    log-likelihood, of each variant in nats. ``reason``: one line.
    """

    verdict: Verdict
    claimed: str
    nearest: str
    scores: Mapping[str, float]
    alike: tuple[str, ...]
    positions: int
    reason: str


def predicted(rows: Floats, tokens: Sequence[int], answer: Answer, temperature: float = 1.0) -> Predicted:
    """Return what a variant, log-probabilities ``[n - 1, vocabulary]`` of a window, says where a server said something.

    ``temperature``: of a server that divides logits by it before it gives log-probabilities.
    """
    scaled = rows / temperature
    scaled = scaled - logsumexp(scaled, axis=1, keepdims=True)
    target = scaled[np.arange(len(rows)), np.asarray(tokens[1:])]
    at_ids = np.take_along_axis(scaled, np.maximum(answer.ids, 0), axis=1)
    return Predicted(target, np.where(answer.ids < 0, np.nan, at_ids))


def distances(answer: Answer, variant: Predicted) -> Floats:
    """Return the distance of a variant from what a server said, ``[n - 1]``; nan where it said nothing."""
    served = np.concatenate([answer.logprobs, answer.target[:, None]], axis=1)
    own = np.concatenate([variant.logprobs, variant.target[:, None]], axis=1)
    # The window's own token counts once.
    is_listed = (answer.logprobs == answer.target[:, None]).any(1)
    weights = np.where(np.isnan(served), 0.0, np.exp(served))
    weights[is_listed, -1] = 0.0
    apart = np.where(weights > 0, np.minimum(np.abs(served - own), CLIP), 0.0)
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights * apart).sum(1) / total)


def margins(rows: Floats, tokens: Ints) -> Floats:
    """Return Token-DiFR's margins of tokens sampled at temperature 0, ``[t]``, of log-probabilities ``[t, v]``."""
    own = rows[np.arange(len(rows)), tokens]
    return np.asarray(np.minimum(rows.max(1) - own, CLIP))


def sampled(rows: Floats, tokens: Ints, temperature: float) -> Sampled:
    """Return what a variant, log-probabilities ``[t, v]``, says of tokens that were sampled at a temperature."""
    scaled = rows / temperature
    scaled = scaled - logsumexp(scaled, axis=1, keepdims=True)
    probabilities = np.exp(scaled)
    mean = (probabilities * scaled).sum(1)
    variance = (probabilities * scaled**2).sum(1) - mean**2
    return Sampled(scaled[np.arange(len(rows)), tokens], mean, variance)


def identify(each: Mapping[str, Floats], claimed: str, honest: Floats, alpha: float = ALPHA) -> Identification:
    """Decide by distances ``[t]`` of each variant; ``honest``: of the claimed one in other arithmetic from itself.

    Raises ValueError where there are too few positions.
    """
    known = ~np.isnan(each[claimed])
    values = {name: distance[known] for name, distance in each.items()}
    if known.sum() < LEAST_BLOCKS * BLOCK:
        raise ValueError(f"{int(known.sum())} positions were served; {LEAST_BLOCKS * BLOCK} are the fewest that decide")
    scores = {name: float(distance.mean()) for name, distance in values.items()}
    nearest = min(scores, key=lambda name: (scores[name], name != claimed))
    others = [name for name in values if name != claimed]
    level = alpha / max(len(others), 1)
    nearer = [name for name in others if _is_above(values[claimed] - values[name], level)]
    alike = tuple(name for name in others if not _is_above(values[name] - values[claimed], level))
    limit = max(MARGIN * float(np.nanmean(honest)), LEAST_NOISE)
    # Further away than kernels put a model from itself, the claimed one is none, whoever is nearer.
    best = nearest if nearer or scores[claimed] > limit else claimed
    count = int(known.sum())
    shown = f"mean distance {scores[best]:.2g} nats over {count} positions, kernels explain {limit:.2g}"
    if scores[best] > limit:
        reason = f"no variant explains it: {nearest} is nearest, {shown}"
        return Identification("unknown", claimed, nearest, scores, alike, count, reason)
    if best != claimed:
        reason = f"{best} explains it, {claimed} does not: {scores[claimed]:.2g} nats away; {shown}"
        return Identification("other", claimed, best, scores, alike, count, reason)
    return _agreeing(claimed, scores, alike, count, shown)


def identify_samples(each: Mapping[str, Sampled], claimed: str, alpha: float = ALPHA) -> Identification:
    """Decide by the likelihood of sampled tokens. Raises ValueError where there are too few."""
    own = each[claimed]
    count = len(own.logprobs)
    if count < LEAST_BLOCKS * BLOCK:
        raise ValueError(f"{count} tokens were sampled; {LEAST_BLOCKS * BLOCK} are the fewest that decide")
    scores = {name: -float(variant.logprobs.mean()) for name, variant in each.items()}
    nearest = min(scores, key=lambda name: (scores[name], name != claimed))
    others = [name for name in each if name != claimed]
    ratios = {name: float((each[name].logprobs - own.logprobs).sum()) for name in others}
    bound = -np.log(alpha)
    alike = tuple(name for name in others if ratios[name] > -bound)
    evidence = float(logsumexp(list(ratios.values())) - np.log(len(others))) if others else -np.inf
    best = nearest if evidence >= bound else claimed
    variance = float(each[best].variance.sum())
    surprise = float((each[best].mean - each[best].logprobs).sum()) / np.sqrt(max(variance, 1e-9))
    shown = f"surprise {surprise:+.1f} standard deviations over {count} tokens"
    if abs(surprise) > norm.isf(alpha / 4):
        reason = f"no variant explains it: {best} has {shown}"
        return Identification("unknown", claimed, nearest, scores, alike, count, reason)
    if best != claimed:
        reason = f"{best} explains it, {claimed} does not: likelihood ratio e^{ratios[best]:.1f}, {shown}"
        return Identification("other", claimed, best, scores, alike, count, reason)
    return _agreeing(claimed, scores, alike, count, shown)


def _agreeing(
    claimed: str, scores: Mapping[str, float], alike: tuple[str, ...], count: int, shown: str
) -> Identification:
    if alike:
        reason = f"{claimed} explains it, and so may {', '.join(alike)}: more tokens would tell; {shown}"
        return Identification("unclear", claimed, claimed, scores, alike, count, reason)
    reason = f"{claimed} explains it, and no other variant does: {shown}"
    return Identification("same", claimed, claimed, scores, alike, count, reason)


def _is_above(differences: Floats, level: float) -> bool:
    """Tell whether the mean is above 0, in blocks, by Student's lower bound at ``level``."""
    count = len(differences) // BLOCK
    blocks = differences[: count * BLOCK].reshape(count, BLOCK).mean(1)
    deviation = float(blocks.std(ddof=1))
    if deviation == 0:
        return bool(blocks.mean() > 0)
    return bool(blocks.mean() / (deviation / np.sqrt(count)) > t.isf(level, count - 1))

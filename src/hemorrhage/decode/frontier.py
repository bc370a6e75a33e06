"""How far the distribution of generated texts is from that of human ones: MAUVE (arXiv 2102.01454).

Both sets of texts are quantized together: feature vectors of length 1, principal components that hold 90 %
of the variance, k-means with a cluster for every 10 texts of the smaller set, at least 2, the best of 5
starts. Of the histograms P and Q and their mixtures R = w P + (1 - w) Q, the points (exp(-c KL(Q || R)),
exp(-c KL(P || R))) with c = 5 bound the area that is the score: 1 where P = Q, 0 where they have nothing in common.
One thing differs from the authors' program: there a text's feature is the last state of GPT-2 large, here
whatever the caller gives, in this bench the mean state of the uncompressed model over the text, read without prompt.
So scores compare with one another and not with published ones.

A score of few texts is near 1, whatever they are: so few clusters follow the prompts, which both sides share. Below
LEAST_TEXTS there is none, and no text is compared with one behind its own prompt (``against_others``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

EXPLAINED = 0.9
STARTS = 5
TEXTS_PER_CLUSTER = 10

LEAST_TEXTS = 400
"""Texts of each side below which there is no score: of half of them, 20 clusters are made. The authors use 5,000."""

SPLITS = 5
"""Random halves of the prompts, each with its own start of k-means."""


def mauve(generated: Floats, human: Floats, seed: int, scale: float = 5.0) -> float:
    """Score 0..1 of features ``generated`` [n, width] and ``human`` [m, width], n and m at least 2."""
    return frontier_area(*histograms(generated, human, seed), scale=scale)


def against_others(generated: Floats, human: Floats, seed: int, splits: int = SPLITS) -> NDArray[np.float64]:
    """Score texts behind a half of the prompts against people behind the other half: [splits].

    ``generated`` and ``human`` [texts, width] are in the order of the same prompts. With what people wrote in place of
    ``generated`` it is the ceiling: halves of the same size, of the same prompts, by the same writers.
    """
    scores = []
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(len(human))
        half = len(order) // 2
        scores.append(mauve(generated[order[:half]], human[order[half : 2 * half]], seed + split))
    return np.array(scores)


def histograms(first: Floats, second: Floats, seed: int) -> tuple[Floats, Floats]:
    """Shares [clusters] of two sets of features [n, width] in clusters that are found in both together.

    Raises ValueError as ``clusters`` does.
    """
    sides = clusters(first, second, seed)
    number = 1 + max(int(side.max()) for side in sides)
    counts = [np.bincount(side, minlength=number) for side in sides]
    return counts[0] / len(first), counts[1] / len(second)


def clusters(first: Floats, second: Floats, seed: int) -> tuple[Floats, Floats]:
    """Quantize features [n, width] and [m, width] together; return the cluster of each text, int64 [n] and [m].

    Raises ValueError for features that are too few, of unequal width, or not finite.
    """
    from scipy.cluster.vq import kmeans, vq

    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features: {first.shape} and {second.shape}, two matrices of one width wanted")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"features: {len(first)} and {len(second)} texts, at least 2 of each wanted")
    both: Floats = np.concatenate([first, second]).astype(np.float64)
    if not np.isfinite(both).all():
        raise ValueError("features: not all of them are finite")
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    both = principal(both)
    wanted = max(2, round(min(len(first), len(second)) / TEXTS_PER_CLUSTER))
    centres, _ = kmeans(both, min(wanted, len(np.unique(both, axis=0))), iter=STARTS, rng=seed)
    labels, _ = vq(both, centres)
    return labels[: len(first)], labels[len(first) :]


def principal(features: Floats) -> Floats:
    """Return the scores [n, components] of ``features`` [n, width] on the components with 90 % of the variance."""
    centred = features - features.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    held = np.cumsum(singular**2)
    number = int(np.searchsorted(held, EXPLAINED * held[-1])) + 1
    scores: Floats = left[:, :number] * singular[:number]
    return scores


def frontier_area(first: Floats, second: Floats, scale: float = 5.0, points: int = 25) -> float:
    """Return the area under the divergence frontier of two histograms [clusters]: trapezoids of ``points`` mixtures."""
    return float(frontier_areas(first[None], second[None], scale, points)[0])


def frontier_areas(first: Floats, second: Floats, scale: float = 5.0, points: int = 25) -> Floats:
    """``frontier_area`` of many pairs of histograms, [pairs, clusters] each: [pairs]."""
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None, None]
    mixed = weights * first + (1 - weights) * second
    across, along = (np.exp(-scale * kls(side, mixed)) for side in (second, first))
    ends = np.zeros((1, len(first))), np.ones((1, len(first)))
    # Between the corners: nothing of one distribution, everything of the other.
    x, y = np.concatenate([ends[1], across, ends[0]]), np.concatenate([ends[0], along, ends[1]])
    areas = []
    for a, b in ((x, y), (y, x)):
        # The frontier falls: of points above one another the upper one comes first.
        order = np.lexsort((-b, a), axis=0)
        areas.append(np.trapezoid(np.take_along_axis(b, order, 0), np.take_along_axis(a, order, 0), axis=0))
    # Rounding may pass the score of equal histograms.
    clipped: Floats = np.clip(np.mean(areas, axis=0), 0.0, 1.0)
    return clipped


def kl(first: Floats, second: Floats) -> float:
    """KL(first || second) in nats of two distributions; ``second`` is positive wherever ``first`` is."""
    return float(kls(first, second))


def kls(first: Floats, second: Floats) -> Floats:
    """``kl`` over the last axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(first > 0, first * np.log(first / second), 0.0)
    return np.asarray(terms.sum(-1))

"""MAUVE: the frontier of divergences against a literal one, and how it falls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hemorrhage.decode.frontier import against_others, frontier_area, histograms, kl, mauve, principal


def area_reference(p: list[float], q: list[float], scale: float, points: int) -> float:
    """Point by point; the frontier's area by adding up trapezoids along either axis."""
    frontier = [(1.0, 0.0)]
    for i in range(points):
        w = 1e-6 + i / (points - 1) * (1 - 2e-6)
        r = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
        x, y = (sum(a * math.log(a / c) for a, c in zip(side, r, strict=True) if a) for side in (q, p))
        frontier.append((math.exp(-scale * x), math.exp(-scale * y)))
    frontier.append((0.0, 1.0))
    total = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(frontier):
        total += (x0 - x1) * (y0 + y1) / 2 + (y1 - y0) * (x0 + x1) / 2
    return total / 2


def test_the_frontier_is_the_literal_one() -> None:
    generator = np.random.default_rng(0)
    for scale in (1.0, 5.0):
        p, q = generator.dirichlet(np.ones(6), size=2)
        p[0] = 0
        p /= p.sum()
        assert frontier_area(p, q, scale) == pytest.approx(area_reference(p.tolist(), q.tolist(), scale, 25), abs=1e-9)
        assert frontier_area(p, q, scale) == pytest.approx(frontier_area(q, p, scale))
    assert frontier_area(p, p) == pytest.approx(1)
    assert frontier_area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.03
    assert kl(p, p) == 0


def test_mauve_falls_as_texts_go_apart() -> None:
    generator = np.random.default_rng(1)
    width, texts = 16, 200
    human = generator.normal(size=(texts, width)) + 3
    scores = []
    for shift in (0.0, 0.7, 3.0):
        other = generator.normal(size=(texts, width)) + 3
        other[:, : width // 2] -= shift
        scores.append(mauve(other.astype(np.float32), human.astype(np.float32), seed=0))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert scores[2] < 0.1
    assert mauve(human, human, seed=0) == pytest.approx(1)
    assert mauve(human[:30], human[30:70], seed=0) == mauve(human[:30], human[30:70], seed=0)


def test_features_are_quantized_together() -> None:
    generator = np.random.default_rng(2)
    centres = np.array([[5.0, 0, 0], [0, 5, 0]])
    first = np.concatenate(
        [centres[0] + 0.1 * generator.normal(size=(15, 3)), centres[1] + 0.1 * generator.normal(size=(5, 3))]
    )
    second = centres[1] + 0.1 * generator.normal(size=(20, 3))
    p, q = histograms(first, second, seed=0)
    assert sorted(p.tolist()) == [0.25, 0.75]
    assert sorted(q.tolist()) == [0, 1]
    assert p[int(q.argmax())] == 0.25
    scores = principal(first)
    whole = ((first - first.mean(0)) ** 2).sum()
    assert (scores**2).sum() >= 0.9 * whole
    assert (scores[:, :-1] ** 2).sum() < 0.9 * whole
    same = np.ones((4, 3))
    assert mauve(same, same, seed=0) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2"):
        histograms(first[:1], second, seed=0)
    with pytest.raises(ValueError, match="of one width"):
        histograms(first[:, :2], second, seed=0)
    with pytest.raises(ValueError, match="finite"):
        histograms(first * np.nan, second, seed=0)


def test_areas_are_those_of_the_authors_program() -> None:
    """mauve-text 0.4.0, of the same two histograms, at both scales."""
    p, q = np.array([0.5, 0.25, 0.15, 0.1, 0.0]), np.array([0.1, 0.2, 0.3, 0.0, 0.4])
    assert frontier_area(p, q, 5.0) == pytest.approx(0.19810694770221438, rel=1e-12)
    assert frontier_area(p, q, 1.0) == pytest.approx(0.8630688684208049, rel=1e-12)


def test_scores_are_those_of_the_authors_program() -> None:
    """mauve-text 0.4.0, mean of three seeds, which differ by up to 0.06: it starts k-means elsewhere."""
    generator = np.random.default_rng(7)
    human = generator.normal(size=(500, 12)) + 2
    for shift, theirs in ((0.0, 0.971), (0.3, 0.889), (0.6, 0.593), (1.5, 0.025)):
        generated = generator.normal(size=(500, 12)) + 2
        generated[:, :6] -= shift
        assert np.mean([mauve(generated, human, seed) for seed in range(3)]) == pytest.approx(theirs, abs=0.06)


def test_texts_are_compared_with_people_behind_other_prompts() -> None:
    generator = np.random.default_rng(3)
    prompts = 4 * generator.normal(size=(400, 8))
    human, model = (prompts + generator.normal(size=(400, 8)) for _ in range(2))
    ceiling, score = against_others(human, human, 0), against_others(model, human, 0)
    assert len(set(ceiling)) == 5
    # Nothing but the prompts tells the two apart, and halves of them do so for both.
    assert score.mean() == pytest.approx(ceiling.mean(), abs=0.05)
    worse = against_others(model + 6 * (np.arange(8) < 4), human, 0)
    assert worse.max() < ceiling.min()

"""KL from the top k: the interval holds the exact divergence, and its ends are reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hemorrhage.engines.topk import FLOAT32, Floats, Interval, kl_interval, logit_range, mean_interval
from hemorrhage.models.checkpoint import load

SIZES = [(2, 1), (3, 1), (7, 3), (50, 5), (512, 20), (512, 512)]


def softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def top(q: Floats, k: int, also: int = 0) -> tuple[np.ndarray, Floats]:
    """Ids and log-probabilities of the top k and of one more token."""
    ids = np.unique([*np.argsort(q)[-k:], also])
    return ids, q[ids]


def exact(p: Floats, q: Floats) -> float:
    return float(np.exp(p) @ (p - q))


@pytest.mark.parametrize(("size", "k"), SIZES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_exact_kl_is_inside_on_random_distributions(size: int, k: int, scale: float) -> None:
    rng = np.random.default_rng(size + k)
    for _ in range(100):
        logits = rng.normal(0, rng.uniform(0.1, 5), size)
        p, q = softmax(logits), softmax(logits + rng.normal(0, scale, size))
        ids, served = top(q, k, int(rng.integers(size)))
        low, high = kl_interval(p, ids, served, float(np.sort(q)[-k]), float(q.min()))
        assert 0 <= low <= exact(p, q) + 1e-12
        assert high >= exact(p, q) - 1e-12
        assert kl_interval(p, ids, served, float(np.sort(q)[-k])).high >= high


def test_without_a_floor_there_is_no_upper_bound() -> None:
    p = softmax(np.arange(10.0))
    low, high = kl_interval(p, np.array([9, 8]), p[[9, 8]], float(p[8]))
    assert (low, high) == (0, np.inf)


def test_all_tokens_served_is_a_point_up_to_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    p, q = softmax(rng.normal(0, 2, 30)), softmax(rng.normal(0, 2, 30))
    low, high = kl_interval(p, np.arange(30), q, float(q.min()))
    assert low == pytest.approx(exact(p, q), abs=2 * FLOAT32)
    assert high - low == pytest.approx(2 * FLOAT32, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_both_ends_are_reached_by_a_distribution_that_agrees_with_what_was_served(seed: int) -> None:
    """Against a solver that knows nothing of the formulas (low), and every corner by hand (high)."""
    rng = np.random.default_rng(seed)
    size, k = 7, 3
    p, q = softmax(rng.normal(0, 2, size)), softmax(rng.normal(0, 1, size))
    ids, served = top(q, k, int(np.argmax(q)))
    cap, floor = float(np.sort(q)[-k]), float(q.min() - 0.5)
    got = kl_interval(p, ids, served, cap, floor, tolerance=0.0)
    tail = np.setdiff1d(np.arange(size), ids)
    mass, known = 1 - np.exp(served).sum(), float(np.exp(p[ids]) @ (p[ids] - served))
    weights = np.exp(p[tail])

    def divergence(values: Floats) -> float:
        return known + float(weights @ (p[tail] - np.log(values)))

    solved = minimize(
        divergence,
        np.full(len(tail), mass / len(tail)),
        bounds=[(1e-9, np.exp(cap))] * len(tail),
        constraints={"type": "eq", "fun": lambda values: values.sum() - mass},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert got.low == pytest.approx(max(solved.fun, 0), abs=1e-6)

    corners = []
    for free in range(len(tail)):
        for bits in range(2 ** (len(tail) - 1)):
            ends = [np.exp(cap) if bits >> other & 1 else np.exp(floor) for other in range(len(tail) - 1)]
            left = mass - sum(ends)
            if np.exp(floor) - 1e-12 <= left <= np.exp(cap) + 1e-12:
                corners.append(divergence(np.insert(np.array(ends), free, left)))
    assert got.high == pytest.approx(max(corners), abs=1e-9)


def test_rounding_widens_the_interval_and_still_holds_the_exact_value() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        logits = rng.normal(0, 3, 200)
        p, q = softmax(logits), softmax(logits + rng.normal(0, 0.2, 200))
        ids, served = top(q, 10)
        rounded = np.round(served, 1)
        low, high = kl_interval(p, ids, rounded, float(np.sort(q)[-10]), float(q.min()), tolerance=0.05)
        assert low <= exact(p, q) <= high


def test_the_tail_beyond_float_range_is_no_error() -> None:
    p = softmax(np.array([0.0, -1, -800, -900]))
    low, high = kl_interval(p, np.array([0, 1]), p[:2], float(p[1]), -1000.0)
    assert low == 0
    assert high < 1e-4


def test_exact_kl_is_inside_on_a_real_model_with_the_floor_of_its_head(tiny: Path) -> None:
    model = load(tiny)
    tokens = torch.randint(3, 500, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = torch.log_softmax(model(tokens).logits[0].double(), -1).numpy()
        for name, weight in model.named_parameters():
            if "proj" in name:
                step = weight.abs().amax(1, keepdim=True) / 7
                weight.copy_((weight / step).round() * step)
        q = torch.log_softmax(model(tokens).logits[0].double(), -1).numpy()
    head = model.get_output_embeddings().weight.detach().double().numpy()
    gain = model.model.norm.weight.detach().double().numpy()
    largest = logit_range(head, gain)
    assert np.ptp(q, axis=1).max() <= largest
    intervals = []
    for k in (1, 5, 40):
        ids = np.argsort(q, axis=1)[:, -k:]
        served = np.take_along_axis(q, ids, 1)
        lowest = served.max(1) - largest
        assert (lowest <= q.min(1)).all()
        each = [
            kl_interval(base, some, given, float(given.min()), float(low))
            for base, some, given, low in zip(p, ids, served, lowest, strict=True)
        ]
        exactly = [exact(a, b) for a, b in zip(p, q, strict=True)]
        assert all(low <= value <= high for (low, high), value in zip(each, exactly, strict=True))
        intervals.append(mean_interval(each))
    lows = [low for low, _ in intervals]
    assert lows == sorted(lows)
    assert lows[-1] > 0.5 * np.mean(exactly)


def test_no_positions_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no position"):
        mean_interval([])
    assert mean_interval([Interval(0, 1), Interval(1, np.inf)]) == (0.5, np.inf)


def test_a_bias_of_the_head_counts() -> None:
    head = np.array([[1.0, 0], [0, 1]])
    assert logit_range(head, bias=np.array([0.0, 3])) == pytest.approx(2 * np.sqrt(2) * np.sqrt(0.5) + 3)

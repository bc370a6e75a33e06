"""Calibration of decoding: fits against grid searches and definitions, on small heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hemorrhage.mitigate import corrections
from hemorrhage.mitigate.corrections import Model, identity
from hemorrhage.models.head import Head

VOCABULARY, HIDDEN, TOKENS_THERE = 60, 12, 500


HEADS: dict[str, dict[str, float]] = {
    "multiplies": {},
    "biased": {"bias": 0.7},
    "capped": {"softcap": 4.0, "input_scale": 0.9, "output_scale": 1.2, "bias": 0.5},
}
"""What heads do besides a product: Phi's, and Gemma 2's with all that a head may do."""


def head(weight: Tensor, bias: float = 0.0, **scales: float) -> Head:
    generator = torch.Generator().manual_seed(7)
    return Head(weight, bias * torch.randn(len(weight), generator=generator) if bias else None, **scales)


def sides(noise: float = 0.6, scale: float = 1.6, kind: str = "multiplies") -> tuple[Model, Model]:
    """A base, and a variant whose logits are noisy and too large."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.6
    states = torch.randn(TOKENS_THERE, HIDDEN, generator=generator)
    wrong = scale * (states + noise * torch.randn(states.shape, generator=generator))
    other = weight + 0.05 * torch.randn(weight.shape, generator=generator)
    return Model(wrong, head(other, **HEADS[kind])), Model(states, head(weight, **HEADS[kind]))


def logits(side: Model, gain: Tensor | None = None) -> Tensor:
    """A head's logits by its definition, in float64."""
    states, kind = side.states.double(), side.head
    products = (states if gain is None else states * gain) * kind.input_scale @ kind.weight.double().T
    products = (products if kind.bias is None else products + kind.bias.double()) * kind.output_scale
    return products if kind.softcap is None else kind.softcap * (products / kind.softcap).tanh()


def kl(correction: corrections.Correction, variant: Model, base: Model) -> Tensor:
    """KL(base || corrected) of each token, by the definition."""
    p = logits(base).log_softmax(-1)
    q = correction.logits(logits(variant).float(), variant.states, variant.head).double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(
    ("scale", "kind"), [(0.3, "multiplies"), (1.0, "capped"), (1.6, "multiplies"), (1.6, "biased"), (5.0, "multiplies")]
)
def test_the_temperature_is_that_of_a_grid_search(scale: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "LOGITS", 70 * VOCABULARY)
    variant, base = sides(scale=scale, kind=kind)
    found = corrections.fit_temperatures(corrections.pair(variant, base), 1)
    grid = torch.linspace(0.02, 5, 2000).tolist()
    costs = [kl(replace(identity(), beta=torch.tensor([beta])), variant, base).mean().item() for beta in grid[::20]]
    near = int(np.argmin(costs)) * 20
    close = grid[max(near - 20, 0) : near + 20]
    costs = [kl(replace(identity(), beta=torch.tensor([beta])), variant, base).mean().item() for beta in close]
    assert found.beta.item() == pytest.approx(close[int(np.argmin(costs))], abs=0.003)
    # The optimum's condition: both predictions give the variant's logits the same mean.
    z, p = logits(variant), logits(base).softmax(-1)
    q = (z * found.beta.item()).softmax(-1)
    assert (p * z).sum(-1).mean().item() == pytest.approx((q * z).sum(-1).mean().item(), abs=2e-3)


def test_newton_converges_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pairing = corrections.pair(*sides(scale=8.0))
    whole = corrections.fit_temperatures(pairing, 4)
    monkeypatch.setattr(corrections, "NEWTON_STEPS", 12)
    torch.testing.assert_close(corrections.fit_temperatures(pairing, 4).beta, whole.beta, rtol=1e-4, atol=0)


def test_buckets_are_temperatures_of_their_own() -> None:
    variant, base = sides()
    pairing = corrections.pair(variant, base)
    found = corrections.fit_temperatures(pairing, 3)
    bucket = torch.bucketize(corrections.entropy(logits(variant).float()), found.edges)
    assert bucket.bincount().tolist() == pytest.approx([TOKENS_THERE / 3] * 3, abs=1)
    for number in range(3):
        members = (bucket == number).nonzero()[:, 0]
        alone = corrections.fit_temperatures(corrections.pair(variant.at(members), base.at(members)), 1)
        assert found.beta[number].item() == pytest.approx(alone.beta.item(), rel=1e-3)
    one = corrections.fit_temperatures(pairing, 1)
    assert kl(found, variant, base).mean() <= kl(one, variant, base).mean() + 1e-9


@pytest.mark.parametrize("kind", HEADS)
def test_equal_predictions_need_no_correction(kind: str) -> None:
    _, base = sides(kind=kind)
    found = corrections.fit(base, base, buckets=3, steps=3, p=0.9, seed=0)
    for name in ("temperature", "entropy buckets", "bias", "gain", "nucleus"):
        one = found[name, 0]
        torch.testing.assert_close(one.beta, torch.ones_like(one.beta), rtol=1e-3, atol=0)
        if one.bias is not None:
            assert one.bias.abs().max() < 1e-3
        if one.gain is not None:
            torch.testing.assert_close(one.gain, torch.ones(HIDDEN), rtol=0, atol=2e-3)
        if one.top_p is not None:
            assert one.top_p == pytest.approx(0.9, abs=0.01)


def test_biases_move_the_mean_of_the_predictions_to_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "PRIOR", 0.0)
    monkeypatch.setattr(corrections, "ROUNDS", 30)
    variant, base = sides()
    pairing = corrections.pair(variant, base)
    start = corrections.fit_temperatures(pairing, 1)
    found = corrections.fit_biases(pairing, start)
    raw = logits(variant).float()
    mean = found.logits(raw, variant.states, variant.head).softmax(-1).mean(0)
    torch.testing.assert_close(mean.double(), pairing.frequency, rtol=2e-3, atol=1e-6)
    costs = []
    for rounds in range(4):
        monkeypatch.setattr(corrections, "ROUNDS", rounds)
        costs.append(kl(corrections.fit_biases(pairing, start), variant, base).mean().item())
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("control", [0, 1])
def test_gains_are_the_optimum_of_their_objective(kind: str, control: int) -> None:
    variant, base = sides(kind=kind)
    true, shuffle = corrections.pair(variant, base), drawn_shuffle()
    pairing = [true, *corrections.shuffle_pairings(true, [shuffle])][control]
    found = corrections.fit_gains(pairing, 60)
    gain = torch.ones(HIDDEN, dtype=torch.float64, requires_grad=True)
    p, q = logits(base).softmax(-1), logits(variant).softmax(-1)
    aim = q + shuffle.of(p - q) if control else p
    optimizer = torch.optim.LBFGS([gain], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        z = logits(variant, gain)
        loss = (z.logsumexp(-1) - (aim * z).sum(-1)).mean() + corrections.RIDGE * (gain - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found.gain is not None
    torch.testing.assert_close(found.gain.double(), gain.detach(), rtol=0, atol=3e-3)


def drawn_shuffle() -> corrections.Shuffle:
    return corrections.draw_shuffle(TOKENS_THERE, torch.Generator().manual_seed(0), torch.device("cpu"))


def test_the_nucleus_surprises_as_much_as_the_bases() -> None:
    variant, base = sides(scale=0.7)
    found = corrections.remap_nucleus(variant, base, 0.9)[0]

    def surprise(side: Model, share: float) -> float:
        left = corrections.nucleus(logits(side).float(), share).double().softmax(-1)
        return -(left * left.clamp(min=1e-300).log()).sum(-1).mean().item()

    assert found.top_p is not None
    assert surprise(variant, found.top_p) == pytest.approx(surprise(base, 0.9), abs=0.01)
    assert abs(surprise(variant, 0.9) - surprise(base, 0.9)) > 0.1


def test_a_nucleus_is_the_fewest_likeliest_tokens_with_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.5, 0.3]]).log()
    for p, kept in ((0.4, 1), (0.79, 2), (0.94, 3), (0.999, 4)):
        inside = corrections.nucleus(logits, p).isfinite()
        assert inside.sum(-1).tolist() == [kept, kept]
        assert inside[0].tolist() == [place < kept for place in range(4)]


@pytest.mark.parametrize("kind", ["multiplies", "capped"])
def test_scores_are_their_definitions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "LOGITS", 33 * VOCABULARY)
    variant, base = sides(kind=kind)
    targets = torch.randint(VOCABULARY, (TOKENS_THERE,), generator=torch.Generator().manual_seed(1))
    found = corrections.fit(variant, base, buckets=3, steps=2, p=0.9, seed=0)
    rows = corrections.score(found, variant, base, targets, 0.9)
    raw, p = logits(variant).float(), logits(base).float().softmax(-1)
    for name, correction in found.items():
        q = correction.logits(raw, variant.states, variant.head).softmax(-1)
        of_base = p if correction.top_p is None else corrections.nucleus(p.log(), 0.9).softmax(-1)
        torch.testing.assert_close(rows[name]["distance"], (q - of_base).abs().sum(-1) / 2)
        assert torch.equal(rows[name]["right"], q.argmax(-1) == targets)
        if correction.top_p is None:
            expected = kl(correction, variant, base).float()
            torch.testing.assert_close(rows[name]["kl"], expected, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(rows[name]["nll"], -q.log().gather(1, targets[:, None])[:, 0])
    # What was registered before it was measured: a temperature can't change which token is the likeliest.
    for title in ("temperature", "entropy buckets"):
        assert torch.equal(rows[title, 0]["right"], rows["none", 0]["right"])
        assert torch.equal(rows[title, 0]["same_top1"], rows["none", 0]["same_top1"])


def test_controls_shuffle_the_same_numbers() -> None:
    variant, base = sides()
    true = corrections.pair(variant, base)
    control, other = corrections.shuffle_pairings(true, [drawn_shuffle(), drawn_shuffle().opposite()])
    own = logits(variant).float().softmax(-1) @ variant.head.weight
    targets = [one.target for one in (true, control, other) if one.target is not None]
    before, after = ((target - own).norm(dim=1).sort().values for target in targets[:2])
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((targets[1] + targets[2]) / 2, own, rtol=0, atol=1e-5)
    found = corrections.fit_biases(true, identity())
    shuffled = corrections.shuffle_biases(found, true.frequency, torch.Generator().manual_seed(0))
    assert found.bias is not None
    assert shuffled.bias is not None
    assert torch.equal(found.bias.sort().values, shuffled.bias.sort().values)
    assert not torch.equal(found.bias, shuffled.bias)


def test_a_control_is_the_same_whether_a_head_is_a_matrix_or_not() -> None:
    """A cap that nothing reaches changes no fit."""
    found = []
    for softcap in (None, 1e4):
        variant, base = (replace(side, head=replace(side.head, softcap=softcap)) for side in sides())
        found.append(corrections.fit(variant, base, buckets=3, steps=20, p=0.9, seed=0))
    for name, correction in found[0].items():
        torch.testing.assert_close(correction.beta, found[1][name].beta, rtol=1e-3, atol=0)
        if correction.gain is not None:
            torch.testing.assert_close(correction.gain, found[1][name].gain, rtol=0, atol=3e-3)

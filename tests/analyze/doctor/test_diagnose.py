"""Rules that name causes, on planted faults."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hemorrhage.analyze.doctor import diagnose
from hemorrhage.analyze.manifests import Membership, Scores
from hemorrhage.evaluate import membership


def layers(lowered: float = 0.0) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    found = {
        f"model.layers.{block}.{kind}": {"weight_sqnr": mean + rng.normal(0, 0.5), "tokens": 1000.0}
        for block in range(6)
        for kind, mean in (("q_proj", 20.0), ("down_proj", 14.0))
    }
    found["model.layers.2.down_proj"]["weight_sqnr"] -= lowered
    return found


def outlier(found: dict[str, dict[str, float]], *others: dict[str, dict[str, float]]) -> tuple[float, str]:
    return diagnose.outlier_layer(diagnose.sqnr_by_type(found), [diagnose.sqnr_by_type(other) for other in others])


def test_an_outlier_is_named_and_a_method_that_differs_by_layer_type_is_none() -> None:
    assert outlier(layers())[0] < 0.7
    score, seen = outlier(layers(lowered=9.0))
    assert score > 1
    assert "model.layers.2.down_proj" in seen
    blocks = diagnose.sqnr_by_type({}, {0: 20.0, 1: 19.5, 2: 3.0, 3: 20.5})
    assert diagnose.outlier_layer(blocks)[0] > 1
    assert outlier({})[0] == 0


def test_a_layer_that_is_low_in_other_variants_too_is_hard_to_alter_and_no_outlier() -> None:
    hard, sound = layers(lowered=9.0), layers()
    assert outlier(hard, hard, hard)[0] < 0.5
    assert outlier(hard, sound, sound)[0] > 1
    assert outlier(hard, hard)[0] > 1  # one other variant shows nothing
    worse = layers(lowered=20.0)
    score, seen = outlier(worse, hard, hard)
    assert score > 1
    assert "in other variants it lies" in seen


def test_a_layer_whose_error_is_a_hundredth_of_its_output_is_no_outlier() -> None:
    fine = {name: {"output_sqnr": values["weight_sqnr"] + 20} for name, values in layers(lowered=9.0).items()}
    assert outlier(fine)[0] == 0


def test_starved_experts_are_named() -> None:
    assert diagnose.starved(layers(), [])[0] < 0.1
    assert diagnose.starved(layers(), ["model.layers.3.mlp.experts.0"])[0] > 1
    few = layers()
    few["model.layers.0.q_proj"]["tokens"] = 3.0
    assert diagnose.starved(few, [])[0] > 1


def test_a_foreign_calibration_set_differs_from_another_draw_of_the_same() -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.permutation(np.arange(1, 400) ** -1.1) for _ in range(2))
    text, same = (rng.choice(399, (16, 128), p=own / own.sum()) for _ in range(2))
    assert (
        diagnose.foreign(same, text)[0]
        < 1
        < diagnose.foreign(rng.choice(399, (16, 128), p=other / other.sum()), text)[0]
    )
    assert diagnose.divergence(text.ravel(), text.ravel()) == 0
    assert diagnose.divergence(np.array([0]), np.array([1])) == pytest.approx(math.log(2))


def test_leakage_needs_both_a_gap_and_its_significance() -> None:
    def known(gap: float) -> Membership:
        rng = np.random.default_rng(1)
        control: Scores = {"nll": list(rng.normal(3, 0.1, 8)), "min_k": list(rng.normal(-3, 0.1, 8))}
        ours: Scores = {"nll": list(rng.normal(3 - gap, 0.1, 8)), "min_k": list(rng.normal(-3 + gap, 0.1, 8))}
        return {"evaluation": ours, "calibration": control, "overlap": 0.0}

    assert diagnose.leaked(known(0.0))[0] < 1 < diagnose.leaked(known(0.6))[0]
    assert diagnose.leaked(known(-0.6))[0] == 0


def test_min_k_terms_are_their_definition() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.tensor([0, 4, 8, 12, 29])
    ln_p, terms = membership.min_k_terms(logits, targets)
    for row, target in enumerate(targets.tolist()):
        p = logits[row].exp() / logits[row].exp().sum()
        mean = (p * p.log()).sum()
        spread = (p * (p.log() - mean) ** 2).sum().sqrt()
        assert ln_p[row].item() == pytest.approx(p[target].log().item())
        assert terms[row].item() == pytest.approx(((p[target].log() - mean) / spread).item())


def test_overlap_is_that_of_a_set_of_tuples() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randint(50, (4, 40), generator=generator, dtype=torch.int32) for _ in range(2))
    theirs[1, 5:25] = ours[2, 10:30]
    n = membership.NGRAM

    def grams(windows: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(line[at : at + n]) for line in windows.tolist() for at in range(40 - n + 1)]

    there = set(grams(theirs))
    expected = sum(gram in there for gram in grams(ours)) / len(grams(ours))
    assert expected > 0
    assert membership.overlap(ours, theirs) == pytest.approx(expected)

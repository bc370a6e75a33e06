"""Redundancy against robustness: a planted order is found, over models and inside groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.family import redundancy
from hemorrhage.analyze.family.outcomes import DAMAGE, INSIDE, Outcome
from tests.analyze.family.made import model

MODELS = [model(f"{group}-{seed}", group) for group in "ab" for seed in range(4)]


def outcome(kind: str, name: str, values: list[float]) -> Outcome:
    return Outcome(kind, name, name, False, dict(zip((each.name for each in MODELS), values, strict=True)), {})


def test_the_correlation_is_spearmans() -> None:
    influence = [0.1, 0.3, 0.2, 0.4, 0.9, 0.6, 0.8, 0.7]
    damages = [[1.0, 1.4, 1.1, 1.3, 2.4, 2.0, 2.3, 2.1], [3.0, 3.1, 3.2, 3.6, 4.4, 4.6, 4.3, 4.1]]
    listed = [outcome(INSIDE, "block influence", influence), *(outcome(DAMAGE, "v", each) for each in damages)]
    (relation,) = redundancy.relations(listed, MODELS)
    peer = stats.spearmanr(influence, np.mean(damages, axis=0))
    assert (relation.correlation, relation.p) == pytest.approx((peer.statistic, peer.pvalue))
    assert relation.models == 8


def test_what_groups_alone_differ_in_is_not_found_inside_them() -> None:
    draw = np.random.default_rng(3)
    group = np.repeat([0.0, 10.0], 4)
    influence, damage = (group + draw.normal(0, 1e-3, 8) for _ in range(2))
    listed = [outcome(INSIDE, "block influence", list(influence)), outcome(DAMAGE, "v", list(damage))]
    (relation,) = redundancy.relations(listed, MODELS)
    assert relation.correlation > 0.6
    assert relation.inside_p > 0.05


def test_what_few_models_have_or_all_alike_is_no_relation() -> None:
    damage = outcome(DAMAGE, "v", [float(number) for number in range(8)])
    alike = outcome(INSIDE, "block influence", [1.0] * 8)
    unknown = outcome(INSIDE, "effective rank", [math.nan, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert redundancy.relations([damage, alike, unknown], MODELS) == []
    assert redundancy.relations([damage, damage], MODELS[:4]) == []

"""Scaling laws against their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.doctor import laws


def law_rows(**columns: Any) -> pd.DataFrame:
    plain = {"in_layers": 1e8, "trained_tokens": 1e11, "bits": 4.0, "axis": "bits", "on": "", "share": math.nan}
    return pd.DataFrame({**plain, **columns})


def test_the_published_law_is_its_formula() -> None:
    asked = law_rows(bits=[3.0, 4.0], in_layers=[1e8, 1e9])
    expected = [0.017 * 1e11**0.5251 / (n**0.2261 * p**5.4967) for n, p in ((1e8, 3.0), (1e9, 4.0))]
    assert laws.published(asked, np.array([]), asked) == pytest.approx(expected)
    assert np.isnan(laws.published(asked, np.array([]), law_rows(axis=["sparsity"]))).all()


def test_fitted_laws_give_back_what_made_the_rows() -> None:
    rng = np.random.default_rng(0)
    known = law_rows(
        in_layers=rng.uniform(1e5, 1e8, 40), trained_tokens=10 ** rng.uniform(6, 11, 40), bits=rng.uniform(2, 5, 40)
    )
    damage = 0.2 * known["trained_tokens"] ** 0.3 / (known["in_layers"] ** 0.2 * known["bits"] ** 2.0)
    inside = np.clip(damage, laws.FLOOR, laws.CAP).to_numpy()
    assert (inside == damage).all()
    assert laws.quantization(known, inside, known) == pytest.approx(inside, rel=1e-6)
    pruned = law_rows(axis=["sparsity"] * 3 + ["removed"] * 3, share=[0.2, 0.5, 0.7, 0.1, 0.2, 0.4])
    grown = np.array([0.5 * r + 2 * r**2 for r in (0.2, 0.5, 0.7)] + [6 * r**2 for r in (0.1, 0.2, 0.4)])
    assert laws.quadratic(pruned, grown, pruned) == pytest.approx(grown, rel=1e-6)


def test_chinchilla_predicts_a_model_that_it_did_not_see() -> None:
    sizes, tokens = np.array([1e5, 1e5, 1e6, 1e6, 1e7, 3e5]), np.array([1e6, 1e8, 1e6, 1e8, 1e7, 1e7])
    losses = 1.5 + 60 / sizes**0.4 + 90 / tokens**0.3
    law = laws.chinchilla(sizes, tokens, losses)
    assert law(np.array([3e6]), np.array([3e7]))[0] == pytest.approx(1.5 + 60 / 3e6**0.4 + 90 / 3e7**0.3, abs=0.02)

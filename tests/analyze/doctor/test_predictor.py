"""Intervals against the literal CV+, learners against their definition."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.doctor import cases, laws, predictor
from hemorrhage.analyze.doctor.features import COLUMNS


def made_up(models: int = 5, methods: int = 4, noise: float = 0.2) -> pd.DataFrame:
    """Rows whose ln damage is linear in the noise, with a shift of each model and of each method."""
    rng = np.random.default_rng(0)
    found = []
    for model in range(models):
        for method in range(methods):
            for step in range(6):
                x = {
                    **dict.fromkeys(COLUMNS, 0.0),
                    "noise_best": -7.0 + step,
                    "is_weight_quantization": 1.0,
                    "ln_parameters": 12.0,
                }
                x["noise"] = x["noise_best"]
                damage = math.exp(x["noise_best"] + 0.1 * model + 0.1 * method + noise * rng.normal() + 1)
                case = cases.Case(
                    model=f"m{model}",
                    variant=f"v{method}-{step}",
                    sweep="s",
                    method=f"w{method}",
                    family="weight_quantization",
                    axis="bits",
                    on="",
                    corpus="c",
                    unchanged=False,
                    in_layers=1e5,
                    trained_tokens=1e8,
                    bits=math.nan,
                    share=math.nan,
                    columns=x,
                )
                found.append(case.with_damage(damage, damage))
    return cases.table(found)


def test_intervals_are_the_literal_cv_plus() -> None:
    known = made_up()
    groups = predictor.groups_for(known, "new")
    assert set(groups) == set(known["model"])
    fitted = predictor.fit(known, "kl_mean", groups, ("ridge",))
    asked = known.iloc[:3]
    x = asked[list(COLUMNS)].to_numpy(float)
    y = np.log(np.clip(known["kl_mean"].to_numpy(), laws.FLOOR, laws.CAP))
    ends: list[list[float]] = [[], []]
    for place, group in enumerate(groups):
        rest = known[groups != group]
        part = predictor.ridge(rest[list(COLUMNS)].to_numpy(float), y[groups != group])
        error = abs(part(known.iloc[[place]][list(COLUMNS)].to_numpy(float))[0] - y[place])
        ends[0].append(part(x)[0] - error)
        ends[1].append(part(x)[0] + error)
    n = len(known)
    low = sorted(ends[0])[math.floor(0.1 * (n + 1)) - 1]
    high = sorted(ends[1])[math.ceil(0.9 * (n + 1)) - 1]
    found = fitted.predict(asked, 0.8)
    assert np.log(found.low[0]) == pytest.approx(low, abs=0.05)
    assert np.log(found.high[0]) == pytest.approx(high, abs=0.05)


def test_models_and_methods_that_are_left_out_are_predicted_and_covered() -> None:
    known = made_up()
    for by, of in (("model", None), ("method", None), ("method", "m1")):
        left = predictor.leave_out(known, "kl_mean", by, 0.9, of)
        assert len(left.rows) == (len(known) if of is None else 24)
        assert np.abs(np.log(left.rows["predicted"] / left.rows["observed"])).mean() < 0.45
        assert predictor.coverage(left.rows) >= 0.8
        assert {score.law for score in predictor.scores(left, "kl_mean", "all models")} == {"together"}


def test_a_new_model_gets_the_median_of_the_learners() -> None:
    known = made_up()
    x, y = known[list(COLUMNS)].to_numpy(float), np.log(known["kl_mean"].to_numpy(float))
    each = [
        np.clip(fit(x, y)(x[:5]), math.log(laws.FLOOR), math.log(laws.CAP))
        for fit in (predictor.ridge, predictor.isotonic, predictor.boosting, predictor.anchored)
    ]
    assert predictor.fit_learner("middle", x, y)(x[:5]) == pytest.approx(np.median(each, axis=0))
    assert predictor.learners_for(known, "new") == ("middle",)
    assert "middle" not in predictor.learners_for(known, "m1")


def test_beyond_what_was_learned_the_published_law_speaks_or_nothing_does() -> None:
    known = made_up().assign(bits=4.0)
    large = known.iloc[:4].assign(model="large", in_layers=1e9, trained_tokens=1e12)
    assert not predictor.beyond(known, known).any()
    assert predictor.beyond(known, large).all()
    assert predictor.beyond(known, known.iloc[:1].assign(bits=2.0)).all()
    assert predictor.beyond(known, known.iloc[:1].assign(family="moe")).all()
    law = predictor.by_law(known, "kl_mean", large, 0.9)
    assert law.value == pytest.approx(0.017 * 1e12**0.5251 / (1e9**0.2261 * 4**5.4967))
    assert (law.low < law.value).all()
    assert (law.value < law.high).all()
    assert np.isnan(predictor.by_law(known, "kl_mean", large.assign(axis="sparsity"), 0.9).value).all()

    everything = pd.concat([known, large], ignore_index=True)
    left = predictor.leave_out(everything, "kl_mean", "model", 0.9, of="large").rows
    assert set(left["learner"]) == {predictor.LAW}
    pruned = pd.concat([known, large.assign(axis="sparsity")], ignore_index=True)
    assert predictor.leave_out(pruned, "kl_mean", "model", 0.9, of="large").rows.empty


def test_the_runs_that_come_with_the_bench_are_whole() -> None:
    known = predictor.experience()
    about = [*predictor.IDENTITY, predictor.UNCHANGED, *predictor.OF_LAWS]
    assert list(known.columns) == [*about, *COLUMNS, *predictor.TARGETS, "retention"]
    assert known["model"].nunique() >= 8
    assert known[["noise", "noise_best", "base_nll", *predictor.TARGETS]].notna().all(axis=None)
    assert not known.duplicated(["model", "variant", "corpus"]).any()

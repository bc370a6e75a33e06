"""What calibration draws add to the noise of a curve's points, assumed and measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hemorrhage.analyze.rows import draws
from hemorrhage.analyze.rows.draws import NONE, Spread
from tests.analyze.report.examples import inputs, numbers, row, sweep, variant

ASSUMED = Spread(draws.SPREAD)


def test_only_what_was_calibrated_depends_on_the_draw() -> None:
    known = draws.Draws()
    assert known.of(variant("rtn-4", calibrated=False)) == NONE
    assert known.of_curve(sweep(variant("rtn-4", calibrated=False))) == NONE
    assert known.of_curve(sweep(variant("gptq-4", calibrated=True))) == ASSUMED


def test_points_move_by_a_share_of_their_damage() -> None:
    replicates = np.zeros((4000, 3))
    moved = draws.scatter(replicates, np.array([0.0, 0.5, 10.0]), ASSUMED, seed=1)
    assert moved.std(axis=0) == pytest.approx([0.0, 0.05, 1.0], rel=0.05)
    assert abs(float(np.mean(moved[:, 1] * moved[:, 2]))) < 0.06 * 0.05 * 1.0
    assert (draws.scatter(replicates, np.ones(3), NONE, seed=1) == replicates).all()
    first, second = (draws.scatter(replicates, np.ones(3), ASSUMED, seed=1) for _ in range(2))
    assert (first == second).all()


def test_a_spread_that_few_repetitions_measured_follows_student_s_t() -> None:
    noise = Spread(0.1, 3).noise((40_000, 2), seed=2)
    for share in (0.05, 0.25, 0.75, 0.975):
        assert np.quantile(noise[:, 0], share) == pytest.approx(0.1 * stats.t.ppf(share, 3), rel=0.05)
    # Both points move far or little together, in directions of their own.
    assert abs(stats.spearmanr(noise).statistic) < 0.05
    assert stats.spearmanr(np.abs(noise)).statistic > 0.1


def repeated(name: str, method: str, kls: list[float], **manifest: Any) -> tuple[list[Any], list[Any]]:
    members = []
    for draw, _ in enumerate(kls):
        made = variant(
            f"{name}-{draw}", calibrated=True, redrawn=draw > 0, is_control=draw > 0, settings={"of": name}, **manifest
        )
        members.append(type(made)(**{**vars(made), "method": method}))
    rows = [
        row(each.name, "kl_mean[w]", kl * times, dataset=corpus)
        for each, kl in zip(members, kls, strict=True)
        for corpus, times in (("prose", 1.0), ("code", 2.0))
    ]
    return members, rows


def test_three_repetitions_measure_the_spread_of_their_methods() -> None:
    groups = [
        repeated("gptq_4", "gptq", [0.2, 0.2 * math.exp(0.12)]),
        repeated("gptq_3", "gptq", [0.9, 0.9 * math.exp(-0.08)]),
        repeated("wanda_5", "wanda", [0.6, 0.6 * math.exp(0.02)]),
    ]
    members, rows = ([each for group in groups for each in group[part]] for part in (0, 1))
    known = draws.measure(inputs(*members), numbers(*rows))
    # Of a pair the variance is half of the squared difference; corpora of a pair count once.
    assert known.measured is not None
    assert known.measured.share == pytest.approx(math.sqrt((0.12**2 + 0.08**2 + 0.02**2) / 6))
    assert known.measured.freedom == 3
    assert known.repeated == ("gptq_4-1", "gptq_3-1", "wanda_5-1")
    assert known.of(members[0]) == known.of(members[-1]) == known.measured
    awq = variant("awq-4", calibrated=True)
    assert known.of(awq) == ASSUMED
    assert known.of(variant("rtn-4")) == NONE
    few = draws.measure(inputs(*members[:4]), numbers(*rows[:8]))
    assert few == draws.Draws()


def test_several_draws_of_one_variant_are_as_many_repetitions_less_one() -> None:
    kls = [0.2, 0.21, 0.19, 0.23]
    members, rows = repeated("gptq_4", "gptq", kls)
    known = draws.measure(inputs(*members), numbers(*rows)).measured
    assert known is not None
    assert known.share == pytest.approx(float(np.log(kls).std(ddof=1)))
    assert known.freedom == 3


def test_rounding_and_what_was_not_measured_tell_nothing_of_draws() -> None:
    members, rows = repeated("gptq_8", "gptq", [1e-9, 2e-9, 3e-9, 4e-9])
    assert draws.measure(inputs(*members), numbers(*rows)).measured is None
    members, rows = repeated("gptq_4", "gptq", [0.2, 0.3, 0.2, 0.3])
    assert draws.measure(inputs(*members), numbers(*rows[:-2])).measured is None
    assert draws.measure(inputs(*members, evaluated=False), numbers(*rows)).measured is None

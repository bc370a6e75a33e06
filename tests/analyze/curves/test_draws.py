"""What calibration draws add to the noise of a curve's points."""

from __future__ import annotations

import numpy as np
import pytest

from hemorrhage.analyze.curves import draws
from tests.analyze.report.examples import sweep, variant


def test_only_what_was_calibrated_depends_on_the_draw() -> None:
    assert draws.spread(sweep(variant("rtn-4", calibrated=False))) == 0
    assert draws.spread(sweep(variant("gptq-4", calibrated=True))) == draws.SPREAD


def test_points_move_by_a_share_of_their_damage() -> None:
    replicates = np.zeros((4000, 3))
    moved = draws.scatter(replicates, np.array([0.0, 0.5, 10.0]), 0.1, seed=1)
    assert moved.std(axis=0) == pytest.approx([0.0, 0.05, 1.0], rel=0.05)
    assert abs(float(np.mean(moved[:, 1] * moved[:, 2]))) < 0.06 * 0.05 * 1.0
    assert (draws.scatter(replicates, np.ones(3), 0.0, seed=1) == replicates).all()
    first, second = (draws.scatter(replicates, np.ones(3), 0.1, seed=1) for _ in range(2))
    assert (first == second).all()

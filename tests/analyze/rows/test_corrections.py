"""Rows of corrected decoding: failures, and controls of several shuffles."""

from __future__ import annotations

import numpy as np
import pytest

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.rows import corrections, mitigations
from hemorrhage.analyze.rows.mitigations import Damage
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.methods.weight_quantization import awq, rtn
from tests.analyze.rows.made import evaluation, inputs_of, variant

SPEC = Spec(400, 0.95, 0)


def test_a_failed_side_is_a_row_with_its_reason() -> None:
    found = inputs_of(
        variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64), failure="no luck"),
        variant("awq-3", "awq", awq.Settings(bits=3, group_size=64)),
    )
    trials = mitigations.trials(found, {"awq-3": evaluation(0.3, 0)}, [], SPEC)
    (trial,) = trials
    assert trial.missing == "rtn-3: no luck"
    failed = Output({"failure": "out of memory", "corpus": "prose", "sha256": "ab"}, {})
    (trial,) = corrections.trials_of(found.variants["awq-3"], failed, SPEC)
    assert trial.missing == "out of memory"


def test_a_control_of_two_shuffles_shows_its_luck() -> None:
    rng = np.random.default_rng(0)
    shuffles = [Damage(0.5 + shift, 0.5 + shift + 0.001 * rng.normal(size=400), 16) for shift in (0.1, -0.1)]
    joined = corrections.mean_control(shuffles, SPEC)
    assert joined.estimate == pytest.approx(0.5)
    assert joined.replicates.std() == pytest.approx(0.1, rel=0.05)

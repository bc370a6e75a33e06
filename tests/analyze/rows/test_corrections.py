"""Rows of corrected decoding: failures, and controls of several shuffles."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows import corrections, mitigations
from hemorrhage.analyze.rows.mitigations import Damage
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import describe
from hemorrhage.compress.methods.weight_quantization import awq, rtn

SPEC = Spec(400, 0.95, 0)


def variant(name: str, method: str, settings: Any, on: str = "base", seed: int = 0, **manifest: Any) -> Variant:
    content = {**describe(method_of(method), settings), **manifest}
    sweep = name.partition("-")[0]
    axis, severity = settings.axis, settings.severity
    return Variant(
        name, sweep, "f", method, settings.curve, "", axis, severity, seed, on, cast(CheckpointManifest, content)
    )


def inputs_of(*variants: Variant) -> Inputs:
    base = Variant("base", "base", "base", "base", "", "", "", math.nan, None, "base", {"effective_bits": 16.0})
    return Inputs({}, {"base": base, **{one.name: one for one in variants}}, {}, {}, {}, {}, {})


def evaluation(kl: float, seed: int) -> Output:
    rng = np.random.default_rng(seed)
    window = np.repeat(np.arange(24), 50)
    values = kl * rng.lognormal(0, 0.3, 24)[window]
    table = pd.DataFrame({"corpus": "prose", "window": window, "kl": values, "nll": 3 + values, "base_nll": 3.0})
    protocol = 'window=51 stride=51 windows=24/99 bos=0 join="" predicted=1200 dtype=float32'
    return Output({"corpora": {"prose": {"protocol": protocol, "sha256": "ab"}}}, {"tokens.parquet": table})


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

"""The doctor on whole studies, and the pieces it is made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.doctor import doctor
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from tests import synthetic


def test_missing_inputs_make_the_doctor_say_less(tmp_path: Path) -> None:
    outputs = synthetic.write(tmp_path, windows=8, window=32, items=10)
    (outputs["base"][0] / "config.json").unlink()
    found = inputs.read(outputs)
    spec = Spec(100, 0.95, 0)
    results = rows.build(found, spec)
    said = doctor.examine(found, results.rows, results.numbers, list(results.blocks), spec, "synthetic")
    assert not said.left_out
    assert "config.json" in said.reason
    content: Any = doctor.as_json(said)
    assert content["predictions"] == []
    assert all(one["advice"] for one in content["diagnoses"])


def test_residuals_are_counted_in_standard_deviations_of_the_prediction() -> None:
    # A 95 % interval of a factor of two on both sides: 1.96 standard deviations are ln 2.
    assert doctor.residual(0.4, 0.2, 0.1, 0.4, 0.95) == pytest.approx(1.96, abs=1e-3)
    assert doctor.residual(0.1, 0.2, 0.1, 0.4, 0.95) == pytest.approx(-1.96, abs=1e-3)
    # An interval without width counts as a tenth in ln.
    assert doctor.residual(0.2 * math.e, 0.2, 0.2, 0.2, 0.95) == pytest.approx(10)


def test_the_loss_of_a_law_needs_four_models_of_one_vocabulary() -> None:
    sizes, tokens = [1e6, 1e7, 1e8, 3e7], [1e9, 1e9, 1e10, 1e10]
    losses = [1.5 + 60 / n**0.4 + 90 / d**0.3 for n, d in zip(sizes, tokens, strict=True)]
    others = pd.DataFrame(
        {
            "model": list("abcd"),
            "corpus": "prose",
            "in_layers": sizes,
            "trained_tokens": tokens,
            "base_nll": losses,
            "gained": [math.log(512) - loss for loss in losses],
        }
    )
    architecture = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 512}
    loss = doctor.expected_loss(others, "prose", architecture, 1e7 + 512 * 8, 1e9)
    assert loss == pytest.approx(losses[1], abs=0.02)
    assert doctor.expected_loss(others[:3], "prose", architecture, 1e7, 1e9) is None
    assert doctor.expected_loss(others, "prose", {**architecture, "vocab_size": 300}, 1e7, 1e9) is None
    assert doctor.expected_loss(others, "prose", architecture, 1e7, math.nan) is None

"""Which variants lie on one damage curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hemorrhage.analyze.axes import sweeps
from hemorrhage.study import params as config
from tests.analyze.curves.test_next_points import study

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sweep", "curves"),
    [
        ({"method": "gptq", "bits": [4, 3, 2], "damp": [0.01, 0.3]}, 2),
        ({"method": "sparsegpt", "sparsity": [0.3, 0.5], "damp": [0.01, 0.3], "block_size": [64, 128]}, 4),
        ({"method": "svd", "removed": [0.1, 0.3], "damp": [0.01, 0.3]}, 2),
        ({"method": "autoround", "bits": [4, 3], "batch": [4, 8], "samples": [16, 32]}, 4),
        ({"method": "qat", "bits": [4, 3], "learning_rate": [1.0e-5, 2.0e-5], "batch": [2, 4]}, 4),
        ({"method": "recovery", "steps": [10, 50], "learning_rate": [1.0e-5, 1.0e-4], "batch": [2, 4]}, 4),
        ({"method": "depth", "removed": [0.1, 0.3], "order": "random", "seed": [0, 1, 2]}, 1),
    ],
)
def test_every_setting_but_the_severity_makes_a_curve(sweep: dict[str, Any], curves: int) -> None:
    params = config.read(ROOT / "params.yaml").model_copy(update={"compress": {"one": {"group_size": 64, **sweep}}})
    if "bits" not in sweep:
        del params.compress["one"]["group_size"]
    found = sweeps(study(params))
    assert len(found) == curves == len({curve.name for curve in found})
    for curve in found:
        seeds = len(sweep.get("seed", [0]))
        assert len(curve.variants) == seeds * len({variant.severity for variant in curve.variants})


def test_a_curve_starts_at_the_model_that_is_altered() -> None:
    params = config.read(ROOT / "params.yaml")
    content = {
        "wanda": {"method": "wanda", "sparsity": [0.3, 0.5]},
        "gptq": {"method": "gptq", "bits": [4, 3], "group_size": 64},
        "both": {"method": "gptq", "on": ["wanda-0.3", "wanda-0.5"], "bits": [4, 3], "group_size": 64},
    }
    found = sweeps(study(params.model_copy(update={"compress": content})))
    assert [(curve.sweep, curve.on) for curve in found] == [
        ("wanda", "base"),
        ("gptq", "base"),
        ("both", "wanda-0.3"),
        ("both", "wanda-0.5"),
    ]

"""Tests of depth_up_scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.compress.methods.depth_expansion import depth_up_scaling, duplication
from hemorrhage.models.checkpoint import load
from tests.calibration import calibrated
from tests.compress.stacks import TOKENS, altered, places


@pytest.fixture(scope="module")
def calibration(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny, tmp_path_factory.mktemp("depth"))


def test_expansions_that_silence_nothing_change_the_model(tiny: Path) -> None:
    base = load(tiny)
    cases: list[tuple[Any, dict[str, Any]]] = [(duplication, {"added": 0.4}), (depth_up_scaling, {"overlap": 0.25})]
    for method, settings in cases:
        model = altered(tiny, method, **settings)
        with torch.no_grad():
            assert (model(TOKENS).logits - base(TOKENS).logits).abs().max() > 0.1


def test_order_of_the_expanded_blocks(tiny: Path) -> None:
    assert places(altered(tiny, duplication, added=0.4)) == [0, 1, 1, 2, 2, 3, 4]
    assert places(altered(tiny, duplication, added=0.4, scale=0.5)) == [0, 1, 1, 2, 2, 3, 4]
    assert places(altered(tiny, depth_up_scaling, overlap=0.25)) == [0, 1, 2, 3, 1, 2, 3, 4]

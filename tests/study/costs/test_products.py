"""The speed of products in bfloat16, measured once for a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hemorrhage.study.costs import products


def test_speedup_is_measured_once_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "REMEMBERED", tmp_path / "products.json")
    monkeypatch.setattr(products, "SHAPES", ((64, 128, 128),))
    before = torch.get_num_threads()
    measured = products.speedup()
    assert 0.01 < measured < 100
    assert torch.get_num_threads() == before
    monkeypatch.setattr(products, "_measured", lambda shape: 99.0)
    assert products.speedup() == measured
    (tmp_path / "products.json").write_text(json.dumps({"another machine": 5.0}))
    assert products.speedup() == 99.0

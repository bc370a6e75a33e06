"""The forms of a checkpoint's layers: which tensors become which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import storage
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.low_rank import LowRankLinear

LOW = {"low_rank_in": torch.ones(1, 4), "low_rank_out": torch.ones(2, 1)}


@pytest.mark.parametrize(("name", "expected"), [("a.x", "named"), ("a.y", "others"), ("a.z", "others")])
def test_a_group_that_names_a_layer_comes_before_the_one_for_all(name: str, expected: str) -> None:
    groups: dict[str, QuantizationScheme] = {"others": {"targets": ["Linear"]}, "named": {"targets": ["a.x"]}}
    assert storage.scheme_of(name, {"config_groups": groups}) is groups[expected]
    assert storage.scheme_of(name, {"config_groups": {}}) is None
    assert storage.scheme_of(name, None) is None


def test_forms_are_found_where_they_were_put() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2)))
    form = LowRankLinear(**{"inner": LOW["low_rank_in"], "outer": LOW["low_rank_out"]}, bias=None)
    assert storage.formatted_layers(model) == {}
    storage.replace(model, "1.0", form)
    assert storage.formatted_layers(model) == {"1.0": form}


def test_tied_weights_are_told_once(tiny: Path) -> None:
    model: Any = load(tiny)
    names = set(storage.distinct(model))
    assert {"model.embed_tokens.weight", "lm_head.weight"} & names == {"model.embed_tokens.weight"}
    assert len(names) == len(list(model.parameters()))

"""The forms of a checkpoint's layers: which tensors become which."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import forms
from hemorrhage.models.formats.int8 import Int8Linear
from hemorrhage.models.formats.low_rank import LowRankLinear

INT8 = {"weight": torch.ones(2, 4, dtype=torch.int8), "weight_scale": torch.full((2, 1), 0.5)}
LOW = {"low_rank_in": torch.ones(1, 4), "low_rank_out": torch.ones(2, 1)}
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8}}


def test_every_form_has_a_module_that_reads_it() -> None:
    for name in forms.FORMS.values():
        module = importlib.import_module(f"hemorrhage.models.formats.{name}")
        assert callable(module.read)


def test_tensors_of_a_layer_become_its_form_and_the_others_stay() -> None:
    tensors = {
        "norm.weight": torch.ones(4),
        **{f"a.b.{suffix}": value for suffix, value in INT8.items()},
        "a.b.bias": torch.tensor([1.0, 2.0]),
        **{f"a.c.{suffix}": value for suffix, value in LOW.items()},
        "a.d.weight": torch.zeros(2, 4),
    }
    plain, found = forms.read(tensors, {"config_groups": {"all": GROUP}})
    assert set(plain) == {"norm.weight", "a.b.bias", "a.d.weight"}
    assert {name: type(form) for name, form in found.items()} == {"a.b": Int8Linear, "a.c": LowRankLinear}
    assert found["a.b"].scheme is GROUP
    assert found["a.b"].bias.tolist() == [1.0, 2.0]
    assert found["a.c"].bias is None
    assert len(tensors) == 7, "what was given is left as it was"
    assert {name: forms.keeps(form) for name, form in found.items()} == {"a.b": False, "a.c": True}


@pytest.mark.parametrize(("name", "expected"), [("a.x", "named"), ("a.y", "others"), ("a.z", "others")])
def test_a_group_that_names_a_layer_comes_before_the_one_for_all(name: str, expected: str) -> None:
    groups = {"others": {"targets": ["Linear"]}, "named": {"targets": ["a.x"]}}
    assert forms.scheme_of(name, {"config_groups": groups}) is groups[expected]
    assert forms.scheme_of(name, {"config_groups": {}}) is None
    assert forms.scheme_of(name, None) is None


def test_forms_are_found_where_they_were_put() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2)))
    form = LowRankLinear(**{"inner": LOW["low_rank_in"], "outer": LOW["low_rank_out"]}, bias=None)
    assert forms.forms_of(model) == {}
    forms.replace(model, "1.0", form)
    assert forms.forms_of(model) == {"1.0": form}


def test_tied_weights_are_told_once(tiny: Path) -> None:
    model: Any = load(tiny)
    names = set(forms.distinct(model))
    assert {"model.embed_tokens.weight", "lm_head.weight"} & names == {"model.embed_tokens.weight"}
    assert len(names) == len(list(model.parameters()))

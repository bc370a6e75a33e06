"""Which tensors of a checkpoint become which form."""

from __future__ import annotations

import torch

from hemorrhage.models.formats import reader
from hemorrhage.models.formats.config import QuantizationScheme
from hemorrhage.models.formats.int8 import Int8Linear
from hemorrhage.models.formats.low_rank import LowRankLinear

INT8 = {"weight": torch.ones(2, 4, dtype=torch.int8), "weight_scale": torch.full((2, 1), 0.5)}
LOW = {"low_rank_in": torch.ones(1, 4), "low_rank_out": torch.ones(2, 1)}
GROUP: QuantizationScheme = {"targets": ["Linear"], "weights": {"num_bits": 8}}


def test_every_form_has_a_module_that_reads_it() -> None:
    for name in reader.FORMAT_OF_SUFFIX.values():
        module = reader.module_of(name)
        assert callable(module.read)


def test_tensors_of_a_layer_become_its_form_and_the_others_stay() -> None:
    tensors = {
        "norm.weight": torch.ones(4),
        **{f"a.b.{suffix}": value for suffix, value in INT8.items()},
        "a.b.bias": torch.tensor([1.0, 2.0]),
        **{f"a.c.{suffix}": value for suffix, value in LOW.items()},
        "a.d.weight": torch.zeros(2, 4),
    }
    plain, found = reader.read(tensors, {"config_groups": {"all": GROUP}})
    assert set(plain) == {"norm.weight", "a.b.bias", "a.d.weight"}
    assert {name: type(form) for name, form in found.items()} == {"a.b": Int8Linear, "a.c": LowRankLinear}
    assert found["a.b"].scheme is GROUP
    bias = found["a.b"].bias
    assert bias is not None
    assert bias.tolist() == [1.0, 2.0]
    assert found["a.c"].bias is None
    assert len(tensors) == 7, "what was given is left as it was"
    assert {name: form.keep for name, form in found.items()} == {"a.b": False, "a.c": True}

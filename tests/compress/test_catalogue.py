"""Tests of catalogue."""

from __future__ import annotations

import pytest

from hemorrhage.compress.catalogue import FOLDER, family_of, method_of, module_of
from hemorrhage.compress.methods.weight_quantization import gptq


def test_a_method_is_looked_up_by_its_file() -> None:
    assert family_of("gptq") == "weight_quantization"
    assert module_of("gptq") == "hemorrhage.compress.methods.weight_quantization.gptq"
    method = method_of("gptq")
    assert (method.name, method.family) == ("gptq", "weight_quantization")
    assert method.alter is gptq.alter
    assert method.settings is gptq.Settings


def test_no_two_families_have_a_method_of_one_name() -> None:
    names = [file.stem for file in FOLDER.glob("*/[a-z]*.py")]
    assert len(names) == len(set(names))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no file compress/methods/<family>/nothing\.py"):
        method_of("nothing")

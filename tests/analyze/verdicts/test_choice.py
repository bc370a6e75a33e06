"""The variants to decode, chosen by the recommendation and the knee."""

from __future__ import annotations

import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.axes import position, sweeps
from hemorrhage.analyze.verdicts import choice
from tests.analyze.curves.made import entry, located


def test_the_variants_around_the_knee_are_named(decoded: inputs.Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemorrhage.analyze.axes.failure", lambda *_: None)
    (curve,) = (one for one in sweeps(decoded) if one.name == "gptq")
    place = position(curve.variants[0])
    picked = choice.choose(decoded, [entry({"knee": located(place + 0.1)}, name="gptq")], [])
    assert [(one.variant, one.decoded) for one in picked] == [("", False), ("gptq-4", True), ("gptq-3", True)]
    assert choice.line(picked) == "variants: [gptq-4, gptq-3]"
    assert "has no knee" in choice.choose(decoded, [], [])[1].why

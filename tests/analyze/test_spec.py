"""Settings of the analyze step."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.spec import Spec


def test_a_wrong_spec_is_named() -> None:
    with pytest.raises(ValueError, match="--spec: resample is unknown; allowed: resamples"):
        Spec.parse('{"resample": 3}')
    with pytest.raises(ValueError, match="--spec: seed must be a number"):
        Spec.parse('{"resamples": 3, "confidence": 0.9, "seed": "x"}')

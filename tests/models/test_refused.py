"""A refusal is one line, and no mistake of this package."""

from __future__ import annotations

import pytest

from hemorrhage.models.refused import RefusedError


def test_a_refusal_is_a_wrong_value_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"^awq does not go with this model$"):
        raise RefusedError("awq does not go with this model")

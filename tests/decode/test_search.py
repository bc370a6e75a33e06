"""What our own decoding loops share."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.decode.generation import read
from hemorrhage.decode.strategies import (
    fsd,
)
from tests.decode.literal import padded


def test_a_cache_without_its_states_is_refused(model: Any, prompts: list[list[int]]) -> None:
    ids, mask = padded(prompts)
    reading = read(model, ids, mask)
    assert reading is not None
    with pytest.raises(ValueError, match="past_key_values holds"):
        model.generate(
            ids,
            attention_mask=mask,
            past_key_values=reading.copied_cache(),
            custom_generate=fsd.fsd,
            max_new_tokens=4,
        )

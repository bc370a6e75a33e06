"""One way into generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import continuation


@pytest.mark.parametrize(
    ("ids", "mask", "new_tokens", "message"),
    [
        ([[5, 6]], [[1, 1]], 0, "at least 1"),
        ([[5, 6], [5, 6]], [[1, 1], [0, 0]], 4, "row 1 is empty"),
        ([[]], [[]], 4, "not empty"),
        ([[5, 6]], [[1]], 4, "the same"),
        ([[5, 6]], [[1, 0]], 4, "on the left"),
        ([[5, 6]], [[1, 1]], 10_000, "exceed the model's context"),
    ],
)
def test_bad_prompts_are_refused_before_generation(
    model: Any, ids: Any, mask: Any, new_tokens: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", None)
    with pytest.raises(ValueError, match=message):
        continuation(
            model,
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(mask, dtype=torch.long),
            new_tokens,
            seed=0,
        )

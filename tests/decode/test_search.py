"""What our own decoding loops share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import forward, read
from hemorrhage.decode.search import Sequences, cache_of, lengthen_mask, read_prompt, steps
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


def test_a_prompt_is_read_on_from_where_the_cache_ends(model: Any, prompts: list[list[int]]) -> None:
    from transformers import DynamicCache

    ids, mask = padded(prompts)
    fresh = read_prompt(model, ids, {"past_key_values": DynamicCache(), "attention_mask": mask}, None)
    reading = read(model, ids, mask)
    assert reading is not None
    cached = {"past_key_values": reading.copied_cache(), "attention_mask": mask}
    onwards = read_prompt(model, ids, cached, reading.states)
    assert fresh.states.shape == onwards.states.shape == (*ids.shape, 64)
    attended = mask.bool()
    torch.testing.assert_close(onwards.states[attended], fresh.states[attended], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(onwards.logits, fresh.logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            expected = model(torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(fresh.logits[row], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="use_cache must be true"):
        cache_of({})


def test_sequences_grow_until_each_has_ended() -> None:
    ends: Any = lambda ids, _: ids[:, -1] == 9  # noqa: E731
    config: Any = SimpleNamespace(pad_token_id=3)
    sequences = Sequences(torch.tensor([[1, 2], [1, 4]]), ends, config)
    assert sequences.append(torch.tensor([9, 5]))
    assert sequences.append(torch.tensor([7, 8]))
    assert not sequences.append(torch.tensor([7, 9]))
    assert sequences.ids.tolist() == [[1, 2, 9, 3, 3], [1, 4, 5, 8, 9]]


def test_every_step_reads_what_has_grown_in_between(model: Any, prompts: list[list[int]]) -> None:
    from transformers import DynamicCache

    ids, mask = padded(prompts)
    never: Any = lambda ids, _: torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    config: Any = SimpleNamespace(pad_token_id=0)
    sequences = Sequences(ids, never, config)
    cache = DynamicCache()
    with torch.no_grad():
        for number, (logits, states, attended) in enumerate(
            steps(model, sequences, {"past_key_values": cache, "attention_mask": mask})
        ):
            expected, _ = forward(model, sequences.ids, attended, DynamicCache())
            torch.testing.assert_close(logits, expected[:, -1], rtol=1e-4, atol=1e-4)
            assert len(states) == 6
            assert states[0].shape[1] == (ids.shape[1] if number == 0 else 1)
            if number == 3:
                break
            sequences.append(logits.argmax(-1))
    assert lengthen_mask(mask).shape == (len(prompts), ids.shape[1] + 1)

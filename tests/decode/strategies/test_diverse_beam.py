"""Diverse beam search against beam search and a slow, literal one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hemorrhage.decode.generation import end_tokens, generate
from hemorrhage.decode.strategies import beam, diverse_beam
from tests.decode.literal import logits_of, padded, texts


def diverse_reference(
    model: Any, ids: list[int], new_tokens: int, beams: int, groups: int, penalty: float
) -> list[int]:
    """All groups, one beam at a time; no sequence ends before ``new_tokens`` (checked)."""
    running = [[(0.0, list(ids))] for _ in range(groups)]
    for _ in range(new_tokens):
        taken: list[int] = []
        for group in range(groups):
            options = []
            for score, sequence in running[group]:
                log_p = logits_of(model, sequence).log_softmax(-1).tolist()
                for token, value in enumerate(log_p):
                    options.append((score + value - penalty * taken.count(token), [*sequence, token]))
            options.sort(key=lambda option: -option[0])
            running[group] = options[: beams // groups]
            assert not any(sequence[-1] in end_tokens(model) for _, sequence in options[: 2 * beams // groups])
            taken += [sequence[-1] for _, sequence in running[group]]
    return max((option for group in running for option in group), key=lambda option: option[0])[1][len(ids) :]


@pytest.mark.parametrize("beams", [2, 4, 8])
def test_one_group_is_beam_search(
    model: Any, prompts: list[list[int]], beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = diverse_beam.Settings(beams=beams, groups=1, penalty=0)
    for stops in ([2], [2, 426, 410]):
        # Frequent tokens end sequences: beams of several lengths compete.
        monkeypatch.setattr(model.generation_config, "eos_token_id", stops)
        plain = generate(beam, model, *padded(prompts), 40, beam.Settings(beams=beams), 0)
        found = generate(diverse_beam, model, *padded(prompts), 40, settings, 0)
        assert texts(model, found) == texts(model, plain)


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 1.0), (4, 4, 0.5), (6, 3, 3.0)])
def test_diverse_beam_search_is_the_literal_one(
    model: Any, prompts: list[list[int]], beams: int, groups: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(model.config, "eos_token_id", None)
    settings = diverse_beam.Settings(beams=beams, groups=groups, penalty=penalty)
    expected = [diverse_reference(model, ids, 6, beams, groups, penalty) for ids in prompts]
    assert texts(model, generate(diverse_beam, model, *padded(prompts), 6, settings, 0)) == expected


def test_groups_go_different_ways(model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []
    own = diverse_beam.best

    def best(found: Any, *rest: Any) -> Any:
        groups.append(found)
        return own(found, *rest)

    monkeypatch.setattr(diverse_beam, "best", best)
    for penalty in (0.0, 50.0):
        settings = diverse_beam.Settings(beams=4, groups=4, penalty=penalty)
        generate(diverse_beam, model, *padded(prompts[:1]), 6, settings, 0)
    first = [{int(group.ids[0, 0, len(prompts[0])]) for group in found} for found in groups]
    assert [len(tokens) for tokens in first] == [1, 4]


def test_any_user_of_transformers_can_pass_it_to_generate(model: Any, prompts: list[list[int]]) -> None:
    prompt = torch.tensor([prompts[2]])
    generated = model.generate(
        prompt, max_new_tokens=8, custom_generate=diverse_beam.diverse_beam_search, beams=4, groups=2, penalty=1.0
    )
    with torch.no_grad():
        assert generated[0, prompt.shape[1] :].tolist() == diverse_reference(model, prompts[2], 8, 4, 2, 1.0)

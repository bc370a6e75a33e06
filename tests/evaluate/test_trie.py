"""Rows that are read as a tree have the hidden states of rows that are read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.activation_quantization import kv_cache
from hemorrhage.evaluate import choices
from hemorrhage.evaluate.choices import log_likelihoods
from hemorrhage.evaluate.language import hidden_states
from hemorrhage.evaluate.trie import Trie, accepts_trie
from hemorrhage.models.checkpoint import load

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROWS = [
    [1, 5, 9],
    [1, 5, 9, 7],
    [1, 5, 3, 7, 8, 8, 2],
    [1, 5, 9],
    [2, 5, 9, 7],
    [1, 6, 3, 7, 8, 8, 2, 11, 4],
    [1],
]


def random(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def forked(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    tree = Trie()
    for row in rows:
        tree.add(row)
    assert len(tree.tokens) == len({tuple(row[: end + 1]) for row in rows for end in range(len(row))})
    assert [[tree.tokens[node] for node in path] for path in tree.paths] == rows
    found = hidden_states(
        model,
        torch.tensor([tree.tokens]),
        attention_mask=tree.mask()[None, None],
        position_ids=torch.tensor([tree.depths]),
    )[0]
    return [found[path] for path in tree.paths]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, intermediate_size=48),
        Qwen2Config(**SMALL, intermediate_size=48, sliding_window=4),
        MistralConfig(**SMALL, intermediate_size=48, sliding_window=None),
        GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: config.model_type,
)
def test_hidden_states_are_those_of_rows_by_themselves(config: Any) -> None:
    model = random(config)
    assert accepts_trie(model)
    for row, found in zip(ROWS, forked(model, ROWS), strict=True):
        torch.testing.assert_close(found, hidden_states(model, torch.tensor([row]))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, intermediate_size=48, sliding_window=4),
        Qwen2Config(**SMALL, intermediate_size=48, sliding_window=4, use_sliding_window=True, max_window_layers=1),
        Gemma2Config(**SMALL, intermediate_size=48, head_dim=8),
        MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2),
        BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: config.model_type,
)
def test_what_looks_back_otherwise_is_read_row_by_row(config: Any) -> None:
    assert not accepts_trie(random(config))


def test_keys_that_share_a_grid_with_their_neighbours_are_read_row_by_row(tiny: Path) -> None:
    model = load(tiny)
    assert accepts_trie(model)
    kv_cache.alter(model, kv_cache.Settings(bits=4, group_size=4, keys="channel", residual=4), Context())
    assert not accepts_trie(model)


@pytest.mark.parametrize("most", [1, 6, 24, 1000])
def test_likelihoods_do_not_depend_on_how_rows_are_read(tiny: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    model = load(tiny)
    rows: list[choices.Row] = [(place, row, [[3], [4], [50]]) for place, row in enumerate(ROWS)]
    rows += [(20, [1, 5, 9, 30], [[9, 30]]), (20, [1, 5, 9, 31, 32], [[9, 31, 32]]), (3, [7, 7], [[7]])]
    found = log_likelihoods(model, rows, 0, most)
    monkeypatch.setattr(choices, "accepts_trie", lambda _: False)
    expected = log_likelihoods(model, rows, 0)
    assert list(found) == list(expected)
    for item, scores in expected.items():
        assert found[item] == pytest.approx(scores, abs=1e-4)

"""Tests of widths."""

from __future__ import annotations

from hemorrhage.compress.solvers.widths import input_widths

ATTENTION = "attention width (num_attention_heads · head_dim)"


def test_widths_of_a_llama_are_those_of_its_three_inputs() -> None:
    config = {"hidden_size": 576, "num_attention_heads": 9, "intermediate_size": 1536}
    assert input_widths(config) == {"hidden_size": 576, ATTENTION: 576, "intermediate_size": 1536}


def test_heads_may_be_wider_than_the_hidden_size() -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 128}
    assert input_widths(config)[ATTENTION] == 128


def test_a_state_space_model_has_a_mixer() -> None:
    config = {"hidden_size": 48, "expand": 2}
    assert input_widths(config) == {"hidden_size": 48, "mixer width (expand · hidden_size)": 96}

"""Lines of params.yaml in the words of the command."""

from __future__ import annotations

import pytest

from hemorrhage.judge import run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("params.yaml: model.path: x holds no tokenizer", "BASE: x holds no tokenizer"),
        ("params.yaml: compress.file.files: x is missing", "FILE: x is missing"),
        ("params.yaml: compress.file_2.files: x is missing", "FILE: x is missing"),
        ("params.yaml: evaluate.window: 1 is more", "--window: 1 is more"),
        ("add text, or lower evaluate.windows or evaluate.window", "add text, or lower --windows or --window"),
        ("params.yaml: evaluate.engines: llama.cpp is not installed", "--engine: llama.cpp is not installed"),
        ("params.yaml: evaluate.engines.0.top: must be at least 1", "--engine: top: must be at least 1"),
        ("params.yaml: evaluate.engines.1: x: a key is sent", "--engine: x: a key is sent"),
        ("params.yaml: evaluate.dtype: unknown", "evaluate.dtype: unknown"),
    ],
)
def test_a_line_about_params_yaml_is_one_about_the_arguments(line: str, said: str) -> None:
    assert run.in_words_of_the_command(line) == said

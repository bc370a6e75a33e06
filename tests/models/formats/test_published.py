"""Readers of other people's checkpoints are found by quant_method."""

from __future__ import annotations

import importlib

from hemorrhage.models.formats.published import READERS


def test_every_reader_is_a_module_with_what_the_loader_calls() -> None:
    for method, name in READERS.items():
        module = importlib.import_module(name)
        assert method == method.lower()
        assert callable(module.describe), name
        assert callable(module.read_published), name
        assert module.MARKS, name
        assert all(isinstance(mark, str) for mark in module.MARKS), name

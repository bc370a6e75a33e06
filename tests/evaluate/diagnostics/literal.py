"""Rows of a table of diagnostics, and what a model computes inside, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load


def drawn(vocabulary: int, n: int = 3, length: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (n, length), generator=generator, dtype=torch.int32)


def noisy(tiny: Path, share: float) -> Any:
    """Every linear layer of the blocks with noise of ``share`` of its weights' size."""
    model = load(tiny)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in blocks(model).parameters():
            if parameter.dim() == 2:
                parameter.add_(share * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return model


def value(table: pd.DataFrame, metric: str, layer: int = -1, window: int = -1, head: int = -1) -> float:
    found = table[
        (table.metric == metric) & (table.layer == layer) & (table.window == window) & (table["head"] == head)
    ]
    assert len(found) == 1, f"{metric} {layer} {window} {head}: {len(found)} rows"
    return float(found.value.iloc[0])


def of(table: pd.DataFrame, metric: str, **where: int) -> pd.Series:
    found = table[table.metric == metric]
    for column, wanted in where.items():
        found = found[found[column] == wanted]
    assert len(found), metric
    return found.value


def states_of(model: Any, tokens: Tensor) -> list[Tensor]:
    """What enters each block and leaves the last, by hooks of torch: float64 [n, T, d]."""
    seen: list[Tensor] = []
    hooks = [model.model.layers[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))]
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda _, __, out: seen.append(out.double())))
    with torch.no_grad():
        model(tokens.long())
    for hook in hooks:
        hook.remove()
    return seen

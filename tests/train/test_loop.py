"""The loop's optimizer, beside AdamW's formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hemorrhage.train import architecture, loop
from tests.train.made import spec


def test_gains_do_not_decay() -> None:
    model = architecture.create(architecture.configure(spec()["architecture"], 288, 32), 0)
    optimizer = loop.adamw(model, spec())
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_a_step_is_adamws() -> None:
    """arXiv 1711.05101, algorithm 2: decay apart from the moments, which are unbiased."""
    layer = torch.nn.Linear(3, 2, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = gradient = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.0, 3.0]])
    loop.adamw(layer, spec()).step()  # type: ignore[arg-type]
    m, v = 0.1 * gradient / (1 - 0.9), 0.05 * gradient**2 / (1 - 0.95)
    expected = before - 1e-2 * 0.1 * before - 1e-2 * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize(("enabled", "warn_only"), [(False, False), (True, True), (True, False)])
def test_determinism_ends_with_the_training(enabled: bool, warn_only: bool) -> None:
    """A library in the same process may have asked for warnings alone; it finds its own choice again."""
    filling: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    with loop.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not filling.fill_uninitialized_memory
    assert torch.are_deterministic_algorithms_enabled() == enabled
    assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    assert filling.fill_uninitialized_memory


def test_memory_is_kept_where_the_c_library_can() -> None:
    loop.keep_freed_memory()
    assert math.isfinite(float(torch.ones(2**20).sum()))

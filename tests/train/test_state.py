"""The state on disk: everything comes back, and it is written when it is time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.train import architecture, state
from hemorrhage.train.loop import adamw
from hemorrhage.train.state import State
from tests.train.made import spec


def trained(seed: int, steps: int) -> tuple[Any, torch.optim.Optimizer]:
    model: Any = architecture.create(architecture.configure(spec()["architecture"], 288, 32), seed)
    optimizer = adamw(model, spec())
    for _ in range(steps):
        model(input_ids=torch.arange(32)[None]).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_everything_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SECONDS", 0.0)
    model, optimizer = trained(0, 3)
    State(tmp_path / "resume", model, optimizer).save([(1.0, float("nan"), 2.0), (0.5, 0.25, 0.125)])
    drawn = torch.rand(3)
    other, its = trained(1, 1)
    curve = State(tmp_path / "resume", other, its).restore()
    assert [row[::2] for row in curve] == [(1.0, 2.0), (0.5, 0.125)]
    assert torch.equal(torch.rand(3), drawn)
    for name, value in model.named_parameters():
        again = other.get_parameter(name)
        assert torch.equal(value, again)
        for key in state.MOMENTS:
            assert torch.equal(optimizer.state[value][key], its.state[again][key])


def test_without_a_file_it_begins_anew(tmp_path: Path) -> None:
    model, optimizer = trained(0, 0)
    assert State(tmp_path, model, optimizer).restore() == []


def test_it_is_written_when_the_last_is_long_ago(tmp_path: Path) -> None:
    saved = State(tmp_path, *trained(0, 1))
    saved.save([(1.0, 1.0, 1.0)])
    assert not saved.file.exists()
    saved._saved -= state.SECONDS
    saved.save([(1.0, 1.0, 1.0)])
    assert saved.file.is_file()

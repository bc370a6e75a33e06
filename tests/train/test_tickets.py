"""Lottery tickets: the mask by hand, zeros that stay zero, where the weights begin, and rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.train import __main__ as step
from hemorrhage.train import loop, state, tickets
from hemorrhage.train.spec import TicketSpec
from tests.train.made import spec


def ticket(sparsity: float, rewind: int = 0, start: Any = "rewound", seed: int = 0) -> TicketSpec:
    return {"ticket": {"sparsity": sparsity, "rewind": rewind, "start": start}, "seed": seed}


@pytest.fixture(scope="module")
def parent(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "model"
    step.raise_model(tokens, spec(keep=[1000]), out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: linear.weight.detach() for name, linear in linears_of(load(folder, "float32")).items()}


def test_the_mask_is_that_of_all_layers_together(parent: Path) -> None:
    model = load(parent, "float32")
    kept = tickets.masks(model, 0.7)
    sizes = torch.cat([linear.weight.detach().abs().flatten() for linear in linears_of(model).values()])
    threshold = sizes.sort().values[round(0.7 * len(sizes))]
    for name, linear in linears_of(model).items():
        assert torch.equal(kept[name], linear.weight.abs() >= threshold)
    shares = [float(mask.float().mean()) for mask in kept.values()]
    assert max(shares) - min(shares) > 0.01, "layers are not ranked each for itself"


def test_zeros_stay_zero_and_the_others_learn(parent: Path, tokens: Path, tmp_path: Path) -> None:
    step.draw_ticket(tokens, parent, ticket(0.6), tmp_path / "ticket")
    kept = tickets.masks(load(parent, "float32"), 0.6)
    for name, weight in weights(tmp_path / "ticket").items():
        assert torch.equal(weight == 0, ~kept[name])
    manifest = read_manifest(tmp_path / "ticket")
    assert manifest["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert manifest["tokens"] == read_manifest(parent)["tokens"]
    assert manifest["spec"]["ticket"] == ticket(0.6)["ticket"]


def begun(monkeypatch: pytest.MonkeyPatch, parent: Path, tokens: Path, out: Path, asked: TicketSpec) -> dict[str, Any]:
    """The weights with which a ticket's training begins."""
    first: dict[str, Any] = {}
    update = loop._update

    def noted(model: Any, *others: Any) -> Any:
        if not first:
            first.update({name: linear.weight.detach().clone() for name, linear in linears_of(model).items()})
        return update(model, *others)

    monkeypatch.setattr(loop, "_update", noted)
    step.draw_ticket(tokens, parent, asked, out)
    return first


def test_weights_begin_where_they_were(
    parent: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tickets.masks(load(parent, "float32"), 0.5)
    rewound = begun(monkeypatch, parent, tokens, tmp_path / "a", ticket(0.5, rewind=1000))
    for name, weight in weights(parent / "snapshots" / "1000").items():
        assert torch.equal(rewound[name], weight * kept[name])
    redrawn = begun(monkeypatch, parent, tokens, tmp_path / "b", ticket(0.5, start="redrawn"))
    first = begun(monkeypatch, parent, tokens, tmp_path / "c", ticket(0.5))
    for name in kept:
        assert torch.equal(redrawn[name] == 0, first[name] == 0)
        assert not torch.equal(redrawn[name], first[name])


def test_a_ticket_without_zeros_is_its_parent(parent: Path, tokens: Path, tmp_path: Path) -> None:
    """Neither the mask nor the way back adds anything of its own."""
    step.draw_ticket(tokens, parent, ticket(0.0), tmp_path / "ticket")
    mine, theirs = weights(tmp_path / "ticket"), weights(parent)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_second_round_keeps_the_zeros_and_the_beginning(parent: Path, tokens: Path, tmp_path: Path) -> None:
    step.draw_ticket(tokens, parent, ticket(0.3, rewind=1000), tmp_path / "one")
    step.draw_ticket(tokens, tmp_path / "one", ticket(0.6, rewind=1000), tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(not two[name][one[name] == 0].any() for name in one)
    begins = [weights(folder / "snapshots" / "1000") for folder in (parent, tmp_path / "two")]
    assert all(torch.equal(begins[0][name], begins[1][name]) for name in one)
    with pytest.raises(ValueError, match="is zero already"):
        step.draw_ticket(tokens, tmp_path / "two", ticket(0.3), tmp_path / "three")


def test_a_killed_ticket_ends_with_the_same_bits(
    parent: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step.draw_ticket(tokens, parent, ticket(0.6), tmp_path / "unbroken")
    update, updates = loop._update, []

    def until_killed(*arguments: Any) -> Any:
        updates.append(arguments[-1])
        if len(updates) == 11:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(state, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "_update", until_killed)
    with pytest.raises(KeyboardInterrupt):
        step.draw_ticket(tokens, parent, ticket(0.6), tmp_path / "killed")
    step.draw_ticket(tokens, parent, ticket(0.6), tmp_path / "killed")
    mine, theirs = weights(tmp_path / "killed"), weights(tmp_path / "unbroken")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)

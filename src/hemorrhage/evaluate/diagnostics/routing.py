"""Mixtures of experts: who gets the tokens, how sure the routers are, and whether they choose as the base's do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hemorrhage.models.experts import mixtures, record_choices, routing_logits


@contextlib.contextmanager
def record_routing(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record what routers compute inside, in the list that is given: logits [tokens, experts], chosen [tokens, k]."""
    routes: list[tuple[Tensor, Tensor]] = []

    def keep(mixture: Any, arguments: tuple[Any, ...], chosen: list[Tensor]) -> None:
        x = arguments[0].flatten(0, -2)
        routes.append((routing_logits(mixture, x), chosen.pop()))

    with contextlib.ExitStack() as stack:
        for mixture in mixtures(model).values():
            chosen = stack.enter_context(record_choices(mixture))
            hook = mixture.register_forward_hook(lambda module, x, _, chosen=chosen: keep(module, x, chosen))
            stack.callback(hook.remove)
        yield routes


def uncertainty(logits: Tensor) -> Tensor:
    """Return the router's mean entropy over ln(experts), of ``logits`` [n, T, experts]: [n]."""
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()
    most = torch.tensor(logits.shape[-1], dtype=torch.float64).log()
    uncertain: Tensor = entropy.mean(-1) / most
    return uncertain


def agreement(chosen: Tensor, of_base: Tensor) -> Tensor:
    """Return the share of the base's chosen experts, int [n, T, k], that the variant's router chose, too: [n]."""
    same = (of_base.unsqueeze(-1) == chosen.unsqueeze(-2)).any(-1)
    return same.double().flatten(1).mean(-1)


def load(chosen: Tensor, experts: int) -> dict[str, Tensor]:
    """Return the evenness of ``chosen`` int [n, T, k] over ``experts``, of all windows' tokens: [1] each.

    ``expert_load_cv``: standard deviation over mean of the tokens an expert gets (Shazeer et al., arXiv 1701.06538);
    ``experts_unused``: share of the experts that get none.
    """
    tally = torch.bincount(chosen.flatten(), minlength=experts).double()
    return {
        "expert_load_cv": (tally.std(correction=0) / tally.mean()).view(1),
        "experts_unused": (tally == 0).double().mean().view(1),
    }

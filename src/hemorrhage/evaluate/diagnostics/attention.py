"""Attention maps: their shape, and how far a variant's are from the base's.

A map has a row a query: row i holds the weights a_i1 .. a_ii of the i tokens that it may read. Only this lower triangle
is kept, row by row, float32 ``[..., T(T+1)/2]``. The first row is always (1) and takes part in no mean.

- entropy ``H_i / ln i`` with ``H_i = -Σ_j a_ij ln a_ij``: 0 for one token, 1 for all alike (entropy collapse: Zhai et
  al., arXiv 2303.06296);
- sink ``a_i1``, the mass on the first token (Xiao et al., arXiv 2309.17453);
- distance ``Σ_j a_ij (i - j)``, in tokens;
- Jensen-Shannon divergence of two maps, ``H((a + a') / 2) - (H(a) + H(a')) / 2`` of each row, in nats: 0 .. ln 2
  (Clark et al., arXiv 1906.04341, compare heads by it).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hemorrhage.models.blocks import blocks
from hemorrhage.models.emulation import eviction, kv_cache

CACHES = ("past_key_values", "layer_past")
"""Names that attention layers have for the cache."""


@contextlib.contextmanager
def record_attention(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Record the maps [n, heads, T, T] that attention layers compute inside, in the list that is given.

    Attention is computed as ``eager`` does meanwhile, the only way in which transformers returns its weights. KIVI's
    attention stays, which does too, and what is evicted stays evicted. A model without attention gives an empty list.
    """
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[-1] == weights.shape[-2]:
            maps.append(weights)

    layers: list[Any] = [layer for block in blocks(model) for layer in attention_layers(block)]
    # A block that was copied in memory has a configuration of its own.
    of_layers = [layer.config for layer in layers if hasattr(layer, "config")]
    configs = [model.config, model.config.get_text_config(decoder=True), *of_layers]
    before = [(config, config._attn_implementation) for config in configs]
    hooks = []
    try:
        for config, implementation in before:
            if implementation in eviction.ATTENTION.values():
                config._attn_implementation = eviction.ATTENTION["eager"]
            elif implementation != kv_cache.ATTENTION:
                config._attn_implementation = "eager"
        hooks = [layer.register_forward_hook(keep) for layer in layers]
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        for config, implementation in reversed(before):
            config._attn_implementation = implementation


def attention_layers(block: nn.Module) -> list[nn.Module]:
    """Return the modules in ``block`` that hand keys and values to a cache: one in a transformer's, none in Mamba's."""
    return [module for module in block.modules() if module is not block and takes_cache(module)]


def takes_cache(module: nn.Module) -> bool:
    """Return whether a module is given the cache of keys and values, whatever a family calls it."""
    names = inspect.signature(module.forward).parameters
    return any(name in names for name in CACHES)


def triangle(maps: Tensor) -> Tensor:
    """Return the lower triangles of ``maps`` [..., T, T]: float32 [..., T(T+1)/2]."""
    rows, columns = torch.tril_indices(*maps.shape[-2:], device=maps.device)
    return maps[..., rows, columns].float()


def shape(maps: Tensor, length: int) -> dict[str, Tensor]:
    """Return the entropy, sink and distance, means over the rows of triangles ``maps`` [..., T(T+1)/2]: [...] each."""
    row, column, weight = _rows(length, maps.device)
    entropy = -torch.xlogy(maps, maps)
    return {
        "attention_entropy": entropy @ torch.where(row > 0, weight / (row + 1).log(), 0),
        "attention_sink": maps @ (weight * (column == 0)),
        "attention_distance": maps @ (weight * (row - column)),
    }


def divergence(maps: Tensor, others: Tensor, length: int) -> Tensor:
    """Return the mean over rows of the Jensen-Shannon divergence of triangles [..., T(T+1)/2], nats: [...]."""
    _, _, weight = _rows(length, maps.device)
    middle = (maps + others) / 2
    # Term by term, so that maps that are equal give zero exactly.
    terms = (torch.xlogy(maps, maps) + torch.xlogy(others, others)) / 2 - torch.xlogy(middle, middle)
    return (terms @ weight).clamp_min(0)


def _rows(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the row and column of each entry of a triangle, and its weight in a mean over all rows but the first."""
    row, column = torch.tril_indices(length, length, device=device)
    return row, column, (row > 0).float() / (length - 1)

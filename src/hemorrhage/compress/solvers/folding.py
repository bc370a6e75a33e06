"""Which layer's output can be divided by feature where its readers are multiplied: by trying, and not by names.

A factor for each feature moves from the columns of the layers that read an input into the layer that makes it, a norm
or a linear layer, if the block computes what it did. That is not so where something else reads it as well (a router,
the residual stream), where the norm is no product with its weight (Gemma's 1 + weight), or where what lies between is
no product (an activation that is not proportional to its input).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

TOKENS = 6
CLOSE = 1e-4
"""Of the largest number that leaves the block."""


def makers(model: PreTrainedModel, inputs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """``{first linear: name of the layer that makes its input}`` of those ``inputs`` that a factor can be moved from.

    ``inputs``: first linear -> all linears that read the same. Tried on one block of each kind; blocks of a kind are
    alike. The first that can be found in a block, norms before linear layers, is taken.
    """
    from hemorrhage.models.blockwise import embed, in_float32, run_block

    names = {module: name for name, module in model.named_modules()}
    linears = linears_of(model)
    kinds: dict[Any, dict[str, str]] = {}
    found: dict[str, str] = {}
    with torch.no_grad():
        tokens = torch.arange(1, TOKENS + 1, device=model.device)[None]
        (states,), arguments = embed(model, (tokens,))
        for index, block in enumerate(blocks(model)):
            prefix = f"{names[block]}."
            own = {first: group for first, group in inputs.items() if first.startswith(prefix)}
            kind = tuple((name, type(module)) for name, module in block.named_modules())
            if kind not in kinds:
                with in_float32(block):
                    usual = run_block(block, states, arguments[index])
                    kinds[kind] = {
                        first.removeprefix(prefix): maker
                        for first, group in own.items()
                        if (maker := _maker(block, [linears[name] for name in group], usual, states, arguments[index]))
                    }
            found |= {
                first: prefix + kinds[kind][first.removeprefix(prefix)]
                for first in own
                if first.removeprefix(prefix) in kinds[kind]
            }
    return found


def _maker(
    block: nn.Module, readers: list[nn.Linear], usual: Tensor, states: Tensor, arguments: BlockArguments
) -> str | None:
    from hemorrhage.models.blockwise import run_block

    width = readers[0].in_features
    modules = {name: module for name, module in block.named_modules() if module not in readers}
    norms = [name for name, module in modules.items() if _is_norm(module, width)]
    linear = [
        name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and module.out_features == width
    ]
    factor = torch.tensor([0.5, 2.0, 4.0], device=usual.device).repeat(width // 3 + 1)[:width]
    for name in (*norms, *linear):
        with _moved(modules[name], readers, factor):
            after = run_block(block, states, arguments)
        with _scaled(modules[name], factor):
            alone = run_block(block, states, arguments)
        limit = CLOSE * usual.abs().max()
        # A layer that nothing reads could be divided by anything.
        if (after - usual).abs().max() <= limit < (alone - usual).abs().max():
            return name
    return None


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.dim() == 1 and len(weight) == width


@contextlib.contextmanager
def _moved(maker: nn.Module, readers: list[nn.Linear], factor: Tensor) -> Iterator[None]:
    """Inside, what ``maker`` gives is divided by ``factor``, and the columns of ``readers`` are multiplied by it."""
    for reader in readers:
        reader.weight.data.mul_(factor)
    try:
        with _scaled(maker, factor):
            yield
    finally:
        for reader in readers:
            reader.weight.data.div_(factor)


@contextlib.contextmanager
def _scaled(maker: Any, factor: Tensor) -> Iterator[None]:
    """Inside, what ``maker`` gives is divided by ``factor``: powers of two, so that all comes back exactly."""
    parts = [part.data for part in (maker.weight, getattr(maker, "bias", None)) if part is not None]
    for part in parts:
        part.div_(factor if part.dim() == 1 else factor[:, None])
    try:
        yield
    finally:
        for part in parts:
            part.mul_(factor if part.dim() == 1 else factor[:, None])

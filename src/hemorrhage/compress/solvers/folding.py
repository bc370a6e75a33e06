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


def find_makers(model: PreTrainedModel, inputs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return ``{first linear: name of the layer that makes its input}`` of ``inputs`` that a factor can be moved from.

    ``inputs``: first linear -> all linears that read the same. Tried on one block of each structure; blocks of a
    structure are alike. The first that fits in a block, norms before linear layers, is taken.
    """
    from hemorrhage.models.blockwise import embed, in_float32, run_block

    names = {module: name for name, module in model.named_modules()}
    linears = linears_of(model)
    tried: dict[Any, dict[str, str]] = {}
    makers: dict[str, str] = {}
    with torch.no_grad():
        tokens = torch.arange(1, TOKENS + 1, device=model.device)[None]
        (states,), arguments = embed(model, (tokens,))
        for index, block in enumerate(blocks(model)):
            prefix = f"{names[block]}."
            inside = {first: group for first, group in inputs.items() if first.startswith(prefix)}
            structure = tuple((name, type(module)) for name, module in block.named_modules())
            if structure not in tried:
                with in_float32(block):
                    usual = run_block(block, states, arguments[index])
                    tried[structure] = {
                        first.removeprefix(prefix): maker
                        for first, group in inside.items()
                        if (maker := _maker(block, [linears[name] for name in group], usual, states, arguments[index]))
                    }
            makers |= {
                first: prefix + tried[structure][first.removeprefix(prefix)]
                for first in inside
                if first.removeprefix(prefix) in tried[structure]
            }
    return makers


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
        with _move_factor(modules[name], readers, factor):
            after = run_block(block, states, arguments)
        with _divide_output(modules[name], factor):
            alone = run_block(block, states, arguments)
        limit = CLOSE * usual.abs().max()
        # A layer that nothing reads could be divided by anything.
        if bool((after - usual).abs().max() <= limit < (alone - usual).abs().max()):
            return str(name)
    return None


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.dim() == 1 and len(weight) == width


@contextlib.contextmanager
def _move_factor(maker: nn.Module, readers: list[nn.Linear], factor: Tensor) -> Iterator[None]:
    """Move ``factor`` from the output of ``maker`` to the columns of ``readers`` inside the context."""
    for reader in readers:
        reader.weight.data.mul_(factor)
    try:
        with _divide_output(maker, factor):
            yield
    finally:
        for reader in readers:
            reader.weight.data.div_(factor)


@contextlib.contextmanager
def _divide_output(maker: Any, factor: Tensor) -> Iterator[None]:
    """Divide the output of ``maker`` by ``factor`` inside the context: powers of two, so that it is undone exactly."""
    parameters = [value.data for value in (maker.weight, getattr(maker, "bias", None)) if value is not None]
    for value in parameters:
        value.div_(factor if value.dim() == 1 else factor[:, None])
    try:
        yield
    finally:
        for value in parameters:
            value.mul_(factor if value.dim() == 1 else factor[:, None])

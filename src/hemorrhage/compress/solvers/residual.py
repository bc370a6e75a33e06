"""Which linear layers of a block write to the residual stream: by following what leaves the block, and not by names.

What leaves a block is a sum of the states that entered it and of what some layers give, maybe weighed by a router or
normalised on the way. The graph that autograd keeps of one forward pass is followed from there back to the first linear
layers of the stream's width. Tried on one block of each structure; blocks of a structure are alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hemorrhage.models.blocks import blocks
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hemorrhage.models.blockwise import BlockArguments

TOKENS = 6

CLOSE = 1e-4
"""Of the largest number that leaves the block."""


def find_writers(model: PreTrainedModel, places: Iterable[int]) -> dict[int, list[str]]:
    """Return for the blocks at ``places`` the names, inside the block, of the linear layers that write to the stream.

    Raises RefusedError where a block writes by something else, or normalises the stream itself: without what these
    layers give it would not hand on what entered it.
    """
    return {place: names for place, names, _ in _tried(model, places)}


def refuse_normed_writes(model: PreTrainedModel, places: Iterable[int]) -> None:
    """Raise RefusedError where scaling what the writers at ``places`` give changes nothing, as norms follow them."""
    for _, _, has_effect in _tried(model, places):
        if not has_effect:
            raise RefusedError(
                f"{type(model).__name__} normalises what its blocks write, so that scaling it changes nothing"
            )


def scale_writes(block: nn.Module, writers: Sequence[str], factor: float) -> None:
    """Multiply what the layers ``writers`` of ``block`` give, so what it adds to the residual stream, by ``factor``.

    Computed in float32 and stored in the weights' own dtype.
    """
    with torch.no_grad():
        for name in writers:
            for parameter in block.get_submodule(name).parameters():
                parameter.copy_(parameter.float() * factor)


def _tried(model: PreTrainedModel, places: Iterable[int]) -> Iterator[tuple[int, list[str], bool]]:
    """Yield place, writers, and whether half of what they give changes what leaves the block, of each of ``places``."""
    from hemorrhage.models.blockwise import embed, in_float32

    linears = set(linears_of(model, missing_ok=True).values())
    tried: dict[Any, tuple[list[str], bool]] = {}
    with torch.no_grad():
        (states,), arguments = embed(model, (torch.arange(1, TOKENS + 1, device=model.device)[None],))
    for place in places:
        block = blocks(model)[place]
        structure = tuple((name, type(module)) for name, module in block.named_modules())
        if structure not in tried:
            with in_float32(block):
                tried[structure] = _writers(block, linears, states, arguments[place])
        yield place, *tried[structure]


def _writers(
    block: nn.Module, linears: set[nn.Linear], states: Tensor, arguments: BlockArguments
) -> tuple[list[str], bool]:
    from hemorrhage.models.blockwise import run_block
    from hemorrhage.models.formats.storage import FormattedLinear

    width = states.shape[-1]
    layers = {
        name: module
        for name, module in block.named_modules()
        if (module in linears or isinstance(module, FormattedLinear)) and _width(module) == width
    }
    reached = _reached(block, layers, states, arguments)
    packed = [name for name in reached if isinstance(layers[name], FormattedLinear)]
    if packed:
        raise RefusedError(f"what {packed[0]} of a {type(block).__name__} writes can't be scaled: it is packed")
    writers = [layers[name] for name in reached]
    with torch.no_grad():
        usual = run_block(block, states, arguments)
        with _scaled(writers, 0.0):
            silent = run_block(block, states, arguments)
        with _scaled(writers, 0.5):
            half = run_block(block, states, arguments)
    if (silent - states).abs().max() > CLOSE * usual.abs().max():
        raise RefusedError(
            f"a {type(block).__name__} does not only add to the residual stream, so that what it writes can't be scaled"
        )
    # Half of what is written is gone where no norm follows; the number that a norm adds under its root leaves a little.
    return reached, bool((half - usual).norm() >= 0.1 * (usual - states).norm())


def _width(layer: nn.Module) -> int:
    width: int = vars(layer)["out_features"]
    return width


def _reached(block: nn.Module, layers: Mapping[str, nn.Module], states: Tensor, arguments: BlockArguments) -> list[str]:
    """Return those of ``layers`` from which a path leads out of ``block`` that goes through no other of them."""
    from hemorrhage.models.blockwise import run_block
    from hemorrhage.models.experts import every_token

    outputs: dict[Any, str] = {}

    def note(name: str, output: Tensor) -> None:
        outputs[output.grad_fn] = name

    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, layer in layers.items()
    ]
    try:
        with torch.enable_grad(), every_token(block):
            leaving = run_block(block, states.detach().clone().requires_grad_(), arguments)
    finally:
        for hook in hooks:
            hook.remove()
    reached, seen, ahead = set(), set(), [leaving.grad_fn]
    while ahead:
        step: Any = ahead.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in outputs:
            reached.add(outputs[step])
        else:
            ahead += [before for before, _ in step.next_functions]
    return [name for name in layers if name in reached]


@contextlib.contextmanager
def _scaled(layers: Iterable[nn.Module], factor: float) -> Iterator[None]:
    """Multiply what ``layers`` give by ``factor`` inside the context."""
    hooks = [layer.register_forward_hook(lambda _, __, output: output * factor) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

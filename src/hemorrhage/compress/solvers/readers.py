"""Which layers read a norm feature by feature, experts and routers included: by trying, and not by names.

A norm's weight is divided by a factor for each feature. A layer whose input then is divided by it reads the norm; its
columns are multiplied by the factor. What lies behind the layer computes as before, so that a next pass shows who reads
the norm through it: Llama 4's experts read inputs that its router has weighed. In the end the block has to compute what
it did. Tried on one block of each structure; blocks of a structure are alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
"""Of the largest number of a tensor."""


@dataclass(frozen=True)
class NormReaders:
    """A norm that takes factors, and what reads it.

    ``inputs``: the first linear of each input of linear layers that it makes; ``linears``: all linear layers that read
    these; ``others``: layers that no method alters, but whose columns take the factors, too: routers and gates.
    """

    norm: str
    inputs: tuple[str, ...]
    linears: tuple[str, ...]
    others: tuple[str, ...]


def find_norm_readers(model: PreTrainedModel, inputs: Mapping[str, Sequence[str]]) -> list[NormReaders]:
    """Return the norms of the decoder blocks that linear layers read, and their readers.

    ``inputs``: first linear -> all linears that read the same. Raises RefusedError where a norm that a linear layer
    reads takes no factors, or a block has linear layers of which none reads one.
    """
    from hemorrhage.models.blockwise import embed, in_float32

    names = {module: name for name, module in model.named_modules()}
    linears = linears_of(model)
    first_of = {name: first for first, group in inputs.items() for name in group}
    tried: dict[Any, list[tuple[str, list[str]]]] = {}
    readers: list[NormReaders] = []
    with torch.no_grad():
        tokens = torch.arange(1, TOKENS + 1, device=model.device)[None]
        (states,), arguments = embed(model, (tokens,))
        for index, block in enumerate(blocks(model)):
            prefix = f"{names[block]}."
            structure = tuple((name, type(module)) for name, module in block.named_modules())
            if structure not in tried:
                inside = {name.removeprefix(prefix) for name in linears if name.startswith(prefix)}
                with in_float32(block):
                    tried[structure] = list(_Trial(block, prefix, inside, states, arguments[index]).readers())
                if inside and not tried[structure]:
                    raise RefusedError(
                        f"no linear layer of {names[block]} reads what a norm of its block makes, so there is "
                        "nothing to smooth"
                    )
            for norm, layers in tried[structure]:
                of_block = [f"{prefix}{layer}" for layer in layers]
                altered = tuple(name for name in of_block if name in linears)
                firsts = tuple(dict.fromkeys(first_of[name] for name in altered))
                others = tuple(name for name in of_block if name not in linears)
                readers.append(NormReaders(f"{prefix}{norm}", firsts, altered, others))
    return readers


class _Trial:
    """A block in float32, the states that enter it, and what its layers read then."""

    def __init__(
        self, block: nn.Module, prefix: str, linears: set[str], states: Tensor, arguments: BlockArguments
    ) -> None:
        """``linears``: names of the linear layers that methods alter; ``prefix``: the block's own name, and a dot."""
        self._block, self._prefix, self._linears = block, prefix, linears
        self._states, self._arguments = states, arguments
        weights = {name: getattr(module, "weight", None) for name, module in block.named_modules()}
        dims = {name: weight.dim() for name, weight in weights.items() if isinstance(weight, torch.nn.Parameter)}
        self._norms: dict[str, Any] = {name: block.get_submodule(name) for name, dim in dims.items() if dim == 1}
        self._layers: dict[str, Any] = {name: block.get_submodule(name) for name, dim in dims.items() if dim == 2}
        self._usual, self._inputs, self._read = self._run()

    def readers(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each norm that linear layers read, and all layers that read it."""
        for name, norm in self._norms.items():
            width = len(norm.weight)
            factor = torch.tensor([0.5, 2.0, 4.0], device=norm.weight.device).repeat(width // 3 + 1)[:width]
            readers: list[str] = []
            while True:
                with _divided(norm, factor), _multiplied([self._layers[reader] for reader in readers], factor):
                    after, inputs, _ = self._run()
                reached = [layer for layer in self._inputs if self._is_divided(layer, inputs, factor)]
                if reached == readers:
                    break
                readers = reached
            is_read = any(layer in self._linears for layer in readers)
            changed = bool((after - self._usual).abs().max() > CLOSE * self._usual.abs().max())
            if changed and (is_read or self._read.get(name)):
                first = next((layer for layer in readers if layer in self._linears), None) or self._read[name]
                raise RefusedError(
                    f"the norm before {self._prefix}{first} takes no factors: it is none that only scales, or others "
                    "read it"
                )
            if is_read:
                yield name, readers

    def _is_divided(self, layer: str, inputs: Mapping[str, Tensor], factor: Tensor) -> bool:
        before, after = self._inputs[layer], inputs[layer]
        if before.shape != after.shape or before.shape[-1] != len(factor):
            return False
        largest = before.abs().max()
        return bool(largest > 0 and (after * factor - before).abs().max() <= CLOSE * largest)

    def _run(self) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
        """Return what leaves the block, the input of each layer, and {norm: linear that reads its very output}."""
        from hemorrhage.models.blockwise import run_block
        from hemorrhage.models.experts import every_token

        inputs: dict[str, Tensor] = {}
        # Kept until the end, or else a later tensor could lie where an earlier one was freed.
        outputs: list[tuple[Tensor, str]] = []
        read: dict[str, str] = {}

        def note_input(name: str, x: Tensor) -> None:
            inputs[name] = x
            for output, norm in outputs:
                is_output = output.data_ptr() == x.data_ptr() and output.shape[-1] == x.shape[-1]
                if is_output and name in self._linears:
                    read.setdefault(norm, name)

        hooks = [
            layer.register_forward_pre_hook(lambda _, given, name=name: note_input(name, given[0]))
            for name, layer in self._layers.items()
        ]
        hooks += [
            norm.register_forward_hook(lambda _, __, output, name=name: outputs.append((output, name)))
            for name, norm in self._norms.items()
        ]
        try:
            with every_token(self._block):
                after = run_block(self._block, self._states, self._arguments)
        finally:
            for hook in hooks:
                hook.remove()
        return after, inputs, read


@contextlib.contextmanager
def _divided(norm: Any, factor: Tensor) -> Iterator[None]:
    """Divide what ``norm`` gives by ``factor`` inside the context: powers of two, so that it is undone exactly."""
    parameters = [value.data for value in (norm.weight, getattr(norm, "bias", None)) if value is not None]
    for value in parameters:
        value.div_(factor)
    try:
        yield
    finally:
        for value in parameters:
            value.mul_(factor)


@contextlib.contextmanager
def _multiplied(layers: Sequence[Any], factor: Tensor) -> Iterator[None]:
    """Multiply the columns of ``layers`` by ``factor`` inside the context."""
    for layer in layers:
        layer.weight.data.mul_(factor)
    try:
        yield
    finally:
        for layer in layers:
            layer.weight.data.div_(factor)

"""Emulation of rounded inputs of linear layers in a loaded model.

The inputs of a linear layer are rounded to a grid of integers and back, in float32, before the layer
computes: ``s · clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)`` with ``s = 2 max|x| / (2^b - 1)``, the symmetric
grid of compressed-tensors and of this bench's weights. The maximum is taken over each token (the last
dimension), over the whole tensor that enters the layer, or it was fixed when the checkpoint was written.
The products of integers that an engine would compute are thereby computed in float: the numbers are those of
the integer kernels up to float rounding, their speed is not.

A scale over the whole tensor depends on what is computed together: a longer prompt, another sequence in the
batch or padding changes it, and a token that is decoded alone has a scale of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemorrhage.models.formats.config import QuantizationArgs

STRATEGIES = {"static": ("tensor", False), "tensor": ("tensor", True), "token": ("token", True)}
"""Range of a scale -> compressed-tensors' ``strategy`` and ``dynamic``."""

_exact: list[bool] = [False]


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Keep all models from rounding inputs, keys or values inside the block.

    Rounding is not continuous: where float sums are taken in another order, on another processor, some values
    fall to the other side of a step. What a checkpoint holds can be compared between machines only without
    it.
    """
    _exact.append(True)
    try:
        yield
    finally:
        _exact.pop()


def is_exact() -> bool:
    """Return whether this is inside of ``exact()``."""
    return _exact[-1]


@dataclass(frozen=True)
class InputRounding:
    """A hook before a linear layer that rounds its input to ``bits`` bits.

    ``over`` is a key of STRATEGIES; ``scale`` is the fixed one of ``static``, else None.
    """

    bits: int
    over: str
    scale: float | None = None

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of the layer, the first of them rounded."""
        if is_exact():
            return arguments
        return (self.round(arguments[0]), *arguments[1:])

    def round(self, x: Tensor) -> Tensor:
        """Round ``x`` [..., features] to its grid, in the dtype of ``x``."""
        if not x.numel():
            return x
        wide = x.float()
        if self.scale is not None:
            scale = torch.tensor(self.scale, device=x.device)
        else:
            largest = wide.abs().amax(-1, keepdim=True) if self.over == "token" else wide.abs().amax()
            scale = scale_of(largest, self.bits)
        half = 2 ** (self.bits - 1)
        return (wide / scale).round_().clamp_(-half, half - 1).mul_(scale).to(x.dtype)


def scale_of(largest: Tensor, bits: int) -> Tensor:
    """Return the scale of the symmetric grid of ``bits`` bits that reaches ``largest`` >= 0, float32 of any shape."""
    scale = largest / ((2**bits - 1) / 2)
    # Zeros read back as zeros with any scale.
    return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)


def quantization_args(rounding: InputRounding) -> QuantizationArgs:
    """Return the rounding as compressed-tensors' configuration has it (``input_activations``)."""
    strategy, dynamic = STRATEGIES[rounding.over]
    return {
        "num_bits": rounding.bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "dynamic": dynamic,
    }


def rounding_of(name: str, arguments: QuantizationArgs, scale: Tensor | None) -> InputRounding:
    """Return the rounding that the configuration's ``arguments`` and the layer's ``input_scale`` describe.

    Raises ValueError with the layer's ``name`` for what this bench never writes.
    """
    wanted = (arguments.get("strategy"), arguments.get("dynamic"))
    over = next((over for over, strategy in STRATEGIES.items() if strategy == wanted), None)
    is_supported = arguments.get("type") == "int" and arguments.get("symmetric")
    if over is None or not is_supported or (over == "static") != (scale is not None):
        raise ValueError(f"{name}: inputs quantized as {arguments} can't be emulated")
    return InputRounding(arguments["num_bits"], over, None if scale is None else float(scale))
